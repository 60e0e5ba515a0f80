//! Which blocks of an image matter, with their hashes: the block map of bmaptool, version 2.0, so
//! that it can flash too.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

pub const BLOCK: u64 = 4096;
/// Blocks in one range: what is hashed, written and read back at once.
const LONGEST: u64 = 2048;

#[derive(Debug, PartialEq, Eq)]
pub struct Bmap {
    /// In bytes.
    pub image_size: u64,
    pub ranges: Vec<Range>,
}

/// Blocks from the first to the last, both part of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u64,
    pub last: u64,
    pub sha256: String,
}

impl Range {
    pub fn start(&self) -> u64 {
        self.first * BLOCK
    }

    /// In bytes; the image's end may lie within the last block.
    pub fn length(&self, image_size: u64) -> u64 {
        ((self.last + 1) * BLOCK).min(image_size) - self.start()
    }
}

impl Bmap {
    /// Hashes the given parts of an image (first byte, byte behind the last).
    pub fn of(image: &Path, parts: &[(u64, u64)]) -> Result<Self> {
        let file = File::open(image)?;
        let image_size = file.metadata()?.len();
        let mut ranges = Vec::new();
        for (from, to) in parts {
            let (mut first, end) = (from / BLOCK, to.div_ceil(BLOCK));
            while first < end {
                let last = (first + LONGEST).min(end) - 1;
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

    pub fn mapped(&self) -> u64 {
        self.ranges.iter().map(|r| r.length(self.image_size)).sum()
    }

    pub fn to_xml(&self) -> String {
        let mapped: u64 = self.ranges.iter().map(|r| r.last + 1 - r.first).sum();
        let mut text = format!(
            "<?xml version=\"1.0\" ?>\n<bmap version=\"2.0\">\n    <ImageSize> {} </ImageSize>\n    <BlockSize> {BLOCK} </BlockSize>\n    \
             <BlocksCount> {} </BlocksCount>\n    <MappedBlocksCount> {mapped} </MappedBlocksCount>\n    <ChecksumType> sha256 </ChecksumType>\n    \
             <BmapFileChecksum> {NO_CHECKSUM} </BmapFileChecksum>\n    <BlockMap>\n",
            self.image_size,
            self.image_size.div_ceil(BLOCK),
        );
        for Range { first, last, sha256 } in &self.ranges {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "        <Range chksum=\"{sha256}\"> {first}-{last} </Range>");
        }
        text.push_str("    </BlockMap>\n</bmap>\n");
        // The file's own checksum is taken with zeros in its place.
        let own = measure::hex(&Sha256::digest(text.as_bytes()));
        text.replacen(NO_CHECKSUM, &own, 1)
    }

    pub fn parse(text: &str) -> Result<Self> {
        let document = roxmltree::Document::parse(text).context("the block map is not XML")?;
        let value = |name: &str| {
            let node = document.descendants().find(|n| n.has_tag_name(name));
            node.and_then(|n| n.text())
                .map(str::trim)
                .with_context(|| format!("the block map has no {name}"))
        };
        let own = value("BmapFileChecksum")?;
        ensure!(own.len() == NO_CHECKSUM.len(), "the block map's own checksum is malformed");
        let found = measure::hex(&Sha256::digest(text.replacen(own, NO_CHECKSUM, 1).as_bytes()));
        ensure!(
            own == found,
            "the block map is altered or cut short: expected its own checksum {own}, found {found}"
        );
        ensure!(
            value("ChecksumType")? == "sha256" && value("BlockSize")? == "4096",
            "the block map is of a kind that this program does not read"
        );
        let image_size: u64 = value("ImageSize")?.parse()?;
        let mut ranges = Vec::new();
        for node in document.descendants().filter(|n| n.has_tag_name("Range")) {
            let text = node.text().unwrap_or_default().trim();
            // A single block may stand alone.
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = Range {
                first: first.parse()?,
                last: last.parse()?,
                sha256: node.attribute("chksum").unwrap_or_default().to_owned(),
            };
            if range.first > range.last || range.last >= image_size.div_ceil(BLOCK) {
                bail!("the block map's range {text} lies outside of the image");
            }
            ranges.push(range);
        }
        ensure!(!ranges.is_empty(), "the block map is empty");
        Ok(Self { image_size, ranges })
    }
}

const NO_CHECKSUM: &str = "0000000000000000000000000000000000000000000000000000000000000000";

#[cfg(test)]
mod tests {
    use super::*;

    fn image(dir: &Path) -> std::path::PathBuf {
        let path = dir.join("image");
        let data: Vec<u8> = (0..LONGEST * BLOCK * 2 + 5000).map(|n| (n / 77) as u8).collect();
        std::fs::write(&path, data).unwrap();
        path
    }

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let size = path.metadata().unwrap().len();
        let map = Bmap::of(&path, &[(0, 4096), (8192, size)]).unwrap();
        assert_eq!(map.mapped(), size - 4096);
        assert_eq!(
            map.ranges[0].sha256,
            crate::hash::bytes(&std::fs::read(&path).unwrap()[..4096])
        );
        assert_eq!(Bmap::parse(&map.to_xml()).unwrap(), map);
    }

    #[test]
    fn an_altered_map_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path());
        let text = Bmap::of(&path, &[(0, 8192)]).unwrap().to_xml();
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
