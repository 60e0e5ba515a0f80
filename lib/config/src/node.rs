use serde::{Deserialize, Serialize};

/// `/etc/basalt/node.toml`: what the owner sets. In the repository it is configs/node.toml.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", try_from = "RawNode", into = "RawNode")]
pub struct Node {
    pub hostname: String,
    pub network: Dhcp,
    pub time_servers: Vec<String>,
    pub api: Api,
    pub owner: Owner,
    pub ledger: Ledger,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawNode {
    hostname: String,
    #[serde(default)]
    time_servers: Vec<String>,
    network: Dhcp,
    api: Api,
    owner: Owner,
    ledger: Ledger,
}

/// How the node gets an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Dhcp {
    Dhcp {},
    None {},
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Api {
    /// Where the owner's API listens for TLS with client certificates.
    pub listen: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Owner {
    /// SHA-256 of the owners' client certificates (DER), as hex. Empty in the repository: the build then puts in the user's own.
    #[serde(default)]
    pub certificates: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub enum Ledger {
    /// An approval log signed by `threshold` of the approvers.
    #[serde(rename_all = "kebab-case")]
    Log {
        /// What the approvers sign for: statements of another ledger do not count here.
        name: String,
        /// Ed25519 public keys as hex. Empty in the repository: the build then puts in the user's own.
        #[serde(default)]
        approvers: Vec<String>,
        threshold: usize,
    },
}

impl TryFrom<RawNode> for Node {
    type Error = String;

    fn try_from(raw: RawNode) -> Result<Self, String> {
        crate::valid_name(&raw.hostname).map_err(|e| format!("hostname: {e}"))?;
        raw.api
            .listen
            .parse::<std::net::SocketAddr>()
            .map_err(|e| format!("api.listen: expected ADDRESS:PORT, found {:?} ({e})", raw.api.listen))?;
        for (what, list) in [("owner.certificates", &raw.owner.certificates), ("ledger.approvers", raw.ledger.approvers())] {
            for (n, entry) in list.iter().enumerate() {
                if entry.len() != 64 || !entry.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
                    return Err(format!("{what}: expected 64 lower-case hex digits, found {entry:?}"));
                }
                if list[..n].contains(entry) {
                    return Err(format!("{what}: {entry} is there twice"));
                }
            }
        }
        let Ledger::Log { name, approvers, threshold } = &raw.ledger;
        crate::valid_name(name).map_err(|e| format!("ledger.name: {e}"))?;
        if *threshold == 0 || (!approvers.is_empty() && *threshold > approvers.len()) {
            return Err(format!("ledger.threshold: expected 1 to the number of approvers ({}), found {threshold}", approvers.len()));
        }
        let RawNode { hostname, time_servers, network, api, owner, ledger } = raw;
        Ok(Self { hostname, time_servers, network, api, owner, ledger })
    }
}

impl From<Node> for RawNode {
    fn from(node: Node) -> Self {
        let Node { hostname, time_servers, network, api, owner, ledger } = node;
        Self { hostname, time_servers, network, api, owner, ledger }
    }
}

impl Ledger {
    pub fn approvers(&self) -> &Vec<String> {
        let Self::Log { approvers, .. } = self;
        approvers
    }
}

#[cfg(test)]
mod tests {
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
        ];
        for (from, to, says) in cases {
            let error = parse::<Node>("node.toml", &GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains("node.toml"), "{error}");
        }
    }
}
