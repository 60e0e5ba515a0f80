//! The measured boot: extends the boot events of `lib/measure` into the TPM and writes their log.

use std::io::{Read, Write};
use std::time::Duration;

use config::{Boot, Machine, Node};
use measure::{BootComponents, Event, MODULES_PCR, PLATFORM_PCR, Record, boot_events, hex};
use sha2::{Digest as _, Sha256};

use crate::error::InitError;
use crate::measurements;
use crate::tpm::Tpm;

/// Log of the boot events. No other program appends to it.
const LOG: &str = "/run/measure/platform.log";

/// Folder with the files of the boot partition for netd and trustd.
const CONFIG_DIR: &str = "/run/config";
/// Settings of the node.
const SETTINGS: &str = "/run/config/node.toml";
/// Log of approvals.
const LEDGER: &str = "/run/config/ledger.jsonl";
/// Policies for the root key.
const POLICIES: &str = "/run/config/policies.json";

/// Number of the boot partition.
const BOOT_PARTITION: u8 = 1;

/// Measures the platform and returns the settings of the node, which are then measured too.
pub(crate) fn measure(
    boot: &Boot,
    machine: &Machine,
    command_line: &str,
) -> Result<Node, InitError> {
    measurements::check_partition_table(&machine.disk)?;
    let partition = machine.partition(BOOT_PARTITION);
    // The boot partition and trustd are the largest part of the data. They are read concurrently
    // with the rest and with the wait for the TPM.
    let (mut tpm, events, boot_files) = std::thread::scope(|scope| {
        let boot_partition = scope.spawn(|| measurements::read_boot_partition(&partition));
        let trustd = scope.spawn(|| measurements::file_digest(measurements::TRUSTD));
        let mut tpm = Tpm::open(Duration::from_secs(machine.tpm_wait_s))?;
        require_reset_pcrs(&mut tpm)?;
        let (device_tree, verity_root) =
            (measurements::device_tree_digest()?, measurements::verity_root(command_line)?);
        let (init, engine) = (
            measurements::file_digest("/proc/self/exe")?,
            measurements::file_digest("/usr/share/basalt/engine.list")?,
        );
        let (configuration, trustd, boot_partition) =
            (measurements::configuration_digest()?, join(trustd)?, join(boot_partition)?);
        let events = boot_events(&BootComponents {
            variant: &boot.variant,
            machine: &machine.name,
            command_line,
            device_tree,
            verity_root: &verity_root,
            init,
            engine,
            configuration,
            trustd,
            boot_partition: boot_partition.files_digest,
            node_settings: Sha256::digest(boot_partition.settings.as_deref().unwrap_or_default())
                .into(),
        });
        Ok::<_, InitError>((tpm, events, boot_partition))
    })?;
    // An invalid file stops the boot before anything is extended.
    let node = load_settings(boot_files.settings)?;
    for (path, bytes) in [(LEDGER, boot_files.ledger), (POLICIES, boot_files.policies)] {
        bytes.map_or(Ok(()), |bytes| write_config(path, &bytes))?;
    }
    crate::mounts::make_dir("/run/measure", 0o755, None)?;
    let mut log = std::fs::File::options()
        .create_new(true)
        .append(true)
        .open(LOG)
        .map_err(InitError::io(format!("create {LOG}")))?;
    extend(&mut tpm, &events, &mut log)?;
    Ok(node)
}

/// Applies the settings of the boot partition to those of the image, and writes them to /run for
/// the services.
fn load_settings(settings: Option<Vec<u8>>) -> Result<Node, InitError> {
    let settings = settings.map(String::from_utf8).transpose();
    let settings = settings.map_err(|e| {
        InitError::State(format!("node.toml on the boot partition is not UTF-8: {e}"))
    })?;
    let image = std::fs::read_to_string("/etc/basalt/node.toml")
        .map_err(InitError::io("read /etc/basalt/node.toml"))?;
    let node = config::parse_node(&image, settings.as_deref())?;
    if let Some(settings) = settings {
        write_config(SETTINGS, settings.as_bytes())?;
    }
    Ok(node)
}

fn write_config(path: &str, bytes: &[u8]) -> Result<(), InitError> {
    crate::mounts::make_dir(CONFIG_DIR, 0o755, None)?;
    std::fs::write(path, bytes).map_err(InitError::io(format!("write {path}")))
}

/// Waits for a thread and returns its result.
fn join<T>(
    thread: std::thread::ScopedJoinHandle<'_, Result<T, InitError>>,
) -> Result<T, InitError> {
    thread.join().unwrap_or_else(|_| {
        Err(InitError::State("a thread that reads measured files panicked".into()))
    })
}

/// Requires that the PCRs still have their reset value. Events that were extended before init would
/// not be in the log.
fn require_reset_pcrs(tpm: &mut Tpm<impl Read + Write>) -> Result<(), InitError> {
    for pcr in [PLATFORM_PCR, MODULES_PCR] {
        let value = tpm.read(pcr)?;
        if value != [0; 32] {
            return Err(InitError::State(format!(
                "PCR {pcr} is not zero, other software extended it before init: expected 0, \
                 found {}; switch the node off and on",
                hex(&value)
            )));
        }
    }
    Ok(())
}

/// Extends and then logs each event. The first failure ends the boot.
fn extend(
    tpm: &mut Tpm<impl Read + Write>,
    events: &[Event],
    log: &mut impl Write,
) -> Result<(), InitError> {
    for (n, event) in events.iter().enumerate() {
        tpm.extend(event.pcr, &event.digest())?;
        log.write_all(Record::new(n as u64, event).line().as_bytes())
            .map_err(InitError::io(format!("write {LOG}")))?;
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
    fn the_log_replays_to_the_extended_values() {
        let swtpm = Swtpm::start();
        let mut tpm = swtpm.connect();
        require_reset_pcrs(&mut tpm).unwrap();
        let mut log = Vec::new();
        extend(&mut tpm, &events(), &mut log).unwrap();
        let replayed = replay(&parse_log(&String::from_utf8(log).unwrap(), 0).unwrap()).unwrap();
        for pcr in [PLATFORM_PCR, MODULES_PCR] {
            assert_eq!(tpm.read(pcr).unwrap(), replayed[&pcr].0);
        }
    }

    #[test]
    fn a_pcr_that_is_not_zero_stops_the_boot() {
        for pcr in [PLATFORM_PCR, MODULES_PCR] {
            let swtpm = Swtpm::start();
            let mut tpm = swtpm.connect();
            tpm.extend(pcr, &[1; 32]).unwrap();
            let error = require_reset_pcrs(&mut tpm).unwrap_err().to_string();
            assert!(error.contains(&format!("PCR {pcr} is not zero")), "{error}");
        }
    }

    #[test]
    fn an_event_that_cannot_be_extended_is_not_logged_and_ends_the_boot() {
        let swtpm = Swtpm::start();
        let mut tpm = swtpm.connect();
        let mut log = Vec::new();
        // There is no PCR 99, so the TPM rejects the command.
        let events = [
            Event::new(PLATFORM_PCR, "one", ""),
            Event::new(99, "two", ""),
            Event::new(PLATFORM_PCR, "three", ""),
        ];
        let error = extend(&mut tpm, &events, &mut log).unwrap_err().to_string();
        assert!(error.contains("rejected PCR_Extend"), "{error}");
        assert_eq!(String::from_utf8(log).unwrap().lines().count(), 1);
    }
}
