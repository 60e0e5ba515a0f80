//! Attestation of a node: requests its evidence and appraises it against reference values (RATS,
//! RFC 9334). The evidence can be saved as a file and appraised again offline.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use api::Evidence;
use measure::{AttestedStatement, Measurements, hex, unhex};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::client::{Address, Client, InvalidAnswer, Refusal};
use crate::endorsement::Endorsement;
use crate::evidence::{self, EvidenceError, VerifiedEvidence};
use crate::known_nodes::CertificateChanged;

const NONCE_BYTES: usize = 32;

/// Reference values: what a node's evidence is compared with. An absent value is not compared.
#[derive(Debug, Clone, Default)]
pub struct ReferenceValues {
    /// Predicted measurements of the image ([`crate::image::read_measurements`]).
    pub measurements: Option<Measurements>,
    /// Folder with certificates of TPM manufacturers.
    pub authorities: Option<PathBuf>,
    /// Name of the TPM's endorsement key, hex.
    pub tpm: Option<String>,
}

/// Evidence as `trustctl attest --save` writes it. The answer to a module's `quote` or `vrf/keys`
/// has only the evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedEvidence {
    /// Whether the TPM activated a credential for the attestation key.
    #[serde(default)]
    pub activated: bool,
    /// SHA-256 of the certificate that the node showed, hex; `None` for a Unix socket or a module.
    #[serde(default)]
    pub certificate: Option<String>,
    /// Endorsement key of the node's TPM.
    #[serde(default)]
    pub endorsement: Option<api::owner::Endorsement>,
    /// The quote and the logs.
    pub evidence: Evidence,
    /// Address of the node.
    #[serde(default)]
    pub node: Option<String>,
    /// Nonce that was sent, hex.
    #[serde(default)]
    pub nonce: Option<String>,
}

impl SavedEvidence {
    /// Parses the content of a file.
    ///
    /// # Errors
    /// Returns [`EvidenceError::Form`] if a member is missing or has another form, and another
    /// error if the text is not JSON.
    pub fn parse(text: &str) -> Result<Self> {
        serde_json::from_str(text).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => EvidenceError::Form(error).into(),
            _ => anyhow::Error::from(error).context("not JSON"),
        })
    }
}

/// Result of a positive appraisal: verified evidence and what is known of the TPM.
pub struct AttestationResult {
    /// The evidence.
    pub evidence: VerifiedEvidence,
    /// Endorsement key of the TPM; `None` for evidence of a module.
    pub endorsement: Option<Endorsement>,
    /// Whether the endorsement key's certificate leads to one of the reference values' authorities.
    pub certificate_verified: bool,
    /// Whether the TPM proved, when the evidence was requested, that it has both the attestation
    /// key and the endorsement key.
    pub activated: bool,
}

/// Attests a node as an anonymous client, and as its owner if the node denies anonymous clients.
///
/// Returns the evidence in the form in which it is saved, and the result of its appraisal.
///
/// # Errors
/// Returns the errors of [`attest`].
pub fn attest_anonymously_first(
    address: &Address,
    keys: &Path,
    reference: &ReferenceValues,
) -> Result<(SavedEvidence, Result<AttestationResult>)> {
    let error = match attest(&Client::anonymous(address.clone(), keys), reference) {
        Err(error) => error,
        answer => return answer,
    };
    // A client certificate changes nothing about these.
    let is_final =
        error.is::<Refusal>() || error.is::<CertificateChanged>() || error.is::<EvidenceError>();
    if is_final || !keys.join("owner.key").exists() {
        return Err(error);
    }
    attest(&Client::new(address.clone(), keys), reference).map_err(|as_owner| {
        let (anonymous, owner) = (format!("{error:#}"), format!("{as_owner:#}"));
        if anonymous == owner {
            return as_owner;
        }
        as_owner.context(format!(
            "without a client certificate: {anonymous}; with the owner's certificate"
        ))
    })
}

/// Requests evidence for a fresh nonce, has the TPM prove that it has the attestation key, and
/// appraises the answers.
///
/// Returns the evidence in the form in which it is saved, and the result of its appraisal: an
/// [`EvidenceError`] if the evidence was rejected.
///
/// # Errors
/// Returns [`EvidenceError::Form`] if an answer does not have the members of evidence, and another
/// error if the node cannot be reached or rejects a request.
pub fn attest(
    client: &Client,
    reference: &ReferenceValues,
) -> Result<(SavedEvidence, Result<AttestationResult>)> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
    let evidence = client.retry_when_busy(|client| client.quote(&nonce)).map_err(to_form_error)?;
    let endorsement =
        client.retry_when_busy(|client| client.endorsement()).map_err(to_form_error)?;
    let mut saved = SavedEvidence {
        activated: false,
        certificate: client.node_certificate(),
        endorsement: Some(endorsement.clone()),
        evidence,
        node: Some(client.address().to_string()),
        nonce: Some(hex(&nonce)),
    };
    // Activation is requested only for the node's own statement. A module's quote for this nonce
    // could come from the node behind it.
    let activated = evidence::verify(&saved.evidence, &nonce, None)
        .map_err(anyhow::Error::from)
        .and_then(|evidence| {
            require_own_statement(&evidence.statement, &saved)?;
            Endorsement::parse(&endorsement)?.verify_activation(&evidence.key, client)
        });
    saved.activated = activated.is_ok();
    let result = activated.and_then(|()| appraise(&saved, None, reference));
    Ok((saved, result))
}

