//! Members of tar archives, byte for byte.

/// Two blocks of zeros, which end an archive.
pub(crate) const END: [u8; 1024] = [0; 1024];

/// Magic and version of three formats.
pub(crate) const USTAR: &[u8; 8] = b"ustar\x0000";
pub(crate) const GNU: &[u8; 8] = b"ustar  \0";
pub(crate) const V7: &[u8; 8] = b"\0\0\0\0\0\0\0\0";

/// Returns a header with a correct checksum.
pub(crate) fn header(
    magic: &[u8; 8],
    name: &str,
    flag: u8,
    size: usize,
    target: &str,
) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    for from in [100, 108, 116] {
        block[from..from + 7].copy_from_slice(b"0000000");
    }
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000000");
    block[156] = flag;
    block[157..157 + target.len()].copy_from_slice(target.as_bytes());
    block[257..265].copy_from_slice(magic);
    sign(&mut block);
    block
}

/// Writes the checksum of a header.
pub(crate) fn sign(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Returns a header with one field changed, and with a correct checksum.
pub(crate) fn altered(mut block: [u8; 512], from: usize, value: &[u8]) -> Vec<u8> {
    block[from..from + value.len()].copy_from_slice(value);
    sign(&mut block);
    block.to_vec()
}

/// Returns a member with content.
pub(crate) fn member(name: &str, flag: u8, data: &[u8]) -> Vec<u8> {
    let mut bytes = header(USTAR, name, flag, data.len(), "").to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// Returns a plain file.
pub(crate) fn file(name: &str) -> Vec<u8> {
    member(name, b'0', b"content")
}

/// Returns a link.
pub(crate) fn link(name: &str, flag: u8, target: &str) -> Vec<u8> {
    header(USTAR, name, flag, 0, target).to_vec()
}

/// Returns pax records for the next member (`x`) or for all (`g`).
pub(crate) fn pax(flag: u8, records: &[(&str, &str)]) -> Vec<u8> {
    let mut data = String::new();
    for (key, value) in records {
        let mut length = key.len() + value.len() + 3;
        while length.to_string().len() + key.len() + value.len() + 3 != length {
            length += 1;
        }
        data.push_str(&format!("{length} {key}={value}\n"));
    }
    member("././@PaxHeader", flag, data.as_bytes())
}

/// Returns a long name (`L`) or link target (`K`) of GNU.
pub(crate) fn gnu(flag: u8, text: &[u8]) -> Vec<u8> {
    let mut bytes = header(GNU, "././@LongLink", flag, text.len(), "").to_vec();
    bytes.extend(text);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}
