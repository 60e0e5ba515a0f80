//! The last steps before a service runs, in its own process: `init launch NAME`.
//!
//! A second start of this program instead of code between fork and exec: no unsafe, and every
//! failure has a message.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use config::Service;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};

use crate::cgroup;

const OPEN_FILES: u64 = 65_536;

/// The control group of a service.
pub(crate) fn group(name: &str, service: &Service) -> String {
    if service.tpm { name.to_owned() } else { format!("node/{name}") }
}

pub(crate) fn run(name: Option<String>) -> ! {
    let problem =
        match name.ok_or_else(|| "no service named".to_owned()).and_then(|name| start(&name)) {
            Err(problem) => problem,
            Ok(never) => match never {},
        };
    eprintln!("not started: {problem}");
    std::process::exit(126)
}

fn start(name: &str) -> Result<std::convert::Infallible, String> {
    let path = format!("/etc/basalt/services/{name}.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
    let service: Service = config::parse(&path, &text).map_err(|e| e.to_string())?;
    cgroup::join(&group(name, &service)).map_err(|e| e.to_string())?;
    if !service.tpm {
        cgroup::prove_denied()?;
    }
    // init waits for signals with a descriptor and so blocks them; a service wants them.
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
        .map_err(|e| format!("signal mask: {e}"))?;
    // What a container may hold open must not be what trustd or the engine lack.
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES)
        .map_err(|e| format!("limit of open files: {e}"))?;
    nix::unistd::setsid().map_err(|e| format!("new session: {e}"))?;
    let (program, args) =
        service.exec.split_first().ok_or_else(|| format!("{path}: exec is empty"))?;
    let mut command = Command::new(program);
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin")
        .env("HOME", "/")
        .envs(&service.environment)
        .current_dir("/");
    if let Some(id) = service.user {
        nix::sys::prctl::set_no_new_privs().map_err(|e| format!("no_new_privs: {e}"))?;
        command.uid(id).gid(id);
    }
    Err(format!("{program}: {}", command.exec()))
}
