//! Which TPM it is: its endorsement key, the manufacturer's certificate for that, and that the
//! attestation key is in the same TPM.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use measure::{TpmKey, hex, make_credential, unhex};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use serde_json::{Value, json};
use webpki::{EndEntityCert, KeyUsage};

use crate::client::{Client, Refusal};
use crate::evidence::Failure;

/// Before the point in the SubjectPublicKeyInfo of a P-256 key (RFC 5480, section 2).
const SPKI: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// tcg-kp-EKCertificate, 2.23.133.8.1 (TCG EK Credential Profile 2.3, 3.2.16), as DER has it.
const PURPOSE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];

/// What a node says of its TPM (GET /v1/endorsement).
#[derive(Debug, Clone)]
pub struct Endorsement {
    pub key: TpmKey,
    pub certificate: Option<Vec<u8>>,
}

impl Endorsement {
    /// # Errors
    /// [`Failure`] if it is no endorsement key of the kind that nodes use.
    pub fn read(answer: &Value) -> Result<Self, Failure> {
        let bytes =
            |key: &'static str| answer[key].as_str().and_then(unhex).ok_or(Failure::Malformed(key));
        let certificate =
            if answer["certificate"].is_null() { None } else { Some(bytes("certificate")?) };
        Ok(Self { key: TpmKey::endorsement(&bytes("key")?)?, certificate })
    }

    /// The TPM's name: algorithm and digest of its endorsement key, hex.
    pub fn name(&self) -> String {
        hex(&self.key.name())
    }

    /// That a manufacturer vouches for it: its certificate leads to one in the folder (PEM or DER,
    /// roots and intermediates).
    ///
    /// # Errors
    /// [`Failure::Tpm`] if there is no certificate, it is for another key, or it leads to none of
    /// these.
    pub fn vouched_for(&self, authorities: &Path) -> Result<()> {
        let fail = |problem: String| Failure::Tpm(problem);
        let padded = self.certificate.as_ref().ok_or_else(|| {
            fail("it has no certificate of its manufacturer's for an ECC P-256 key".into())
        })?;
        let certificate = CertificateDer::from(
            der(padded).ok_or_else(|| fail("its certificate is no DER".into()))?.to_vec(),
        );
        let wrong = |e: webpki::Error| {
            fail(format!(
                "its certificate does not lead to one in {}: {e:?}",
                authorities.display()
            ))
        };
        let entity = EndEntityCert::try_from(&certificate).map_err(wrong)?;
        ensure!(
            entity.subject_public_key_info().as_ref() == [&SPKI[..], &self.key.sec1()].concat(),
            fail("its certificate is for another key".into())
        );
        let known = certificates(authorities)?;
        let anchors: Vec<TrustAnchor<'_>> =
            known.iter().filter_map(|c| webpki::anchor_from_trusted_cert(c).ok()).collect();
        ensure!(
            !anchors.is_empty(),
            "there is no certificate of an authority in {}",
            authorities.display()
        );
        let usage = KeyUsage::required_if_present(PURPOSE);
        entity
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &anchors,
                &known,
                UnixTime::now(),
                usage,
                None,
                None,
            )
            .map_err(wrong)?;
        Ok(())
    }

    /// Credential activation: only a TPM that holds both keys can answer.
    ///
    /// # Errors
    /// [`Failure::Tpm`] if it cannot; others if the node cannot be asked.
    pub fn holds(&self, attestation: &TpmKey, client: &Client) -> Result<()> {
        let mut random = [[0; 32]; 2];
        for part in &mut random {
            getrandom::fill(part).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
        }
        let [secret, ephemeral] = random;
        let credential = make_credential(&self.key, &attestation.name(), &secret, &ephemeral)?;
        let request = json!({ "blob": hex(&credential.blob), "seed": hex(&credential.seed) });
        let other = || {
            Failure::Tpm("the key that signed is not in the TPM with this endorsement key".into())
        };
        match client.in_turn(|c| c.post("/v1/activate-credential", &request)) {
            Ok(answer) if answer["secret"].as_str() == Some(&hex(&secret)) => Ok(()),
            Ok(_) => Err(other().into()),
            Err(error)
                if error
                    .downcast_ref::<Refusal>()
                    .is_some_and(|refusal| refusal.code == "credential") =>
            {
                Err(other().into())
            }
            Err(error) => Err(error.context("the node cannot activate a credential")),
        }
    }
}

/// The first element: an index in a TPM may be larger than what was written there.
fn der(padded: &[u8]) -> Option<&[u8]> {
    let (head, length) = match padded {
        [0x30, 0x82, high, low, ..] => (4, usize::from(*high) << 8 | usize::from(*low)),
        [0x30, 0x81, length, ..] => (3, usize::from(*length)),
        _ => return None,
    };
    padded.get(..head + length)
}

fn certificates(dir: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let bytes =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if bytes.starts_with(&[0x30]) {
            found.push(CertificateDer::from(bytes));
        } else {
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
            found.extend(
                read.map_err(|e| anyhow::anyhow!("{} has no certificates: {e}", path.display()))?,
            );
        }
    }
    Ok(found)
}
