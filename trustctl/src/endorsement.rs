//! Identity of a TPM: its endorsement key, the manufacturer's certificate for that key, and the
//! proof that the attestation key is in the same TPM.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use api::ErrorCode;
use api::owner::Credential;
use measure::{TpmKey, hex, make_credential};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::client::{Client, Refusal};
use crate::evidence::{EvidenceError, parse_hex};

/// Bytes before the point in the SubjectPublicKeyInfo of a P-256 key (RFC 5480, section 2).
const SPKI_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Extended key usage tcg-kp-EKCertificate, 2.23.133.8.1 in DER (TCG EK Credential Profile 2.3,
/// section 3.2.16).
const EK_CERTIFICATE_USAGE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];

/// Endorsement key of a node's TPM, with its certificate (`GET /v1/endorsement`).
#[derive(Debug, Clone)]
pub struct Endorsement {
    /// Public part of the endorsement key.
    pub key: TpmKey,
    /// The manufacturer's X.509 certificate in DER, possibly padded; `None` if the TPM has none.
    pub certificate: Option<Vec<u8>>,
}

impl Endorsement {
    /// Parses the node's answer.
    ///
    /// # Errors
    /// Returns an [`EvidenceError`] if the key is not an endorsement key of the kind that nodes
    /// use.
    pub fn parse(answer: &api::owner::Endorsement) -> Result<Self, EvidenceError> {
        let certificate = answer.certificate.as_deref();
        let certificate = certificate.map(|hex| parse_hex("certificate", hex)).transpose()?;
        Ok(Self { key: TpmKey::endorsement(&parse_hex("key", &answer.key)?)?, certificate })
    }

    /// Returns the TPM's name: algorithm and digest of its endorsement key, hex.
    pub fn name(&self) -> String {
        hex(&self.key.name())
    }

    /// Verifies that the certificate is for this key and leads to one in the folder (PEM or DER,
    /// roots and intermediates).
    ///
    /// # Errors
    /// Returns [`EvidenceError::Tpm`] if there is no certificate, it is for another key, or it
    /// leads to none of these, and another error if the folder cannot be read.
    pub fn verify_certificate(&self, authorities: &Path) -> Result<()> {
        let padded = self.certificate.as_ref().ok_or_else(|| {
            EvidenceError::Tpm(
                "it has no certificate of its manufacturer for an ECC P-256 key".into(),
            )
        })?;
        let certificate = CertificateDer::from(
            first_der_element(padded)
                .ok_or_else(|| EvidenceError::Tpm("its certificate is not DER".into()))?
                .to_vec(),
        );
        let untrusted = |e: webpki::Error| {
            EvidenceError::Tpm(format!(
                "its certificate does not lead to one in {}: {e:?}",
                authorities.display()
            ))
        };
        let entity = EndEntityCert::try_from(&certificate).map_err(untrusted)?;
        let expected = [&SPKI_PREFIX[..], &self.key.sec1()].concat();
        ensure!(
            entity.subject_public_key_info().as_ref() == expected,
            EvidenceError::Tpm("its certificate is for another key".into())
        );
        let known = read_certificates(authorities)?;
        let anchors: Vec<TrustAnchor<'_>> =
            known.iter().filter_map(|c| webpki::anchor_from_trusted_cert(c).ok()).collect();
        ensure!(
            !anchors.is_empty(),
            "no certificate of an authority found in {}",
            authorities.display()
        );
        let usage = KeyUsage::required_if_present(EK_CERTIFICATE_USAGE);
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
            .map_err(untrusted)?;
        Ok(())
    }

    /// Verifies by credential activation (TPM2_MakeCredential, TPM2_ActivateCredential) that the
    /// attestation key is in the TPM with this endorsement key: only a TPM with both can answer.
    ///
    /// # Errors
    /// Returns [`EvidenceError::Tpm`] if the answer is wrong, and another error if the node cannot
    /// be reached or rejects the request.
    pub fn verify_activation(&self, attestation: &TpmKey, client: &Client) -> Result<()> {
        let mut random = [[0; 32]; 2];
        for part in &mut random {
            getrandom::fill(part).map_err(|e| anyhow::anyhow!("no random numbers: {e}"))?;
        }
        let [secret, ephemeral] = random;
        let credential = make_credential(&self.key, &attestation.name(), &secret, &ephemeral)?;
        let request = Credential { blob: hex(&credential.blob), seed: hex(&credential.seed) };
        let other_tpm = || {
            EvidenceError::Tpm(
                "the key that signed is not in the TPM with this endorsement key".into(),
            )
        };
        match client.retry_when_busy(|client| client.activate_credential(&request)) {
            Ok(answer) if answer.secret == hex(&secret) => Ok(()),
            Ok(_) => Err(other_tpm().into()),
            Err(error)
                if error
                    .downcast_ref::<Refusal>()
                    .is_some_and(|refusal| refusal.code == ErrorCode::Credential) =>
            {
                Err(other_tpm().into())
            }
            Err(error) => Err(error.context("the node cannot activate a credential")),
        }
    }
}

/// Returns the first DER element without the padding after it: an NV index can be larger than the
/// certificate in it.
fn first_der_element(padded: &[u8]) -> Option<&[u8]> {
    let (head, length) = match padded {
        [0x30, 0x82, high, low, ..] => (4, usize::from(*high) << 8 | usize::from(*low)),
        [0x30, 0x81, length, ..] => (3, usize::from(*length)),
        _ => return None,
    };
    padded.get(..head + length)
}

/// Reads all certificates in a folder.
fn read_certificates(dir: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let mut certificates = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        let bytes =
            std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if bytes.starts_with(&[0x30]) {
            certificates.push(CertificateDer::from(bytes));
        } else {
            let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
            certificates.extend(
                read.map_err(|e| anyhow::anyhow!("{} has no certificates: {e}", path.display()))?,
            );
        }
    }
    Ok(certificates)
}
