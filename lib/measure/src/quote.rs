//! Verification of TPM quotes: structure (TPM 2.0 Library, Part 2, 10.12.8 TPMS_ATTEST), qualifying
//! data, PCR selection, digest and signature.

use std::collections::BTreeMap;

use p256::ecdsa::{Signature, VerifyingKey, signature::Verifier as _};
use sha2::{Digest as _, Sha256};

use crate::{Pcr, TpmKey};

/// TPM_GENERATED_VALUE (Part 2, 6.2): marks structures that a TPM made.
const GENERATED: u32 = 0xff54_4347;
const ST_ATTEST_QUOTE: u16 = 0x8018;
const ALG_SHA256: u16 = 0x000b;

/// Error of parsing or verifying a quote.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum QuoteError {
    /// The structure does not decode.
    #[error("malformed quote: {0}")]
    Malformed(&'static str),
    /// The structure lacks TPM_GENERATED_VALUE.
    #[error("the structure was not made by a TPM: expected magic ff544347, found {0:08x}")]
    NotGenerated(u32),
    /// The structure is of another type.
    #[error("the structure is not a quote: expected type 8018, found {0:04x}")]
    NotAQuote(u16),
    /// The quote has other qualifying data.
    #[error("the qualifying data of the quote is not the digest of the statement")]
    QualifyingData,
    /// The quote covers other PCRs.
    #[error("the quote covers other PCRs than the requested ones, {0:?}")]
    Selection(Vec<u32>),
    /// The PCR values do not have the quoted digest.
    #[error("the PCR values do not match the quoted digest")]
    PcrDigest,
    /// The signature is not the attestation key's.
    #[error("the attestation key did not sign this quote")]
    Signature,
}

/// Contents of a quote in addition to the PCRs (TPMS_CLOCK_INFO and firmwareVersion).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// Time that the TPM has been powered, in milliseconds.
    pub clock: u64,
    /// Number of resets of the TPM.
    pub reset_count: u32,
    /// Number of restarts and resumes since the last reset.
    pub restart_count: u32,
    /// Version of the TPM's firmware.
    pub firmware_version: u64,
}

/// Verifies that the TPM that has `key` signed exactly these PCR values with this qualifying data.
///
/// # Errors
///
/// Returns [`QuoteError::Signature`] if the key did not sign the structure, and the errors of
/// [`parse_quote`].
pub fn verify_quote(
    key: &TpmKey,
    attest: &[u8],
    signature: &[u8],
    qualifying: &[u8],
    pcrs: &BTreeMap<u32, Pcr>,
) -> Result<Quote, QuoteError> {
    let key = VerifyingKey::from(key.point());
    let signature = Signature::from_slice(signature).map_err(|_| QuoteError::Signature)?;
    key.verify(attest, &signature).map_err(|_| QuoteError::Signature)?;
    parse_quote(attest, qualifying, pcrs)
}

