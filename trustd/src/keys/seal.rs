//! Sealing for modules: only the same module on the same node can unseal the data. The cipher is
//! AES-256-GCM (NIST SP 800-38D) with a key per secret.
//!
//! Form: one byte 1, 32 random bytes (salt), the ciphertext with its tag of 16 bytes. The key is
//! derived from the module's key and the salt (HKDF-SHA256, RFC 5869), so no key is used twice and
//! the nonce can be zero.

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::derive::ModuleKeys;

const VERSION: u8 = 1;
const SALT_BYTES: usize = 32;

/// Error of sealing or unsealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The data was not made by [`seal`] with the same keys and context.
    #[error(
        "the data was not sealed by this module on this node with this context, or it was altered"
    )]
    Foreign,
    /// The kernel returned no random numbers.
    #[error("the kernel's random number generator failed")]
    Random,
}

fn derive_key(keys: &ModuleKeys, salt: &[u8]) -> Result<LessSafeKey, SealError> {
    let mut key = Zeroizing::new([0; 32]);
    keys.derive(&[b"seal", salt], &mut key);
    UnboundKey::new(&AES_256_GCM, &*key).map(LessSafeKey::new).map_err(|_| SealError::Foreign)
}

/// Seals data. Unsealing needs the same context, which is authenticated and not stored.
///
/// # Errors
/// [`SealError::Random`].
pub fn seal(keys: &ModuleKeys, context: &[u8], data: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut salt = [0; SALT_BYTES];
    SystemRandom::new().fill(&mut salt).map_err(|_| SealError::Random)?;
    let mut body = data.to_vec();
    let sealed = derive_key(keys, &salt)?.seal_in_place_append_tag(
        Nonce::assume_unique_for_key([0; 12]),
        Aad::from(context),
        &mut body,
    );
    sealed.map_err(|_| SealError::Random)?;
    Ok([&[VERSION], &salt[..], &body].concat())
}

/// Unseals data.
///
/// # Errors
/// [`SealError::Foreign`] for any data that [`seal`] did not make with the same keys and context.
pub fn unseal(
    keys: &ModuleKeys,
    context: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, SealError> {
    let (salt, body) = match sealed.split_first() {
        Some((&VERSION, rest)) => rest.split_at_checked(SALT_BYTES).ok_or(SealError::Foreign)?,
        _ => return Err(SealError::Foreign),
    };
    let mut body = Zeroizing::new(body.to_vec());
    let opened = derive_key(keys, salt)?.open_in_place(
        Nonce::assume_unique_for_key([0; 12]),
        Aad::from(context),
        &mut body,
    );
    let length = opened.map_err(|_| SealError::Foreign)?.len();
    body.truncate(length);
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::derive::{Binding, RootKey};

    #[test]
    fn only_the_module_that_sealed_data_unseals_it() {
        let root = RootKey::from_bytes(&[7; 32]);
        let keys =
            |module: &str| root.derive_module_keys(module, &Binding::Image("sha256:aa".into()));
        let (ours, others) = (keys("a"), keys("b"));
        let sealed = seal(&ours, b"where", b"secret").unwrap();
        assert_eq!(**unseal(&ours, b"where", &sealed).as_ref().unwrap(), *b"secret");
        assert_ne!(sealed, seal(&ours, b"where", b"secret").unwrap());
        assert_eq!(unseal(&others, b"where", &sealed), Err(SealError::Foreign));
        assert_eq!(unseal(&ours, b"elsewhere", &sealed), Err(SealError::Foreign));
        for bit in 0..sealed.len() * 8 {
            let mut altered = sealed.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(unseal(&ours, b"where", &altered), Err(SealError::Foreign), "{bit}");
        }
        for end in 0..sealed.len() {
            assert_eq!(unseal(&ours, b"where", &sealed[..end]), Err(SealError::Foreign), "{end}");
        }
    }
}
