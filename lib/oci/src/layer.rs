use std::io::{self, Read};
use std::path::Component;

use sha2::{Digest as _, Sha256};

use crate::archive::{Limits, OciError};

const PLAIN: [&str; 2] = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.docker.image.rootfs.diff.tar"];
const GZIP: [&str; 2] = ["application/vnd.oci.image.layer.v1.tar+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"];

/// Unpacks a layer without keeping it and returns the digest of the unpacked bytes.
pub(crate) fn check(packed: impl Read, kind: &str, digest: &str, left: &mut u64, limits: &Limits) -> Result<String, OciError> {
    let stream: Box<dyn Read + '_> = if PLAIN.contains(&kind) {
        Box::new(packed)
    } else if GZIP.contains(&kind) {
        Box::new(flate2::read::MultiGzDecoder::new(packed))
    } else {
        return Err(OciError::Layer {
            digest: digest.to_owned(),
            problem: format!("media type {kind:?}; known are {PLAIN:?} and {GZIP:?}"),
        });
    };
    let mut hashed = Hashed { stream, hasher: Sha256::new(), left: *left };
    let refused = |problem: String| OciError::Layer { digest: digest.to_owned(), problem };
    let members = walk(&mut hashed, limits).and_then(|()| {
        // What follows the tar's end counts for the digest too.
        io::copy(&mut hashed, &mut io::sink()).map(|_| ()).map_err(|e| e.to_string())
    });
    if hashed.left == 0 {
        return Err(OciError::Limit { what: "all layers unpacked, in bytes,", limit: limits.unpacked });
    }
    members.map_err(refused)?;
    *left = hashed.left;
    Ok(format!("sha256:{}", measure::hex(&hashed.hasher.finalize())))
}

/// Long names and attributes come as members of their own, which are read whole: so much is enough for any honest one.
const LONGEST_EXTENSION: u64 = 64 * 1024;

fn walk(stream: &mut impl Read, limits: &Limits) -> Result<(), String> {
    let mut tar = tar::Archive::new(stream);
    for (n, entry) in tar.entries().map_err(|e| e.to_string())?.raw(true).enumerate() {
        let mut entry = entry.map_err(|e| e.to_string())?;
        if n >= limits.members {
            return Err(format!("more than {} members", limits.members));
        }
        let kind = entry.header().entry_type();
        if kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
            extension(&mut entry, kind.is_pax_local_extensions() || kind.is_pax_global_extensions())?;
            continue;
        }
        let path = entry.path().map_err(|e| e.to_string())?;
        inside(&path).map_err(|why| format!("member {:?}: {why}", path.display()))?;
        if kind.is_character_special() || kind.is_block_special() {
            return Err(format!("member {:?} is a device", path.display()));
        }
        if kind.is_hard_link() {
            let target = entry.link_name().map_err(|e| e.to_string())?.unwrap_or_default();
            inside(&target).map_err(|why| format!("member {:?} links to {:?}: {why}", path.display(), target.display()))?;
        }
    }
    Ok(())
}

/// A name that is given beside a member: as a whole (GNU), or as one of several `LENGTH KEY=VALUE` records (POSIX pax).
///
/// The target of a link is judged like a name. Symbolic links may well be absolute, but none needs a name so long.
fn extension(entry: &mut tar::Entry<'_, impl Read>, pax: bool) -> Result<(), String> {
    if entry.size() > LONGEST_EXTENSION {
        return Err(format!("a name or attribute of {} bytes; {LONGEST_EXTENSION} are allowed", entry.size()));
    }
    let mut data = Vec::new();
    entry.read_to_end(&mut data).map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&data);
    let names: Vec<&str> = if pax {
        text.lines()
            .filter_map(|l| l.split_once(' ')?.1.split_once('='))
            .filter(|(key, _)| *key == "path" || *key == "linkpath")
            .map(|(_, v)| v)
            .collect()
    } else {
        vec![text.trim_end_matches('\0')]
    };
    names.into_iter().try_for_each(|name| inside(std::path::Path::new(name)).map_err(|why| format!("the long name {name:?}: {why}")))
}

/// A path that stays below the folder in which it is unpacked.
fn inside(path: &std::path::Path) -> Result<(), &'static str> {
    for component in path.components() {
        match component {
            Component::ParentDir => return Err("it leaves the image (..)"),
            Component::RootDir | Component::Prefix(_) => return Err("it is an absolute path"),
            Component::CurDir | Component::Normal(_) => {}
        }
    }
    Ok(())
}

/// Hashes what passes, and ends with an error at the limit.
struct Hashed<R> {
    stream: R,
    hasher: Sha256,
    left: u64,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.stream.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.left = self.left.saturating_sub(n as u64);
        if self.left == 0 {
            return Err(io::Error::other("the limit for unpacked layers is reached"));
        }
        Ok(n)
    }
}
