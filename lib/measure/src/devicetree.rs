//! Digest of a flattened device tree, independent of the values that firmware fills in.
//!
//! Boot firmware writes values into the tree that differ from card to card or from boot to boot:
//! the command line (which has its own event), memory size, serial number, MAC addresses, random
//! seeds. The digest covers all other nodes and properties, so that the tree of the build and the
//! tree that the kernel got (/sys/firmware/fdt) have the same digest. The format is specified in
//! Devicetree Specification v0.4, chapter 5.

use sha2::{Digest as _, Sha256};

use crate::Digest;

/// Nodes that firmware owns, with all nodes below them.
const FIRMWARE_NODES: [&str; 2] = ["/chosen", "/memory"];
/// Properties that firmware owns in all nodes.
const FIRMWARE_PROPERTIES: [&str; 5] =
    ["serial-number", "local-mac-address", "mac-address", "phandle", "linux,phandle"];

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
const MAX_DEPTH: usize = 64;

/// Error of parsing a flattened device tree.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceTreeError {
    /// The data does not begin with the magic number.
    #[error("not a flattened device tree: expected magic d00dfeed, found {0:08x}")]
    Magic(u32),
    /// The data ends within the named part.
    #[error("unexpected end of the device tree in the {0}")]
    Truncated(&'static str),
    /// The structure is invalid.
    #[error("malformed device tree: {0}")]
    Malformed(&'static str),
}

use DeviceTreeError::{Magic, Malformed, Truncated};

struct Reader<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    at: usize,
}

/// Computes the digest over all nodes and properties that firmware does not own, sorted by path and
/// name.
///
/// # Errors
///
/// Returns [`DeviceTreeError`] if the data is not a complete and valid device tree.
pub fn device_tree_digest(blob: &[u8]) -> Result<Digest, DeviceTreeError> {
    let field = |n: usize| blob.get(n * 4..n * 4 + 4).map(be32).ok_or(Truncated("header"));
    let magic = field(0)?;
    if magic != MAGIC {
        return Err(Magic(magic));
    }
    let part = |offset: u32, size: u32, what| {
        let start = offset as usize;
        start.checked_add(size as usize).and_then(|end| blob.get(start..end)).ok_or(Truncated(what))
    };
    let mut reader = Reader {
        structure: part(field(2)?, field(9)?, "structure block")?,
        strings: part(field(3)?, field(8)?, "strings block")?,
        at: 0,
    };
    let mut lines = reader.lines()?;
    lines.sort();
    let mut hasher = Sha256::new();
    for (path, name, value) in lines {
        for field in [path.as_bytes(), name.as_bytes(), value] {
            hasher.update((field.len() as u32).to_be_bytes());
            hasher.update(field);
        }
    }
    Ok(hasher.finalize().into())
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |n, b| n << 8 | u32::from(*b))
}

type Line<'a> = (String, &'a str, &'a [u8]);

impl<'a> Reader<'a> {
    /// Returns one line per property, and one with an empty name per node.
    fn lines(&mut self) -> Result<Vec<Line<'a>>, DeviceTreeError> {
        let mut path: Vec<&str> = Vec::new();
        let mut lines = Vec::new();
        let mut closed = false;
        loop {
            match self.word()? {
                NOP => {}
                BEGIN_NODE if !closed => {
                    let name = self.name()?;
                    if path.is_empty() != name.is_empty() || path.len() >= MAX_DEPTH {
                        return Err(Malformed("invalid name or depth of a node"));
                    }
                    path.push(name);
                    if !is_firmware_owned(&path) {
                        lines.push((path.join("/"), "", &[][..]));
                    }
                }
                PROP => {
                    let length = self.word()? as usize;
                    let name = self.word()? as usize;
                    let value = self.take(length)?;
                    let name =
                        text(self.strings.get(name..).ok_or(Truncated("name of a property"))?)?;
                    if path.is_empty() {
                        return Err(Malformed("property outside of all nodes"));
                    }
                    if !is_firmware_owned(&path) && !FIRMWARE_PROPERTIES.contains(&name) {
                        lines.push((path.join("/"), name, value));
                    }
                }
                END_NODE => {
                    path.pop().ok_or(Malformed("end of a node that never began"))?;
                    closed = path.is_empty();
                }
                END if closed => return Ok(lines),
                END => return Err(Malformed("node without an end")),
                _ => return Err(Malformed("unknown token")),
            }
        }
    }

    fn word(&mut self) -> Result<u32, DeviceTreeError> {
        self.take(4).map(be32)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DeviceTreeError> {
        let end = self.at.checked_add(length).ok_or(Truncated("structure block"))?;
        let bytes = self.structure.get(self.at..end).ok_or(Truncated("structure block"))?;
        self.at = end.next_multiple_of(4);
        Ok(bytes)
    }

    fn name(&mut self) -> Result<&'a str, DeviceTreeError> {
        let rest = self.structure.get(self.at..).ok_or(Truncated("structure block"))?;
        let name = text(rest)?;
        self.take(name.len() + 1)?;
        Ok(name)
    }
}

