//! The calls of a module: `POST /v1/NAME` on the socket in its container.

use serde::{Deserialize, Serialize};

use crate::text_enum::text_enum;
use crate::{Evidence, QuoteRequest};

/// Names of all calls but `batch`.
pub const CALL_NAMES: [&str; 12] = [
    "identity",
    "vrf/keys",
    "vrf/prove",
    "vrf/verify",
    "random",
    "hash",
    "hmac",
    "sign",
    "verify",
    "seal",
    "unseal",
    "quote",
];

text_enum! {
    /// Suite of a verifiable random function.
    pub enum Suite {
        /// RFC 9381, suite 0x01.
        P256Tai = "ECVRF-P256-SHA256-TAI",
        /// RFC 9381, suite 0x02.
        P256Sswu = "ECVRF-P256-SHA256-SSWU",
        /// RFC 9381, suite 0x03.
        Ed25519Tai = "ECVRF-EDWARDS25519-SHA512-TAI",
        /// RFC 9381, suite 0x04.
        Ed25519Ell2 = "ECVRF-EDWARDS25519-SHA512-ELL2",
        /// draft-irtf-cfrg-vrf-05, suite 0xfe. Contracts on EVM chains verify it.
        Secp256k1Draft05 = "draft-05:ECVRF-SECP256K1-SHA256-TAI",
    }
}

text_enum! {
    /// Hash function of `hash` and `hmac` (FIPS 180-4).
    pub enum HashAlgorithm {
        /// SHA-256.
        Sha256 = "sha256",
        /// SHA-512.
        Sha512 = "sha512",
    }
}

text_enum! {
    /// Algorithm of `sign` and `verify`.
    pub enum SignatureAlgorithm {
        /// Ed25519 (RFC 8032).
        Ed25519 = "ed25519",
        /// ECDSA on P-256 with SHA-256 (FIPS 186-5).
        EcdsaP256 = "ecdsa-p256-sha256",
    }
}

/// Request of `identity`, which has no members.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityRequest {}

/// Answer of `identity`: which module trustd takes the caller for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the module.
    pub module: String,
    /// Digest of the manifest that the container runs, `sha256:` and hex.
    pub image: String,
    /// ID of the container.
    pub container: String,
    /// Binding of the module's keys: `approvers:` or `image:`, then a digest.
    pub bound_to: String,
}

/// Request of `vrf/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VrfKeysRequest {
    /// Suite of the key.
    pub suite: Suite,
    /// A verifier's nonce, 8 to 32 bytes, hex. With it the answer has evidence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<String>,
}

/// Answer of `vrf/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrfKeys {
    /// Suite of the key.
    pub suite: Suite,
    /// The module's public key, hex.
    pub public_key: String,
    /// Proof that the key is this module's on this node, if the request had a nonce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// Request of `vrf/prove`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VrfProveRequest {
    /// Suite of the proof.
    pub suite: Suite,
    /// Input, hex.
    pub alpha: String,
}

/// Answer of `vrf/prove` (RFC 9381, section 5.1): a proof with all that its verification needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrfProof {
    /// Suite of the proof.
    pub suite: Suite,
    /// The module's public key, hex.
    pub public_key: String,
    /// The proof, hex.
    pub pi: String,
    /// The random output, hex.
    pub beta: String,
}

/// Request of `vrf/verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VrfVerifyRequest {
    /// Suite of the proof.
    pub suite: Suite,
    /// The prover's public key, hex.
    pub public_key: String,
    /// Input, hex.
    pub alpha: String,
    /// The proof, hex.
    pub pi: String,
}

/// Answer of `vrf/verify` (RFC 9381, section 5.3).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VrfVerification {
    /// Whether the proof is valid.
    pub valid: bool,
    /// The random output in hex, if the proof is valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beta: Option<String>,
}

/// Request of `random`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomRequest {
    /// Number of bytes, 1 to 1024.
    pub bytes: usize,
}

/// Answer of `random`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RandomBytes {
    /// The bytes, hex.
    pub random: String,
}

/// Request of `hash`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashRequest {
    /// Hash function.
    pub algorithm: HashAlgorithm,
    /// Data to hash, hex.
    pub data: String,
}

