use serde::{Deserialize, Serialize};

/// `/etc/basalt/modules/NAME.toml`: a container that trustd runs once its image is approved.
///
/// Everything that is not written here is denied: there is no key for privileges, devices, host paths or host namespaces.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", try_from = "RawModule", into = "RawModule")]
pub struct Module {
    pub image: Image,
    pub command: Vec<String>,
    pub environment: Vec<String>,
    pub network: Network,
    pub memory_mib: u64,
    pub pids: u32,
    /// What the module may ask its socket for.
    pub crypto: Vec<CryptoUse>,
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(untagged, rename_all = "kebab-case")]
pub enum Image {
    /// On a node: the manifest's digest, and the archive that holds it.
    Archive(Archive),
    /// In the repository: what the build makes the archive from.
    Ship(Ship),
}

#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Archive {
    pub digest: String,
    pub archive: String,
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
    None,
    Bridge,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum CryptoUse {
    Vrf,
    Random,
    Hash,
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
    #[serde(default = "default_memory")]
    memory_mib: u64,
    #[serde(default = "default_pids")]
    pids: u32,
    #[serde(default)]
    crypto: Vec<CryptoUse>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    image: Option<Archive>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ship: Option<Ship>,
}

fn no_network() -> Network {
    Network::None
}

fn default_memory() -> u64 {
    64
}

fn default_pids() -> u32 {
    64
}

impl TryFrom<RawModule> for Module {
    type Error = String;

    fn try_from(raw: RawModule) -> Result<Self, String> {
        let image = match (raw.image, raw.ship) {
            (Some(archive), None) => {
                crate::valid_digest(&archive.digest).map_err(|e| format!("image.digest: {e}"))?;
                Image::Archive(archive)
            }
            (None, Some(ship)) => Image::Ship(ship),
            _ => return Err("a module has either [image] (digest and archive) or [ship] (what the build makes it from)".into()),
        };
        if !(6..=1 << 20).contains(&raw.memory_mib) {
            return Err(format!("memory-mib: expected 6 to 1048576, found {}", raw.memory_mib));
        }
        if !(1..=4096).contains(&raw.pids) {
            return Err(format!("pids: expected 1 to 4096, found {}", raw.pids));
        }
        if let Some(bad) = raw.environment.iter().find(|e| !e.contains('=')) {
            return Err(format!("environment: expected NAME=VALUE, found {bad:?}"));
        }
        let mut crypto = raw.crypto;
        crypto.sort();
        crypto.dedup();
        Ok(Self {
            image,
            command: raw.command,
            environment: raw.environment,
            network: raw.network,
            memory_mib: raw.memory_mib,
            pids: raw.pids,
            crypto,
        })
    }
}

impl From<Module> for RawModule {
    fn from(m: Module) -> Self {
        let (image, ship) = match m.image {
            Image::Archive(archive) => (Some(archive), None),
            Image::Ship(ship) => (None, Some(ship)),
        };
        Self {
            command: m.command,
            environment: m.environment,
            network: m.network,
            memory_mib: m.memory_mib,
            pids: m.pids,
            crypto: m.crypto,
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
}

#[cfg(test)]
mod tests {
    use crate::{Module, parse};

    #[test]
    fn what_the_schema_cannot_say_is_refused() {
        let good = format!("[image]\ndigest = \"sha256:{}\"\narchive = \"/x\"\n", "a".repeat(64));
        parse::<Module>("m", &good).unwrap();
        for key in [
            "privileged = true",
            "cap-add = [\"ALL\"]",
            "devices = []",
            "volumes = [\"/:/host\"]",
            "network = \"host\"",
            "pids = 0",
            "memory-mib = 1",
        ] {
            let error = parse::<Module>("m", &format!("{key}\n{good}"));
            assert!(error.is_err(), "{key}");
        }
        assert!(parse::<Module>("m", "").is_err());
        assert!(parse::<Module>("m", &good.replace("sha256:", "sha512:")).is_err());
    }
}
