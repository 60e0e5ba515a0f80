use sha2::{Digest as _, Sha256};

use crate::{Digest, hex};

/// A list of files with their digests; its own digest does not depend on the order in which they were added.
#[derive(Default, Clone, Debug)]
pub struct FileList(std::collections::BTreeMap<String, Digest>);

impl FileList {
    pub fn add(&mut self, path: &str, content: &[u8]) {
        self.add_digest(path, Sha256::digest(content).into());
    }

    pub fn add_digest(&mut self, path: &str, digest: Digest) {
        self.0.insert(path.to_owned(), digest);
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
