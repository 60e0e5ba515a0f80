//! Values that cross the boundary between the TPM and the rest of trustd.

use serde::{Deserialize, Serialize};

/// A signed statement of the TPM about PCR 14 and 15.
#[derive(Debug, Clone)]
pub struct SignedQuote {
    /// TPMS_ATTEST as the TPM made it.
    pub attest: Vec<u8>,
    /// ECDSA over its SHA-256: r and s, 32 bytes each.
    pub signature: Vec<u8>,
    /// TPMT_PUBLIC of the attestation key.
    pub key: Vec<u8>,
    /// Reset counts of `attest`.
    pub reset_counts: ResetCounts,
}

/// Reset counts of the TPM (TPM 2.0 Library, Part 1, 36.5 "resetCount", "restartCount").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResetCounts {
    /// Number of TPM Resets.
    pub reset: u32,
    /// Number of TPM Restarts and TPM Resumes since the last TPM Reset.
    pub restart: u32,
}

/// Identity of the TPM.
#[derive(Debug, Clone)]
pub struct Endorsement {
    /// TPMT_PUBLIC of the endorsement key.
    pub public_area: Vec<u8>,
    /// Manufacturer's certificate of the key (X.509, DER), if the TPM has one.
    pub certificate: Option<Vec<u8>>,
}

/// A secret in its sealed form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedSecret {
    /// TPMT_PUBLIC of the sealed object.
    pub public: Vec<u8>,
    /// TPM2B_PRIVATE of the sealed object, without its size.
    pub private: Vec<u8>,
    /// Name of the key that it is sealed under. Sessions are salted with that key: if it were
    /// another one, an attacker on the bus could read the secret.
    pub parent: Vec<u8>,
}
