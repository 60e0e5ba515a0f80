//! Evidence: a quote of the TPM and the logs that explain it. docs/attestation.md describes how a
//! verifier checks it.

use std::collections::BTreeMap;

use measure::Record;
use serde::{Deserialize, Serialize};

/// Request of a quote: `POST /v1/quote` of both interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuoteRequest {
    /// The verifier's nonce, 8 to 32 bytes, hex.
    pub nonce: String,
}

/// Quote over PCR 14 and 15, and the logs that replay to their values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// Text of a [`measure::AttestedStatement`]. Its digest is the qualifying data of the quote.
    pub statement: String,
    /// TPMS_ATTEST structure (TPM 2.0 Library, Part 2, 10.12.12), hex.
    pub attest: String,
    /// ECDSA signature over the structure: r and s of 32 bytes each, hex.
    pub signature: String,
    /// TPMT_PUBLIC structure of the attestation key, hex.
    pub key: String,
    /// Values of the quoted registers in hex, by PCR number.
    pub pcrs: BTreeMap<String, String>,
    /// Events of the boot, which init extended.
    pub platform_log: Vec<Record>,
    /// Events of modules, which trustd extended.
    pub modules_log: Vec<Record>,
}
