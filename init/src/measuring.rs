//! Extends the boot events of `lib/measure` and writes the log beside them.

use std::io::{Read, Write};
use std::time::Duration;

use config::{Boot, Machine, Node};
use measure::{BootFacts, Event, MODULES_PCR, PLATFORM_PCR, Record, boot_events, hex};
use sha2::{Digest as _, Sha256};

use crate::tpm::Tpm;
use crate::{Fatal, facts};

/// The platform's log; trustd appends nothing to it.
const LOG: &str = "/run/measure/platform.log";

/// What was on the boot partition, for netd and trustd: the owner's settings, a log of approvals,
/// policies for the root key.
const CONFIG: &str = "/run/config";
const SETTINGS: &str = "/run/config/node.toml";
const LEDGER: &str = "/run/config/ledger.jsonl";
const POLICIES: &str = "/run/config/policies.json";

/// Of the partitions, the firmware's.
const BOOT: u8 = 1;

/// Answers what the node's own settings say, which by then are measured.
pub(crate) fn measure(boot: &Boot, machine: &Machine, command_line: &str) -> Result<Node, Fatal> {
    facts::partitions(&machine.disk)?;
    let partition = machine.partition(BOOT);
    // The larger part of the reading, beside the rest and beside the wait for the TPM.
    let (mut tpm, events, found) = std::thread::scope(|scope| {
        let boot_partition = scope.spawn(|| facts::boot_partition(&partition));
        let trustd = scope.spawn(|| facts::file(facts::TRUSTD));
        let mut tpm = Tpm::open(Duration::from_secs(machine.tpm_wait_s))?;
        untouched(&mut tpm)?;
        let (device_tree, verity_root) = (facts::device_tree()?, facts::verity_root(command_line)?);
        let (init, engine) =
            (facts::file("/proc/self/exe")?, facts::file("/usr/share/basalt/engine.list")?);
        let (configuration, trustd, boot_partition) =
            (facts::configuration()?, joined(trustd)?, joined(boot_partition)?);
        let events = boot_events(&BootFacts {
            variant: &boot.variant,
            machine: &machine.name,
            command_line,
            device_tree,
            verity_root: &verity_root,
            init,
            engine,
            configuration,
            trustd,
            boot_partition: boot_partition.files,
            node_settings: Sha256::digest(boot_partition.settings.as_deref().unwrap_or_default())
                .into(),
        });
        Ok::<_, Fatal>((tpm, events, boot_partition))
    })?;
    // A file that nobody can go by stops the node before it says what it is.
    let node = go_by(found.settings)?;
    for (path, bytes) in [(LEDGER, found.ledger), (POLICIES, found.policies)] {
        bytes.map_or(Ok(()), |bytes| hand_over(path, &bytes))?;
    }
    crate::mounts::make_dir("/run/measure", 0o755, None)?;
    let mut log = std::fs::File::options()
        .create_new(true)
        .append(true)
        .open(LOG)
        .map_err(Fatal::io(format!("create {LOG}")))?;
    extend(&mut tpm, &events, &mut log)?;
    Ok(node)
}

/// What the node goes by from here on; services find what the boot partition said under /run.
fn go_by(settings: Option<Vec<u8>>) -> Result<Node, Fatal> {
    let settings = settings.map(String::from_utf8).transpose();
    let settings = settings
        .map_err(|e| Fatal::State(format!("node.toml on the boot partition is not UTF-8: {e}")))?;
    let image = std::fs::read_to_string("/etc/basalt/node.toml")
        .map_err(Fatal::io("read /etc/basalt/node.toml"))?;
    let node = config::node(&image, settings.as_deref())?;
    if let Some(settings) = settings {
        hand_over(SETTINGS, settings.as_bytes())?;
    }
    Ok(node)
}

fn hand_over(path: &str, bytes: &[u8]) -> Result<(), Fatal> {
    crate::mounts::make_dir(CONFIG, 0o755, None)?;
    std::fs::write(path, bytes).map_err(Fatal::io(format!("write {path}")))
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T, Fatal>>) -> Result<T, Fatal> {
    thread.join().unwrap_or_else(|_| {
        Err(Fatal::State("a thread that reads for a measurement panicked".into()))
    })
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
fn extend(
    tpm: &mut Tpm<impl Read + Write>,
    events: &[Event],
    log: &mut impl Write,
) -> Result<(), Fatal> {
    for (n, event) in events.iter().enumerate() {
        tpm.extend(event.pcr, &event.digest())?;
        log.write_all(Record::new(n as u64, event).line().as_bytes())
            .map_err(Fatal::io(format!("write {LOG}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::tests::Swtpm;
    use measure::{parse_log, replay};

    fn events() -> Vec<Event> {
        vec![
            Event::new(PLATFORM_PCR, "one", "1"),
            Event::new(PLATFORM_PCR, "two", "2"),
            Event::new(MODULES_PCR, "handover", ""),
        ]
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
        let events = [
            Event::new(PLATFORM_PCR, "one", ""),
            Event::new(99, "two", ""),
            Event::new(PLATFORM_PCR, "three", ""),
        ];
        let said = extend(&mut tpm, &events, &mut log).unwrap_err().to_string();
        assert!(said.contains("refused PCR_Extend"), "{said}");
        assert_eq!(String::from_utf8(log).unwrap().lines().count(), 1);
    }
}
