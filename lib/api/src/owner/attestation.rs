//! Which TPM a node has, and the proof that its attestation key is in it. Quotes have the types of
//! the crate's root.

use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/endorsement`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endorsement {
    /// TPMT_PUBLIC structure of the endorsement key, hex.
    pub key: String,
    /// The manufacturer's X.509 certificate for the key (DER, hex), if the TPM has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
}

/// Request of `POST /v1/activate-credential`: input of TPM2_ActivateCredential (TPM 2.0 Library,
/// Part 3, 12.5).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// TPMS_ID_OBJECT structure, hex.
    pub blob: String,
    /// TPMS_ECC_POINT structure: the encrypted seed, hex.
    pub seed: String,
}

/// Answer of `POST /v1/activate-credential`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivatedCredential {
    /// Secret of the credential, hex. Only the TPM that has both keys can decrypt it.
    pub secret: String,
}
