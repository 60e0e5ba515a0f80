use serde::{Deserialize, Serialize};

/// `/etc/basalt/modules/NAME.toml`: a container that trustd runs once its image is approved.
///
/// Everything that is not written here is denied: there is no key for privileges, devices, host
/// paths or host namespaces.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", try_from = "RawModule", into = "RawModule")]
pub struct Module {
    pub image: Image,
    pub command: Vec<String>,
    pub environment: Vec<String>,
    pub network: Network,
    /// Modules on the bridge with which it shares a network of two. Both must name each other.
    pub peers: Vec<String>,
    pub ports: Vec<Port>,
    pub volumes: Vec<Volume>,
    pub memory_mib: u64,
    /// Of one core: 100 is one core, 150 one and a half.
    pub cpu_percent: u32,
    pub pids: u32,
    pub health: Health,
    /// Modules that must run and be healthy before this one is started.
    pub needs: Vec<String>,
    /// How long it gets to end by itself before it is killed, in seconds.
    pub stop_within_s: u32,
    /// What the module may ask its socket for.
    pub access: Access,
}

/// What a module may ask its socket for, and how often.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Access {
    pub crypto: Vec<CryptoUse>,
    pub keys_bound_to: BoundTo,
    pub quota: Quota,
}

/// Who has the same keys after an upgrade.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum BoundTo {
    /// Every image that the same ledger's approvers approve and that runs under this module's name.
    #[default]
    Approvers,
    /// This image alone.
    Image,
}

/// Calls a second, in the long run; four seconds' worth may come at once. A call in a batch counts
/// as one.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Quota {
    pub calls_per_s: u32,
    /// Those for which the TPM has to work.
    pub tpm_calls_per_s: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self { calls_per_s: 1000, tpm_calls_per_s: 4 }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(untagged, rename_all = "kebab-case")]
pub enum Image {
    /// On a node: what must be approved, and where it comes from.
    Node(Source),
    /// In the repository: what the build makes the archive from.
    Ship(Ship),
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Source {
    /// Of the manifest, or of an index that lists one for this node's platform.
    pub digest: String,
    /// Where it can be fetched: `HOST[:PORT]/REPOSITORY`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// An archive on the node's read-only root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<String>,
}

/// An image that the build puts into the root partition.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Ship {
    /// A program of image/recipes/programs, alone in an image of one layer.
    pub program: String,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// No network at all.
    None,
    /// A bridge of its own, from which the outside can be reached.
    Bridge,
}

/// A port of the node that leads to one of the module.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Port {
    pub node: u16,
    pub module: u16,
    #[serde(default)]
    pub protocol: Protocol,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    #[default]
    Tcp,
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

/// A folder of the module's own that lasts. Where it lies on the node is trustd's affair.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Volume {
    pub name: String,
    /// Where the module sees it.
    pub path: String,
}

/// When a module counts as healthy.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Health {
    /// Run in the container; healthy once it ends with 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Healthy once this TCP port of the module accepts a connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// With neither: healthy once it has run this long, in seconds.
    pub stays_s: u32,
    /// The deadline, in seconds from the start. An upgrade that misses it is rolled back.
    pub within_s: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { command: Vec::new(), port: None, stays_s: 3, within_s: 60 }
    }
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum CryptoUse {
    /// Proofs of the module's own keys, verification of anybody's, and a statement of the TPM about
    /// its keys.
    Vrf,
    Random,
    Hash,
    Hmac,
    /// Signatures with the module's own keys, and verification of anybody's.
    Sign,
    /// Secrets that only this module on this node can read again.
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
    #[serde(default = "no_network")]
    network: Network,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    peers: Vec<String>,
    #[serde(default = "default_memory")]
    memory_mib: u64,
    #[serde(default = "default_cpu")]
    cpu_percent: u32,
    #[serde(default = "default_pids")]
    pids: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    needs: Vec<String>,
    #[serde(default = "default_stop")]
    stop_within_s: u32,
    #[serde(default)]
    crypto: Vec<CryptoUse>,
    #[serde(default)]
    keys_bound_to: BoundTo,
    #[serde(default)]
    quota: Quota,
    #[serde(default)]
    health: Health,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    volumes: Vec<Volume>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<Source>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ship: Option<Ship>,
}

fn no_network() -> Network {
    Network::None
}

fn default_memory() -> u64 {
    64
}

fn default_cpu() -> u32 {
    100
}

fn default_pids() -> u32 {
    64
}

fn default_stop() -> u32 {
    10
}

fn within<T: PartialOrd + std::fmt::Display>(
    what: &str,
    range: std::ops::RangeInclusive<T>,
    found: &T,
) -> Result<(), String> {
    if range.contains(found) {
        return Ok(());
    }
    Err(format!("{what}: expected {} to {}, found {found}", range.start(), range.end()))
}

fn distinct<T: PartialEq + std::fmt::Debug>(
    what: &str,
    list: impl Iterator<Item = T>,
) -> Result<(), String> {
    let mut seen = Vec::new();
    for item in list {
        if seen.contains(&item) {
            return Err(format!("{what}: {item:?} is there twice"));
        }
        seen.push(item);
    }
    Ok(())
}

impl Source {
    fn check(&self) -> Result<(), String> {
        crate::valid_digest(&self.digest).map_err(|e| format!("image.digest: {e}"))?;
        if self.registry.is_some() && self.archive.is_some() {
            return Err("image: either registry or archive".into());
        }
        match &self.registry {
            Some(registry) => {
                repository(registry).map(drop).map_err(|e| format!("image.registry: {e}"))
            }
            None => Ok(()),
        }
    }
}

