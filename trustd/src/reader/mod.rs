//! The reader of hostile bytes: a process without privileges that unpacks and parses what third
//! parties send. trustd starts one for each job and can lose it without harm.
//!
//! Invariants:
//! - The reader has one connection to trustd and nothing else: no file, no network, no TPM, no key
//!   (`crate::sandbox`). One process never reads two images.
//! - What a reader answers is untrusted input. Digests are computed by trustd from the bytes
//!   themselves, and each digest that an answer contains must stand in a document that trustd
//!   verified ([`oci::Claim`]). So a reader that a third party took over can reject an image, or
//!   hide that the engine will reject it. It cannot bring other content into an approved image.
//! - If a reader ends, stalls or answers nonsense, the image is rejected. If a reader cannot be
//!   started or is killed from outside, the job fails without a verdict and can be tried again.
//! - Every wait for a reader has a deadline, and a reader ends with the job that it was started for.

mod error;
mod import;
mod inspect;
mod process;
mod resolve;
mod serve;
mod slots;
pub mod wire;

use std::path::PathBuf;
use std::time::Duration;

pub use error::ReaderError;
pub use inspect::Inspection;
pub use serve::{ARGUMENT, run};

use self::slots::Slots;
use crate::sandbox::Landlock;

/// Layers that are unpacked concurrently. Further ones wait. A slow registry keeps a few for a long
/// time, so the modules of a node must not run out of them.
const MAX_INSPECTIONS: usize = 32;
/// Archives that are read concurrently.
const MAX_IMPORTS: usize = 8;
/// Images whose documents are read concurrently.
const MAX_RESOLUTIONS: usize = 4;

/// Time in which a reader must take or give some bytes. It works at low priority, and a few packed
/// bytes can become gigabytes.
const STALL_TIMEOUT: Duration = Duration::from_secs(600);

/// Starts readers, a limited number at a time.
pub struct Readers {
    program: PathBuf,
    landlock: Landlock,
    stall_timeout: Duration,
    // An import waits for inspections, so they do not share their slots.
    inspections: Slots,
    imports: Slots,
    resolutions: Slots,
}

impl Readers {
    /// Creates the source of readers. `program` is trustd's own program, which becomes a reader by
    /// its first argument.
    pub fn new(program: PathBuf, landlock: Landlock) -> Self {
        Self {
            program,
            landlock,
            stall_timeout: STALL_TIMEOUT,
            inspections: Slots::new(MAX_INSPECTIONS),
            imports: Slots::new(MAX_IMPORTS),
            resolutions: Slots::new(MAX_RESOLUTIONS),
        }
    }

    /// Sets the time in which a reader must take or give some bytes.
    #[must_use]
    pub fn with_stall_timeout(mut self, timeout: Duration) -> Self {
        self.stall_timeout = timeout;
        self
    }
}