/// Parses a quote (TPMS_ATTEST) of these PCR values with this qualifying data. The caller verifies
/// the signature.
///
/// # Errors
///
/// Returns [`QuoteError`] if the structure is malformed, is not a quote, or covers other qualifying
/// data, PCRs or values.
pub fn parse_quote(
    attest: &[u8],
    qualifying: &[u8],
    pcrs: &BTreeMap<u32, Pcr>,
) -> Result<Quote, QuoteError> {
    let mut r = Reader(attest);
    let magic = r.u32()?;
    if magic != GENERATED {
        return Err(QuoteError::NotGenerated(magic));
    }
    let kind = r.u16()?;
    if kind != ST_ATTEST_QUOTE {
        return Err(QuoteError::NotAQuote(kind));
    }
    let _qualified_signer = r.sized()?;
    if r.sized()? != qualifying {
        return Err(QuoteError::QualifyingData);
    }
    let quote = Quote {
        clock: r.u64()?,
        reset_count: r.u32()?,
        restart_count: r.u32()?,
        firmware_version: {
            let _safe = r.take(1)?;
            r.u64()?
        },
    };
    let requested: Vec<u32> = pcrs.keys().copied().collect();
    if r.u32()? != 1 || r.u16()? != ALG_SHA256 || r.selection()? != requested {
        return Err(QuoteError::Selection(requested));
    }
    let quoted = r.sized()?;
    if !r.0.is_empty() {
        return Err(QuoteError::Malformed("bytes after the end"));
    }
    let mut hasher = Sha256::new();
    for pcr in pcrs.values() {
        hasher.update(pcr.0);
    }
    if hasher.finalize()[..] != *quoted {
        return Err(QuoteError::PcrDigest);
    }
    Ok(quote)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], QuoteError> {
        let (head, tail) =
            self.0.split_at_checked(n).ok_or(QuoteError::Malformed("unexpected end"))?;
        self.0 = tail;
        Ok(head)
    }

    fn number(&mut self, n: usize) -> Result<u64, QuoteError> {
        Ok(self.take(n)?.iter().fold(0, |v, b| v << 8 | u64::from(*b)))
    }

    fn u16(&mut self) -> Result<u16, QuoteError> {
        Ok(self.number(2)? as u16)
    }

    fn u32(&mut self) -> Result<u32, QuoteError> {
        Ok(self.number(4)? as u32)
    }

    fn u64(&mut self) -> Result<u64, QuoteError> {
        self.number(8)
    }

    /// Reads a TPM2B: a length of two bytes, and as many bytes.
    fn sized(&mut self) -> Result<&'a [u8], QuoteError> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }

    /// Reads a bitmap of PCRs and returns their numbers.
    fn selection(&mut self) -> Result<Vec<u32>, QuoteError> {
        let n = self.number(1)? as usize;
        let bits = self.take(n)?;
        Ok((0..n as u32 * 8).filter(|i| bits[*i as usize / 8] >> (i % 8) & 1 == 1).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p256::ecdsa::{SigningKey, signature::Signer as _};

    fn attest(nonce: &[u8], pcrs: &BTreeMap<u32, Pcr>) -> Vec<u8> {
        let mut a = Vec::new();
        a.extend(GENERATED.to_be_bytes());
        a.extend(ST_ATTEST_QUOTE.to_be_bytes());
        a.extend([0, 1, 0xaa]);
        a.extend((nonce.len() as u16).to_be_bytes());
        a.extend(nonce);
        a.extend([0; 8 + 4 + 4 + 1 + 8]);
        a.extend([0, 0, 0, 1, 0, 0x0b, 3, 0, 0xc0, 0]);
        a.extend([0, 32]);
        let mut h = Sha256::new();
        pcrs.values().for_each(|p| h.update(p.0));
        a.extend(h.finalize());
        a
    }

    fn sign(key: &SigningKey, attest: &[u8]) -> Vec<u8> {
        let s: Signature = key.sign(attest);
        s.to_bytes().to_vec()
    }

    #[test]
    fn a_valid_quote_is_accepted_and_each_defect_has_its_own_error() {
        let key = SigningKey::from_slice(&[7; 32]).unwrap();
        let public = TpmKey::from_point(key.verifying_key().to_sec1_point(false).as_bytes());
        let pcrs: BTreeMap<u32, Pcr> = [(14, Pcr([1; 32])), (15, Pcr([2; 32]))].into();
        let good = attest(b"nonce", &pcrs);
        let check = |attest: &[u8], pcrs: &BTreeMap<u32, Pcr>| {
            verify_quote(&public, attest, &sign(&key, attest), b"nonce", pcrs)
        };
        assert!(check(&good, &pcrs).is_ok());
        assert_eq!(check(&attest(b"other", &pcrs), &pcrs), Err(QuoteError::QualifyingData));
        let other: BTreeMap<u32, Pcr> = [(14, Pcr([1; 32])), (15, Pcr([3; 32]))].into();
        assert_eq!(check(&good, &other), Err(QuoteError::PcrDigest));
        let fewer: BTreeMap<u32, Pcr> = [(14, Pcr([1; 32]))].into();
        assert_eq!(check(&good, &fewer), Err(QuoteError::Selection(vec![14])));
        let mut forged = good.clone();
        forged[0] = 0;
        assert!(matches!(check(&forged, &pcrs), Err(QuoteError::NotGenerated(_))));
        let mut certify = good.clone();
        certify[5] = 0x17;
        assert_eq!(check(&certify, &pcrs), Err(QuoteError::NotAQuote(0x8017)));
        let mut long = good.clone();
        long.push(0);
        assert!(matches!(check(&long, &pcrs), Err(QuoteError::Malformed(_))));
        for end in 0..good.len() {
            assert!(check(&good[..end], &pcrs).is_err());
        }
        assert_eq!(
            verify_quote(&public, &good, &[1; 64], b"nonce", &pcrs),
            Err(QuoteError::Signature)
        );
    }
}
