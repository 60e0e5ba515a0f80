//! Extends the boot events of `lib/measure` and writes the log beside them.

use std::io::Write as _;
use std::time::Duration;

use config::Boot;
use measure::{BootFacts, MODULES_PCR, PLATFORM_PCR, Record, boot_events, hex};

use crate::tpm::Tpm;
use crate::{Fatal, facts};

/// The platform's log; trustd appends nothing to it.
const LOG: &str = "/run/measure/platform.log";

pub(crate) fn measure(boot: &Boot) -> Result<(), Fatal> {
    let mut tpm = Tpm::open(Duration::from_secs(boot.tpm_wait_s))?;
    for pcr in [PLATFORM_PCR, MODULES_PCR] {
        let value = tpm.read(pcr)?;
        if value != [0; 32] {
            return Err(Fatal::State(format!("PCR {pcr} is not zero at start, somebody measured before init: expected 0, found {}", hex(&value))));
        }
    }
    let command_line = facts::command_line()?;
    let events = boot_events(&BootFacts {
        variant: &boot.variant,
        machine: &boot.machine,
        command_line: &command_line,
        device_tree: facts::device_tree()?,
        verity_root: &facts::verity_root(&command_line)?,
        init: facts::file("/proc/self/exe")?,
        trustd: facts::file(facts::TRUSTD)?,
        engine: facts::file("/usr/share/basalt/engine.list")?,
        configuration: facts::configuration()?,
    });
    crate::mounts::make_dir("/run/measure", 0o755, None)?;
    let mut log = std::fs::File::options().create_new(true).append(true).open(LOG).map_err(Fatal::io(format!("create {LOG}")))?;
    for (n, event) in events.iter().enumerate() {
        tpm.extend(event.pcr, &event.digest())?;
        log.write_all(Record::new(n as u64, event).line().as_bytes()).map_err(Fatal::io(format!("write {LOG}")))?;
    }
    Ok(())
}
