//! The last steps before a service runs, in its own process: `basalt-init launch NAME`.
//!
//! Init runs itself a second time instead of code between fork and exec. This needs no unsafe code,
//! and every failure has a message.

use std::convert::Infallible;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use config::Service;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::cgroup;
use crate::error::InitError;

/// Limit of open files of a service. It is high, so that containers with many open files do not
/// starve trustd or the engine.
const MAX_OPEN_FILES: u64 = 65_536;

/// Exit code of a service that cannot be started, as in POSIX shells for a command that cannot be
/// executed.
const EXIT_CANNOT_EXECUTE: i32 = 126;

/// Returns the control group of a service.
pub(crate) fn group(name: &str, service: &Service) -> String {
    if service.tpm { name.to_owned() } else { format!("node/{name}") }
}

/// Replaces this process by the program of a service, or exits with an error.
pub(crate) fn run(name: Option<String>) -> ! {
    let Some(name) = name else {
        logging::error!("expected basalt-init launch NAME, found no name");
        std::process::exit(EXIT_CANNOT_EXECUTE)
    };
    match start(&name) {
        Ok(never) => match never {},
        Err(error) => logging::error!(target: &name, "not started: {}", logging::Chain(&error)),
    }
    std::process::exit(EXIT_CANNOT_EXECUTE)
}

fn start(name: &str) -> Result<Infallible, InitError> {
    let path = format!("/etc/basalt/services/{name}.toml");
    let text = std::fs::read_to_string(&path).map_err(InitError::io(format!("read {path}")))?;
    let service: Service = config::parse(&path, &text)?;
    cgroup::join(&group(name, &service))?;
    if !service.tpm {
        cgroup::verify_tpm_denied()?;
    }
    // Init blocks the signals that it reads from a descriptor. The service inherits the mask and
    // must receive them.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(InitError::io("reset the signal mask"))?;
    setrlimit(Resource::RLIMIT_NOFILE, MAX_OPEN_FILES, MAX_OPEN_FILES)
        .map_err(InitError::io("set the limit of open files"))?;
    nix::unistd::setsid().map_err(InitError::io("create a session"))?;
    let (program, args) = service.exec.split_first().ok_or_else(|| {
        InitError::State(format!("{path}: exec: expected a program, found an empty list"))
    })?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin")
        .env("HOME", "/")
        .envs(&service.environment)
        .current_dir("/");
    if let Some(id) = service.user {
        nix::sys::prctl::set_no_new_privs().map_err(InitError::io("set no_new_privs"))?;
        command.uid(id).gid(id);
    }
    Err(InitError::io(format!("execute {program}"))(command.exec()))
}
