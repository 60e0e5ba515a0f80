//! System calls that have no safe wrapper: the only unsafe code of this program.

use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// Request for the size of a block device (kernel: include/uapi/linux/fs.h).
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
/// Request for changes of partitions (kernel: include/uapi/linux/blkpg.h).
const BLKPG: libc::c_ulong = 0x1269;
const BLKPG_RESIZE_PARTITION: libc::c_int = 3;
/// Request for another size of an ext4 file system, `_IOW('f', 16, __u64)` (kernel:
/// fs/ext4/ext4.h).
const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_ATTACH: libc::c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

fn checked(result: libc::c_int) -> Result<()> {
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Returns the size of a block device in bytes.
pub(crate) fn block_size(device: &File) -> Result<u64> {
    let mut size = 0u64;
    // SAFETY: the request writes one u64 to the pointer, which is valid for the call.
    checked(unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64 as _, &raw mut size) })?;
    Ok(size)
}

#[repr(C)]
struct BlkpgPartition {
    start: libc::c_longlong,
    length: libc::c_longlong,
    number: libc::c_int,
    names: [u8; 128],
}

#[repr(C)]
struct BlkpgArgument {
    op: libc::c_int,
    flags: libc::c_int,
    length: libc::c_int,
    data: *mut BlkpgPartition,
}

/// Sets start and length (in bytes) of a partition in the kernel. The partition may be mounted.
pub(crate) fn resize_partition(disk: &File, number: u8, start: u64, length: u64) -> Result<()> {
    let mut partition = BlkpgPartition {
        start: start as _,
        length: length as _,
        number: number.into(),
        names: [0; 128],
    };
    let argument = BlkpgArgument {
        op: BLKPG_RESIZE_PARTITION,
        flags: 0,
        length: size_of::<BlkpgPartition>() as _,
        data: &raw mut partition,
    };
    // SAFETY: both structures have the kernel's layout and live until the call returns.
    checked(unsafe { libc::ioctl(disk.as_raw_fd(), BLKPG as _, &raw const argument) })
}

/// Grows a mounted ext4 file system to this number of blocks. It has no effect if the file system
/// is as large already.
pub(crate) fn ext4_grow(mount_point: &File, blocks: u64) -> Result<()> {
    // SAFETY: the request reads one u64 from the pointer, which is valid for the call.
    checked(unsafe {
        libc::ioctl(mount_point.as_raw_fd(), EXT4_IOC_RESIZE_FS as _, &raw const blocks)
    })
}

/// Brings the loopback interface up.
pub(crate) fn loopback_up() -> Result<()> {
    // SAFETY: no pointer is passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    checked(fd)?;
    // SAFETY: the descriptor is new, and only this value owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as _;
    request.ifr_name[1] = b'o' as _;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as _;
    // SAFETY: the request reads an ifreq from the pointer, which is valid for the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) })
}

#[repr(C)]
#[derive(Default)]
struct BpfLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct BpfAttach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads a cgroup device program (eight bytes per instruction) and attaches it to a control group
/// for the lifetime of the group.
pub(crate) fn attach_device_filter(cgroup: &File, program: &[u64]) -> Result<()> {
    let load = BpfLoad {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        ..BpfLoad::default()
    };
    // SAFETY: the structure has the kernel's layout (include/uapi/linux/bpf.h), and the data that
    // it points to lives until the call returns.
    let fd = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<BpfLoad>())
    };
    checked(fd as libc::c_int)?;
    // SAFETY: the descriptor is new, and only this value owns it.
    let loaded = unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) };
    let attach = BpfAttach {
        target: cgroup.as_raw_fd() as u32,
        program: loaded.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: the structure has the kernel's layout and lives until the call returns.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attach, size_of::<BpfAttach>())
    };
    checked(result as libc::c_int)
}

/// Halts the machine. The last line stays on the console.
pub(crate) fn halt() -> ! {
    let _ = nix::sys::reboot::reboot(nix::sys::reboot::RebootMode::RB_HALT_SYSTEM);
    loop {
        std::thread::park();
    }
}
