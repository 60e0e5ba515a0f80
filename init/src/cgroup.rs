//! Control groups, and the device filter that denies the TPM to all processes except trustd.
//!
//! trustd is alone in the group `/trustd`. All other processes (init, the other services, all
//! containers) are below the group `/node`. The filter is attached to `/node`, and the kernel
//! applies it to all groups below, in addition to filters of those groups.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use crate::error::{CgroupError, InitError};
use crate::sys;

/// Mount point of the control groups.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// Group of all processes that must not open the TPM.
const NODE: &str = "/sys/fs/cgroup/node";

const CONTROLLERS: &str = "+cpu +io +memory +pids";

/// Creates the groups, attaches the device filter, and verifies that it works.
pub(crate) fn prepare() -> Result<(), InitError> {
    for dir in
        ["/sys/fs/cgroup/trustd", NODE, "/sys/fs/cgroup/node/init", "/sys/fs/cgroup/node/modules"]
    {
        std::fs::create_dir(dir).map_err(InitError::io(format!("create {dir}")))?;
    }
    join("node/init")?;
    for dir in [ROOT, NODE] {
        let file = format!("{dir}/cgroup.subtree_control");
        std::fs::write(&file, CONTROLLERS).map_err(InitError::io(format!("write {file}")))?;
    }
    let device_number = |path: &str| {
        std::fs::metadata(path)
            .map(|m| m.rdev())
            .map_err(InitError::io(format!("read the device number of {path}")))
    };
    let (raw, managed) = (device_number("/dev/tpm0")?, device_number("/dev/tpmrm0")?);
    let raw = (nix::sys::stat::major(raw) as u32, nix::sys::stat::minor(raw) as u32);
    let group = File::open(NODE).map_err(InitError::io(format!("open {NODE}")))?;
    sys::attach_device_filter(&group, &device_filter(nix::sys::stat::major(managed) as u32, raw))
        .map_err(InitError::io("attach the device filter"))?;
    Ok(verify_tpm_denied()?)
}

/// Moves this process into a group.
pub(crate) fn join(group: &str) -> Result<(), InitError> {
    let file = format!("{ROOT}/{group}/cgroup.procs");
    std::fs::write(&file, "0").map_err(InitError::io(format!("write {file}")))
}

/// Kills all processes in a group and below it, also those of a frozen group, unless the group is
/// or contains that of a service.
pub(crate) fn kill_group(group: &str, services: &[&str]) -> Result<(), CgroupError> {
    check_killable(group, services)?;
    // Linux: Documentation/admin-guide/cgroup-v2.rst, "cgroup.kill" and "cgroup.freeze".
    let file = format!("{ROOT}/{group}/cgroup.kill");
    std::fs::write(&file, "1").map_err(|source| CgroupError::Io { path: file, source })
}

