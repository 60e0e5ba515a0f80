//! PID 1 of a Basalt node.
//!
//! Invariants:
//! - Nothing is started before every boot event is in the TPM; any failure until then stops the
//!   node with one line.
//! - After the handover init extends nothing more and, like everything but trustd, cannot open the
//!   TPM.
//! - init never returns and reaps every child.
#![deny(unsafe_code)]

mod cgroup;
mod console;
mod control;
mod data;
mod facts;
mod launch;
mod measuring;
mod mounts;
mod service;
mod supervisor;
#[allow(unsafe_code)]
mod sys;
mod tpm;

use config::{Boot, Machine};

/// Why the node stops.
#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error("cannot {what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    #[error(transparent)]
    Tpm(#[from] tpm::TpmError),
    #[error("{0}")]
    State(String),
}

impl Fatal {
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

fn main() {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some("launch") {
        launch::run(args.next());
    }
    if std::process::id() != 1 {
        eprintln!("this is the first process of a Basalt node; it is started by the kernel only");
        std::process::exit(2);
    }
    match boot() {
        Ok(never) => match never {},
        Err(fatal) => {
            console::say(&format!("STOPPED: {fatal}"));
            sys::halt();
        }
    }
}

fn boot() -> Result<std::convert::Infallible, Fatal> {
    mounts::early()?;
    let text = std::fs::read_to_string("/etc/basalt/boot.toml")
        .map_err(Fatal::io("read /etc/basalt/boot.toml"))?;
    let boot: Boot = config::parse("/etc/basalt/boot.toml", &text)?;
    let command_line = facts::command_line()?;
    let machine = Machine::from_command_line(&command_line)?;
    console::say(&format!("Basalt {} ({} {})", boot.version, boot.variant, machine.name));
    let node = measuring::measure(&boot, &machine, &command_line)?;
    console::say("handover: the platform is measured");
    mounts::late(&node.hostname)?;
    data::mount(&machine)?;
    cgroup::prepare()?;
    supervisor::run(service::load()?)
}
