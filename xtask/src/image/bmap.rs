//! Block maps of images: the mapped blocks and their hashes, in the XML format 2.0 of bmaptool,
//! which can therefore flash the images as well.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// Size of a block, in bytes.
pub const BLOCK_BYTES: u64 = 4096;
/// Maximum number of blocks in a range. A range is hashed, written and read back as a whole.
const MAX_RANGE_BLOCKS: u64 = 2048;

/// The block map of an image.
#[derive(Debug, PartialEq, Eq)]
pub struct Bmap {
    /// Size of the image, in bytes.
    pub image_size: u64,
    /// The mapped ranges. The image has no data outside them.
    pub ranges: Vec<Range>,
}

/// A range of consecutive blocks.
#[derive(Debug, PartialEq, Eq)]
pub struct Range {
    /// Number of the first block.
    pub first: u64,
    /// Number of the last block, which is part of the range.
    pub last: u64,
    /// SHA-256 of the range's bytes, in hex.
    pub sha256: String,
}

impl Range {
    /// Returns the offset of the first byte in the image.
    pub fn start(&self) -> u64 {
        self.first * BLOCK_BYTES
    }

    /// Returns the length in bytes. The last block of the image may be shorter than the others.
    pub fn length(&self, image_size: u64) -> u64 {
        ((self.last + 1) * BLOCK_BYTES).min(image_size) - self.start()
    }
}

impl Bmap {
    /// Maps parts of an image and hashes them. A part is the offset of its first byte and the
    /// offset after its last byte.
    ///
    /// # Errors
    ///
    /// Fails if the image cannot be read or is shorter than a part.
    pub fn from_image(image: &Path, parts: &[(u64, u64)]) -> Result<Self> {
        let file = File::open(image)?;
        let image_size = file.metadata()?.len();
        let mut ranges = Vec::new();
        for (from, to) in parts {
            let (mut first, end) = (from / BLOCK_BYTES, to.div_ceil(BLOCK_BYTES));
            while first < end {
                let last = (first + MAX_RANGE_BLOCKS).min(end) - 1;
                let mut range = Range { first, last, sha256: String::new() };
                let mut data = vec![0; range.length(image_size) as usize];
                file.read_exact_at(&mut data, range.start())?;
                range.sha256 = measure::hex(&Sha256::digest(&data));
                ranges.push(range);
                first = last + 1;
            }
        }
        Ok(Self { image_size, ranges })
    }

    /// Returns the number of bytes in all ranges.
    pub fn mapped_bytes(&self) -> u64 {
        self.ranges.iter().map(|r| r.length(self.image_size)).sum()
    }

    /// Returns the block map as XML.
    pub fn to_xml(&self) -> String {
        let mapped: u64 = self.ranges.iter().map(|r| r.last + 1 - r.first).sum();
        let mut text = format!(
            "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n    \
             <ImageSize> {} </ImageSize>\n    \
             <BlockSize> {BLOCK_BYTES} </BlockSize>\n    \
             <BlocksCount> {} </BlocksCount>\n    \
             <MappedBlocksCount> {mapped} </MappedBlocksCount>\n    \
             <ChecksumType> sha256 </ChecksumType>\n    \
             <BmapFileChecksum> {ZERO_CHECKSUM} </BmapFileChecksum>\n    <BlockMap>\n",
            self.image_size,
            self.image_size.div_ceil(BLOCK_BYTES),
        );
        for Range { first, last, sha256 } in &self.ranges {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "        <Range chksum=\"{sha256}\"> {first}-{last} </Range>");
        }
        text.push_str("    </BlockMap>\n</bmap>\n");
        // The checksum of the file is computed with zeros in its place.
        let own = measure::hex(&Sha256::digest(text.as_bytes()));
        text.replacen(ZERO_CHECKSUM, &own, 1)
    }

    /// Parses the XML of a block map.
    ///
    /// # Errors
    ///
    /// Fails if the text is not XML, if its checksum is wrong, if its checksum type or block size
    /// is unsupported, or if a range is outside of the image.
    pub fn parse(text: &str) -> Result<Self> {
        let document = roxmltree::Document::parse(text).context("the block map is not XML")?;
        let value = |name: &str| {
            let node = document.descendants().find(|n| n.has_tag_name(name));
            node.and_then(|n| n.text())
                .map(str::trim)
                .with_context(|| format!("the block map has no {name}"))
        };
        let own = value("BmapFileChecksum")?;
        ensure!(
            own.len() == ZERO_CHECKSUM.len(),
            "the block map's BmapFileChecksum is malformed: expected {} digits, found {}",
            ZERO_CHECKSUM.len(),
            own.len()
        );
        let found = measure::hex(&Sha256::digest(text.replacen(own, ZERO_CHECKSUM, 1).as_bytes()));
        ensure!(
            own == found,
            "the block map is altered or truncated: its BmapFileChecksum is {own}, but its hash is \
             {found}; fetch it again"
        );
        let (checksum_type, block_size) = (value("ChecksumType")?, value("BlockSize")?);
        ensure!(
            (checksum_type, block_size) == ("sha256", "4096"),
            "the block map is unsupported: expected checksums sha256 and blocks of 4096 bytes, \
             found {checksum_type} and {block_size}"
        );
        let image_size: u64 = value("ImageSize")?.parse()?;
        let mut ranges = Vec::new();
        for node in document.descendants().filter(|n| n.has_tag_name("Range")) {
            let text = node.text().unwrap_or_default().trim();
            // The range of a single block may be written as one number.
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = Range {
                first: first.parse()?,
                last: last.parse()?,
                sha256: node.attribute("chksum").unwrap_or_default().to_owned(),
            };
            if range.first > range.last || range.last >= image_size.div_ceil(BLOCK_BYTES) {
                bail!(
                    "the block map's range {text} is outside of the image, which has {} blocks",
                    image_size.div_ceil(BLOCK_BYTES)
                );
            }
            ranges.push(range);
        }
        ensure!(!ranges.is_empty(), "the block map contains no range");
        Ok(Self { image_size, ranges })
    }
}

/// Placeholder of the checksum while the checksum is computed.
const ZERO_CHECKSUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("image");
        let data: Vec<u8> =
            (0..MAX_RANGE_BLOCKS * BLOCK_BYTES * 2 + 5000).map(|n| (n / 77) as u8).collect();
        std::fs::write(&path, data).unwrap();
        path
    }

    #[test]
    fn parsing_returns_the_written_map() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let size = path.metadata().unwrap().len();
        let map = Bmap::from_image(&path, &[(0, 4096), (8192, size)]).unwrap();
        assert_eq!(map.mapped_bytes(), size - 4096);
        assert_eq!(
            map.ranges[0].sha256,
            crate::engine::hash::bytes(&std::fs::read(&path).unwrap()[..4096])
        );
        assert_eq!(Bmap::parse(&map.to_xml()).unwrap(), map);
    }

    #[test]
    fn altered_maps_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let text = Bmap::from_image(&path, &[(0, 8192)]).unwrap().to_xml();
        for altered in [
            text.replacen("0-1", "0-2", 1),
            text.replace("sha256", "sha1"),
            text[..text.len() - 20].to_owned(),
            String::new(),
        ] {
            assert!(Bmap::parse(&altered).is_err());
        }
    }
}
