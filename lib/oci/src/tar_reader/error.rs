//! Errors of the tar reader.

use std::io;

use super::{MAX_COMPONENT_BYTES, MAX_EXTENSION_BYTES, MAX_PATH_BYTES};

/// Error of reading an archive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TarError {
    /// The stream failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The archive is rejected.
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

/// A member that is rejected.
#[derive(Debug, thiserror::Error)]
#[error("{member:?}: {problem}")]
pub(crate) struct Rejected {
    /// Name of the member as its header states it, shortened; empty if it has none.
    pub(crate) member: String,
    /// Reason of the rejection.
    pub(crate) problem: Problem,
}

/// Greatest length of a name in an error, in characters.
const MAX_SHOWN_CHARS: usize = 200;

/// Returns the text of a name for an error, shortened.
pub(super) fn shown(name: &[u8]) -> String {
    // A character has at most 4 bytes.
    let head = name.get(..4 * MAX_SHOWN_CHARS).unwrap_or(name);
    let text = String::from_utf8_lossy(head);
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into_owned(),
    }
}

impl Problem {
    /// Creates the error of a member with this name.
    pub(super) fn of(self, name: &[u8]) -> Rejected {
        Rejected { member: shown(name), problem: self }
    }
}

/// Reason why a member is rejected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum Problem {
    #[error("the archive ends within a member")]
    Truncated,
    #[error("a header follows a block of zeros, which ends the archive for some readers")]
    HeaderAfterEnd,
    #[error("the checksum of the header is wrong")]
    Checksum,
    #[error(
        "unknown format of the header: expected ustar, pax, GNU or v7; create the archive with \
         `tar --format=pax`"
    )]
    Format,
    #[error("the header's {0} is not a number")]
    Number(&'static str),
    #[error("the size is negative")]
    NegativeSize,
    #[error("the {0} is not a number of 32 bits")]
    Owner(&'static str),
    #[error("a {kind} has a size of {size}, although it has no data")]
    SizeWithoutData { kind: &'static str, size: u64 },
    #[error("it is a device; images must not contain devices, so delete it in the build")]
    Device,
    #[error("it is sparse; create the archive without `--sparse`")]
    Sparse,
    #[error("unknown type {0:?} of the member")]
    Kind(char),
    #[error("extension: expected at most {MAX_EXTENSION_BYTES} bytes, found {0}")]
    ExtensionTooLong(u64),
    #[error("an extension is empty or contains NUL")]
    ExtensionText,
    #[error("two extensions of the same kind precede one member")]
    ExtensionTwice,
    #[error("the {0} is given by a GNU extension and by a pax record")]
    MixedExtensions(&'static str),
    #[error("an extension is not followed by a member")]
    DanglingExtension,
    #[error("a pax record is malformed")]
    Record,
    #[error("the pax record {0:?} occurs twice")]
    RecordTwice(String),
    #[error("the pax record {key:?} has the value {value:?}, which is not valid")]
    RecordValue { key: String, value: String },
    #[error("the pax record {0:?} would change how members are read")]
    RecordKey(String),
    #[error("more than {0} pax records")]
    Records(usize),
    #[error(
        "an extended attribute of the overlay file system; create the layer without the attributes \
         trusted.overlay.* and user.overlay.*"
    )]
    OverlayAttribute,
    #[error("a name of an extended attribute that Linux does not support")]
    AttributeName,
    #[error("the path leaves the image (..)")]
    Parent,
    #[error("the path is empty")]
    EmptyPath,
    #[error("the root is not a folder")]
    RootKind,
    #[error("the path ends with a slash or dot, but it is not a folder")]
    TrailingSlash,
    #[error(
        "the path is too long: expected at most {MAX_COMPONENT_BYTES} bytes for a component and \
         {MAX_PATH_BYTES} for a path"
    )]
    PathTooLong,
    #[error("it links to {target:?}: {problem}")]
    Target { target: String, problem: Box<Problem> },
    #[error("it links to itself or to the root")]
    TargetSelf,
    #[error("it links to nothing")]
    TargetEmpty,
    #[error("a path with a component .wh. is reserved for deletions, which are plain files")]
    Whiteout,
    #[error("global pax records must be in a member named pax_global_header or the like")]
    GlobalName,
}
