//! `/etc/basalt/node.toml`: the settings of a node.

use serde::{Deserialize, Serialize};

use crate::error::check_positive;
use crate::{Addressing, ConfigError, ConfigProblem, InvalidValue, Ledger, Registry};

/// `/etc/basalt/node.toml`: the settings of a node. In the repository it is configs/node.toml.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", try_from = "RawNode", into = "RawNode")]
pub struct Node {
    /// Host name of the node, also in its DHCP requests.
    pub hostname: String,
    /// Source of the node's address.
    pub network: Addressing,
    /// NTP servers, tried in this order. An empty list leaves the clock alone.
    pub time_servers: Vec<String>,
    /// The owner's API.
    pub api: Api,
    /// Owners of the node.
    pub owner: Owner,
    /// Ledger whose approvals decide which images may run.
    pub ledger: Ledger,
    /// Sealing and recovery of the root key.
    pub keys: Keys,
    /// Store of image blobs.
    pub store: Store,
    /// Registries with settings of their own.
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

/// `node.toml` on the boot partition: the settings of one node. Each key replaces the image's. The
/// other keys, above all the ledger, cannot be set there.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct NodeOverrides {
    hostname: Option<String>,
    time_servers: Option<Vec<String>>,
    network: Option<Addressing>,
    owner: Option<Owner>,
    keys: Option<Keys>,
    registries: Option<Vec<Registry>>,
}

/// Name of the boot partition's file in error messages.
const OVERRIDES_FILE: &str = "node.toml on the boot partition";

/// Parses `/etc/basalt/node.toml` of the image and applies `node.toml` of the boot partition, if
/// there is one.
///
/// # Errors
///
/// Returns [`ConfigError`] if a file does not parse, if a setting is not allowed, or if the boot
/// partition's file has a list of owners that is empty.
pub fn parse_node(image: &str, overrides: Option<&str>) -> Result<Node, ConfigError> {
    let node: Node = crate::parse("/etc/basalt/node.toml", image)?;
    let Some(overrides) = overrides else { return Ok(node) };
    let overrides: NodeOverrides = crate::parse(OVERRIDES_FILE, overrides)?;
    let reject = |problem| ConfigError::setting(OVERRIDES_FILE, problem);
    if overrides.owner.as_ref().is_some_and(|owner| owner.certificates.is_empty()) {
        let expected = "at least one certificate, because a node without an owner accepts no \
                        commands; leave [owner] out to keep the image's";
        return Err(reject(InvalidValue::new(expected, "none").at("owner.certificates")));
    }
    let mut raw = RawNode::from(node);
    raw.hostname = overrides.hostname.unwrap_or(raw.hostname);
    raw.time_servers = overrides.time_servers.unwrap_or(raw.time_servers);
    raw.network = overrides.network.unwrap_or(raw.network);
    raw.owner = overrides.owner.unwrap_or(raw.owner);
    raw.keys = overrides.keys.unwrap_or(raw.keys);
    raw.registries = overrides.registries.unwrap_or(raw.registries);
    Node::try_from(raw).map_err(reject)
}

/// The owner's API.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Api {
    /// Address and port of the TLS server.
    pub listen: String,
    /// Clients that may request attestation (docs/attestation.md).
    #[serde(default)]
    pub attest: AttestationAccess,
}

/// Clients that may request attestation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttestationAccess {
    /// All clients, including those without a certificate.
    #[default]
    Anyone,
    /// Clients with a pinned certificate.
    Owner,
}

/// Owners of the node.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Owner {
    /// SHA-256 of the owners' client certificates (DER), as hex. The list is empty in the
    /// repository: the build adds the user's own certificate.
    #[serde(default)]
    pub certificates: Vec<String>,
}

/// Sealing and recovery of the root key, which all keys of modules are derived from
/// (docs/crypto.md).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Keys {
    /// Public key whose policies authorise boots to unseal the root key, instead of the image's
    /// builder: P-256, SEC 1 uncompressed, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signer: Option<String>,
    /// Public key that the root key is encrypted to (X25519, hex). Its private key can read all
    /// keys of modules and move them to another node. Without it a lost root key cannot be
    /// restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<String>,
    /// A node that has no root key waits for the owner to restore one, instead of creating one.
    pub restore: bool,
}

impl Keys {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self) -> Result<(), ConfigProblem> {
        let is_point = |key: &str| crate::is_lower_hex(key, 130) && key.starts_with("04");
        if let Some(signer) = self.signer.as_deref().filter(|key| !is_point(key)) {
            let expected = "a point of P-256 as trustctl key show prints it, 130 lower-case hex \
                            digits that begin with 04";
            return Err(InvalidValue::text(expected, signer).at("keys.signer"));
        }
        match &self.recovery {
            Some(key) if !crate::is_lower_hex(key, 64) => {
                let expected = "an X25519 key as trustctl key show prints it, 64 lower-case hex \
                                digits";
                Err(InvalidValue::text(expected, key).at("keys.recovery"))
            }
            None if self.restore => {
                let expected = "keys.recovery as well, because a root key is restored from its \
                                encrypted copy";
                Err(InvalidValue::new(expected, "only keys.restore").at("keys.restore"))
            }
            _ => Ok(()),
        }
    }
}

/// Store of image blobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Store {
    /// Greatest size of all blobs together. The store evicts blobs that are no longer needed when
    /// it needs room.
    pub quota_mib: u64,
}

impl Default for Store {
    fn default() -> Self {
        Self { quota_mib: 4096 }
    }
}

impl TryFrom<RawNode> for Node {
    type Error = ConfigProblem;