/// Reports whether there are processes in a group or below it. A group that does not exist has
/// none.
pub(crate) fn is_populated(group: &str) -> bool {
    // Linux: Documentation/admin-guide/cgroup-v2.rst, "cgroup.events".
    std::fs::read_to_string(format!("{ROOT}/{group}/cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// Checks that a group is neither that of a service nor contains one.
pub(crate) fn check_killable(group: &str, services: &[&str]) -> Result<(), CgroupError> {
    if group.split('/').any(|part| ["", ".", ".."].contains(&part)) {
        return Err(CgroupError::InvalidPath(group.to_owned()));
    }
    let contains = |service: &str| {
        service == group || service.strip_prefix(group).is_some_and(|rest| rest.starts_with('/'))
    };
    match services.iter().chain(&["node/init"]).find(|service| contains(service)) {
        Some(service) => Err(CgroupError::Protected((*service).to_owned())),
        None => Ok(()),
    }
}

/// Verifies that the device filter denies both TPM devices to this process.
pub(crate) fn verify_tpm_denied() -> Result<(), CgroupError> {
    for path in ["/dev/tpm0", "/dev/tpmrm0"] {
        match File::options().read(true).write(true).open(path) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(source) => return Err(CgroupError::UnexpectedError { path, source }),
            Ok(_) => return Err(CgroupError::TpmAccessible(path)),
        }
    }
    Ok(())
}

/// Returns the filter: a BPF program of the cgroup device type that returns 0 (deny) for the
/// character devices of the TPM and 1 (allow) for all other devices.
///
/// `major` is the major number of `/dev/tpmrm0`. It is reserved for TPM devices, including those of
/// a TPM that was unbound and bound again as `tpm1`. Only `/dev/tpm0` has a number of the
/// miscellaneous devices, which is `raw` (kernel: drivers/char/tpm/tpm-chip.c).
fn device_filter(major: u32, raw: (u32, u32)) -> Vec<u64> {
    // dst = *(u32 *)(src + offset)
    const LOAD: u8 = 0x61;
    const AND: u8 = 0x54;
    const JUMP_NE: u8 = 0x55;
    const JUMP_EQ: u8 = 0x15;
    const MOVE: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    const CHAR: i32 = 2;
    let ins = |code: u8, dst: u64, src: u64, offset: i16, value: i32| {
        u64::from(code)
            | dst << 8
            | src << 12
            | u64::from(offset as u16) << 16
            | u64::from(value as u32) << 32
    };
    vec![
        // r2 = type, r3 = major, r4 = minor of struct bpf_cgroup_dev_ctx.
        ins(LOAD, 2, 1, 0, 0),
        ins(AND, 2, 0, 0, 0xffff),
        ins(LOAD, 3, 1, 4, 0),
        ins(LOAD, 4, 1, 8, 0),
        ins(JUMP_NE, 2, 0, 3, CHAR),
        ins(JUMP_EQ, 3, 0, 4, major as i32),
        ins(JUMP_NE, 3, 0, 1, raw.0 as i32),
        ins(JUMP_EQ, 4, 0, 2, raw.1 as i32),
        ins(MOVE, 0, 0, 0, 1),
        ins(EXIT, 0, 0, 0, 0),
        ins(MOVE, 0, 0, 0, 0),
        ins(EXIT, 0, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::{check_killable, device_filter};

    #[test]
    fn groups_of_services_cannot_be_killed() {
        let services = ["trustd", "node/dockerd"];
        for group in ["default/x", "default/.x", "node/modules/abc", "node/dockerd2"] {
            assert!(check_killable(group, &services).is_ok(), "{group}");
        }
        for group in [
            "",
            "/",
            "trustd",
            "node",
            "node/init",
            "node/dockerd",
            "../x",
            "node/../trustd",
            "/trustd",
            "node//dockerd",
        ] {
            assert!(check_killable(group, &services).is_err(), "{group}");
        }
    }

    /// Interprets the instructions that the filter uses.
    fn run(program: &[u64], context: [u32; 3]) -> u32 {
        let mut r = [0u32; 5];
        let mut at = 0;
        loop {
            let i = program[at];
            let (dst, offset, value) =
                ((i >> 8 & 15) as usize, (i >> 16) as u16 as i16, (i >> 32) as u32);
            at += 1;
            let jump = match i as u8 {
                0x61 => {
                    r[dst] = context[offset as usize / 4];
                    false
                }
                0x54 => {
                    r[dst] &= value;
                    false
                }
                0xb7 => {
                    r[dst] = value;
                    false
                }
                0x55 => r[dst] != value,
                0x15 => r[dst] == value,
                0x95 => return r[0],
                code => panic!("unknown instruction {code:#x}"),
            };
            if jump {
                at = (at as i64 + i64::from(offset)) as usize;
            }
        }
    }

    #[test]
    fn the_filter_denies_all_device_numbers_of_the_tpm() {
        let program = device_filter(250, (10, 224));
        // Read and write.
        let access = 0x6 << 16;
        assert_eq!(run(&program, [access | 2, 10, 224]), 0, "tpm0");
        assert_eq!(run(&program, [access | 2, 250, 65536]), 0, "tpmrm0");
        assert_eq!(run(&program, [access | 2, 250, 1]), 0, "tpm1, after unbind and bind");
        assert_eq!(run(&program, [access | 2, 250, 65537]), 0, "tpmrm1");
        assert_eq!(run(&program, [access | 1, 10, 224]), 1, "a block device");
        assert_eq!(run(&program, [access | 1, 250, 1]), 1, "a block device");
        assert_eq!(run(&program, [access | 2, 10, 225]), 1);
        assert_eq!(run(&program, [access | 2, 1, 3]), 1, "/dev/null");
    }
}
