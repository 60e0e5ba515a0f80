use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::{Chain, ConfigError};

/// `/etc/basalt/node.toml`: what the owner sets. In the repository it is configs/node.toml.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", try_from = "RawNode", into = "RawNode")]
pub struct Node {
    pub hostname: String,
    pub network: Addressing,
    pub time_servers: Vec<String>,
    pub api: Api,
    pub owner: Owner,
    pub ledger: Ledger,
    pub keys: Keys,
    pub store: Store,
    pub registries: Vec<Registry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawNode {
    hostname: String,
    #[serde(default)]
    time_servers: Vec<String>,
    network: Addressing,
    api: Api,
    owner: Owner,
    ledger: Ledger,
    #[serde(default, skip_serializing_if = "Keys::is_default")]
    keys: Keys,
    #[serde(default)]
    store: Store,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    registries: Vec<Registry>,
}

/// How the node gets an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Addressing {
    Dhcp {},
    Static {
        address: Subnet,
        /// Where all else is sent; an address of the same subnet.
        gateway: Option<Ipv4Addr>,
        #[serde(default)]
        resolvers: Vec<Ipv4Addr>,
    },
    None {},
}

impl Addressing {
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Static { address, gateway: Some(gateway), .. }
                if !address.contains(*gateway) || *gateway == address.host =>
            {
                Err(format!(
                    "network.gateway: expected another address of {address}, found {gateway}"
                ))
            }
            _ => Ok(()),
        }
    }
}

/// An address with the length of its network's prefix: `192.0.2.7/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet {
    pub host: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(self.prefix)))
    }

    fn contains(self, other: Ipv4Addr) -> bool {
        (self.host.to_bits() ^ other.to_bits()) & self.mask().to_bits() == 0
    }
}

impl TryFrom<String> for Subnet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "expected an address of one host and its prefix like 192.0.2.7/24, found {text:?} ({why})"
            )
        };
        let (host, prefix) = text.split_once('/').ok_or_else(|| wrong("no prefix"))?;
        let host: Ipv4Addr = host.parse().map_err(|_| wrong("no IPv4 address"))?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|p| (1..=30).contains(p))
            .ok_or_else(|| wrong("a prefix has 1 to 30 bits"))?;
        let subnet = Self { host, prefix };
        let within = host.to_bits() & !subnet.mask().to_bits();
        if within == 0
            || within == !subnet.mask().to_bits()
            || host.is_loopback()
            || host.is_multicast()
            || host.octets()[0] == 0
        {
            return Err(wrong("no host can have it"));
        }
        Ok(subnet)
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.host, self.prefix)
    }
}

/// `node.toml` on the boot partition: what is of this one node. Each key replaces the image's; the
/// rest, above all the ledger, cannot be set there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    hostname: Option<String>,
    time_servers: Option<Vec<String>>,
    network: Option<Addressing>,
    owner: Option<Owner>,
    keys: Option<Keys>,
    registries: Option<Vec<Registry>>,
}

