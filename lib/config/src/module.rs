//! `/etc/basalt/modules/NAME.toml`: containers that the node runs.

use serde::{Deserialize, Serialize};

use crate::error::{check_distinct, check_range};
use crate::{ConfigProblem, Image, ImageBuild, ImageSource, InvalidValue};

/// `/etc/basalt/modules/NAME.toml`: a container that the node runs once its image is approved.
///
/// Everything that the file does not mention is denied: there is no key for privileges, devices,
/// host paths or host namespaces.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", try_from = "RawModule", into = "RawModule")]
pub struct Module {
    /// Image of the container.
    pub image: Image,
    /// Arguments that replace the image's command.
    pub command: Vec<String>,
    /// Variables `NAME=VALUE` that are added to the environment.
    pub environment: Vec<String>,
    /// Network of the container.
    pub network: Network,
    /// Modules that share a network with this module, one network for each pair. Both modules must
    /// name each other.
    pub peers: Vec<String>,
    /// Ports of the node that are forwarded to the module.
    pub ports: Vec<Port>,
    /// Persistent folders.
    pub volumes: Vec<Volume>,
    /// Memory limit in MiB.
    pub memory_mib: u64,
    /// Processor limit in percent of one core: 150 is one and a half cores.
    pub cpu_percent: u32,
    /// Greatest number of processes and threads.
    pub pids: u32,
    /// Health check.
    pub health: Health,
    /// Modules that must run and be healthy before this module is started.
    pub needs: Vec<String>,
    /// Time in seconds between the request to stop and the kill.
    pub stop_within_s: u32,
    /// Calls that the module may make on its socket.
    pub access: Access,
}

/// Calls that a module may make on its socket, and their rate.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Access {
    /// Allowed groups of calls, sorted.
    pub crypto: Vec<CryptoUse>,
    /// Identity that the module's keys are derived from.
    pub keys_bound_to: KeyBinding,
    /// Rate limits.
    pub quota: Quota,
}

/// Identity that a module's keys are derived from, which decides whether an upgrade keeps them.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum KeyBinding {
    /// Name of the module and the ledger's approvers. All approved images of this name have the
    /// same keys.
    #[default]
    Approvers,
    /// Name of the module and the digest of its image. Every image has keys of its own.
    Image,
}

/// Rate limits of a module's calls. The limits hold on average: four seconds' worth of calls may
/// come at once. Each call of a batch counts.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Quota {
    /// Calls in a second.
    pub calls_per_s: u32,
    /// Calls in a second that use the TPM.
    pub tpm_calls_per_s: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { calls_per_s: 1000, tpm_calls_per_s: 4 }
    }
}

/// Network of a module.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// No network at all.
    None,
    /// A bridge that only this module is attached to, with access to the outside.
    Bridge,
}

/// Port of the node that is forwarded to the module.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Port {
    /// Port number on the node.
    pub node: u16,
    /// Port number in the container.
    pub module: u16,
    /// Transport protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Transmission Control Protocol.
    #[default]
    Tcp,
    /// User Datagram Protocol.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Persistent folder of a module. trustd chooses its place on the node.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Volume {
    /// Name of the volume, unique in the module.
    pub name: String,
    /// Mount point in the container.
    pub path: String,
}

/// Health check of a module.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Health {
    /// Command that is run in the container. The module is healthy once it exits with 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// TCP port of the module. The module is healthy once it accepts a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Time in seconds after which a running module without command and port counts as healthy.
    pub stays_s: u32,
    /// Time in seconds from the start within which the module must become healthy. An upgrade that
    /// fails to is rolled back.
    pub within_s: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { command: Vec::new(), port: None, stays_s: 3, within_s: 60 }
    }
}

/// Group of calls that a module may make.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum CryptoUse {
    /// VRF proofs with the module's keys, verification with any key, and TPM statements about the
    /// module's keys.
    Vrf,
    /// Random bytes.
    Random,
    /// Hashes.
    Hash,
    /// HMACs with the module's keys.
    Hmac,
    /// Signatures with the module's keys, and verification with any key.
    Sign,
    /// Secrets that only this module on this node can unseal.
    Seal,
    /// Quotes of the node's TPM.
    Quote,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawModule {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    command: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    environment: Vec<String>,
    #[serde(default = "default_network")]
    network: Network,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    peers: Vec<String>,
    #[serde(default = "default_memory_mib")]
    memory_mib: u64,
    #[serde(default = "default_cpu_percent")]
    cpu_percent: u32,
    #[serde(default = "default_pids")]
    pids: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    needs: Vec<String>,
    #[serde(default = "default_stop_within_s")]
    stop_within_s: u32,
    #[serde(default)]
    crypto: Vec<CryptoUse>,
    #[serde(default)]
    keys_bound_to: KeyBinding,
    #[serde(default)]
    quota: Quota,
    #[serde(default)]
    health: Health,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<Volume>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<ImageSource>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    build: Option<ImageBuild>,
}

