use sha2::{Digest as _, Sha256};

use crate::{Digest, hex};

/// Why a file cannot be in a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?}: {problem}")]
pub struct BadName {
    pub path: String,
    pub problem: &'static str,
}

/// A list of files with their digests; its own digest does not depend on the order in which they
/// were added.
#[derive(Default, Clone, Debug)]
pub struct FileList(std::collections::BTreeMap<String, Digest>);

impl FileList {
    pub fn add(&mut self, path: &str, content: &[u8]) -> Result<(), BadName> {
        self.add_digest(path, Sha256::digest(content).into())
    }

    pub fn add_digest(&mut self, path: &str, digest: Digest) -> Result<(), BadName> {
        let bad = |problem| BadName { path: path.to_owned(), problem };
        // One name is one line of the list.
        if !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(bad("a name must be printable ASCII without spaces"));
        }
        match self.0.insert(path.to_owned(), digest) {
            None => Ok(()),
            Some(_) => Err(bad("two files have this name")),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One line a file, sorted by path: hex digest, two spaces, path (as `sha256sum` prints it).
    pub fn text(&self) -> String {
        self.0.iter().map(|(path, digest)| format!("{}  {path}\n", hex(digest))).collect()
    }

    pub fn digest(&self) -> Digest {
        Sha256::digest(self.text().as_bytes()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::FileList;

    #[test]
    fn no_name_can_stand_for_another_or_for_two() {
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
