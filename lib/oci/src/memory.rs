//! Blobs in memory.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::sync::Arc;

use crate::{Blobs, Sink};

/// Storage of blobs in memory, for tools and tests with small images.
#[derive(Debug, Default)]
pub struct Memory(pub BTreeMap<String, Arc<[u8]>>);

impl Blobs for Memory {
    type Blob = Cursor<Arc<[u8]>>;

    fn blob(&self, digest: &str) -> io::Result<Option<(u64, Self::Blob)>> {
        Ok(self.0.get(digest).map(|bytes| (bytes.len() as u64, Cursor::new(bytes.clone()))))
    }
}

impl Sink for Memory {
    fn put(&mut self, digest: &str, _: u64, content: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        self.0.insert(digest.to_owned(), bytes.into());
        Ok(())
    }
}
