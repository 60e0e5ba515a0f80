//! Escrow of the root key: a copy that is encrypted to the owner's recovery key with HPKE (RFC
//! 9180), base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and ChaCha20-Poly1305.

#[cfg(feature = "escrow")]
use hpke::aead::ChaCha20Poly1305;
#[cfg(feature = "escrow")]
use hpke::kdf::HkdfSha256;
#[cfg(feature = "escrow")]
use hpke::kem::X25519HkdfSha256;
#[cfg(feature = "escrow")]
use hpke::{Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

#[cfg(feature = "escrow")]
type Kem = X25519HkdfSha256;

/// Application-supplied info of HPKE.
#[cfg(feature = "escrow")]
const INFO: &[u8] = b"basalt-recovery-v1";

/// Error of creating or opening an escrow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EscrowError {
    /// The text or the point is not a valid key.
    #[error("expected an X25519 key, 64 lower-case hex digits")]
    Key,
    /// The escrow is encrypted to another recovery key.
    #[error("the escrow is encrypted to the recovery key {found}, expected {expected}")]
    WrongRecoveryKey {
        /// Public key of the given recovery key.
        expected: RecoveryPublicKey,
        /// Public key that the escrow is encrypted to.
        found: RecoveryPublicKey,
    },
    /// Decoding or decryption fails.
    #[error("the escrow is corrupt, or of another node")]
    Corrupt,
}

/// Public key that escrows are encrypted to: X25519, 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryPublicKey([u8; 32]);

impl std::fmt::Display for RecoveryPublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&measure::hex(&self.0))
    }
}

impl RecoveryPublicKey {
    /// Decodes a key from lower-case hex.
    ///
    /// # Errors
    ///
    /// Returns [`EscrowError::Key`] if the text is not 64 lower-case hex digits.
    pub fn from_hex(text: &str) -> Result<Self, EscrowError> {
        Ok(Self(parse_key(text)?))
    }
}

fn parse_key(text: &str) -> Result<[u8; 32], EscrowError> {
    measure::unhex(text).and_then(|bytes| bytes.try_into().ok()).ok_or(EscrowError::Key)
}

/// Private key that opens escrows.
pub struct RecoveryKey(Zeroizing<[u8; 32]>);

impl RecoveryKey {
    /// Creates a key from 32 random bytes.
    pub fn from_bytes(secret: [u8; 32]) -> Self {
        Self(Zeroizing::new(secret))
    }

    /// Decodes a key from lower-case hex.
    ///
    /// # Errors
    ///
    /// Returns [`EscrowError::Key`] if the text is not 64 lower-case hex digits.
    pub fn from_hex(text: &str) -> Result<Self, EscrowError> {
        parse_key(text).map(Self::from_bytes)
    }

    /// Returns the key as hex.
    pub fn hex(&self) -> Zeroizing<String> {
        Zeroizing::new(measure::hex(&*self.0))
    }

    #[cfg(feature = "escrow")]
    fn secret(&self) -> Result<<Kem as hpke::Kem>::PrivateKey, EscrowError> {
        <Kem as hpke::Kem>::PrivateKey::from_bytes(&*self.0).map_err(|_| EscrowError::Key)
    }

    /// Returns the public key.
    ///
    /// # Errors
    ///
    /// Returns [`EscrowError::Key`] if HPKE rejects the key; it accepts all keys of 32 bytes.
    #[cfg(feature = "escrow")]
    pub fn public(&self) -> Result<RecoveryPublicKey, EscrowError> {
        Ok(RecoveryPublicKey(Kem::sk_to_pk(&self.secret()?).to_bytes().into()))
    }
}

/// An encrypted root key. All members are hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Escrow {
    /// Public key that the root key is encrypted to.
    recovery: String,
    /// Encapsulated key of HPKE.
    enc: String,
    /// Encrypted root key and authentication tag.
    ciphertext: String,
}

