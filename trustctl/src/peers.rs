//! Attestation of a group of nodes, of which a quorum must be as expected.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::thread::ScopedJoinHandle;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::appraisal::{self, AttestationResult, ReferenceValues};
use crate::client::Address;
use crate::endorsement::Endorsement;
use crate::image;

/// File that describes a group (docs/attestation.md). Its paths are relative to its folder.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Group {
    /// Number of nodes that must be as expected; by default more than half.
    quorum: Option<usize>,
    /// Folder with certificates of TPM manufacturers.
    #[serde(default)]
    ek_ca: Option<PathBuf>,
    #[serde(default)]
    node: Vec<Peer>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Peer {
    /// `HOST:PORT`.
    address: String,
    /// `measurements.json` of its image.
    expect: PathBuf,
    /// `node.toml` of its boot partition.
    #[serde(default)]
    settings: Option<PathBuf>,
    /// Name of its TPM.
    #[serde(default)]
    tpm: Option<String>,
}

/// Result of attesting one node of a group.
pub struct PeerResult {
    /// Address as the file has it.
    pub address: String,
    /// Result of the appraisal, or the reason why the node does not count.
    pub result: Result<AttestationResult>,
}

impl Group {
    /// Reads a group's file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or is malformed, if the quorum is out of range,
    /// or if a node is listed twice.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let group: Self = toml::from_str(&text)
            .with_context(|| format!("{} is not a list of nodes", path.display()))?;
        let n = group.node.len();
        ensure!(n > 0, "{}: expected at least one [[node]]", path.display());
        ensure!(
            (1..=n).contains(&group.quorum()),
            "{}: quorum: expected 1 to {n}, found {}",
            path.display(),
            group.quorum()
        );
        for (at, peer) in group.node.iter().enumerate() {
            let is_listed = group.node[..at]
                .iter()
                .any(|p| p.address == peer.address || p.tpm.is_some() && p.tpm == peer.tpm);
            ensure!(
                !is_listed,
                "{}: {} is listed twice, by its address or its TPM",
                path.display(),
                peer.address
            );
        }
        Ok(group)
    }

    /// Returns the number of nodes that must be as expected.
    pub fn quorum(&self) -> usize {
        self.quorum.unwrap_or(self.node.len() / 2 + 1)
    }

    /// Attests all nodes concurrently; `path` is the group's file, `keys` the folder of keys.
    pub fn attest(&self, path: &Path, keys: &Path) -> Vec<PeerResult> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let join = |thread: ScopedJoinHandle<'_, Result<AttestationResult>>| {
            thread.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the attestation panicked")))
        };
        let mut results: Vec<PeerResult> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .node
                .iter()
                .map(|peer| (peer, scope.spawn(move || self.attest_peer(peer, folder, keys))))
                .collect();
            threads
                .into_iter()
                .map(|(peer, thread)| PeerResult {
                    address: peer.address.clone(),
                    result: join(thread),
                })
                .collect()
        });
        reject_repeated_tpms(&mut results);
        results
    }

    fn attest_peer(&self, peer: &Peer, folder: &Path, keys: &Path) -> Result<AttestationResult> {
        let address: Address = peer.address.parse()?;
        let settings = peer.settings.as_ref().map(|path| folder.join(path));
        let measurements =
            image::read_measurements(&folder.join(&peer.expect), settings.as_deref());
        let reference = ReferenceValues {
            measurements: Some(measurements?),
            authorities: self.ek_ca.as_ref().map(|dir| folder.join(dir)),
            tpm: peer.tpm.clone(),
        };
        appraisal::attest_anonymously_first(&address, keys, &reference)?.1
    }
}

/// Rejects all but the first node with the same TPM: a TPM counts once, however many addresses it
/// has.
fn reject_repeated_tpms(results: &mut [PeerResult]) {
    let mut names = BTreeSet::new();
    for peer in results {
        let endorsement = peer.result.as_ref().ok().and_then(|result| result.endorsement.as_ref());
        let Some(name) = endorsement.map(Endorsement::name) else { continue };
        if !names.insert(name.clone()) {
            peer.result =
                Err(anyhow::anyhow!("another node of this list has the same TPM: {name}"));
        }
    }
}
