//! SHA-256 of files and folders, as lower-case hex.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

/// Returns bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the hash of bytes.
pub fn bytes(data: &[u8]) -> String {
    hex(&Sha256::digest(data))
}

/// Returns the hash of a file, which is read in blocks of 64 KiB.
///
/// # Errors
///
/// Fails if the file cannot be read.
pub fn file(path: &Path) -> Result<String> {
    let mut file =
        std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer).with_context(|| format!("cannot read {}", path.display()))? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Returns all regular files and links below `dir`, sorted, relative to it. Folders named `target`
/// and names that begin with a dot are skipped.
///
/// # Errors
///
/// Fails if a folder cannot be listed.
pub fn walk(dir: &Path) -> Result<Vec<PathBuf>> {
    fn visit(base: &Path, dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
        for entry in
            std::fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?
        {
            let entry = entry?;
            let name = entry.file_name();
            if name == "target" || name.to_string_lossy().starts_with('.') {
                continue;
            }
            if entry.file_type()?.is_dir() {
                visit(base, &entry.path(), found)?;
            } else {
                found.push(entry.path().strip_prefix(base)?.to_owned());
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    visit(dir, dir, &mut found)?;
    found.sort();
    Ok(found)
}

/// Returns the hash over the names, executable bits and hashes of files. `files` maps each name to
/// the file's path.
///
/// # Errors
///
/// Fails if a file cannot be read.
pub fn files(files: &BTreeMap<PathBuf, PathBuf>) -> Result<String> {
    let mut list = String::new();
    for (name, full) in files {
        let meta = full.symlink_metadata()?;
        let hash = if meta.is_symlink() {
            format!("link:{}", std::fs::read_link(full)?.display())
        } else {
            file(full)?
        };
        let mode = if std::os::unix::fs::PermissionsExt::mode(&meta.permissions()) & 0o100 == 0 {
            '-'
        } else {
            'x'
        };
        list.push_str(&format!("{}\0{mode}\0{hash}\n", name.display()));
    }
    Ok(bytes(list.as_bytes()))
}