impl Escrow {
    /// Encrypts a root key to a recovery key.
    ///
    /// # Errors
    ///
    /// Returns [`EscrowError::Key`] for a point of small order, with which nothing is secret.
    #[cfg(feature = "escrow")]
    pub fn seal(to: RecoveryPublicKey, root: &[u8]) -> Result<Self, EscrowError> {
        let key = <Kem as hpke::Kem>::PublicKey::from_bytes(&to.0).map_err(|_| EscrowError::Key)?;
        let sealed = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeS::Base,
            &key,
            INFO,
            root,
            &to.0,
        );
        let (enc, ciphertext) = sealed.map_err(|_| EscrowError::Key)?;
        Ok(Self {
            recovery: to.to_string(),
            enc: measure::hex(&enc.to_bytes()),
            ciphertext: measure::hex(&ciphertext),
        })
    }

    /// Decrypts the root key.
    ///
    /// # Errors
    ///
    /// Returns [`EscrowError::WrongRecoveryKey`] if the escrow is encrypted to another key, and
    /// [`EscrowError::Corrupt`] if it does not decode or decrypt.
    #[cfg(feature = "escrow")]
    pub fn open(&self, key: &RecoveryKey) -> Result<Zeroizing<Vec<u8>>, EscrowError> {
        let (expected, found) = (key.public()?, RecoveryPublicKey::from_hex(&self.recovery)?);
        if expected != found {
            return Err(EscrowError::WrongRecoveryKey { expected, found });
        }
        let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(
            &parse_key(&self.enc).map_err(|_| EscrowError::Corrupt)?,
        );
        let (enc, text) = (
            enc.map_err(|_| EscrowError::Corrupt)?,
            measure::unhex(&self.ciphertext).ok_or(EscrowError::Corrupt)?,
        );
        let opened = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &key.secret()?,
            &enc,
            INFO,
            &text,
            &expected.0,
        );
        opened.map(Zeroizing::new).map_err(|_| EscrowError::Corrupt)
    }

    /// Returns the public key that the root key is encrypted to, as hex.
    pub fn recovery(&self) -> &str {
        &self.recovery
    }
}

#[cfg(all(test, feature = "escrow"))]
mod tests {
    use super::*;

    #[test]
    fn only_the_recovery_key_opens_an_escrow() {
        let (ours, others) = (RecoveryKey::from_bytes([1; 32]), RecoveryKey::from_bytes([2; 32]));
        let escrow = Escrow::seal(ours.public().unwrap(), b"root").unwrap();
        assert_eq!(**escrow.open(&ours).as_ref().unwrap(), *b"root");
        assert_ne!(
            escrow,
            Escrow::seal(ours.public().unwrap(), b"root").unwrap(),
            "each escrow has a fresh encapsulated key"
        );
        assert!(matches!(escrow.open(&others), Err(EscrowError::WrongRecoveryKey { .. })));
        let renamed = Escrow { recovery: others.public().unwrap().to_string(), ..escrow.clone() };
        assert_eq!(renamed.open(&others), Err(EscrowError::Corrupt));
        for n in 0..escrow.ciphertext.len() / 2 {
            let mut text = measure::unhex(&escrow.ciphertext).unwrap();
            text[n] ^= 1;
            let altered = Escrow { ciphertext: measure::hex(&text), ..escrow.clone() };
            assert_eq!(altered.open(&ours), Err(EscrowError::Corrupt), "byte {n}");
        }
        assert_eq!(
            Escrow { enc: "00".repeat(32), ..escrow.clone() }.open(&ours),
            Err(EscrowError::Corrupt)
        );
        assert_eq!(Escrow { enc: "00".into(), ..escrow }.open(&ours), Err(EscrowError::Corrupt));
        assert_eq!(
            Escrow::seal(RecoveryPublicKey([0; 32]), b"root"),
            Err(EscrowError::Key),
            "the point has small order"
        );
        assert!(RecoveryKey::from_hex("AB").is_err());
        assert_eq!(RecoveryKey::from_hex(&ours.hex()).unwrap().public(), ours.public());
    }
}
