//! The file `known_nodes`: the certificate of each node, stored at first contact and required from
//! then on, as ssh does for hosts.

#[cfg(feature = "client")]
use std::fs::OpenOptions;
#[cfg(feature = "client")]
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Name of the file in the folder of keys: a line per node with its address and the SHA-256 of its
/// certificate.
const FILE: &str = "known_nodes";

/// A node showed another certificate than at first contact.
#[derive(Debug, thiserror::Error)]
#[error(
    "the certificate of {address} has changed: expected SHA-256 {expected}, found {found}. \
     If the node was flashed again, remove its line from {}; \
     if not, another machine answers at this address", .file.display()
)]
pub struct CertificateChanged {
    address: String,
    expected: String,
    found: String,
    file: PathBuf,
}

/// Requires that a node's certificate is the one that is stored for its address, or stores it if
/// this is the first contact.
///
/// # Errors
/// Returns [`CertificateChanged`] if another certificate is stored, and other errors if the file
/// cannot be read or written.
#[cfg(feature = "client")]
pub(crate) fn verify_or_add(folder: &Path, address: &str, fingerprint: &str) -> Result<()> {
    let file = folder.join(FILE);
    let text = match std::fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        // An unreadable file must not count as empty: every node would pass as new.
        other => other.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let mut known = text.lines().filter_map(|line| line.split_once(' '));
    match known.find(|(known_address, _)| *known_address == address) {
        Some((_, expected)) if expected == fingerprint => Ok(()),
        Some((_, expected)) => Err(CertificateChanged {
            address: address.to_owned(),
            expected: expected.to_owned(),
            found: fingerprint.to_owned(),
            file,
        }
        .into()),
        None => {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            let separator = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
            let line = format!("{separator}{address} {fingerprint}\n");
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&file)
                .and_then(|mut open| open.write_all(line.as_bytes()))
                .with_context(|| format!("cannot write {}", file.display()))?;
            eprintln!(
                "first contact with {address}: its certificate has the SHA-256 {fingerprint}\n\
                 Compare it with the line \"this node's certificate\" on the node's console. \
                 From now on only this certificate is accepted ({}).",
                file.display()
            );
            Ok(())
        }
    }
}

/// Removes the certificate of a node that was made again, so that the next contact is a first one.
///
/// # Errors
/// Returns an error if the file cannot be read or written.
pub fn forget(folder: &Path, address: &str) -> Result<()> {
    let file = folder.join(FILE);
    let text = match std::fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(|| format!("cannot read {}", file.display()))?,
    };
    let is_other = |line: &&str| line.split_once(' ').is_none_or(|(known, _)| known != address);
    let rest: String = text.lines().filter(is_other).map(|line| format!("{line}\n")).collect();
    std::fs::write(&file, rest).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_one_node_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        forget(dir.path(), "a:1").unwrap();
        std::fs::write(dir.path().join(FILE), "a:1 11\na:12 22\n").unwrap();
        forget(dir.path(), "a:1").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join(FILE)).unwrap(), "a:12 22\n");
    }

    #[cfg(feature = "client")]
    #[test]
    fn rejects_a_node_whose_certificate_changed() {
        let dir = tempfile::tempdir().unwrap();
        verify_or_add(dir.path(), "a:1", "11").unwrap();
        verify_or_add(dir.path(), "a:1", "11").unwrap();
        verify_or_add(dir.path(), "b:1", "22").unwrap();
        let error = verify_or_add(dir.path(), "a:1", "22").unwrap_err();
        assert!(error.is::<CertificateChanged>(), "{error:#}");
        let stored = std::fs::read_to_string(dir.path().join(FILE)).unwrap();
        assert_eq!(stored, "a:1 11\nb:1 22\n");
    }
}
