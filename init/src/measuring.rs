//! Extends the boot events of `lib/measure` and writes the log beside them.

use std::io::{Read, Write};
use std::time::Duration;

use config::Boot;
use measure::{BootFacts, Event, MODULES_PCR, PLATFORM_PCR, Record, boot_events, hex};

use crate::tpm::Tpm;
use crate::{Fatal, facts};

/// The platform's log; trustd appends nothing to it.
const LOG: &str = "/run/measure/platform.log";

pub(crate) fn measure(boot: &Boot) -> Result<(), Fatal> {
    let mut tpm = Tpm::open(Duration::from_secs(boot.tpm_wait_s))?;
    untouched(&mut tpm)?;
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
    extend(&mut tpm, &events, &mut log)
}

/// Nobody measured before init: what is in the registers then would be unexplained.
fn untouched(tpm: &mut Tpm<impl Read + Write>) -> Result<(), Fatal> {
    for pcr in [PLATFORM_PCR, MODULES_PCR] {
        let value = tpm.read(pcr)?;
        if value != [0; 32] {
            return Err(Fatal::State(format!(
                "PCR {pcr} is not zero at start, somebody measured before init: expected 0, found {}; switch the node off and on",
                hex(&value)
            )));
        }
    }
    Ok(())
}

/// Every event is extended, then logged; the first failure ends it.
fn extend(tpm: &mut Tpm<impl Read + Write>, events: &[Event], log: &mut impl Write) -> Result<(), Fatal> {
    for (n, event) in events.iter().enumerate() {
        tpm.extend(event.pcr, &event.digest())?;
        log.write_all(Record::new(n as u64, event).line().as_bytes()).map_err(Fatal::io(format!("write {LOG}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::tests::Swtpm;
    use measure::{parse_log, replay};

    fn events() -> Vec<Event> {
        vec![Event::new(PLATFORM_PCR, "one", "1"), Event::new(PLATFORM_PCR, "two", "2"), Event::new(MODULES_PCR, "handover", "")]
    }

    #[test]
    fn what_is_extended_is_what_the_log_replays_to() {
        let swtpm = Swtpm::start();
        let mut tpm = swtpm.connect();
        untouched(&mut tpm).unwrap();
        let mut log = Vec::new();
        extend(&mut tpm, &events(), &mut log).unwrap();
        let replayed = replay(&parse_log(&String::from_utf8(log).unwrap(), 0).unwrap()).unwrap();
        for pcr in [PLATFORM_PCR, MODULES_PCR] {
            assert_eq!(tpm.read(pcr).unwrap(), replayed[&pcr].0);
        }
    }

    #[test]
    fn a_register_that_is_not_zero_stops_the_node() {
        for pcr in [PLATFORM_PCR, MODULES_PCR] {
            let swtpm = Swtpm::start();
            let mut tpm = swtpm.connect();
            tpm.extend(pcr, &[1; 32]).unwrap();
            let said = untouched(&mut tpm).unwrap_err().to_string();
            assert!(said.contains(&format!("PCR {pcr} is not zero")), "{said}");
        }
    }

    #[test]
    fn an_extend_that_fails_ends_it_and_is_not_logged() {
        let swtpm = Swtpm::start();
        let mut tpm = swtpm.connect();
        let mut log = Vec::new();
        // There is no PCR 99: the TPM refuses.
        let events = [Event::new(PLATFORM_PCR, "one", ""), Event::new(99, "two", ""), Event::new(PLATFORM_PCR, "three", "")];
        let said = extend(&mut tpm, &events, &mut log).unwrap_err().to_string();
        assert!(said.contains("refused PCR_Extend"), "{said}");
        assert_eq!(String::from_utf8(log).unwrap().lines().count(), 1);
    }
}
