//! A secret of the node that every boot of this TPM can unseal, for keys that must not depend on
//! the root key, such as the one of the API's certificate.

use std::path::Path;

use zeroize::Zeroizing;

use super::derive::{ROOT_KEY_BYTES, RootKey, generate_random};
use super::error::VaultError;
use super::sealed_file::{self, decode, encode, is_permanent};
use crate::tpm::Tpm;
use crate::util::atomic_file;

/// Unseals the secret in the file. Generates and seals a new one if there is none or if it is not
/// of this TPM.
///
/// # Errors
/// [`VaultError`] if the TPM fails or the file cannot be read or written.
pub async fn open(tpm: &Tpm, path: &Path) -> Result<RootKey, VaultError> {
    if let Some((sealed, _)) = sealed_file::read(path)?.as_deref().and_then(decode) {
        match tpm.unseal(sealed, None).await {
            Ok(secret) => return Ok(RootKey::from_bytes(&Zeroizing::new(secret))),
            Err(error) if is_permanent(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let secret = Zeroizing::new(generate_random(tpm, ROOT_KEY_BYTES).await?);
    let sealed = tpm.seal(secret.to_vec(), None).await?;
    atomic_file::write(path, &encode(&sealed, &[])).map_err(atomic_file::at(path))?;
    Ok(RootKey::from_bytes(&secret))
}