fn default_network() -> Network {
    Network::None
}

fn default_memory_mib() -> u64 {
    64
}

fn default_cpu_percent() -> u32 {
    100
}

fn default_pids() -> u32 {
    64
}

fn default_stop_within_s() -> u32 {
    10
}

/// Folders of a container that a volume must neither be in nor cover.
const RESERVED_PATHS: [&str; 5] = ["/run/basalt", "/proc", "/sys", "/dev", "/tmp"];

fn check_mount_point(path: &str) -> Result<(), InvalidValue> {
    let normal = path.len() > 1
        && path.starts_with('/')
        && path[1..].split('/').all(|p| !p.is_empty() && p != "." && p != "..")
        && path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b':' | b',' | b'\\'));
    let below = |path: &str, folder: &str| {
        path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    };
    let reserved = RESERVED_PATHS.iter().any(|r| path == *r || below(path, r) || below(r, path));
    if normal && !reserved {
        return Ok(());
    }
    let reserved = RESERVED_PATHS.join(", ");
    let expected = format!("an absolute path that is neither below nor above {reserved}");
    Err(InvalidValue::text(expected, path))
}

impl RawModule {
    fn check(&self) -> Result<(), ConfigProblem> {
        check_range("memory-mib", 6..=1 << 20, &self.memory_mib)?;
        check_range("cpu-percent", 1..=6400, &self.cpu_percent)?;
        check_range("pids", 1..=4096, &self.pids)?;
        check_range("stop-within-s", 1..=600, &self.stop_within_s)?;
        check_range("quota.calls-per-s", 1..=1_000_000, &self.quota.calls_per_s)?;
        check_range("quota.tpm-calls-per-s", 0..=1000, &self.quota.tpm_calls_per_s)?;
        check_range("health.within-s", 1..=3600, &self.health.within_s)?;
        check_range("health.stays-s", 0..=self.health.within_s, &self.health.stays_s)?;
        if !self.health.command.is_empty() && self.health.port.is_some() {
            return Err(InvalidValue::new("command or port", "both").at("health"));
        }
        if let Some(bad) = self.environment.iter().find(|e| !e.contains('=') || e.contains('\0')) {
            return Err(InvalidValue::text("NAME=VALUE", bad).at("environment"));
        }
        for (key, list) in [("peers", &self.peers), ("needs", &self.needs)] {
            for name in list {
                crate::check_name(name).map_err(|e| e.at(key))?;
            }
            check_distinct(key, list.iter())?;
        }
        for volume in &self.volumes {
            crate::check_name(&volume.name).map_err(|e| e.at("volumes.name"))?;
            check_mount_point(&volume.path).map_err(|e| e.at("volumes.path"))?;
        }
        check_distinct("volumes.name", self.volumes.iter().map(|v| &v.name))?;
        check_distinct("volumes.path", self.volumes.iter().map(|v| &v.path))?;
        self.check_ports()
    }

    fn check_ports(&self) -> Result<(), ConfigProblem> {
        check_distinct("ports", self.ports.iter().map(|p| (p.node, p.protocol)))?;
        if self.ports.iter().any(|p| p.node == 0 || p.module == 0) {
            return Err(InvalidValue::new("1 to 65535", 0).at("ports"));
        }
        let users = [
            ("peers", !self.peers.is_empty()),
            ("ports", !self.ports.is_empty()),
            ("health.port", self.health.port.is_some()),
        ];
        match users.into_iter().find(|(_, used)| *used) {
            Some((user, _)) if self.network == Network::None => {
                let expected = format!("\"bridge\", because of {user}");
                Err(InvalidValue::new(expected, "\"none\"").at("network"))
            }
            _ => Ok(()),
        }
    }
}

impl TryFrom<RawModule> for Module {
    type Error = ConfigProblem;

    fn try_from(raw: RawModule) -> Result<Self, ConfigProblem> {
        raw.check()?;
        let reject = |found| {
            let expected = "a digest in [image], or the program to build in [build]";
            Err(InvalidValue::new(expected, found).at("image"))
        };
        let image = match (raw.image, raw.build) {
            (Some(source), None) => {
                source.check()?;
                Image::Source(source)
            }
            (None, Some(build)) => Image::Build(build),
            (Some(_), Some(_)) => return reject("both"),
            (None, None) => return reject("neither"),
        };
        let mut crypto = raw.crypto;
        crypto.sort();
        crypto.dedup();
        Ok(Self {
            image,
            command: raw.command,
            environment: raw.environment,
            network: raw.network,
            peers: raw.peers,
            ports: raw.ports,
            volumes: raw.volumes,
            memory_mib: raw.memory_mib,
            cpu_percent: raw.cpu_percent,
            pids: raw.pids,
            health: raw.health,
            needs: raw.needs,
            stop_within_s: raw.stop_within_s,
            access: Access { crypto, keys_bound_to: raw.keys_bound_to, quota: raw.quota },
        })
    }
}