fn text(bytes: &[u8]) -> Result<&str, DeviceTreeError> {
    let end = bytes.iter().position(|b| *b == 0).ok_or(Truncated("name of a node or property"))?;
    std::str::from_utf8(&bytes[..end]).map_err(|_| Malformed("name that is not UTF-8"))
}

/// Reports whether firmware owns a node.
fn is_firmware_owned(path: &[&str]) -> bool {
    // path[0] is the empty name of the root.
    path.get(1).is_some_and(|first| {
        let first = first.split('@').next().unwrap_or_default();
        FIRMWARE_NODES.iter().any(|node| node.strip_prefix('/') == Some(first))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    type Node<'a> = (&'a str, Vec<(&'a str, &'a [u8])>);

    fn blob(nodes: &[Node<'_>]) -> Vec<u8> {
        let (mut structure, mut strings): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
        let word = |v: &mut Vec<u8>, n: u32| v.extend(n.to_be_bytes());
        let padded = |v: &mut Vec<u8>, data: &[u8]| {
            v.extend(data);
            v.resize(v.len().next_multiple_of(4), 0);
        };
        word(&mut structure, BEGIN_NODE);
        padded(&mut structure, b"\0");
        for (name, properties) in nodes {
            word(&mut structure, BEGIN_NODE);
            padded(&mut structure, format!("{name}\0").as_bytes());
            for (property, value) in properties {
                word(&mut structure, PROP);
                word(&mut structure, value.len() as u32);
                word(&mut structure, strings.len() as u32);
                strings.extend(format!("{property}\0").as_bytes());
                padded(&mut structure, value);
            }
            word(&mut structure, END_NODE);
        }
        word(&mut structure, END_NODE);
        word(&mut structure, END);
        let header = [
            MAGIC,
            0,
            40,
            40 + structure.len() as u32,
            0,
            17,
            16,
            0,
            strings.len() as u32,
            structure.len() as u32,
        ];
        let mut blob: Vec<u8> = header.iter().flat_map(|n| n.to_be_bytes()).collect();
        blob.extend(structure);
        blob.extend(strings);
        blob
    }

    #[test]
    fn the_digest_covers_everything_that_firmware_does_not_own() {
        let uart: Node<'_> = ("uart@1", vec![("reg", b"\0\0\0\x01"), ("status", b"okay\0")]);
        let base = device_tree_digest(&blob(std::slice::from_ref(&uart))).unwrap();
        let chosen: Node<'_> = ("chosen", vec![("bootargs", b"x\0")]);
        let memory: Node<'_> = ("memory@40000000", vec![("reg", b"\x01")]);
        assert_eq!(base, device_tree_digest(&blob(&[chosen, uart.clone(), memory])).unwrap());
        let disabled: Node<'_> = ("uart@1", vec![("reg", b"\0\0\0\x01"), ("status", b"no\0\0\0")]);
        assert_ne!(base, device_tree_digest(&blob(&[disabled])).unwrap());
        assert_ne!(base, device_tree_digest(&blob(&[uart.clone(), ("spi@2", vec![])])).unwrap());
        let reordered: Node<'_> = ("uart@1", vec![("status", b"okay\0"), ("reg", b"\0\0\0\x01")]);
        assert_eq!(base, device_tree_digest(&blob(&[reordered])).unwrap());
    }

    #[test]
    fn truncated_trees_are_rejected_and_flipped_bits_cause_no_panic() {
        let good = blob(&[("uart@1", vec![("reg", b"\0\0\0\x01")])]);
        for end in 0..good.len() {
            assert!(device_tree_digest(&good[..end]).is_err(), "{end}");
        }
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                let _ = device_tree_digest(&bad);
            }
        }
    }
}
