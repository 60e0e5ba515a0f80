//! The new part of a log between its verification and its place in the log's file.

use std::fs::File;
use std::io::{self, Read, Seek as _, Write as _};
use std::path::PathBuf;

/// Length up to which a text stays in memory. Most updates are a few lines.
const MEMORY_BYTES: usize = 64 * 1024;

/// Text that is kept in memory, or in a file without a name if it is long.
pub(super) struct Spool {
    path: PathBuf,
    memory: Vec<u8>,
    file: Option<File>,
    len: u64,
    /// The first error. The text is not complete then.
    error: Option<io::Error>,
}

impl Spool {
    /// Makes an empty spool. `path` is where its file gets a name for a moment.
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, memory: Vec::new(), file: None, len: 0, error: None }
    }

    /// Appends text. An error, such as a full disk, is returned when the text is read: it must not
    /// prevent a revocation in the text from taking effect.
    pub(super) fn push(&mut self, text: &[u8]) {
        if self.error.is_some() {
            return;
        }
        self.memory.extend_from_slice(text);
        self.len += text.len() as u64;
        if self.memory.len() > MEMORY_BYTES
            && let Err(error) = self.flush()
        {
            self.error = Some(error);
            self.memory = Vec::new();
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let mut options = File::options();
                let file = options.read(true).write(true).create_new(true).open(&self.path)?;
                std::fs::remove_file(&self.path)?;
                none.insert(file)
            }
        };
        file.write_all(&self.memory)?;
        self.memory.clear();
        Ok(())
    }

    /// Returns the length of the text.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Returns a reader of the whole text.
    ///
    /// # Errors
    /// The text is not complete.
    pub(super) fn into_reader(mut self) -> io::Result<impl Read + Send + use<>> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        if let Some(file) = &mut self.file {
            file.rewind()?;
        }
        let file: Box<dyn Read + Send> = match self.file {
            Some(file) => Box::new(file),
            None => Box::new(io::empty()),
        };
        Ok(file.chain(io::Cursor::new(self.memory)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_any_length_is_read_back_and_leaves_no_file() {
        for parts in [0, 1, 3, 40] {
            let dir = tempfile::tempdir().unwrap();
            let mut spool = Spool::new(dir.path().join("spool"));
            let part: Vec<u8> = (0..10_000).map(|n| n as u8).collect();
            (0..parts).for_each(|_| spool.push(&part));
            assert_eq!(spool.len(), 10_000 * parts);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
            let mut read = Vec::new();
            spool.into_reader().unwrap().read_to_end(&mut read).unwrap();
            assert_eq!(read, part.repeat(parts as usize));
        }
    }

    #[test]
    fn an_error_is_returned_when_the_text_is_read() {
        let mut spool = Spool::new(PathBuf::from("/nonexistent/spool"));
        spool.push(&[0; 2 * MEMORY_BYTES]);
        spool.push(b"more");
        assert!(spool.into_reader().is_err());
    }
}
