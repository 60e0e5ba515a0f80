//! What a module can ask for, and the answers. trustd/openapi-module.json describes every call.
//!
//! Invariant: nothing that was sent is in an error, for errors end up in logs.

use axum::http::StatusCode;
use config::CryptoUse;
use hmac::{Hmac, KeyInit as _, Mac as _};
use measure::AttestedStatement;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256, Sha512};
use vrf::{PublicKey, Suite};

use super::Caller;
use crate::keys::{seal, sign};
use crate::rest::{ApiError, nonce, unhex};

const MOST_RANDOM: usize = 1024;

/// All calls but `batch`.
pub const NAMES: [&str; 12] = [
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

/// One call with its request.
pub(super) enum Call {
    /// Computed here.
    Plain(Plain),
    /// The TPM has to work for it.
    Tpm(TpmCall),
}

pub(super) enum Plain {
    Identity,
    VrfKeys(VrfKeys),
    VrfProve(VrfProve),
    VrfVerify(VrfVerify),
    Hash(Hash),
    Hmac(MacRequest),
    Sign(Sign),
    Verify(Verify),
    Seal(Seal),
    Unseal(Unseal),
}

pub(super) enum TpmCall {
    Random(usize),
    Quote(AttestedStatement),
    VrfKeys { suite: Suite, public_key: String, statement: AttestedStatement },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VrfKeys {
    suite: Suite,
    /// With it the answer has a statement of the TPM.
    nonce: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VrfProve {
    suite: Suite,
    alpha: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VrfVerify {
    suite: Suite,
    public_key: String,
    alpha: String,
    pi: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Random {
    bytes: usize,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Algorithm {
    Sha256,
    Sha512,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Hash {
    algorithm: Algorithm,
    data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MacRequest {
    algorithm: Algorithm,
    #[serde(default)]
    label: String,
    data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sign {
    algorithm: sign::Algorithm,
    data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Verify {
    algorithm: sign::Algorithm,
    public_key: String,
    data: String,
    signature: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Seal {
    #[serde(default)]
    context: String,
    data: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Unseal {
    #[serde(default)]
    context: String,
    sealed: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Quote {
    nonce: String,
}

/// The call's own type, and never a value of any shape: that costs many times its size, and crates
/// that are linked in can let it nest without end.
fn read<T: DeserializeOwned>(request: &str) -> Result<T, ApiError> {
    // A structure could also be read from an array, which nothing describes.
    if !request.trim_start().starts_with('{') {
        return Err(ApiError::request("expected a JSON object"));
    }
    serde_json::from_str(request).map_err(|e| ApiError::request(without_values(&e.to_string())))
}

/// serde shows, in quotes, what it did not expect.
pub(super) fn without_values(problem: &str) -> String {
    match (problem.find(['"', '`']), problem.rfind(", expected")) {
        (Some(begin), Some(end)) if begin < end => {
            format!("{}(not shown){}", &problem[..begin], &problem[end..])
        }
        // What is missing was not sent.
        (Some(begin), _) if !problem.starts_with("missing field") => {
            format!("{}(not shown)", &problem[..begin])
        }
        _ => problem.to_owned(),
    }
}

impl Call {
    /// # Errors
    /// 404 if there is no such call, 400 if the request is not as it should be.
    pub(super) fn read(name: &str, request: &str, caller: &Caller) -> Result<Self, ApiError> {
        let plain = match name {
            "identity" => {
                read::<Nothing>(request)?;
                Plain::Identity
            }
            "vrf/keys" => {
                let keys: VrfKeys = read(request)?;
                match &keys.nonce {
                    Some(hex) => {
                        let public_key = measure::hex(caller.keys.vrf(keys.suite).public_key());
                        let statement = AttestedStatement::VrfKey {
                            bound_to: caller.bound_to(),
                            image: caller.image.clone(),
                            module: caller.module.clone(),
                            nonce: nonce(hex.clone())?,
                            public_key: public_key.clone(),
                            suite: keys.suite.name().to_owned(),
                        };
                        return Ok(Self::Tpm(TpmCall::VrfKeys {
                            suite: keys.suite,
                            public_key,
                            statement,
                        }));
                    }
                    None => Plain::VrfKeys(keys),
                }
            }
            "vrf/prove" => Plain::VrfProve(read(request)?),
            "vrf/verify" => Plain::VrfVerify(read(request)?),
            "random" => {
                let Random { bytes } = read(request)?;
                if !(1..=MOST_RANDOM).contains(&bytes) {
                    return Err(ApiError::request(format!(
                        "bytes: expected 1 to {MOST_RANDOM}, found {bytes}"
                    )));
                }
                return Ok(Self::Tpm(TpmCall::Random(bytes)));
            }
            "hash" => Plain::Hash(read(request)?),
            "hmac" => Plain::Hmac(read(request)?),
            "sign" => Plain::Sign(read(request)?),
            "verify" => Plain::Verify(read(request)?),
            "seal" => Plain::Seal(read(request)?),
            "unseal" => Plain::Unseal(read(request)?),
            "quote" => {
                let Quote { nonce: hex } = read(request)?;
                let statement = AttestedStatement::Module {
                    image: caller.image.clone(),
                    module: caller.module.clone(),
                    nonce: nonce(hex)?,
                };
                return Ok(Self::Tpm(TpmCall::Quote(statement)));
            }
            _ => {
                return Err(ApiError::not_found(
                    "there is no such call; GET /v1/openapi.json lists them",
                ));
            }
        };
        Ok(Self::Plain(plain))
    }

    /// What a module's file must list for it.
    pub(super) fn needs(name: &str) -> Option<CryptoUse> {
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
}

impl Plain {
    pub(super) fn answer(self, caller: &Caller) -> Result<Value, ApiError> {
        let hex = measure::hex;
        Ok(match self {
            Self::Identity => json!({
                "bound_to": caller.bound_to(),
                "container": caller.container,
                "image": caller.image,
                "module": caller.module,
            }),
            Self::VrfKeys(VrfKeys { suite, .. }) => {
                json!({ "public_key": hex(caller.keys.vrf(suite).public_key()), "suite": suite })
            }
            Self::VrfProve(VrfProve { suite, alpha }) => {
                let key = caller.keys.vrf(suite);
                let proof = key.prove(&unhex("alpha", &alpha)?).map_err(ApiError::node)?;
                json!({ "beta": hex(&proof.beta), "pi": hex(&proof.pi), "public_key": hex(key.public_key()), "suite": suite })
            }
            Self::VrfVerify(request) => {
                let (key, alpha) =
                    (unhex("public_key", &request.public_key)?, unhex("alpha", &request.alpha)?);
                let pi = unhex("pi", &request.pi)?;
                let verified =
                    PublicKey::new(request.suite, &key).and_then(|key| key.verify(&alpha, &pi));
                match verified.map_err(ApiError::request)? {
                    Some(beta) => json!({ "beta": hex(&beta), "valid": true }),
                    None => json!({ "valid": false }),
                }
            }
            Self::Hash(Hash { algorithm, data }) => {
                let data = unhex("data", &data)?;
                json!({ "hash": match algorithm {
                    Algorithm::Sha256 => hex(&Sha256::digest(&data)),
                    Algorithm::Sha512 => hex(&Sha512::digest(&data)),
                } })
            }
            Self::Hmac(MacRequest { algorithm, label, data }) => {
                let key = caller.keys.mac(&unhex("label", &label)?);
                let data = unhex("data", &data)?;
                json!({ "mac": match algorithm {
                    Algorithm::Sha256 => hex(&Hmac::<Sha256>::new_from_slice(&*key).map_err(ApiError::node)?.chain_update(&data).finalize().into_bytes()),
                    Algorithm::Sha512 => hex(&Hmac::<Sha512>::new_from_slice(&*key).map_err(ApiError::node)?.chain_update(&data).finalize().into_bytes()),
                } })
            }
            Self::Sign(Sign { algorithm, data }) => {
                let (public_key, signature) = caller.keys.sign(algorithm, &unhex("data", &data)?);
                json!({ "public_key": hex(&public_key), "signature": hex(&signature) })
            }
            Self::Verify(request) => {
                let (key, data) =
                    (unhex("public_key", &request.public_key)?, unhex("data", &request.data)?);
                let signature = unhex("signature", &request.signature)?;
                json!({ "valid": sign::verify(request.algorithm, &key, &data, &signature).map_err(ApiError::request)? })
            }
            Self::Seal(Seal { context, data }) => {
                let sealed =
                    seal::seal(&caller.keys, &unhex("context", &context)?, &unhex("data", &data)?);
                json!({ "sealed": hex(&sealed.map_err(ApiError::node)?) })
            }
            Self::Unseal(Unseal { context, sealed }) => {
                let data = seal::unseal(
                    &caller.keys,
                    &unhex("context", &context)?,
                    &unhex("sealed", &sealed)?,
                );
                let data =
                    data.map_err(|e| ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "sealed", e))?;
                json!({ "data": hex(&data) })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_do_not_repeat_what_was_sent() {
        for request in [
            r#"{"suite":"secret","alpha":""}"#,
            r#"{"suite":"ECVRF-P256-SHA256-TAI","alpha":7}"#,
            r#"{"suite":["secret"],"alpha":"secret\", expected"}"#,
            r#"{"secret":1}"#,
            r#""secret""#,
            r#"["secret","00"]"#,
            r#"{"suite":"secret"#,
        ] {
            let Err(error) = read::<VrfProve>(request) else { panic!("{request} was taken") };
            assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        }
        let Err(error) = read::<Random>(r#"{"bytes":"secret"}"#) else { panic!("taken") };
        assert!(
            format!("{error:?}").contains("expected usize")
                && !format!("{error:?}").contains("secret"),
            "{error:?}"
        );
        let Err(error) = read::<Nothing>(r#"{"secret":1}"#) else { panic!("taken") };
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        let Err(error) = read::<Random>("{}") else { panic!("taken") };
        assert!(format!("{error:?}").contains("`bytes`"), "{error:?}");
        assert!(!format!("{:?}", unhex("alpha", "secret").unwrap_err()).contains("secret"));
    }
}