impl From<Module> for RawModule {
    fn from(m: Module) -> Self {
        let (image, build) = match m.image {
            Image::Source(source) => (Some(source), None),
            Image::Build(build) => (None, Some(build)),
        };
        Self {
            command: m.command,
            environment: m.environment,
            network: m.network,
            peers: m.peers,
            memory_mib: m.memory_mib,
            cpu_percent: m.cpu_percent,
            pids: m.pids,
            needs: m.needs,
            stop_within_s: m.stop_within_s,
            crypto: m.access.crypto,
            keys_bound_to: m.access.keys_bound_to,
            quota: m.access.quota,
            health: m.health,
            ports: m.ports,
            volumes: m.volumes,
            image,
            build,
        }
    }
}

impl Module {
    /// Checks the name of a module, which is the name of its file, of its container and of its
    /// folder.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidValue`] unless the name has 1 to 32 characters a-z, 0-9 and `-`, with no
    /// `-` first or last.
    pub fn check_name(name: &str) -> Result<(), InvalidValue> {
        crate::check_name(name)
    }

    /// Reports whether the old and the new version can run concurrently during an upgrade. They
    /// cannot if the module has exclusive resources: a port of the node or a volume.
    pub fn can_run_concurrently(&self) -> bool {
        self.ports.is_empty() && self.volumes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use crate::{Module, parse};

    fn file(keys: &str, tables: &str) -> String {
        format!("{keys}\n[image]\ndigest = \"sha256:{}\"\n{tables}\n", "a".repeat(64))
    }

    #[test]
    fn keys_outside_of_the_schema_and_invalid_values_are_rejected() {
        parse::<Module>("m", &file("", "")).unwrap();
        for key in [
            "privileged = true",
            "cap-add = [\"ALL\"]",
            "devices = []",
            "volumes = [\"/:/host\"]",
            "network = \"host\"",
            "network = \"container:x\"",
            "pids = 0",
            "memory-mib = 1",
            "cpu-percent = 0",
            "peers = [\"db\"]",
            "needs = [\"../x\"]",
            "needs = [\"a\", \"a\"]",
            "environment = [\"X\"]",
            "sysctls = {}",
            "user = \"0\"",
            "restart = \"always\"",
            "crypto = [\"everything\"]",
            "keys-bound-to = \"name\"",
        ] {
            assert!(parse::<Module>("m", &file(key, "")).is_err(), "{key}");
        }
        for table in [
            "archive = \"/x\"\nregistry = \"h/r\"",
            "registry = \"h/r:tag\"",
            "registry = \"h\"",
            "registry = \"h/../r\"",
            "registry = \"user@h/r\"",
            "[[volumes]]\nname = \"v\"\npath = \"/\"",
            "[[volumes]]\nname = \"v\"\npath = \"/a/../b\"",
            "[[volumes]]\nname = \"v\"\npath = \"/run\"",
            "[[volumes]]\nname = \"v\"\npath = \"/run/basalt\"",
            "[[volumes]]\nname = \"v\"\npath = \"/dev/shm\"",
            "[[volumes]]\nname = \"../v\"\npath = \"/v\"",
            "[[volumes]]\nname = \"v\"\npath = \"/v\"\nsource = \"/\"",
            "[[volumes]]\nname = \"v\"\npath = \"/v:ro\"",
            "[[ports]]\nnode = 80\nmodule = 80",
            "[health]\nport = 80",
            "[health]\nwithin-s = 0",
            "[quota]\ncalls-per-s = 0",
            "[quota]\nconnections = 1",
        ] {
            assert!(parse::<Module>("m", &file("", table)).is_err(), "{table}");
        }
        assert!(parse::<Module>("m", "").is_err());
        assert!(parse::<Module>("m", &file("", "").replace("sha256:", "sha512:")).is_err());
    }

    #[test]
    fn serializing_and_parsing_a_module_changes_nothing() {
        let text = file(
            "network = \"bridge\"\npeers = [\"db\"]\nneeds = [\"db\"]\ncpu-percent = 50\n\
             keys-bound-to = \"image\"\ncrypto = [\"seal\", \"quote\"]",
            "registry = \"registry.example.org:5000/team/app\"\n[quota]\ncalls-per-s = 5\n\
             [health]\nport = 80\n[[ports]]\nnode = 8080\nmodule = 80\n\
             [[volumes]]\nname = \"state\"\npath = \"/var/lib/app\"",
        );
        let module = parse::<Module>("m", &text).unwrap();
        assert!(!module.can_run_concurrently());
        assert_eq!(parse::<Module>("m", &toml::to_string(&module).unwrap()).unwrap(), module);
    }
}
