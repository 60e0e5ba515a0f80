//! Tar archives byte by byte, in forms that the crate `tar` does not write.

/// Kind of a member: its type flag (POSIX.1-1988).
pub(crate) const FILE: u8 = b'0';
pub(crate) const HARD_LINK: u8 = b'1';
pub(crate) const SYMLINK: u8 = b'2';
pub(crate) const DIRECTORY: u8 = b'5';

/// Bytes of a block.
const BLOCK: usize = 512;

/// A header. Its name is written as it is, also if it is absolute.
#[derive(Debug, Clone)]
pub(crate) struct Header<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: u8,
    pub(crate) mode: u32,
    pub(crate) size: usize,
    pub(crate) link: &'a str,
    pub(crate) mtime: u64,
}

impl<'a> Header<'a> {
    /// Returns the header of a member without data.
    pub(crate) fn new(name: &'a str, kind: u8, mode: u32) -> Self {
        Self { name, kind, mode, size: 0, link: "", mtime: 0 }
    }

    /// Returns the header block in the format ustar.
    pub(crate) fn block(&self) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        assert!(self.name.len() <= 100 && self.link.len() <= 100, "{}", self.name);
        put(0, self.name.as_bytes());
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, b"0000000\x000000000\0");
        put(124, format!("{:011o}\0", self.size).as_bytes());
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(156, &[self.kind]);
        put(157, self.link.as_bytes());
        put(257, b"ustar\x0000");
        set_checksum(&mut block);
        block
    }
}

/// Writes the checksum of a header block.
pub(crate) fn set_checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..BLOCK].iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// An archive under construction.
#[derive(Debug, Default, Clone)]
pub(crate) struct TarBytes(Vec<u8>);

impl TarBytes {
    /// Appends a member.
    pub(crate) fn member(&mut self, header: &Header<'_>, data: &[u8]) -> &mut Self {
        self.0.extend(Header { size: data.len(), ..header.clone() }.block());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// Appends a directory.
    pub(crate) fn directory(&mut self, name: &str, mode: u32) -> &mut Self {
        self.member(&Header::new(name, DIRECTORY, mode), b"")
    }

    /// Appends a file.
    pub(crate) fn file(&mut self, name: &str, mode: u32, data: &[u8]) -> &mut Self {
        self.member(&Header::new(name, FILE, mode), data)
    }

    /// Appends a link of either kind.
    pub(crate) fn link(&mut self, name: &str, kind: u8, target: &str) -> &mut Self {
        self.member(&Header { link: target, ..Header::new(name, kind, 0o777) }, b"")
    }

    /// Appends a header with attributes for the next member (POSIX pax).
    pub(crate) fn attributes(&mut self, records: &[(&str, &str)]) -> &mut Self {
        let text: String = records.iter().map(|(key, value)| record(key, value)).collect();
        self.member(&Header::new("PaxHeaders/x", b'x', 0o644), text.as_bytes())
    }

    /// Appends a name of any length for the next member (GNU).
    pub(crate) fn gnu_name(&mut self, kind: u8, name: &str) -> &mut Self {
        self.member(&Header::new("././@LongLink", kind, 0), format!("{name}\0").as_bytes())
    }

    /// Returns the number of bytes up to now.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the bytes up to now, for changes.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Returns the archive, with two blocks of zeros at its end and filled up to a multiple of
    /// `record` bytes.
    pub(crate) fn finish(&self, record: usize) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.resize((bytes.len() + 2 * BLOCK).next_multiple_of(record), 0);
        bytes
    }
}

/// Returns a record of a pax header: `LENGTH KEY=VALUE`.
fn record(key: &str, value: &str) -> String {
    let rest = format!(" {key}={value}\n");
    let length =
        (1..4).map(|digits| rest.len() + digits).find(|n| n.to_string().len() + rest.len() == *n);
    format!("{}{rest}", length.unwrap())
}