    fn try_from(raw: RawNode) -> Result<Self, ConfigProblem> {
        crate::check_name(&raw.hostname).map_err(|e| e.at("hostname"))?;
        raw.network.check()?;
        if raw.api.listen.parse::<std::net::SocketAddr>().is_err() {
            return Err(InvalidValue::text("ADDRESS:PORT", &raw.api.listen).at("api.listen"));
        }
        crate::hex::check_keys("owner.certificates", &raw.owner.certificates)?;
        raw.keys.check()?;
        raw.ledger.check()?;
        check_positive("store.quota-mib", raw.store.quota_mib)?;
        raw.registries.iter().try_for_each(Registry::check)?;
        crate::error::check_distinct(
            "registries",
            raw.registries.iter().map(Registry::canonical_host),
        )?;
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
    use crate::{Addressing, Node, parse, parse_node};

    const GOOD: &str = r#"
hostname = "basalt"
time-servers = []
[network]
kind = "dhcp"
[api]
listen = "0.0.0.0:7443"
[owner]
[ledger]
kind = "log"
name = "home"
threshold = 1
"#;

    #[test]
    fn each_error_names_the_file_and_the_allowed_values() {
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
            ("kind = \"log\"", "kind = \"ethereum\"", "ledger.chain: expected a table"),
            ("threshold = 1", "threshold = 1\n[store]\nquota-mib = 0", "quota-mib"),
            ("threshold = 1", "threshold = 1\n[[registries]]\nhost = \"http://x\"", "HOST[:PORT]"),
            (
                "threshold = 1",
                "threshold = 1\n[[registries]]\nhost = \"x\"\nuser = \"u\"",
                "user and password together",
            ),
            (
                "threshold = 1",
                "threshold = 1\n[[registries]]\nhost = \"x\"\n[[registries]]\nhost = \"x\"",
                "\"x\" twice",
            ),
            (
                "threshold = 1",
                "threshold = 1\n[[registries]]\nhost = \"docker.io\"\n[[registries]]\n\
                 host = \"registry-1.docker.io\"",
                "\"registry-1.docker.io\" twice",
            ),
            (
                "threshold = 1",
                "threshold = 1\n[[registries]]\nhost = \"x\"\ntoken-hosts = [\"y\"]",
                "user and password, which token-hosts are for",
            ),
            (
                "threshold = 1",
                "threshold = 1\n[[registries]]\nhost = \"x\"\nuser = \"u\"\npassword = \"p\"\n\
                 token-hosts = [\"https://y\"]",
                "HOST[:PORT]",
            ),
            (
                "threshold = 1",
                "threshold = 1\n[[registries]]\nhost = \"x\"\nuser = \"u:v\"\npassword = \"p\"",
                "a user without a colon",
            ),
            (
                "threshold = 1",
                "threshold = 1\n[[registries]]\nhost = \"x\"\nplain = true\nuser = \"u\"\n\
                 password = \"p\"",
                "no password to send in the clear",
            ),
        ];
        for (from, to, message) in cases {
            let error =
                parse::<Node>("node.toml", &GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("node.toml"), "{error}");
        }
    }

    #[test]
    fn the_boot_partition_replaces_each_key_that_it_sets() {
        let own = format!(
            "hostname = \"gate-7\"\n[network]\nkind = \"static\"\naddress = \"192.0.2.7/24\"\n\
             gateway = \"192.0.2.1\"\n[owner]\ncertificates = [\"{}\"]\n",
            "ab".repeat(32)
        );
        let n = parse_node(GOOD, Some(&own)).unwrap();
        let Addressing::Static { address, .. } = n.network else { panic!("not static") };
        assert_eq!(
            (n.hostname.as_str(), address.mask().to_string().as_str()),
            ("gate-7", "255.255.255.0")
        );
        assert_eq!(n.owner.certificates.len(), 1);
        assert_eq!(parse_node(GOOD, None).unwrap().hostname, "basalt");
        assert_eq!(parse_node(GOOD, Some("")).unwrap().hostname, "basalt");
    }

    #[test]
    fn the_boot_partition_cannot_set_other_keys_or_invalid_values() {
        let fixed = |rest: &str| format!("[network]\nkind = \"static\"\n{rest}\n");
        for (own, message) in [
            ("[ledger]\nkind = \"log\"\nname = \"x\"\nthreshold = 1\n".to_owned(), "ledger"),
            ("[api]\nlisten = \"0.0.0.0:1\"\n".into(), "api"),
            ("hostname = \"A\"\n".into(), "hostname"),
            ("[owner]\n".into(), "accepts no commands"),
            ("[owner]\ncertificates = [\"00\"]\n".into(), "64"),
            ("hostname".into(), "expected"),
            (fixed(""), "address"),
            (fixed("address = \"192.0.2.7\""), "no prefix"),
            (fixed("address = \"192.0.2.7/33\""), "1 to 30"),
            (fixed("address = \"192.0.2.0/24\""), "no host address"),
            (fixed("address = \"192.0.2.255/24\""), "no host"),
            (fixed("address = \"127.0.0.1/8\""), "no host address"),
            (fixed("address = \"192.0.2.7/24\"\ngateway = \"192.0.3.1\""), "gateway"),
            (fixed("address = \"192.0.2.7/24\"\ngateway = \"192.0.2.7\""), "gateway"),
            (fixed("address = \"192.0.2.7/24\"\nmetric = 1"), "metric"),
        ] {
            let error = parse_node(GOOD, Some(&own)).unwrap_err().to_string();
            assert!(error.contains(message) && error.contains("boot partition"), "{own}: {error}");
        }
    }
}
