//! Locations of files and sockets: fixed on a node, chosen by tests elsewhere.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use measure::{Event, NODE_SETTINGS, PLATFORM_PCR, Record};
use sha2::{Digest as _, Sha256};

use crate::sandbox::Landlock;

/// Locations of everything that trustd reads, writes and connects to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Folder of the image's settings: boot.toml, node.toml, modules/, ledger.jsonl.
    pub etc: PathBuf,
    /// Settings of the node from the boot partition, if there are any.
    pub owner_settings: PathBuf,
    /// Log from the boot partition, if there is one. Only its signatures vouch for it.
    pub boot_log: PathBuf,
    /// Policies for the root key from the boot partition, if there are any. The TPM verifies their
    /// signatures.
    pub policies: PathBuf,
    /// Folder with data that outlives boots: ledger, keys, audit log, specs, images.
    pub data: PathBuf,
    /// Folder with data that lasts until the next boot.
    pub run: PathBuf,
    /// Folder with one folder per module, which is mounted into the module's container.
    pub modules: PathBuf,
    /// init's log of the platform's events.
    pub platform_log: PathBuf,
    /// Socket of the engine's API.
    pub engine_socket: PathBuf,
    /// Socket of init.
    pub init_socket: PathBuf,
    /// TCTI configuration of the TPM.
    pub tcti: String,
    /// Socket of the engine's authorization plugin, which trustd serves.
    pub plugin_socket: PathBuf,
    /// Root of the control groups, which is searched for processes that the engine does not know.
    pub cgroup_root: Option<PathBuf>,
    /// Control groups of the services, relative to the root.
    pub service_cgroups: Vec<String>,
    /// Program of the readers of images: trustd itself.
    pub reader_program: PathBuf,
    /// Requirement on the kernel's Landlock.
    pub landlock: Landlock,
}

impl Settings {
    /// Returns the locations on a node.
    pub fn on_node() -> Self {
        Self {
            etc: "/etc/basalt".into(),
            owner_settings: "/run/config/node.toml".into(),
            boot_log: "/run/config/ledger.jsonl".into(),
            policies: "/run/config/policies.json".into(),
            data: "/data/trustd".into(),
            run: "/run/trustd".into(),
            modules: "/run/modules".into(),
            platform_log: "/run/measure/platform.log".into(),
            engine_socket: "/run/engine/docker.sock".into(),
            init_socket: "/run/control/init.sock".into(),
            tcti: "device:/dev/tpmrm0".into(),
            plugin_socket: "/run/trustd/authz.sock".into(),
            cgroup_root: Some("/sys/fs/cgroup".into()),
            service_cgroups: list_service_cgroups(Path::new("/etc/basalt/services")),
            reader_program: "/proc/self/exe".into(),
            landlock: Landlock::Required,
        }
    }
}

/// Returns the control groups that init gives to its services (init/src/launch.rs), and its own.
fn list_service_cgroups(services: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(services).into_iter().flatten().flatten();
    let names = entries
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned));
    // trustd is outside of `node`, below which the TPM is denied.
    let groups = names.map(|name| if name == "trustd" { name } else { format!("node/{name}") });
    groups.chain(["node/init".to_owned()]).collect()
}

/// Returns the settings of the node from the boot partition, or `None` if there are none. Rejects
/// settings that init did not measure, because root can write to the file under /run. `platform`
/// is the log that replays to the TPM's register.
///
/// # Errors
/// Fails if the file cannot be read, or if its content is not the measured one.
pub fn read_owner_settings(path: &Path, platform: &[Record]) -> Result<Option<String>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let digest = Sha256::digest(text.as_deref().unwrap_or_default().as_bytes()).into();
    let expected = Event::from_digest(PLATFORM_PCR, NODE_SETTINGS, &digest);
    ensure!(
        platform.iter().any(|record| record.event() == expected),
        "{} was changed after it was measured: this boot's event {NODE_SETTINGS} has the digest of \
         other content; reboot the node",
        path.display()
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_measured_settings_are_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        let log = |bytes: &[u8]| {
            let digest = Sha256::digest(bytes).into();
            vec![Record::new(0, &Event::from_digest(PLATFORM_PCR, NODE_SETTINGS, &digest))]
        };
        let read = |platform: &[Record]| read_owner_settings(&path, platform);
        assert_eq!(read(&log(b"")).unwrap(), None);
        assert!(read(&log(b"a")).is_err(), "the file was removed");
        std::fs::write(&path, "a").unwrap();
        assert_eq!(read(&log(b"a")).unwrap().as_deref(), Some("a"));
        let error = read(&log(b"")).unwrap_err().to_string();
        assert!(error.contains("was changed after it was measured"), "{error}");
        assert!(read(&[]).is_err(), "nothing was measured");
        let unreadable = read_owner_settings(dir.path(), &log(b""));
        assert!(unreadable.is_err(), "a file that cannot be read does not count as absent");
    }
}
