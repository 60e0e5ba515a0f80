//! Files that are complete or absent after a power cut.
//!
//! A file is written next to its destination, synchronised and renamed; then its folder is
//! synchronised, because a rename is durable only with it (rename(2), fsync(2)).

use std::fs::File;
use std::io::{Result, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Failed access to a file.
#[derive(Debug, thiserror::Error)]
#[error("cannot access {path}")]
pub struct PathError {
    path: PathBuf,
    source: std::io::Error,
}

/// Returns a function that adds the path to an I/O error.
pub fn at(path: &Path) -> impl FnOnce(std::io::Error) -> PathError {
    let path = path.to_owned();
    move |source| PathError { path, source }
}

/// Replaces the content of a file, or creates the file with mode 0600.
///
/// # Errors
/// The first file operation that failed. The old content is then still there, or the new content
/// is and may not survive a power cut.
pub fn write(path: &Path, data: &[u8]) -> Result<()> {
    let temporary = path.with_extension("new");
    let mut file =
        File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(data)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    sync_folder(path)
}

/// Appends to a file, or creates the file with mode 0600. A power cut can leave a part of `data`.
///
/// # Errors
/// The first file operation that failed.
pub fn append(path: &Path, data: &[u8]) -> Result<()> {
    let mut file = File::options().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(data)?;
    file.sync_data()
}

/// Removes a file. A file that does not exist is not an error.
///
/// # Errors
/// The first file operation that failed.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(path),
    }
}

/// Makes the directory entry of `path` durable.
///
/// # Errors
/// The folder cannot be opened or synchronised.
pub fn sync_folder(path: &Path) -> Result<()> {
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}
