//! Reader of tar archives that sees the members that the engine sees, or rejects the archive.
//!
//! The engine reads layers with `archive/tar` of Go and unpacks them with `pkg/archive` of
//! containerd. Readers of tar disagree about many headers, and a member that only the engine sees
//! would be unpacked without a check.
//!
//! Invariants:
//! - An archive that is accepted has the same members for Go: path, kind, size, link target, owner,
//!   content. `tests/differential` compares both on generated archives.
//! - What other readers would read in another way is rejected: sizes of members without data, an
//!   extension twice, a name in two extensions, sparse files, headers of unknown formats.
//! - No path leaves the folder that the archive is unpacked into.
//! - Memory is bounded: one buffer, and extensions of at most [`MAX_EXTENSION_BYTES`] each.

mod error;
mod header;
mod member;
mod path;
mod pax;
mod reader;

pub(crate) use error::TarError;
pub use member::{Member, MemberKind};
pub(crate) use reader::TarReader;

/// Greatest size of an extension (long name, long link target, pax records) in bytes: that of Go's
/// reader and of libarchive.
pub(crate) const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Greatest length of a component of a path (`NAME_MAX` of Linux).
const MAX_COMPONENT_BYTES: usize = 255;
/// Greatest length of a path. Linux supports 4,095 bytes (`PATH_MAX`), and the engine unpacks below
/// a folder of its own.
const MAX_PATH_BYTES: usize = 3840;
