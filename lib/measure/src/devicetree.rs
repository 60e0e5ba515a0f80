//! A digest of a flattened device tree that does not depend on what firmware fills in.
//!
//! Boot firmware writes into the tree what differs from card to card or boot to boot: the command
//! line (measured on its own), memory size, serial number, MAC addresses, random seeds. The digest
//! covers every other node and property, so that the tree which a build ships and the one which the
//! kernel got (/sys/firmware/fdt) have the same digest. Format: Devicetree Specification v0.4,
//! chapter 5.

use sha2::{Digest as _, Sha256};

use crate::Digest;

/// Nodes (with all below them) that firmware owns.
const FIRMWARE_NODES: [&str; 2] = ["/chosen", "/memory"];
/// Properties that firmware owns, wherever they are.
const FIRMWARE_PROPERTIES: [&str; 5] =
    ["serial-number", "local-mac-address", "mac-address", "phandle", "linux,phandle"];

const MAGIC: u32 = 0xd00d_feed;
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;
const MAX_DEPTH: usize = 64;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeviceTreeError {
    #[error("this is not a flattened device tree: expected magic d00dfeed, found {0:08x}")]
    Magic(u32),
    #[error("the device tree ends early: {0}")]
    Truncated(&'static str),
    #[error("the device tree is malformed: {0}")]
    Malformed(&'static str),
}

use DeviceTreeError::{Magic, Malformed, Truncated};

struct Reader<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    at: usize,
}

/// The digest over all nodes and properties that firmware does not own, sorted by path and name.
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
    /// One line a property, and one with an empty name a node.
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
                        return Err(Malformed("a node's name or depth"));
                    }
                    path.push(name);
                    if !owned(&path) {
                        lines.push((path.join("/"), "", &[][..]));
                    }
                }
                PROP => {
                    let length = self.word()? as usize;
                    let name = self.word()? as usize;
                    let value = self.take(length)?;
                    let name =
                        text(self.strings.get(name..).ok_or(Truncated("a property's name"))?)?;
                    if path.is_empty() {
                        return Err(Malformed("a property outside of all nodes"));
                    }
                    if !owned(&path) && !FIRMWARE_PROPERTIES.contains(&name) {
                        lines.push((path.join("/"), name, value));
                    }
                }
                END_NODE => {
                    path.pop().ok_or(Malformed("a node that ends and never began"))?;
                    closed = path.is_empty();
                }
                END if closed => return Ok(lines),
                END => return Err(Malformed("nodes that never end")),
                _ => return Err(Malformed("an unknown token")),
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
    let end = bytes.iter().position(|b| *b == 0).ok_or(Truncated("a name"))?;
    std::str::from_utf8(&bytes[..end]).map_err(|_| Malformed("a name that is not text"))
}

fn owned(path: &[&str]) -> bool {
    // path[0] is the root's empty name.
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
    fn what_firmware_owns_does_not_count_and_everything_else_does() {
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
    fn every_truncation_and_every_flipped_byte_is_survived() {
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
