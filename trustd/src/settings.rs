//! Where things are: fixed on a node, elsewhere in tests.

use std::path::PathBuf;

#[derive(Debug, Clone)]
pub struct Settings {
    /// boot.toml, node.toml, modules/, ledger.jsonl of the image.
    pub etc: PathBuf,
    /// The owner's settings from the boot partition, where there are any.
    pub own: PathBuf,
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
}

impl Settings {
    /// On a node.
    pub fn node() -> Self {
        Self {
            etc: "/etc/basalt".into(),
            own: "/run/config/node.toml".into(),
            data: "/data/trustd".into(),
            run: "/run/trustd".into(),
            modules: "/run/modules".into(),
            platform_log: "/run/measure/platform.log".into(),
            engine: "/run/engine/docker.sock".into(),
            init: "/run/control/init.sock".into(),
            tcti: "device:/dev/tpmrm0".into(),
        }
    }
}
