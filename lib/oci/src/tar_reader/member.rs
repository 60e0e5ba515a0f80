//! Members of an archive.

/// Kind of a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// Plain file.
    File,
    /// Folder.
    Folder,
    /// Hard link.
    HardLink,
    /// Symbolic link.
    SymbolicLink,
    /// Named pipe.
    Fifo,
    /// Global pax records, which the engine ignores.
    GlobalRecords,
}

impl MemberKind {
    /// Returns the word for the kind.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Folder => "folder",
            Self::HardLink => "hard link",
            Self::SymbolicLink => "symbolic link",
            Self::Fifo => "named pipe",
            Self::GlobalRecords => "set of global records",
        }
    }
}

/// A member of an archive, as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Path below the root, in bytes, without `.` and without a slash at either end. Empty for the
    /// root itself.
    pub path: Vec<u8>,
    /// Kind of the member.
    pub kind: MemberKind,
    /// Size of the content in bytes. Zero for everything but files.
    pub size: u64,
    /// Target of a link, otherwise empty: of a hard link, a path like `path`; of a symbolic link,
    /// the text of the link.
    pub target: Vec<u8>,
    /// User ID of the owner.
    pub uid: u32,
    /// Group ID of the owner.
    pub gid: u32,
    /// Names of the extended attributes, sorted.
    pub attributes: Vec<Vec<u8>>,
}
