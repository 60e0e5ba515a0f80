//! SHA-256 of files and folders, as lower-case hex.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

pub fn bytes(data: &[u8]) -> String {
    measure::hex(&Sha256::digest(data))
}

pub fn file(path: &Path) -> Result<String> {
    let file =
        std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    trustctl::image::sha256(file).with_context(|| format!("cannot read {}", path.display()))
}

/// All regular files and links below `dir`, sorted, relative to it; `target` folders and dot files
/// are left out.
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

/// The hash over the names, modes and hashes of files that may lie in several folders.
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
