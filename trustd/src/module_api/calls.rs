//! The calls: parsing, computation and answer of each. trustd/openapi-module.json describes them.
//!
//! Invariant: an error never contains a value of the request, because errors end up in logs.

use api::ErrorCode;
use api::QuoteRequest;
use api::module::{
    BatchRequest, Hash, HashAlgorithm, HashRequest, HmacRequest, Identity, IdentityRequest, Mac,
    ModuleQuote, RandomBytes, RandomRequest, SealRequest, Sealed, SignRequest, Signature,
    SignatureAlgorithm, UnsealRequest, Unsealed, Verification, VerifyRequest, VrfKeys,
    VrfKeysRequest, VrfProof, VrfProveRequest, VrfVerification, VrfVerifyRequest,
};
use axum::http::StatusCode;
use config::CryptoUse;
use hmac::{Hmac, KeyInit, Mac as MacAlgorithm};
use measure::{AttestedStatement, hex};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256, Sha512};
use vrf::{PublicKey, Suite};

use super::caller::Caller;
use crate::audit::Audit;
use crate::keys::derive::generate_random;
use crate::keys::sign::Algorithm;
use crate::keys::{seal, sign};
use crate::rest::{ApiError, check_nonce, parse_hex};
use crate::tpm::Tpm;

/// Largest number of random bytes in one call.
const MAX_RANDOM_BYTES: usize = 1024;

/// A parsed call.
pub(super) enum Call {
    /// Call that trustd computes by itself.
    Local(LocalCall),
    /// Call for which the TPM has to work.
    Tpm(TpmCall),
}

/// Call that trustd computes by itself, with its request.
pub(super) enum LocalCall {
    Identity,
    VrfKeys(VrfKeysRequest),
    VrfProve(VrfProveRequest),
    VrfVerify(VrfVerifyRequest),
    Hash(HashRequest),
    Hmac(HmacRequest),
    Sign(SignRequest),
    Verify(VerifyRequest),
    Seal(SealRequest),
    Unseal(UnsealRequest),
}

/// Call for which the TPM has to work.
pub(super) enum TpmCall {
    /// Random bytes, at most [`MAX_RANDOM_BYTES`].
    Random(usize),
    /// Quote about a statement.
    Quote(AttestedStatement),
    /// Public key, with a quote about the statement that it is the module's.
    VrfKeys { suite: api::module::Suite, public_key: String, statement: AttestedStatement },
}

/// Parses a request as the type of its call.
///
/// It is never parsed as a JSON value of any shape: such a value needs many times the memory of its
/// text, and with raw values, which a dependency enables, it can nest without end.
fn parse<T: DeserializeOwned>(request: &str) -> Result<T, ApiError> {
    // serde also accepts an array for a struct, which no schema describes.
    if !request.trim_start().starts_with('{') {
        return Err(ApiError::bad_request("expected a JSON object"));
    }
    parse_any(request)
}

fn parse_any<T: DeserializeOwned>(request: &str) -> Result<T, ApiError> {
    serde_json::from_str(request).map_err(|error| ApiError::bad_request(redact(&error.to_string())))
}

/// Parses the request of a batch. The requests of its calls stay text.
///
/// # Errors
/// [`ApiError`] of a malformed request.
pub(super) fn parse_batch(request: &str) -> Result<BatchRequest, ApiError> {
    parse_any(request)
}

/// Removes the values of the request, which serde quotes, from an error message.
fn redact(problem: &str) -> String {
    match (problem.find(['"', '`']), problem.rfind(", expected")) {
        (Some(begin), Some(end)) if begin < end => {
            format!("{}(not shown){}", &problem[..begin], &problem[end..])
        }
        // The name of a missing member is not from the request.
        (Some(begin), _) if !problem.starts_with("missing field") => {
            format!("{}(not shown)", &problem[..begin])
        }
        _ => problem.to_owned(),
    }
}

