//! Control groups, and the filter that keeps everything but trustd away from the TPM.
//!
//! Layout: `/trustd` holds trustd alone; `/node` holds everything else (init, the other services,
//! all containers) and carries the filter, which the kernel applies to every group below it,
//! whatever filters those add themselves.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use crate::{Fatal, sys};

pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// The groups that may not open the TPM.
const NODE: &str = "/sys/fs/cgroup/node";

const CONTROLLERS: &str = "+cpu +io +memory +pids";

pub(crate) fn prepare() -> Result<(), Fatal> {
    for dir in
        ["/sys/fs/cgroup/trustd", NODE, "/sys/fs/cgroup/node/init", "/sys/fs/cgroup/node/modules"]
    {
        std::fs::create_dir(dir).map_err(Fatal::io(format!("make {dir}")))?;
    }
    join("node/init")?;
    for dir in [ROOT, NODE] {
        let file = format!("{dir}/cgroup.subtree_control");
        std::fs::write(&file, CONTROLLERS).map_err(Fatal::io(format!("write {file}")))?;
    }
    let number = |path: &str| {
        std::fs::metadata(path).map_err(Fatal::io(format!("look at {path}"))).map(|m| m.rdev())
    };
    let (raw, managed) = (number("/dev/tpm0")?, number("/dev/tpmrm0")?);
    let raw = (nix::sys::stat::major(raw) as u32, nix::sys::stat::minor(raw) as u32);
    let group = File::open(NODE).map_err(Fatal::io(format!("open {NODE}")))?;
    sys::attach_device_filter(&group, &deny(nix::sys::stat::major(managed) as u32, raw))
        .map_err(Fatal::io("attach the TPM's device filter"))?;
    prove_denied().map_err(Fatal::State)
}

/// Moves this process into a group.
pub(crate) fn join(group: &str) -> Result<(), Fatal> {
    let file = format!("{ROOT}/{group}/cgroup.procs");
    std::fs::write(&file, "0").map_err(Fatal::io(format!("write {file}")))
}

/// Kills every process in a group and below it. A service's group, and one that holds such a group,
/// is not to be had.
pub(crate) fn end(group: &str, services: &[&str]) -> Result<(), String> {
    may_end(group, services)?;
    // Linux: Documentation/admin-guide/cgroup-v2.rst, "cgroup.kill".
    let file = format!("{ROOT}/{group}/cgroup.kill");
    std::fs::write(&file, "1").map_err(|e| format!("{file}: {e}"))
}

fn may_end(group: &str, services: &[&str]) -> Result<(), String> {
    if group.split('/').any(|part| ["", ".", ".."].contains(&part)) {
        return Err("it is no group's path".into());
    }
    let holds = |service: &str| {
        service == group || service.strip_prefix(group).is_some_and(|rest| rest.starts_with('/'))
    };
    match services.iter().chain(&["node/init"]).find(|service| holds(service)) {
        Some(service) => Err(format!("it is or holds {service}")),
        None => Ok(()),
    }
}

/// Fails unless this process is refused both TPM devices.
pub(crate) fn prove_denied() -> Result<(), String> {
    for path in ["/dev/tpm0", "/dev/tpmrm0"] {
        match File::options().read(true).write(true).open(path) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            Err(error) => {
                return Err(format!(
                    "opening {path} should be denied by the device filter (EPERM), found: {error}"
                ));
            }
            Ok(_) => {
                return Err(format!(
                    "opening {path} should be denied by the device filter, and it can be opened"
                ));
            }
        }
    }
    Ok(())
}

/// The filter: a program of the cgroup device type that returns 0 for the TPM's character devices
/// and 1 for all others.
///
/// The major number of `/dev/tpmrm0` is the TPM's alone, and every further TPM's (one that was
/// unbound and bound again comes back as `tpm1`) are under it. Only `/dev/tpm0` has a number among
/// the miscellaneous devices (kernel: drivers/char/tpm/tpm-chip.c).
fn deny(major: u32, raw: (u32, u32)) -> Vec<u64> {
    const LOAD: u8 = 0x61; // dst = *(u32 *)(src + offset)
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
        // r2 = type, r3 = major, r4 = minor of struct bpf_cgroup_dev_ctx
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
    use super::{deny, may_end};

    #[test]
    fn no_services_group_is_ended() {
        let services = ["trustd", "node/dockerd"];
        for group in ["default/x", "default/.x", "node/modules/abc", "node/dockerd2"] {
            assert_eq!(may_end(group, &services), Ok(()), "{group}");
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
            assert!(may_end(group, &services).is_err(), "{group}");
        }
    }

    /// Interprets the few instructions that the filter uses.
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
    fn the_tpm_is_denied_under_every_number_it_can_have() {
        let program = deny(250, (10, 224));
        let access = 0x6 << 16; // read and write
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