/// What a node goes by: `/etc/basalt/node.toml` of the image, and `node.toml` of its boot partition
/// over it.
pub fn node(image: &str, own: Option<&str>) -> Result<Node, ConfigError> {
    let node: Node = crate::parse("/etc/basalt/node.toml", image)?;
    let Some(own) = own else { return Ok(node) };
    const FILE: &str = "node.toml on the boot partition";
    let own: Settings = crate::parse(FILE, own)?;
    let fail = |problem: String| ConfigError { file: FILE.into(), problem };
    if own.owner.as_ref().is_some_and(|owner| owner.certificates.is_empty()) {
        return Err(fail("owner.certificates names none, and nobody could command the node; leave [owner] out to keep the image's".into()));
    }
    let mut raw = RawNode::from(node);
    raw.hostname = own.hostname.unwrap_or(raw.hostname);
    raw.time_servers = own.time_servers.unwrap_or(raw.time_servers);
    raw.network = own.network.unwrap_or(raw.network);
    raw.owner = own.owner.unwrap_or(raw.owner);
    raw.keys = own.keys.unwrap_or(raw.keys);
    raw.registries = own.registries.unwrap_or(raw.registries);
    Node::try_from(raw).map_err(fail)
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Api {
    /// Where the owner's API listens for TLS with client certificates.
    pub listen: String,
    /// Who may ask what this node is (docs/attestation.md).
    #[serde(default)]
    pub attest: Attest,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attest {
    /// Who reaches the API, also without a certificate.
    #[default]
    Anyone,
    /// Whose certificates are pinned.
    Owner,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Owner {
    /// SHA-256 of the owners' client certificates (DER), as hex. Empty in the repository: the build
    /// then puts in the user's own.
    #[serde(default)]
    pub certificates: Vec<String>,
}

/// What becomes of the root key of modules' keys (docs/crypto.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Keys {
    /// Whose policies may unseal it, instead of the image's builder: P-256, SEC 1 uncompressed,
    /// hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// Whoever has this key can read all keys of modules and put them on another node: X25519, hex.
    /// Without it there is no way back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<String>,
    /// A node without a root key does not make one: it waits for the one that its owner brings
    /// back.
    pub restore: bool,
}

impl Keys {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn problem(&self) -> Option<&'static str> {
        if self.signer.as_deref().is_some_and(|key| !(lower_hex(key, 130) && key.starts_with("04")))
        {
            return Some(
                "keys.signer: expected a point of P-256 as trustctl key show prints it: 130 lower-case hex digits that begin with 04",
            );
        }
        match &self.recovery {
            Some(key) if !lower_hex(key, 64) => Some(
                "keys.recovery: expected an X25519 key as trustctl key show prints it: 64 lower-case hex digits",
            ),
            None if self.restore => {
                Some("keys.restore needs keys.recovery: without it no root key can be brought back")
            }
            _ => None,
        }
    }
}

/// Where trustd keeps the blobs of images.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Store {
    /// All blobs together; what nothing needs any more makes room first.
    pub quota_mib: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { quota_mib: 4096 }
    }
}

/// How a registry is reached. One that is not listed is reached over TLS, with the well-known
/// certificate authorities.
///
/// Nobody has to trust it: what it sends is checked against the digest that the ledger approved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Registry {
    /// As modules name it: `HOST[:PORT]`.
    pub host: String,
    /// Asked before it, in this order; `HOST[:PORT]`, each with the repository of the same name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// HTTP without TLS: whoever listens sees what is fetched.
    #[serde(default)]
    pub plain: bool,
    /// Certificates (PEM) that count instead of the well-known authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<String>,
}

impl Registry {
    fn check(&self) -> Result<(), String> {
        for host in std::iter::once(&self.host).chain(&self.mirrors) {
            valid_host(host)
                .map_err(|why| format!("expected HOST[:PORT], found {host:?} ({why})"))?;
        }
        if self.user.is_some() != self.password.is_some() {
            return Err(format!("{}: user and password go together", self.host));
        }
        if self.plain && (self.ca.is_some() || self.user.is_some()) {
            return Err(format!(
                "{}: plain HTTP has no certificates and is no place for a password",
                self.host
            ));
        }
        Ok(())
    }
}

/// `HOST[:PORT]`: a name or an address, nothing that a URL could take for something else.
pub(crate) fn valid_host(host: &str) -> Result<(), String> {
    let (name, port) =
        host.rsplit_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
    if port.is_some_and(|p| p.parse::<u16>().ok().is_none_or(|n| n == 0)) {
        return Err("no port".into());
    }
    let good = !name.is_empty()
        && name.len() <= 253
        && name.split('.').all(|l| !l.is_empty() && !l.starts_with('-') && !l.ends_with('-'))
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'));
    if good { Ok(()) } else { Err("no host".into()) }
}

/// What decides which images may run.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Ledger {
    pub kind: Kind,
    /// What the approvers sign for: statements of another ledger do not count here.
    pub name: String,
    /// Ed25519 public keys as hex. Empty in the repository: the build then puts in the user's own.
    #[serde(default)]
    pub approvers: Vec<String>,
    pub threshold: usize,
    /// How long what runs may go on after its revocation, in seconds.
    #[serde(default)]
    pub revocation_grace_s: u64,
    /// Without them, what the approvers signed is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<Checkpoints>,
    /// Where newer logs are looked for: `https://HOST[:PORT]/PATH`, `http://…` or `file:PATH`. None
    /// is trusted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// How often, in seconds.
    #[serde(default = "five_minutes")]
    pub poll_s: u64,
    /// With `ethereum`, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chain: Option<Chain>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An approval log signed by `threshold` of the approvers.
    Log,
    /// The same, and the final state of a registry contract must say so too.
    Ethereum,
}