/// Returns what the module file must list under `crypto` for a call, or `None` if every module may
/// make the call.
pub(super) fn permission(name: &str) -> Option<CryptoUse> {
    Some(match name {
        "vrf/keys" | "vrf/prove" | "vrf/verify" => CryptoUse::Vrf,
        "random" => CryptoUse::Random,
        "hash" => CryptoUse::Hash,
        "hmac" => CryptoUse::Hmac,
        "sign" | "verify" => CryptoUse::Sign,
        "seal" | "unseal" => CryptoUse::Seal,
        "quote" => CryptoUse::Quote,
        _ => return None,
    })
}

impl Call {
    /// Parses the request of a call.
    ///
    /// # Errors
    /// 404 if there is no such call, 400 if the request is malformed.
    pub(super) fn parse(name: &str, request: &str, caller: &Caller) -> Result<Self, ApiError> {
        Ok(Self::Local(match name {
            "identity" => {
                parse::<IdentityRequest>(request)?;
                LocalCall::Identity
            }
            "vrf/keys" => {
                let mut request: VrfKeysRequest = parse(request)?;
                match request.nonce.take() {
                    Some(nonce) => {
                        return TpmCall::vrf_keys(&request, nonce, caller).map(Self::Tpm);
                    }
                    None => LocalCall::VrfKeys(request),
                }
            }
            "vrf/prove" => LocalCall::VrfProve(parse(request)?),
            "vrf/verify" => LocalCall::VrfVerify(parse(request)?),
            "random" => return TpmCall::random(&parse(request)?).map(Self::Tpm),
            "hash" => LocalCall::Hash(parse(request)?),
            "hmac" => LocalCall::Hmac(parse(request)?),
            "sign" => LocalCall::Sign(parse(request)?),
            "verify" => LocalCall::Verify(parse(request)?),
            "seal" => LocalCall::Seal(parse(request)?),
            "unseal" => LocalCall::Unseal(parse(request)?),
            "quote" => return TpmCall::quote(parse(request)?, caller).map(Self::Tpm),
            _ => {
                return Err(ApiError::not_found(
                    "there is no such call; GET /v1/openapi.json lists them",
                ));
            }
        }))
    }
}

impl TpmCall {
    fn random(request: &RandomRequest) -> Result<Self, ApiError> {
        let RandomRequest { bytes } = *request;
        if (1..=MAX_RANDOM_BYTES).contains(&bytes) {
            return Ok(Self::Random(bytes));
        }
        let message = format!("bytes: expected 1 to {MAX_RANDOM_BYTES}, found {bytes}");
        Err(ApiError::bad_request(message))
    }

    fn quote(request: QuoteRequest, caller: &Caller) -> Result<Self, ApiError> {
        Ok(Self::Quote(AttestedStatement::Module {
            image: caller.image.clone(),
            module: caller.module.clone(),
            nonce: check_nonce(request.nonce)?,
        }))
    }

    fn vrf_keys(
        request: &VrfKeysRequest,
        nonce: String,
        caller: &Caller,
    ) -> Result<Self, ApiError> {
        let suite = to_suite(request.suite);
        let public_key = hex(caller.keys.vrf_key(suite).public_key());
        let statement = AttestedStatement::VrfKey {
            bound_to: caller.bound_to(),
            image: caller.image.clone(),
            module: caller.module.clone(),
            nonce: check_nonce(nonce)?,
            public_key: public_key.clone(),
            suite: suite.name().to_owned(),
        };
        Ok(Self::VrfKeys { suite: request.suite, public_key, statement })
    }

    /// Computes the answer as JSON text.
    ///
    /// # Errors
    /// [`ApiError`] of the TPM.
    pub(super) async fn compute(self, tpm: &Tpm, audit: &Audit) -> Result<Box<RawValue>, ApiError> {
        let quote = async |statement: AttestedStatement| {
            audit.collect_evidence(&statement).await.map_err(ApiError::failed)
        };
        match self {
            Self::Random(bytes) => {
                let random = generate_random(tpm, bytes).await.map_err(ApiError::tpm)?;
                to_json(&RandomBytes { random: hex(&random) })
            }
            Self::Quote(statement) => to_json(&ModuleQuote { evidence: quote(statement).await? }),
            Self::VrfKeys { suite, public_key, statement } => {
                let evidence = Some(quote(statement).await?);
                to_json(&VrfKeys { suite, public_key, evidence })
            }
        }
    }
}

