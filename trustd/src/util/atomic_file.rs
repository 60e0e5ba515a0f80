//! Files that are whole or not there: temporary file, fsync, rename, fsync of the folder.

use std::fs::File;
use std::io::{Result, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// What cannot be done, and where.
#[derive(Debug, thiserror::Error)]
#[error("cannot access {path}: {source}")]
pub struct PathError {
    path: PathBuf,
    source: std::io::Error,
}

/// Says where.
pub fn at(path: &Path) -> impl FnOnce(std::io::Error) -> PathError {
    let path = path.to_owned();
    move |source| PathError { path, source }
}

pub fn write(path: &Path, data: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(data)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(path)
}

pub fn append(path: &Path, data: &[u8]) -> Result<()> {
    let mut file = File::options().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(data)?;
    file.sync_data()
}

pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(path),
    }
}

pub fn sync_folder(path: &Path) -> Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
