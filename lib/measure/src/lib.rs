//! Measurements of a boot: the list of events, their digests, the event log and its replay.
//!
//! Invariants:
//! - The same functions make the boot events for the predictor (`xtask`, from the files of the
//!   build) and for the extender (`init`, from the running machine). No other code makes boot
//!   events.
//! - The crate has no I/O, no clock and no unsafe code: it maps bytes to values.
//!
//! docs/measurements.md specifies the exact bytes.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

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
    Board, BootComponents, LEDGER_PATH, MAX_LEDGER_BYTES, MAX_POLICIES_BYTES, MAX_SETTINGS_BYTES,
    Measurements, NODE_SETTINGS, POLICIES_PATH, SETTINGS_PATH, boot_events, empty_settings_digest,
    is_desktop_metadata, strip_firmware_parameters, verity_root,
};
#[cfg(feature = "quote")]
pub use credential::{Credential, InvalidEphemeralKey, make_credential};
pub use devicetree::{DeviceTreeError, device_tree_digest};
pub use event::Event;
pub use files::{FileList, InvalidFileName};
#[cfg(feature = "quote")]
pub use keys::{KeyError, TpmKey};
pub use log::{Content, Divergence, LogError, Record, TaggedDigest, compare, parse_log, replay};
pub use pcr::Pcr;
#[cfg(feature = "quote")]
pub use quote::{Quote, QuoteError, parse_quote, verify_quote};
pub use statement::{AttestedStatement, AttestedStatementError};

/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// PCR that init extends with the events of the platform.
pub const PLATFORM_PCR: u32 = 14;
/// PCR that trustd extends with the events of modules.
pub const MODULES_PCR: u32 = 15;

/// Formats bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

/// Parses lower-case hex. Returns `None` for any other text, such as upper case or an odd number of
/// digits.
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
