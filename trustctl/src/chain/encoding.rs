//! Hexadecimal values, as the nodes' APIs and the command line have them.

use ledger::ethereum::Hash;
use ledger::ethereum::types::Hex;
use serde_json::Value;

/// A value has another form than the expected one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found {found:?}")]
pub struct EncodingError {
    expected: &'static str,
    found: String,
}

/// Parses an account's or a contract's address, `0x` and 40 hex digits in either case.
///
/// # Errors
/// Returns an [`EncodingError`] for any other text.
pub fn parse_address(text: &str) -> Result<Hex<20>, EncodingError> {
    text.to_lowercase()
        .parse()
        .map_err(|_| EncodingError { expected: "0x and 40 hex digits", found: text.to_owned() })
}

/// Parses the digest of an image: `sha256:…` as everywhere else, or `0x…` as the registry has it.
///
/// # Errors
/// Returns an [`EncodingError`] for any other text.
pub fn parse_digest(text: &str) -> Result<Hash, EncodingError> {
    let hex = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("0x")).unwrap_or_default();
    format!("0x{hex}").parse().map_err(|_| EncodingError {
        expected: "sha256: and 64 lower-case hex digits",
        found: text.to_owned(),
    })
}

/// Returns a number of the JSON-RPC (a QUANTITY: `0x` and hex digits).
pub(super) fn quantity(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// Returns the bytes of a hexadecimal number, big-endian and without leading zeros.
pub(super) fn number_bytes(digits: &str) -> Option<Vec<u8>> {
    let even = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits.to_owned() };
    let bytes = measure::unhex(&even.to_ascii_lowercase())?;
    Some(without_leading_zeros(&bytes))
}

/// Returns the bytes from the first that is not zero on.
pub(super) fn without_leading_zeros(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// Returns a number of at most 32 bytes as a word of the EVM.
pub(super) fn word_of(bytes: &[u8]) -> Option<[u8; 32]> {
    let mut word = [0; 32];
    let first = 32usize.checked_sub(bytes.len())?;
    word[first..].copy_from_slice(bytes);
    Some(word)
}

/// Returns `0x` and the bytes in hex.
pub(super) fn prefixed_hex(bytes: &[u8]) -> String {
    format!("0x{}", measure::hex(bytes))
}