/// Makes a successful answer without the members of evidence an [`EvidenceError`]. An answer that
/// is not JSON, or an error of another server, says nothing about the node's evidence.
fn to_form_error(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<InvalidAnswer>() {
        Ok(InvalidAnswer { status: 200, source }) if source.is_data() => {
            EvidenceError::Form(source).into()
        }
        Ok(other) => other.into(),
        Err(error) => error,
    }
}

/// Requires that a statement is the node's about itself, for the connection on which it came.
fn require_own_statement(
    statement: &AttestedStatement,
    saved: &SavedEvidence,
) -> Result<(), EvidenceError> {
    let AttestedStatement::Node { certificate: found, .. } = statement else {
        return Err(EvidenceError::Kind {
            expected: "the node itself",
            found: "one of its modules",
        });
    };
    match &saved.certificate {
        Some(shown) if found != shown => {
            Err(EvidenceError::Certificate { expected: shown.clone(), found: found.clone() })
        }
        // A Unix socket has no certificate.
        _ => Ok(()),
    }
}

/// Appraises saved evidence of a node, or the answer to a module's `quote` or `vrf/keys`. `nonce`
/// replaces the nonce in the file.
///
/// # Errors
/// Returns an [`EvidenceError`] if the evidence is rejected, and other errors if there is no nonce
/// or the authorities cannot be read.
pub fn appraise(
    saved: &SavedEvidence,
    nonce: Option<&[u8]>,
    reference: &ReferenceValues,
) -> Result<AttestationResult> {
    let sent = saved.nonce.as_deref().and_then(unhex);
    let nonce = nonce
        .map(<[u8]>::to_vec)
        .or(sent)
        .context("the file does not have the nonce that was sent: name it with --nonce")?;
    let mut evidence = evidence::verify(&saved.evidence, &nonce, None)?;
    let endorsement = saved.endorsement.as_ref().map(Endorsement::parse).transpose()?;
    let activated = saved.activated;
    let known_tpm = || {
        endorsement.as_ref().filter(|_| activated).ok_or_else(|| {
            EvidenceError::Tpm("no proof that the attestation key is in a TPM".into())
        })
    };
    // A module's evidence has no endorsement; a node's own must be complete.
    if endorsement.is_some() || matches!(evidence.statement, AttestedStatement::Node { .. }) {
        require_own_statement(&evidence.statement, saved)?;
        known_tpm()?;
    }
    if let Some(name) = &reference.tpm {
        let found = known_tpm()?.name();
        if *name != found {
            return Err(EvidenceError::Tpm(format!("expected {name}, found {found}")).into());
        }
    }
    if let Some(authorities) = &reference.authorities {
        known_tpm()?.verify_certificate(authorities)?;
    }
    if let Some(measurements) = &reference.measurements {
        evidence.compare_boot(measurements)?;
    }
    let certificate_verified = reference.authorities.is_some();
    Ok(AttestationResult { evidence, endorsement, certificate_verified, activated })
}

impl AttestationResult {
    /// Returns the result for programs, with `valid: true`.
    pub fn json(&self) -> Value {
        let evidence = &self.evidence;
        let pcrs: serde_json::Map<String, Value> =
            evidence.pcrs.iter().map(|(n, pcr)| (n.to_string(), json!(hex(&pcr.0)))).collect();
        json!({
            "board": evidence.board,
            "clock_ms": evidence.quote.clock,
            "events": evidence.platform.iter().chain(&evidence.modules).collect::<Vec<_>>(),
            "key": hex(&evidence.key.name()),
            "pcrs": pcrs,
            "statement": evidence.statement,
            "tpm": self.endorsement.as_ref().map(|endorsement| json!({
                "activated": self.activated,
                "certificate": endorsement.certificate.is_some(),
                "certificate_verified": self.certificate_verified,
                "name": endorsement.name(),
            })),
            "valid": true,
        })
    }
}

/// Returns a negative result for programs, with `valid: false` and the reason.
pub fn rejection_json(error: &anyhow::Error) -> Value {
    let problem = match error.downcast_ref::<EvidenceError>() {
        Some(rejection) => rejection.json(),
        None => json!({ "code": "failed", "message": format!("{error:#}") }),
    };
    json!({ "problem": problem, "valid": false })
}
