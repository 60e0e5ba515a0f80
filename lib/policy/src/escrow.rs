//! The root key, readable for one key that its owner keeps elsewhere: HPKE (RFC 9180) in base mode
//! with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and ChaCha20-Poly1305.

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

type Kem = X25519HkdfSha256;

const INFO: &[u8] = b"basalt-recovery-v1";

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EscrowError {
    #[error("expected an X25519 key: 64 lower-case hex digits")]
    Key,
    #[error("the escrow was made for the recovery key {found}, expected {expected}")]
    Other { expected: RecoveryPublic, found: RecoveryPublic },
    #[error("the escrow is damaged, or of another node")]
    Damaged,
}

/// X25519, 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecoveryPublic([u8; 32]);

impl std::fmt::Display for RecoveryPublic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&measure::hex(&self.0))
    }
}

impl RecoveryPublic {
    /// # Errors
    /// [`EscrowError::Key`].
    pub fn from_hex(text: &str) -> Result<Self, EscrowError> {
        Ok(Self(bytes(text)?))
    }
}

fn bytes(text: &str) -> Result<[u8; 32], EscrowError> {
    measure::unhex(text).and_then(|bytes| bytes.try_into().ok()).ok_or(EscrowError::Key)
}

/// What opens escrows.
pub struct RecoveryKey(Zeroizing<[u8; 32]>);

impl RecoveryKey {
    /// From 32 random bytes.
    pub fn from_bytes(secret: [u8; 32]) -> Self {
        Self(Zeroizing::new(secret))
    }

    /// # Errors
    /// [`EscrowError::Key`].
    pub fn from_hex(text: &str) -> Result<Self, EscrowError> {
        bytes(text).map(Self::from_bytes)
    }

    pub fn hex(&self) -> Zeroizing<String> {
        Zeroizing::new(measure::hex(&*self.0))
    }

    fn secret(&self) -> Result<<Kem as hpke::Kem>::PrivateKey, EscrowError> {
        <Kem as hpke::Kem>::PrivateKey::from_bytes(&*self.0).map_err(|_| EscrowError::Key)
    }

    /// # Errors
    /// [`EscrowError::Key`], which 32 bytes never give.
    pub fn public(&self) -> Result<RecoveryPublic, EscrowError> {
        Ok(RecoveryPublic(Kem::sk_to_pk(&self.secret()?).to_bytes().into()))
    }
}

/// A root key in escrow, all in hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Escrow {
    /// Whom it is for.
    recovery: String,
    /// The encapsulated key.
    enc: String,
    ciphertext: String,
}

impl Escrow {
    /// # Errors
    /// [`EscrowError::Key`] for a key with which nothing can be kept secret: a point of small
    /// order.
    pub fn seal(to: RecoveryPublic, root: &[u8]) -> Result<Self, EscrowError> {
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

    /// # Errors
    /// [`EscrowError::Other`] and [`EscrowError::Damaged`].
    pub fn open(&self, key: &RecoveryKey) -> Result<Zeroizing<Vec<u8>>, EscrowError> {
        let (expected, found) = (key.public()?, RecoveryPublic::from_hex(&self.recovery)?);
        if expected != found {
            return Err(EscrowError::Other { expected, found });
        }
        let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(
            &bytes(&self.enc).map_err(|_| EscrowError::Damaged)?,
        );
        let (enc, text) = (
            enc.map_err(|_| EscrowError::Damaged)?,
            measure::unhex(&self.ciphertext).ok_or(EscrowError::Damaged)?,
        );
        let opened = hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &key.secret()?,
            &enc,
            INFO,
            &text,
            &expected.0,
        );
        opened.map(Zeroizing::new).map_err(|_| EscrowError::Damaged)
    }

    /// Whom it is for.
    pub fn recovery(&self) -> &str {
        &self.recovery
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_its_key_opens_an_escrow() {
        let (ours, others) = (RecoveryKey::from_bytes([1; 32]), RecoveryKey::from_bytes([2; 32]));
        let escrow = Escrow::seal(ours.public().unwrap(), b"root").unwrap();
        assert_eq!(**escrow.open(&ours).as_ref().unwrap(), *b"root");
        assert_ne!(
            escrow,
            Escrow::seal(ours.public().unwrap(), b"root").unwrap(),
            "another secret each time"
        );
        assert!(matches!(escrow.open(&others), Err(EscrowError::Other { .. })));
        let renamed = Escrow { recovery: others.public().unwrap().to_string(), ..escrow.clone() };
        assert_eq!(renamed.open(&others), Err(EscrowError::Damaged));
        for n in 0..escrow.ciphertext.len() / 2 {
            let mut text = measure::unhex(&escrow.ciphertext).unwrap();
            text[n] ^= 1;
            let altered = Escrow { ciphertext: measure::hex(&text), ..escrow.clone() };
            assert_eq!(altered.open(&ours), Err(EscrowError::Damaged), "byte {n}");
        }
        assert_eq!(
            Escrow { enc: "00".repeat(32), ..escrow.clone() }.open(&ours),
            Err(EscrowError::Damaged)
        );
        assert_eq!(Escrow { enc: "00".into(), ..escrow }.open(&ours), Err(EscrowError::Damaged));
        assert_eq!(
            Escrow::seal(RecoveryPublic([0; 32]), b"root"),
            Err(EscrowError::Key),
            "of small order"
        );
        assert!(RecoveryKey::from_hex("AB").is_err());
        assert_eq!(RecoveryKey::from_hex(&ours.hex()).unwrap().public(), ours.public());
    }
}
