//! Confinement of a reader: it computes, and it uses the one connection that it inherited.
//!
//! Invariants:
//! - It has descriptor 0 and no other, and can get no other: no file, no socket, no process.
//! - It can make no memory executable, and send no signal except for SIGABRT to itself.

use landlock::{Access as _, AccessFs, AccessNet, RulesetAttr as _, Scope};
use nix::libc;
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};

use super::seccomp::{AllowList, Condition};
use super::{LANDLOCK_ABI, Landlock, SandboxError, failed_to};

/// Address space of a reader in bytes: the program and its libraries, a Zstandard window of 128 MiB
/// in the buffers of the decoder, and documents.
pub const MAX_READER_MEMORY_BYTES: u64 = 512 << 20;
/// Processor time of a reader in seconds. The largest allowed image takes less on the slowest board.
const MAX_CPU_S: u64 = 1800;
/// Absolute nice value. A reader gets about a tenth of the processor time of a process of normal
/// priority (sched(7), "The nice value").
const NICE: i32 = 10;
/// Largest number of a standard descriptor. 1 and 2 are closed: a message about exhausted memory
/// fails, and the signal that follows it tells the reason.
const LAST_STANDARD_FD: u64 = 2;

/// Confines the calling process, which must have one thread.
///
/// # Errors
/// The kernel refuses a step, or with [`Landlock::Required`] does not enforce every rule.
pub fn confine_reader(requirement: Landlock) -> Result<(), SandboxError> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(failed_to("set the signal for the end of trustd"))?;
    close_inherited().map_err(failed_to("close inherited descriptors"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(failed_to("forbid debuggers and core dumps"))?;
    rustix::process::setpriority_process(None, NICE).map_err(failed_to("set the priority"))?;
    let status = requirement
        .ruleset()
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))?
        .handle_access(AccessNet::from_all(LANDLOCK_ABI))?
        .scope(Scope::from_all(LANDLOCK_ABI))?
        .create()?
        .restrict_self()?;
    requirement.check(&status.ruleset)?;
    for (resource, limit) in [
        (Resource::As, MAX_READER_MEMORY_BYTES),
        (Resource::Core, 0),
        (Resource::Cpu, MAX_CPU_S),
        (Resource::Fsize, 0),
        (Resource::Nofile, 0),
        (Resource::Nproc, 0),
    ] {
        // At the soft limit of processor time the process gets SIGXCPU, which names the reason.
        let maximum = if matches!(resource, Resource::Cpu) { limit + 1 } else { limit };
        rustix::process::setrlimit(
            resource,
            Rlimit { current: Some(limit), maximum: Some(maximum) },
        )
        .map_err(failed_to("set the resource limits"))?;
    }
    allowed_calls()?.apply()
}

/// Closes every descriptor except for 0. Libraries in C can leave some open over execve(2).
fn close_inherited() -> std::io::Result<()> {
    let mut open = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    for fd in open.into_iter().filter(|fd| *fd != 0) {
        match nix::unistd::close(fd) {
            // The folder that was listed.
            Ok(()) | Err(nix::errno::Errno::EBADF) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn allowed_calls() -> Result<AllowList, SandboxError> {
    let standard = Condition::AtMost(0, LAST_STANDARD_FD);
    let not_executable = Condition::WithoutBits(2, libc::PROT_EXEC as u64);
    // abort(3) sends SIGABRT to its own thread.
    let to_itself = Condition::Is(0, u64::from(std::process::id()));
    let abort = Condition::Is(2, libc::SIGABRT as u64);
    let list = AllowList::default()
        .allow(&[
            libc::SYS_brk,
            libc::SYS_clock_gettime,
            libc::SYS_exit,
            libc::SYS_exit_group,
            libc::SYS_futex,
            libc::SYS_getpid,
            libc::SYS_getrandom,
            libc::SYS_gettid,
            libc::SYS_madvise,
            libc::SYS_mremap,
            libc::SYS_munmap,
            libc::SYS_restart_syscall,
            libc::SYS_rt_sigaction,
            libc::SYS_rt_sigprocmask,
            libc::SYS_rt_sigreturn,
            libc::SYS_sched_yield,
            libc::SYS_sigaltstack,
        ])
        .allow_if(libc::SYS_read, &[standard])?
        .allow_if(libc::SYS_readv, &[standard])?
        .allow_if(libc::SYS_write, &[standard])?
        .allow_if(libc::SYS_writev, &[standard])?
        .allow_if(libc::SYS_mmap, &[not_executable])?
        .allow_if(libc::SYS_mprotect, &[not_executable])?
        .allow_if(libc::SYS_tgkill, &[to_itself, abort])?;
    Ok(list)
}
