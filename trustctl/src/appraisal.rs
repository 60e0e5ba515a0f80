//! A node's evidence from the question to the verdict, and as a file that can be checked again
//! offline.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use measure::{AttestedStatement, Measurements, hex, unhex};
use serde_json::{Value, json};

use crate::client::{Address, Client, Refusal};
use crate::endorsement::Endorsement;
use crate::evidence::{self, Checked, Failure};

const NONCE: usize = 32;

/// What a node has to be.
#[derive(Debug, Clone, Default)]
pub struct Expected {
    pub measurements: Option<Measurements>,
    /// Folder with the certificates of manufacturers of TPMs.
    pub authorities: Option<PathBuf>,
    /// The name of its TPM.
    pub tpm: Option<String>,
}

impl Expected {
    /// An image's `measurements.json`, with the settings that the node has on its boot partition.
    ///
    /// # Errors
    /// That one of the files cannot be read.
    pub fn image(path: &Path, settings: Option<&Path>) -> Result<Measurements> {
        let read = |path: &Path| {
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
        };
        let mut expected: Measurements = serde_json::from_slice(&read(path)?)
            .with_context(|| format!("{} is not a measurements.json", path.display()))?;
        if let Some(settings) = settings {
            let settings = read(settings)?;
            expected.boards =
                expected.boards.iter().map(|board| board.with_settings(&settings)).collect();
        }
        Ok(expected)
    }
}

/// Evidence that holds, and what it says of the TPM.
pub struct Verdict {
    pub checked: Checked,
    pub endorsement: Option<Endorsement>,
    /// The manufacturer's certificate leads to a known authority.
    pub vouched_for: bool,
    /// The attestation key proved to be in the TPM with that endorsement key; when it was asked
    /// for, that is.
    pub activated: bool,
}

/// Asks a node as a stranger; and as its owner, where it lets no strangers in.
///
/// # Errors
/// As [`ask`].
pub fn find_out(
    address: &Address,
    keys: &Path,
    expected: &Expected,
) -> Result<(Value, Result<Verdict>)> {
    match ask(&Client::stranger(address.clone(), keys), expected) {
        Err(error) if !error.is::<Refusal>() && keys.join("owner.key").exists() => {
            ask(&Client::new(address.clone(), keys), expected)
                .map_err(|as_owner| as_owner.context(format!("{error:#}")))
        }
        answer => answer,
    }
}

/// Asks a node with a fresh nonce; returns what it said, to be kept, and the verdict on it.
///
/// # Errors
/// A [`Failure`] if the evidence does not hold; others if the node cannot be asked.
pub fn ask(client: &Client, expected: &Expected) -> Result<(Value, Result<Verdict>)> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    let answer = client.in_turn(|c| c.post("/v1/quote", &json!({ "nonce": hex(&nonce) })))?;
    let endorsement = client.in_turn(|c| c.get("/v1/endorsement"))?;
    let mut kept = json!({
        "activated": false,
        "certificate": client.certificate(),
        "endorsement": endorsement,
        "evidence": answer,
        "node": client.address().to_string(),
        "nonce": hex(&nonce),
    });
    // Only the node's own word is asked on: a module's quote for this nonce would be of the node
    // behind it.
    let activated =
        evidence::check(&answer, &nonce, None).map_err(anyhow::Error::from).and_then(|checked| {
            own(&checked.statement, &kept)?;
            Endorsement::read(&endorsement)?.holds(&checked.key, client)
        });
    kept["activated"] = json!(activated.is_ok());
    let verdict = activated.and_then(|()| judge(&kept, None, expected));
    Ok((kept, verdict))
}

/// That a statement is the node's about itself, made for the connection on which it came.
fn own(statement: &AttestedStatement, kept: &Value) -> Result<(), Failure> {
    let AttestedStatement::Node { certificate: found, .. } = statement else {
        return Err(Failure::Kind { expected: "the node itself", found: "a module of some node" });
    };
    match kept["certificate"].as_str() {
        Some(shown) if found != shown => {
            Err(Failure::Certificate { expected: shown.to_owned(), found: found.clone() })
        }
        // On a Unix socket there is none to be shown.
        _ => Ok(()),
    }
}

/// What was kept, or what a module's `quote` and `vrf/keys` answer, with the nonce that was sent.
///
/// # Errors
/// A [`Failure`] if the evidence does not hold.
pub fn judge(kept: &Value, nonce: Option<&[u8]>, expected: &Expected) -> Result<Verdict> {
    let sent = kept["nonce"].as_str().and_then(unhex);
    let nonce = nonce
        .map(<[u8]>::to_vec)
        .or(sent)
        .context("the nonce that was sent is not in the file: name it with --nonce")?;
    let mut checked = evidence::check(&kept["evidence"], &nonce, None)?;
    let endorsement = if kept["endorsement"].is_null() {
        None
    } else {
        Some(Endorsement::read(&kept["endorsement"])?)
    };
    let activated = kept["activated"] == true;
    let known = || {
        endorsement.as_ref().filter(|_| activated).ok_or_else(|| {
            Failure::Tpm("nothing shows that the key that signed is in a TPM".into())
        })
    };
    // A module's evidence says whose it is; a node's own has to be whole.
    if endorsement.is_some() || matches!(checked.statement, AttestedStatement::Node { .. }) {
        own(&checked.statement, kept)?;
        known()?;
    }
    if let Some(name) = &expected.tpm {
        let found = known()?.name();
        if *name != found {
            return Err(Failure::Tpm(format!("expected {name}, found {found}")).into());
        }
    }
    if let Some(authorities) = &expected.authorities {
        known()?.vouched_for(authorities)?;
    }
    if let Some(measurements) = &expected.measurements {
        checked.boot(measurements)?;
    }
    Ok(Verdict { checked, endorsement, vouched_for: expected.authorities.is_some(), activated })
}

impl Verdict {
    pub fn json(&self) -> Value {
        let checked = &self.checked;
        json!({
            "board": checked.board,
            "clock_ms": checked.quote.clock,
            "events": checked.platform.iter().chain(&checked.modules).collect::<Vec<_>>(),
            "holds": true,
            "key": hex(&checked.key.name()),
            "pcrs": checked.pcrs.iter().map(|(n, pcr)| (n.to_string(), hex(&pcr.0))).collect::<std::collections::BTreeMap<_, _>>(),
            "statement": checked.statement,
            "tpm": self.endorsement.as_ref().map(|endorsement| json!({
                "activated": self.activated,
                "certificate": endorsement.certificate.is_some(),
                "name": endorsement.name(),
                "vouched_for": self.vouched_for,
            })),
        })
    }
}

/// A verdict that is no, for programs.
pub fn no(error: &anyhow::Error) -> Value {
    let problem = match error.downcast_ref::<Failure>() {
        Some(failure) => failure.json(),
        None => json!({ "code": "failed", "message": format!("{error:#}") }),
    };
    json!({ "holds": false, "problem": problem })
}
