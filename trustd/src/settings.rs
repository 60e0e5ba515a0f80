//! Where things are: fixed on a node, elsewhere in tests.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use measure::{Event, NODE_SETTINGS, PLATFORM_PCR, Record};
use sha2::{Digest as _, Sha256};

#[derive(Debug, Clone)]
pub struct Settings {
    /// boot.toml, node.toml, modules/, ledger.jsonl of the image.
    pub etc: PathBuf,
    /// The owner's settings from the boot partition, where there are any.
    pub own: PathBuf,
    /// A log from the boot partition, where there is one: nobody vouches for it but its signatures.
    pub boot_log: PathBuf,
    /// Policies for the root key from the boot partition, where there are any: the TPM checks their
    /// signatures.
    pub policies: PathBuf,
    /// What lasts: ledger, keys, audit log, uploaded modules.
    pub data: PathBuf,
    /// What lasts until the next boot.
    pub run: PathBuf,
    /// One folder a module, mounted into its container.
    pub modules: PathBuf,
    /// init's log of the platform's events.
    pub platform_log: PathBuf,
    pub engine: PathBuf,
    pub init: PathBuf,
    pub tcti: String,
    /// Where the engine asks for leave: the socket of its authorization plugin.
    pub plugin: PathBuf,
    /// The control groups, to be searched for what runs without the engine's knowledge; and those
    /// that services have.
    pub groups: Option<PathBuf>,
    pub services: Vec<String>,
}

impl Settings {
    /// On a node.
    pub fn node() -> Self {
        Self {
            etc: "/etc/basalt".into(),
            own: "/run/config/node.toml".into(),
            boot_log: "/run/config/ledger.jsonl".into(),
            policies: "/run/config/policies.json".into(),
            data: "/data/trustd".into(),
            run: "/run/trustd".into(),
            modules: "/run/modules".into(),
            platform_log: "/run/measure/platform.log".into(),
            engine: "/run/engine/docker.sock".into(),
            init: "/run/control/init.sock".into(),
            tcti: "device:/dev/tpmrm0".into(),
            plugin: "/run/trustd/authz.sock".into(),
            groups: Some("/sys/fs/cgroup".into()),
            services: services(Path::new("/etc/basalt/services")),
        }
    }
}

/// The control groups that init gives its services (init/src/launch.rs), and its own.
fn services(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = names
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".toml").map(str::to_owned));
    // trustd is outside of what the TPM is denied to.
    let groups = names.map(|name| if name == "trustd" { name } else { format!("node/{name}") });
    groups.chain(["node/init".to_owned()]).collect()
}

/// The owner's settings from the boot partition, if there are any: those that init measured and no
/// others.
///
/// init leaves them under /run, where whoever is root can write; `platform` is the log that replays
/// to the TPM's register.
pub fn own(path: &Path, platform: &[Record]) -> Result<Option<String>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let digest = Sha256::digest(text.as_deref().unwrap_or_default().as_bytes()).into();
    let found = Event::of_digest(PLATFORM_PCR, NODE_SETTINGS, &digest);
    ensure!(
        platform.iter().any(|record| record.event() == found),
        "{} is not what was measured: this boot's event {NODE_SETTINGS} is of another file; restart the node",
        path.display()
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_measured_settings_are_gone_by() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        let log = |bytes: &[u8]| {
            vec![Record::new(
                0,
                &Event::of_digest(PLATFORM_PCR, NODE_SETTINGS, &Sha256::digest(bytes).into()),
            )]
        };
        assert_eq!(own(&path, &log(b"")).unwrap(), None);
        assert!(own(&path, &log(b"a")).is_err(), "taken away");
        std::fs::write(&path, "a").unwrap();
        assert_eq!(own(&path, &log(b"a")).unwrap().as_deref(), Some("a"));
        assert!(
            own(&path, &log(b"")).unwrap_err().to_string().contains("not what was measured"),
            "put there"
        );
        assert!(own(&path, &[]).is_err());
        assert!(
            own(dir.path(), &log(b"")).is_err(),
            "what cannot be read is not what is not there"
        );
    }
}