fn five_minutes() -> u64 {
    300
}

/// What a log must be signed and seen by besides its approvers (C2SP tlog-checkpoint and
/// cosignature/v1).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Checkpoints {
    /// The log's key, `NAME+HASH+KEY` (`trustctl key new log`).
    pub log: String,
    /// The witnesses' keys, `NAME+HASH+KEY`.
    #[serde(default)]
    pub witnesses: Vec<String>,
    /// How many of the witnesses must have seen the log.
    #[serde(default)]
    pub threshold: usize,
    /// For how long after that nothing newer is needed, in seconds.
    #[serde(default = "a_week")]
    pub max_age_s: u64,
    /// How long what runs may then go on, in seconds.
    #[serde(default)]
    pub stale_grace_s: u64,
}

fn a_week() -> u64 {
    7 * 86_400
}

/// Where a node looks for newer logs, or for bundles of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogSource {
    File(std::path::PathBuf),
    Http {
        tls: bool,
        host: String,
        path: String,
    },
    /// An artifact in a registry: its first layer is the file.
    Oci {
        registry: String,
        tag: String,
    },
}

impl std::str::FromStr for LogSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            format!(
                "expected https://HOST[:PORT]/PATH, http://HOST[:PORT]/PATH, file:/PATH or oci:HOST[:PORT]/REPOSITORY:TAG, found {text:?} ({why})"
            )
        };
        if let Some(artifact) = text.strip_prefix("oci:") {
            let (registry, tag) = artifact
                .rsplit_once(':')
                .filter(|(_, tag)| !tag.contains('/'))
                .ok_or_else(|| wrong("no tag"))?;
            crate::repository(registry).map_err(|why| wrong(&why))?;
            // OCI distribution-spec 1.1, "Pulling manifests".
            let first = tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
            if !first
                || tag.len() > 128
                || !tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            {
                return Err(wrong("no tag"));
            }
            return Ok(Self::Oci { registry: registry.to_owned(), tag: tag.to_owned() });
        }
        if let Some(path) = text.strip_prefix("file:") {
            return if path.starts_with('/') {
                Ok(Self::File(path.into()))
            } else {
                Err(wrong("the path must be absolute"))
            };
        }
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(wrong("no such kind of source")),
        };
        let (host, path) = rest.split_once('/').ok_or_else(|| wrong("no path"))?;
        valid_host(host).map_err(|why| wrong(&why))?;
        if path.bytes().any(|b| !b.is_ascii_graphic() || b == b'#') {
            return Err(wrong("what is in the path must be percent-encoded"));
        }
        Ok(Self::Http { tls, host: host.to_owned(), path: format!("/{path}") })
    }
}

impl std::fmt::Display for LogSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Oci { registry, tag } => write!(f, "oci:{registry}:{tag}"),
            Self::Http { tls, host, path } => {
                write!(f, "{}://{host}{path}", if *tls { "https" } else { "http" })
            }
        }
    }
}

