//! Confinement of trustd itself: the files, devices and system calls that a node's trust engine
//! needs. docs/threat-model.md lists what is allowed.
//!
//! Invariants:
//! - The only programs that trustd can execute are itself, as a reader, and the dynamic linker.
//! - It writes below its own folders, and opens no device except for the TPM, random numbers and
//!   `/dev/null`.

use std::path::{Path, PathBuf};

use landlock::{
    Access as _, AccessFs, BitFlags, RulesetAttr as _, RulesetCreatedAttr as _, Scope,
    path_beneath_rules,
};
use nix::libc;

use super::seccomp::{AllowList, Condition, hide};
use super::{LANDLOCK_ABI, Landlock, SandboxError};
use crate::settings::Settings;

/// Folders that trustd and its libraries read.
const READABLE: [&str; 7] = ["/etc", "/lib", "/lib64", "/proc", "/run", "/sys", "/usr"];
/// Devices that do not belong to a board.
const DEVICES: [&str; 3] = ["/dev/null", "/dev/random", "/dev/urandom"];
/// Dynamic linkers, one of which the kernel executes with trustd.
const LINKERS: [&str; 2] = ["/lib/ld-linux-aarch64.so.1", "/lib64/ld-linux-x86-64.so.2"];
/// Prefix of the TCTI configuration of a TPM that is a device.
const DEVICE_TCTI: &str = "device:";

/// Confines the calling process, which must have one thread, to what trustd needs with these
/// settings.
///
/// # Errors
/// The kernel refuses a step, or with [`Landlock::Required`] does not enforce every rule.
pub fn confine_trustd(settings: &Settings, requirement: Landlock) -> Result<(), SandboxError> {
    let (read, execute) = (AccessFs::ReadFile | AccessFs::ReadDir, AccessFs::Execute);
    let readable = READABLE.iter().map(PathBuf::from).chain([settings.etc.clone()]);
    let writable = [&settings.data, &settings.run, &settings.modules];
    let tpm = settings.tcti.strip_prefix(DEVICE_TCTI).map(PathBuf::from);
    let devices = DEVICES.iter().map(PathBuf::from).chain(tpm);
    let programs =
        LINKERS.iter().map(PathBuf::from).chain([resolve_program(&settings.reader_program)]);
    let device_access: BitFlags<AccessFs> =
        AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    // A device node is no folder and can be created by none of these rights.
    let folder_access = AccessFs::from_all(LANDLOCK_ABI)
        & !(execute
            | AccessFs::MakeChar
            | AccessFs::MakeBlock
            | AccessFs::MakeSym
            | AccessFs::IoctlDev);
    // Paths that do not exist get no rule: what is created there later stays out of reach, except
    // below a folder that has a rule.
    let status = requirement
        .ruleset()
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .scope(Scope::from_all(LANDLOCK_ABI))?
        .create()?
        .add_rules(path_beneath_rules(readable, read))?
        .add_rules(path_beneath_rules(writable, folder_access))?
        .add_rules(path_beneath_rules(devices, device_access))?
        .add_rules(path_beneath_rules(programs, execute | AccessFs::ReadFile))?
        .restrict_self()?;
    requirement.check(&status.ruleset)?;
    // The flags of clone3 are in memory, where a filter cannot see them. Without it, the C library
    // uses clone, whose flags are arguments. Of two filters, the stricter answer counts.
    hide(&[libc::SYS_clone3])?;
    allowed_calls()?.apply()
}

/// Returns the file behind `/proc/self/exe`, which Landlock cannot follow.
fn resolve_program(program: &Path) -> PathBuf {
    std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned())
}

fn allowed_calls() -> Result<AllowList, SandboxError> {
    let namespaces = libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWUTS;
    let mut list = AllowList::default()
        .allow(&FILES)
        .allow(&MEMORY_AND_THREADS)
        .allow(&PROCESSES)
        .allow(&EVENTS_AND_TIME)
        .allow(&SOCKETS)
        .allow(&LEGACY)
        .allow(&[libc::SYS_clone3])
        .allow_if(libc::SYS_clone, &[Condition::WithoutBits(0, namespaces as u64)])?
        .allow_if(libc::SYS_socketpair, &[Condition::Is(0, libc::AF_UNIX as u64)])?;
    // The C library asks the kernel for its own addresses when it resolves a name (AF_NETLINK,
    // NETLINK_ROUTE).
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
        list = list.allow_if(libc::SYS_socket, &[Condition::Is(0, family as u64)])?;
    }
    let netlink =
        [Condition::Is(0, libc::AF_NETLINK as u64), Condition::Is(2, libc::NETLINK_ROUTE as u64)];
    Ok(list.allow_if(libc::SYS_socket, &netlink)?)
}

/// Files and descriptors. Landlock decides which files.
const FILES: [i64; 53] = [
    libc::SYS_chdir,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fcntl,
    libc::SYS_fdatasync,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readahead,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_syncfs,
    libc::SYS_tee,
    libc::SYS_truncate,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_vmsplice,
    libc::SYS_write,
    libc::SYS_writev,
];

const MEMORY_AND_THREADS: [i64; 25] = [
    libc::SYS_brk,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_mincore,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munlock,
    libc::SYS_munmap,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    // A thread names itself, a reader drops its privileges.
    libc::SYS_prctl,
];

/// Processes: what starts and confines a reader, and ends it.
const PROCESSES: [i64; 40] = [
    libc::SYS_capget,
    libc::SYS_execve,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getpriority,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_kill,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_prlimit64,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_seccomp,
    libc::SYS_setpriority,
    libc::SYS_sigaltstack,
    libc::SYS_sysinfo,
    libc::SYS_tgkill,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_wait4,
    libc::SYS_waitid,
];

const EVENTS_AND_TIME: [i64; 15] = [
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
];

/// Sockets of the families that [`allowed_calls`] lists.
const SOCKETS: [i64; 16] = [
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
];

/// Older forms of the above, which the C library uses.
#[cfg(target_arch = "x86_64")]
const LEGACY: [i64; 23] = [
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getdents,
    libc::SYS_getrlimit,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_time,
    libc::SYS_unlink,
];
/// `renameat`, which the crate libc does not list (Linux, asm-generic/unistd.h).
#[cfg(not(target_arch = "x86_64"))]
const LEGACY: [i64; 1] = [38];
