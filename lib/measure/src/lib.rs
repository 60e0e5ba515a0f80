//! What a boot measures: the list of events, their digests, the log and its replay.
//!
//! Invariants:
//! - The same functions make the events for the predictor (`xtask`, from the files that it just
//!   built) and for the extender (`init`, from what it finds on the running machine). Nobody else
//!   makes boot events.
//! - No I/O, no clock, no unsafe: bytes go in, values come out.
//!
//! The exact bytes are specified in docs/measurements.md.
#![forbid(unsafe_code)]

mod boot;
#[cfg(feature = "quote")]
mod credential;
mod devicetree;
mod event;
mod files;
#[cfg(feature = "quote")]
mod keys;
mod log;
mod pcr;
#[cfg(feature = "quote")]
mod quote;
mod statement;

pub use boot::{
    Board, BootFacts, LARGEST_LEDGER, LARGEST_POLICIES, LARGEST_SETTINGS, LEDGER, Measurements,
    NODE_SETTINGS, POLICIES, SETTINGS, boot_events, left_by_a_computer, no_settings, own_words,
    verity_root,
};
#[cfg(feature = "quote")]
pub use credential::{Credential, Unlucky, make_credential};
pub use devicetree::{DeviceTreeError, device_tree_digest};
pub use event::Event;
pub use files::{BadName, FileList};
#[cfg(feature = "quote")]
pub use keys::{KeyError, TpmKey};
pub use log::{Divergence, LogError, Record, compare, parse_log, replay};
pub use pcr::Pcr;
#[cfg(feature = "quote")]
pub use quote::{Quote, QuoteError, read_quote, verify_quote};
pub use statement::{AttestedStatement, AttestedStatementError};

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// The PCR that init extends with the events of the platform.
pub const PLATFORM_PCR: u32 = 14;
/// The PCR that trustd extends with what happens to modules.
pub const MODULES_PCR: u32 = 15;

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

/// The inverse of [`hex`]; upper case and odd lengths are refused.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    fn digit(c: u8) -> Option<u8> {
        match c {
            b'0'..=b'9' => Some(c - b'0'),
            b'a'..=b'f' => Some(c - b'a' + 10),
            _ => None,
        }
    }
    text.as_bytes()
        .chunks(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?))
        .collect()
}
