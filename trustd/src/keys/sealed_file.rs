//! Form of the files with a sealed secret: four fields, each preceded by its length as four bytes,
//! big endian. The fields are the object's public and private area, the parent's name, and the
//! signer's public key, which is empty if no policy guards the secret.

use std::path::Path;

use crate::tpm::{SealedSecret, TpmError};
use crate::util::atomic_file::{self, PathError};

/// Reads a file. Returns `None` if it does not exist.
///
/// # Errors
/// [`PathError`] if the file cannot be read.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, PathError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(atomic_file::at(path)(error)),
    }
}

/// Encodes a sealed secret and the public key of its policy's signer.
pub(super) fn encode(sealed: &SealedSecret, signer: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [&sealed.public, &sealed.private, &sealed.parent, signer] {
        bytes.extend((field.len() as u32).to_be_bytes());
        bytes.extend(field);
    }
    bytes
}

/// Decodes what [`encode`] wrote. Returns `None` for any other bytes.
pub(super) fn decode(bytes: &[u8]) -> Option<(SealedSecret, Vec<u8>)> {
    fn split_field(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (field, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        Some((field.to_vec(), rest))
    }
    let (public, rest) = split_field(bytes)?;
    let (private, rest) = split_field(rest)?;
    let (parent, rest) = split_field(rest)?;
    let (signer, rest) = split_field(rest)?;
    rest.is_empty().then_some((SealedSecret { public, private, parent }, signer))
}

/// Reports whether an error of unsealing is due to the secret. All other errors can be temporary.
pub(super) fn is_permanent(error: &TpmError) -> bool {
    matches!(error, TpmError::Response { .. })
        || error.is_rejection_of("Load")
        || error.is_rejection_of("Unseal")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_not_decoded() {
        let good = encode(
            &SealedSecret { public: vec![1; 5], private: vec![2; 6], parent: vec![3; 34] },
            &[4; 65],
        );
        assert!(decode(&good).is_some());
        for end in 0..good.len() {
            assert!(decode(&good[..end]).is_none());
        }
        assert!(decode(&[&good[..], &[0]].concat()).is_none());
    }
}