/// Host and repository of `HOST[:PORT]/REPOSITORY` (OCI distribution-spec, "Pulling manifests": the
/// form of `<name>`).
pub fn repository(text: &str) -> Result<(&str, &str), String> {
    let wrong = |why: &str| {
        format!("expected HOST[:PORT]/REPOSITORY without tag or digest, found {text:?} ({why})")
    };
    let (host, name) = text.split_once('/').ok_or_else(|| wrong("no repository"))?;
    crate::node::valid_host(host).map_err(|why| wrong(&why))?;
    let part = |p: &str| {
        !p.is_empty()
            && p.bytes().all(|b| {
                b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
            })
            && p.starts_with(|c: char| c.is_ascii_alphanumeric())
            && p.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    if name.len() > 255 || !name.split('/').all(part) {
        return Err(wrong("the repository is not one"));
    }
    Ok((host, name))
}

/// A folder in the container that may be given to a volume.
fn mount_point(path: &str) -> Result<(), String> {
    const TAKEN: [&str; 5] = ["/run/basalt", "/proc", "/sys", "/dev", "/tmp"];
    let normal = path.len() > 1
        && path.starts_with('/')
        && path[1..].split('/').all(|p| !p.is_empty() && p != "." && p != "..")
        && path.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b':' | b',' | b'\\'));
    let taken = TAKEN
        .iter()
        .any(|t| path == *t || path.strip_prefix(t).is_some_and(|rest| rest.starts_with('/')));
    // Above one of them, it would cover it.
    let above =
        TAKEN.iter().any(|t| t.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')));
    if normal && !taken && !above {
        return Ok(());
    }
    Err(format!(
        "expected an absolute path that is neither below nor above {}, found {path:?}",
        TAKEN.join(", ")
    ))
}

impl TryFrom<RawModule> for Module {
    type Error = String;

    fn try_from(raw: RawModule) -> Result<Self, String> {
        let image = match (raw.image, raw.ship) {
            (Some(source), None) => {
                source.check()?;
                Image::Node(source)
            }
            (None, Some(ship)) => Image::Ship(ship),
            _ => return Err(
                "a module has either [image] (its digest) or [ship] (what the build makes it from)"
                    .into(),
            ),
        };
        within("memory-mib", 6..=1 << 20, &raw.memory_mib)?;
        within("cpu-percent", 1..=6400, &raw.cpu_percent)?;
        within("pids", 1..=4096, &raw.pids)?;
        within("stop-within-s", 1..=600, &raw.stop_within_s)?;
        within("health.within-s", 1..=3600, &raw.health.within_s)?;
        within("health.stays-s", 0..=raw.health.within_s, &raw.health.stays_s)?;
        if !raw.health.command.is_empty() && raw.health.port.is_some() {
            return Err("health: either command or port".into());
        }
        if let Some(bad) = raw.environment.iter().find(|e| !e.contains('=') || e.contains('\0')) {
            return Err(format!("environment: expected NAME=VALUE, found {bad:?}"));
        }
        for (what, list) in [("peers", &raw.peers), ("needs", &raw.needs)] {
            list.iter()
                .try_for_each(|name| crate::valid_name(name).map_err(|e| format!("{what}: {e}")))?;
            distinct(what, list.iter())?;
        }
        for volume in &raw.volumes {
            crate::valid_name(&volume.name).map_err(|e| format!("volumes.name: {e}"))?;
            mount_point(&volume.path).map_err(|e| format!("volumes.path: {e}"))?;
        }
        distinct("volumes", raw.volumes.iter().map(|v| &v.name))?;
        distinct("volumes", raw.volumes.iter().map(|v| &v.path))?;
        distinct("ports", raw.ports.iter().map(|p| (p.node, p.protocol)))?;
        if raw.ports.iter().any(|p| p.node == 0 || p.module == 0) {
            return Err("ports: expected 1 to 65535, found 0".into());
        }
        let networked = !raw.peers.is_empty() || !raw.ports.is_empty() || raw.health.port.is_some();
        if networked && raw.network == Network::None {
            return Err("peers, ports and health.port need network = \"bridge\"".into());
        }
        within("quota.calls-per-s", 1..=1_000_000, &raw.quota.calls_per_s)?;
        within("quota.tpm-calls-per-s", 0..=1000, &raw.quota.tpm_calls_per_s)?;
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
        let (image, ship) = match m.image {
            Image::Node(source) => (Some(source), None),
            Image::Ship(ship) => (None, Some(ship)),
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
            ship,
        }
    }
}

impl Module {
    /// A module's name is its file's; it becomes a container's name and a folder's.
    pub fn valid_name(name: &str) -> Result<(), String> {
        crate::valid_name(name)
    }

    /// Whether two of it can run beside each other during an upgrade: what it holds alone (a port
    /// of the node, a folder) must be let go first.
    pub fn shares_nothing(&self) -> bool {
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
    fn what_the_schema_cannot_say_is_refused() {
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
    fn a_whole_module_comes_back_as_it_was() {
        let text = file(
            "network = \"bridge\"\npeers = [\"db\"]\nneeds = [\"db\"]\ncpu-percent = 50\nkeys-bound-to = \"image\"\ncrypto = [\"seal\", \"quote\"]",
            "registry = \"registry.example.org:5000/team/app\"\n[quota]\ncalls-per-s = 5\n[health]\nport = 80\n[[ports]]\nnode = 8080\nmodule = 80\n[[volumes]]\nname = \"state\"\npath = \"/var/lib/app\"",
        );
        let module = parse::<Module>("m", &text).unwrap();
        assert!(!module.shares_nothing());
        assert_eq!(parse::<Module>("m", &toml::to_string(&module).unwrap()).unwrap(), module);
    }
}