pub(crate) fn lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl TryFrom<RawNode> for Node {
    type Error = String;

    fn try_from(raw: RawNode) -> Result<Self, String> {
        crate::valid_name(&raw.hostname).map_err(|e| format!("hostname: {e}"))?;
        raw.network.check()?;
        raw.api.listen.parse::<std::net::SocketAddr>().map_err(|e| {
            format!("api.listen: expected ADDRESS:PORT, found {:?} ({e})", raw.api.listen)
        })?;
        for (what, list) in [
            ("owner.certificates", &raw.owner.certificates),
            ("ledger.approvers", &raw.ledger.approvers),
        ] {
            for (n, entry) in list.iter().enumerate() {
                if !lower_hex(entry, 64) {
                    return Err(format!(
                        "{what}: expected 64 lower-case hex digits, found {entry:?}"
                    ));
                }
                if list[..n].contains(entry) {
                    return Err(format!("{what}: {entry} is there twice"));
                }
            }
        }
        if let Some(problem) = raw.keys.problem() {
            return Err(problem.into());
        }
        let Ledger {
            kind, name, approvers, threshold, sources, poll_s, checkpoints, chain, ..
        } = &raw.ledger;
        if let Some(Checkpoints { witnesses, threshold, max_age_s, .. }) = checkpoints {
            if *threshold > witnesses.len() || (*threshold == 0) != witnesses.is_empty() {
                return Err(format!(
                    "ledger.checkpoints.threshold: expected 1 to the number of witnesses ({}), or neither; found {threshold}",
                    witnesses.len()
                ));
            }
            if *max_age_s == 0 {
                return Err("ledger.checkpoints.max-age-s: expected at least 1, found 0".into());
            }
        }
        for source in sources {
            source.parse::<LogSource>().map_err(|e| format!("ledger.sources: {e}"))?;
        }
        if *poll_s == 0 {
            return Err("ledger.poll-s: expected at least 1, found 0".into());
        }
        match (kind, chain) {
            (Kind::Log, None) => (),
            (Kind::Ethereum, Some(chain)) => chain.check()?,
            (Kind::Log, Some(_)) => return Err(
                "ledger.chain: a ledger of the kind \"log\" has none; expected kind = \"ethereum\""
                    .into(),
            ),
            (Kind::Ethereum, None) => {
                return Err(
                    "ledger.chain: a ledger of the kind \"ethereum\" needs it (docs/chain.md)"
                        .into(),
                );
            }
        }
        crate::valid_name(name).map_err(|e| format!("ledger.name: {e}"))?;
        if *threshold == 0 || (!approvers.is_empty() && *threshold > approvers.len()) {
            return Err(format!(
                "ledger.threshold: expected 1 to the number of approvers ({}), found {threshold}",
                approvers.len()
            ));
        }
        if raw.store.quota_mib == 0 {
            return Err("store.quota-mib: expected at least 1, found 0".into());
        }
        for (n, registry) in raw.registries.iter().enumerate() {
            registry.check().map_err(|e| format!("registries: {e}"))?;
            if raw.registries[..n].iter().any(|r| r.host == registry.host) {
                return Err(format!("registries: {} is there twice", registry.host));
            }
        }
        let RawNode {
            hostname,
            time_servers,
            network,
            api,
            owner,
            ledger,
            keys,
            store,
            registries,
        } = raw;
        Ok(Self { hostname, time_servers, network, api, owner, ledger, keys, store, registries })
    }
}

impl From<Node> for RawNode {
    fn from(node: Node) -> Self {
        let Node { hostname, time_servers, network, api, owner, ledger, keys, store, registries } =
            node;
        Self { hostname, time_servers, network, api, owner, ledger, keys, store, registries }
    }
}

#[cfg(test)]
mod tests {
    use super::{Addressing, node};
    use crate::{Node, parse};

    const GOOD: &str = "hostname = \"basalt\"\ntime-servers = []\n[network]\nkind = \"dhcp\"\n[api]\nlisten = \"0.0.0.0:7443\"\n[owner]\n[ledger]\nkind = \"log\"\nname = \"home\"\nthreshold = 1\n";