fn to_json(answer: &impl Serialize) -> Result<Box<RawValue>, ApiError> {
    serde_json::value::to_raw_value(answer).map_err(ApiError::failed)
}

fn to_suite(suite: api::module::Suite) -> Suite {
    match suite {
        api::module::Suite::P256Tai => Suite::P256Tai,
        api::module::Suite::P256Sswu => Suite::P256Sswu,
        api::module::Suite::Ed25519Tai => Suite::Ed25519Tai,
        api::module::Suite::Ed25519Ell2 => Suite::Ed25519Ell2,
        api::module::Suite::Secp256k1Draft05 => Suite::Secp256k1Draft05,
    }
}

fn to_algorithm(algorithm: SignatureAlgorithm) -> Algorithm {
    match algorithm {
        SignatureAlgorithm::Ed25519 => Algorithm::Ed25519,
        SignatureAlgorithm::EcdsaP256 => Algorithm::EcdsaP256,
    }
}

impl LocalCall {
    /// Computes the answer as JSON text.
    ///
    /// # Errors
    /// 400 for members that are not hex or cannot be a key or proof, 422 if data does not unseal.
    pub(super) fn compute(self, caller: &Caller) -> Result<Box<RawValue>, ApiError> {
        match self {
            Self::Identity => to_json(&Identity {
                module: caller.module.clone(),
                image: caller.image.clone(),
                container: caller.container.clone(),
                bound_to: caller.bound_to(),
            }),
            Self::VrfKeys(VrfKeysRequest { suite, .. }) => to_json(&VrfKeys {
                suite,
                public_key: hex(caller.keys.vrf_key(to_suite(suite)).public_key()),
                evidence: None,
            }),
            Self::VrfProve(request) => to_json(&vrf_prove(&request, caller)?),
            Self::VrfVerify(request) => to_json(&vrf_verify(&request)?),
            Self::Hash(request) => to_json(&hash(&request)?),
            Self::Hmac(request) => to_json(&hmac(&request, caller)?),
            Self::Sign(SignRequest { algorithm, data }) => {
                let data = parse_hex("data", &data)?;
                let (public_key, signature) = caller.keys.sign(to_algorithm(algorithm), &data);
                to_json(&Signature { public_key: hex(&public_key), signature: hex(&signature) })
            }
            Self::Verify(request) => to_json(&verify(&request)?),
            Self::Seal(request) => to_json(&seal_data(&request, caller)?),
            Self::Unseal(request) => to_json(&unseal_data(&request, caller)?),
        }
    }
}

fn vrf_prove(request: &VrfProveRequest, caller: &Caller) -> Result<VrfProof, ApiError> {
    let key = caller.keys.vrf_key(to_suite(request.suite));
    let alpha = parse_hex("alpha", &request.alpha)?;
    let proof = key.prove(&alpha).map_err(ApiError::failed)?;
    Ok(VrfProof {
        suite: request.suite,
        public_key: hex(key.public_key()),
        pi: hex(&proof.pi),
        beta: hex(&proof.beta),
    })
}

fn vrf_verify(request: &VrfVerifyRequest) -> Result<VrfVerification, ApiError> {
    let key = parse_hex("public_key", &request.public_key)?;
    let (alpha, pi) = (parse_hex("alpha", &request.alpha)?, parse_hex("pi", &request.pi)?);
    let beta = PublicKey::new(to_suite(request.suite), &key)
        .and_then(|key| key.verify(&alpha, &pi))
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(VrfVerification { valid: beta.is_some(), beta: beta.map(|beta| hex(&beta)) })
}

fn hash(request: &HashRequest) -> Result<Hash, ApiError> {
    let data = parse_hex("data", &request.data)?;
    let hash = match request.algorithm {
        HashAlgorithm::Sha256 => hex(&Sha256::digest(&data)),
        HashAlgorithm::Sha512 => hex(&Sha512::digest(&data)),
    };
    Ok(Hash { hash })
}