/// Answer of `hash`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hash {
    /// Digest of the data, hex.
    pub hash: String,
}

/// Request of `hmac`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HmacRequest {
    /// Hash function.
    pub algorithm: HashAlgorithm,
    /// Data to authenticate, hex.
    pub data: String,
    /// Label of the key, hex. Each label has its own key; the default is the empty label.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
}

/// Answer of `hmac` (RFC 2104).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mac {
    /// Authentication code, hex.
    pub mac: String,
}

/// Request of `sign`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignRequest {
    /// Signature algorithm.
    pub algorithm: SignatureAlgorithm,
    /// Data to sign, hex.
    pub data: String,
}

/// Answer of `sign`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// The module's public key, hex.
    pub public_key: String,
    /// The signature, 64 bytes, hex. For ECDSA these are r and s of 32 bytes each.
    pub signature: String,
}

/// Request of `verify`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyRequest {
    /// Signature algorithm.
    pub algorithm: SignatureAlgorithm,
    /// The signer's public key, hex.
    pub public_key: String,
    /// The signed data, hex.
    pub data: String,
    /// The signature, hex.
    pub signature: String,
}

/// Answer of `verify`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Whether the signature is valid.
    pub valid: bool,
}

/// Request of `seal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealRequest {
    /// Data to encrypt, hex.
    pub data: String,
    /// Context that `unseal` must repeat, hex; the default is the empty context.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub context: String,
}

/// Answer of `seal` (AES-256-GCM).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// The encrypted data, hex. Only this module on this node can decrypt it.
    pub sealed: String,
}

/// Request of `unseal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnsealRequest {
    /// Data that `seal` encrypted, hex.
    pub sealed: String,
    /// Context that was given to `seal`, hex; the default is the empty context.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub context: String,
}

/// Answer of `unseal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsealed {
    /// The decrypted data, hex.
    pub data: String,
}

/// Answer of `quote`, whose request is a [`QuoteRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleQuote {
    /// Evidence whose statement says that this module requested it.
    pub evidence: Evidence,
}

/// Request of one call, with the answer that belongs to it.
pub trait Call: Serialize {
    /// Answer of the call.
    type Answer: serde::de::DeserializeOwned;
    /// Name of the call: its path without `/v1/`.
    const NAME: &str;
}

macro_rules! calls {
    ($($name:literal: $request:ty => $answer:ty,)+) => {
        $(impl Call for $request {
            type Answer = $answer;
            const NAME: &str = $name;
        })+
    };
}

calls! {
    "identity": IdentityRequest => Identity,
    "vrf/keys": VrfKeysRequest => VrfKeys,
    "vrf/prove": VrfProveRequest => VrfProof,
    "vrf/verify": VrfVerifyRequest => VrfVerification,
    "random": RandomRequest => RandomBytes,
    "hash": HashRequest => Hash,
    "hmac": HmacRequest => Mac,
    "sign": SignRequest => Signature,
    "verify": VerifyRequest => Verification,
    "seal": SealRequest => Sealed,
    "unseal": UnsealRequest => Unsealed,
    "quote": QuoteRequest => ModuleQuote,
}

#[cfg(feature = "batch")]
pub use batch::{BatchAnswer, BatchAnswers, BatchCall, BatchRequest};

#[cfg(feature = "batch")]
mod batch {
    use serde::{Deserialize, Serialize};
    use serde_json::value::RawValue;

    use crate::ErrorDetail;

    /// Request of `batch`.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct BatchRequest {
        /// The calls, at most 1,024.
        pub calls: Vec<BatchCall>,
    }

    /// One call of a batch.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    pub struct BatchCall {
        /// Name of the call, such as `vrf/prove`.
        pub call: String,
        /// Request of the call as JSON text; without one, an object without members.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub request: Option<Box<RawValue>>,
    }

    /// Answer of `batch`.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    pub struct BatchAnswers {
        /// The answer or error of each call, in the order of the calls.
        pub answers: Vec<BatchAnswer>,
    }

    /// Answer or error of one call of a batch.
    #[derive(Debug, Clone, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum BatchAnswer {
        /// Answer of the call as JSON text.
        Answer(Box<RawValue>),
        /// Error of the call.
        Error(ErrorDetail),
    }
}