    #[test]
    fn a_good_file_is_read_and_each_error_says_what_is_allowed() {
        parse::<Node>("node.toml", GOOD).unwrap();
        let cases = [
            ("hostname = \"basalt\"", "hostname = \"Basalt!\"", "a-z"),
            ("0.0.0.0:7443", "everywhere", "ADDRESS:PORT"),
            ("threshold = 1", "threshold = 0", "threshold"),
            ("threshold = 1", "threshold = 1\ncolour = 1", "colour"),
            ("kind = \"log\"", "kind = \"paper\"", "log"),
            ("threshold = 1", "threshold = 1\napprovers = [\"00\"]", "64"),
            ("threshold = 1", "threshold = 1\nsources = [\"ftp://x/y\"]", "https://HOST"),
            ("threshold = 1", "threshold = 1\nsources = [\"https://x\"]", "no path"),
            ("threshold = 1", "threshold = 1\nsources = [\"https://u@x/y\"]", "no host"),
            ("threshold = 1", "threshold = 1\nsources = [\"file:y\"]", "absolute"),
            ("threshold = 1", "threshold = 1\nsources = [\"oci:x/y\"]", "no tag"),
            ("threshold = 1", "threshold = 1\nsources = [\"oci:x:1/y\"]", "no tag"),
            ("threshold = 1", "threshold = 1\nsources = [\"oci:x/y:.z\"]", "no tag"),
            ("threshold = 1", "threshold = 1\npoll-s = 0", "poll-s"),
            ("threshold = 1", "threshold = 1\n[ledger.checkpoints]", "log"),
            (
                "threshold = 1",
                "threshold = 1\n[ledger.checkpoints]\nlog = \"x\"\nthreshold = 1",
                "witnesses (0)",
            ),
            (
                "threshold = 1",
                "threshold = 1\n[ledger.checkpoints]\nlog = \"x\"\nmax-age-s = 0",
                "at least 1",
            ),
            ("threshold = 1", "threshold = 1\n[ledger.checkpoints]\nlog = \"x\"\nage = 1", "age"),
            ("kind = \"log\"", "kind = \"ethereum\"", "needs it"),
            ("threshold = 1", "threshold = 1\n[store]\nquota-mib = 0", "quota-mib"),
            ("threshold = 1", "threshold = 1\n[[registries]]\nhost = \"http://x\"", "HOST[:PORT]"),
            (
                "threshold = 1",
                "threshold = 1\n[[registries]]\nhost = \"x\"\nuser = \"u\"",
                "go together",
            ),
            (
                "threshold = 1",
                "threshold = 1\n[[registries]]\nhost = \"x\"\n[[registries]]\nhost = \"x\"",
                "twice",
            ),
            (
                "threshold = 1",
                "threshold = 1\n[[registries]]\nhost = \"x\"\nplain = true\nuser = \"u\"\npassword = \"p\"",
                "no place",
            ),
        ];
        for (from, to, says) in cases {
            let error =
                parse::<Node>("node.toml", &GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("node.toml"), "{error}");
        }
    }

    #[test]
    fn the_boot_partition_replaces_key_by_key() {
        let own = format!(
            "hostname = \"gate-7\"\n[network]\nkind = \"static\"\naddress = \"192.0.2.7/24\"\ngateway = \"192.0.2.1\"\n[owner]\ncertificates = [\"{}\"]\n",
            "ab".repeat(32)
        );
        let n = node(GOOD, Some(&own)).unwrap();
        let Addressing::Static { address, .. } = n.network else { panic!("not static") };
        assert_eq!(
            (n.hostname.as_str(), address.mask().to_string().as_str()),
            ("gate-7", "255.255.255.0")
        );
        assert_eq!(n.owner.certificates.len(), 1);
        assert_eq!(node(GOOD, None).unwrap().hostname, "basalt");
        assert_eq!(node(GOOD, Some("")).unwrap().hostname, "basalt");
    }

    #[test]
    fn the_boot_partition_sets_nothing_else_and_nothing_wrong() {
        let fixed = |rest: &str| format!("[network]\nkind = \"static\"\n{rest}\n");
        for (own, says) in [
            ("[ledger]\nkind = \"log\"\nname = \"x\"\nthreshold = 1\n".to_owned(), "ledger"),
            ("[api]\nlisten = \"0.0.0.0:1\"\n".into(), "api"),
            ("hostname = \"A\"\n".into(), "hostname"),
            ("[owner]\n".into(), "nobody could command"),
            ("[owner]\ncertificates = [\"00\"]\n".into(), "64"),
            ("hostname".into(), "expected"),
            (fixed(""), "address"),
            (fixed("address = \"192.0.2.7\""), "no prefix"),
            (fixed("address = \"192.0.2.7/33\""), "1 to 30"),
            (fixed("address = \"192.0.2.0/24\""), "no host"),
            (fixed("address = \"192.0.2.255/24\""), "no host"),
            (fixed("address = \"127.0.0.1/8\""), "no host"),
            (fixed("address = \"192.0.2.7/24\"\ngateway = \"192.0.3.1\""), "gateway"),
            (fixed("address = \"192.0.2.7/24\"\ngateway = \"192.0.2.7\""), "gateway"),
            (fixed("address = \"192.0.2.7/24\"\nmetric = 1"), "metric"),
        ] {
            let error = node(GOOD, Some(&own)).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("boot partition"), "{own}: {error}");
        }
    }
}
