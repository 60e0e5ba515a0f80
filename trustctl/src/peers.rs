//! A group of nodes, each of which has to be what it should be.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::appraisal::{self, Expected, Verdict};
use crate::client::Address;

/// The group's file. Paths in it are from its folder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Group {
    /// How many must hold; more than half of them if it is not said.
    quorum: Option<usize>,
    /// Certificates of manufacturers of TPMs.
    #[serde(default)]
    ek_ca: Option<PathBuf>,
    #[serde(default)]
    node: Vec<Peer>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Peer {
    /// `HOST:PORT`
    address: String,
    /// measurements.json of its image
    expect: PathBuf,
    /// node.toml of its boot partition
    #[serde(default)]
    settings: Option<PathBuf>,
    /// Name of its TPM
    #[serde(default)]
    tpm: Option<String>,
}

/// What came of asking one.
pub struct Asked {
    pub address: String,
    pub verdict: Result<Verdict>,
}

impl Group {
    /// # Errors
    /// That the file cannot be read, or says what cannot be meant.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let group: Self = toml::from_str(&text)
            .with_context(|| format!("{} is not a list of nodes", path.display()))?;
        let n = group.node.len();
        ensure!(n > 0, "{}: no [[node]]", path.display());
        ensure!(
            (1..=n).contains(&group.quorum()),
            "{}: quorum: expected 1 to {n}, found {}",
            path.display(),
            group.quorum()
        );
        for (at, peer) in group.node.iter().enumerate() {
            let twice = group.node[..at]
                .iter()
                .any(|p| p.address == peer.address || p.tpm.is_some() && p.tpm == peer.tpm);
            ensure!(
                !twice,
                "{}: {} is there twice, by its address or its TPM",
                path.display(),
                peer.address
            );
        }
        Ok(group)
    }

    pub fn quorum(&self) -> usize {
        self.quorum.unwrap_or(self.node.len() / 2 + 1)
    }

    /// Asks all of them at the same time; `path` is the group's file.
    pub fn ask(&self, path: &Path, keys: &Path) -> Vec<Asked> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let ask = |peer: &Peer| -> Result<Verdict> {
            let address: Address = peer.address.parse().map_err(anyhow::Error::msg)?;
            let expected = Expected {
                measurements: Some(Expected::image(
                    &folder.join(&peer.expect),
                    peer.settings.as_ref().map(|p| folder.join(p)).as_deref(),
                )?),
                authorities: self.ek_ca.as_ref().map(|dir| folder.join(dir)),
                tpm: peer.tpm.clone(),
            };
            appraisal::find_out(&address, keys, &expected)?.1
        };
        let mut asked: Vec<Asked> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                self.node.iter().map(|peer| (peer, scope.spawn(move || ask(peer)))).collect();
            let answer = |thread: std::thread::ScopedJoinHandle<'_, Result<Verdict>>| {
                thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("it panicked")))
            };
            threads
                .into_iter()
                .map(|(peer, thread)| Asked {
                    address: peer.address.clone(),
                    verdict: answer(thread),
                })
                .collect()
        });
        // One TPM is one voice, however many addresses it has.
        let mut seen = std::collections::BTreeSet::new();
        for one in &mut asked {
            let name = one
                .verdict
                .as_ref()
                .ok()
                .and_then(|v| v.endorsement.as_ref())
                .map(crate::endorsement::Endorsement::name);
            if let Some(name) = name.filter(|name| !seen.insert(name.clone())) {
                one.verdict = Err(anyhow::anyhow!(
                    "it is the same TPM as another node's of this list: {name}"
                ));
            }
        }
        asked
    }
}