fn hmac(request: &HmacRequest, caller: &Caller) -> Result<Mac, ApiError> {
    fn compute<M: MacAlgorithm + KeyInit>(key: &[u8], data: &[u8]) -> Result<String, ApiError> {
        let mac = <M as KeyInit>::new_from_slice(key).map_err(ApiError::failed)?;
        Ok(hex(&mac.chain_update(data).finalize().into_bytes()))
    }
    let key = caller.keys.mac_key(&parse_hex("label", &request.label)?);
    let data = parse_hex("data", &request.data)?;
    let mac = match request.algorithm {
        HashAlgorithm::Sha256 => compute::<Hmac<Sha256>>(&*key, &data)?,
        HashAlgorithm::Sha512 => compute::<Hmac<Sha512>>(&*key, &data)?,
    };
    Ok(Mac { mac })
}

fn verify(request: &VerifyRequest) -> Result<Verification, ApiError> {
    let algorithm = to_algorithm(request.algorithm);
    let key = parse_hex("public_key", &request.public_key)?;
    let data = parse_hex("data", &request.data)?;
    let signature = parse_hex("signature", &request.signature)?;
    let valid = sign::verify(algorithm, &key, &data, &signature)
        .map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(Verification { valid })
}

fn seal_data(request: &SealRequest, caller: &Caller) -> Result<Sealed, ApiError> {
    let context = parse_hex("context", &request.context)?;
    let data = parse_hex("data", &request.data)?;
    let sealed = seal::seal(&caller.keys, &context, &data).map_err(ApiError::failed)?;
    Ok(Sealed { sealed: hex(&sealed) })
}

fn unseal_data(request: &UnsealRequest, caller: &Caller) -> Result<Unsealed, ApiError> {
    let context = parse_hex("context", &request.context)?;
    let sealed = parse_hex("sealed", &request.sealed)?;
    let data = seal::unseal(&caller.keys, &context, &sealed).map_err(|error| {
        ApiError::from_error(StatusCode::UNPROCESSABLE_ENTITY, ErrorCode::Sealed, &error)
    })?;
    Ok(Unsealed { data: hex(&data) })
}

impl Caller {
    /// Answers a call that trustd computes by itself; returns `None` for a call of the TPM.
    ///
    /// # Errors
    /// [`ApiError`] as the caller gets it.
    pub fn compute(&self, name: &str, request: &str) -> Option<Result<Box<RawValue>, ApiError>> {
        match Call::parse(name, request, self) {
            Ok(Call::Local(call)) => Some(call.compute(self)),
            Ok(Call::Tpm(_)) => None,
            Err(error) => Some(Err(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_do_not_contain_values_of_the_request() {
        for request in [
            r#"{"suite":"secret","alpha":""}"#,
            r#"{"suite":"ECVRF-P256-SHA256-TAI","alpha":7}"#,
            r#"{"suite":["secret"],"alpha":"secret\", expected"}"#,
            r#"{"secret":1}"#,
            r#""secret""#,
            r#"["secret","00"]"#,
            r#"{"suite":"secret"#,
        ] {
            let Err(error) = parse::<VrfProveRequest>(request) else {
                panic!("{request} was accepted")
            };
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
        let Err(error) = parse::<RandomRequest>(r#"{"bytes":"secret"}"#) else {
            panic!("a text was accepted for a number")
        };
        let shown = format!("{error:?}");
        assert!(shown.contains("expected usize") && !shown.contains("secret"), "{shown}");
        let Err(error) = parse::<IdentityRequest>(r#"{"secret":1}"#) else {
            panic!("an unknown member was accepted")
        };
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        let Err(error) = parse::<RandomRequest>("{}") else {
            panic!("a missing member was accepted")
        };
        assert!(format!("{error:?}").contains("`bytes`"), "{error:?}");
        assert!(!format!("{:?}", parse_hex("alpha", "secret").unwrap_err()).contains("secret"));
    }

    #[test]
    fn the_names_of_suites_and_algorithms_match_the_crates_that_compute_them() {
        for suite in api::module::Suite::ALL {
            assert_eq!(suite.as_str(), to_suite(*suite).name());
        }
        assert_eq!(api::module::Suite::ALL.len(), Suite::ALL.len());
        for algorithm in SignatureAlgorithm::ALL {
            let name = serde_json::to_value(to_algorithm(*algorithm)).unwrap();
            assert_eq!(name, algorithm.as_str());
        }
    }
}
