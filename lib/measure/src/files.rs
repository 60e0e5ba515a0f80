//! Lists of files with their digests.

use sha2::{Digest as _, Sha256};

use crate::{Digest, hex};

/// Error of adding a file to a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?}: {problem}")]
pub struct InvalidFileName {
    /// Path of the file.
    pub path: String,
    /// Description of the problem.
    pub problem: &'static str,
}

/// List of files with their digests. The digest of the list does not depend on the order in which
/// the files were added.
#[derive(Default, Clone, Debug)]
pub struct FileList(std::collections::BTreeMap<String, Digest>);

impl FileList {
    /// Adds a file with its content.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidFileName`] if the path is not printable ASCII without spaces, or if it is
    /// in the list already.
    pub fn add(&mut self, path: &str, content: &[u8]) -> Result<(), InvalidFileName> {
        self.add_digest(path, Sha256::digest(content).into())
    }

    /// Adds a file with the digest of its content.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidFileName`] if the path is not printable ASCII without spaces, or if it is
    /// in the list already.
    pub fn add_digest(&mut self, path: &str, digest: Digest) -> Result<(), InvalidFileName> {
        let reject = |problem| InvalidFileName { path: path.to_owned(), problem };
        // Such a path cannot be read as two lines of the list.
        if !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(reject("expected a name of printable ASCII without spaces"));
        }
        match self.0.insert(path.to_owned(), digest) {
            None => Ok(()),
            Some(_) => Err(reject("two files have this name")),
        }
    }

    /// Reports whether the list has no files.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Formats the list in the form of `sha256sum`: one line per file, sorted by path, with hex
    /// digest, two spaces and path.
    pub fn text(&self) -> String {
        self.0.iter().map(|(path, digest)| format!("{}  {path}\n", hex(digest))).collect()
    }

    /// Returns the SHA-256 of the formatted list.
    pub fn digest(&self) -> Digest {
        Sha256::digest(self.text().as_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::FileList;

    #[test]
    fn ambiguous_and_repeated_names_are_rejected() {
        let mut list = FileList::default();
        list.add("/boot/config.txt", b"good").unwrap();
        let before = list.text();
        assert!(list.clone().add("/boot/config.txt", b"evil").is_err());
        let line = format!("/boot/a\n{}  /boot/b", "0".repeat(64));
        for name in [line.as_str(), "/boot/a b", "/boot/\u{e4}", "/boot/\u{7f}"] {
            assert!(list.add(name, b"x").is_err(), "{name:?}");
        }
        assert_eq!(list.text(), before);
    }
}
