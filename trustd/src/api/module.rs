//! What a module gets: a Unix socket of its own, mounted into its container and nobody else's.
//!
//! Invariant: who is asking follows from the socket alone; a key of another module cannot be named.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use config::{CryptoUse, Module};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use tokio::net::UnixListener;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use vrf::{PublicKey, Suite};

use super::{Answer, ApiError, unhex, unknown};
use crate::crypto::keys::RootKey;

use crate::tpm::Tpm;

const LARGEST_REQUEST: usize = 1 << 20;
const MOST_RANDOM: usize = 1024;

/// The sockets of all modules.
pub struct Sockets {
    dir: PathBuf,
    tpm: Tpm,
    root: Arc<RootKey>,
    open: Mutex<BTreeMap<String, (Arc<Caller>, AbortHandle)>>,
}

/// Who is on the other end of a socket.
pub struct Caller {
    module: String,
    may: RwLock<Vec<CryptoUse>>,
    tpm: Tpm,
    root: Arc<RootKey>,
}

impl Caller {
    fn check(&self, wish: CryptoUse) -> Result<(), ApiError> {
        if self.may.read().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&wish) {
            return Ok(());
        }
        let name = serde_json::to_string(&wish).unwrap_or_default();
        Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            format!("the module {} may not use {name}: its file does not list it under crypto", self.module),
        ))
    }
}

impl Sockets {
    pub fn new(dir: PathBuf, tpm: Tpm, root: Arc<RootKey>) -> Self {
        Self { dir, tpm, root, open: Mutex::default() }
    }

    /// Opens a module's socket, or changes what the open one allows; returns the folder to mount.
    pub async fn open(&self, module: &str, settings: &Module) -> std::io::Result<PathBuf> {
        let dir = self.dir.join(module);
        let mut open = self.open.lock().await;
        if let Some((caller, _)) = open.get(module) {
            *caller.may.write().unwrap_or_else(std::sync::PoisonError::into_inner) = settings.crypto.clone();
            return Ok(dir);
        }
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        let path = dir.join("trustd.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        // Whoever can see it may use it: only one container does.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        let caller = Arc::new(Caller {
            module: module.to_owned(),
            may: RwLock::new(settings.crypto.clone()),
            tpm: self.tpm.clone(),
            root: self.root.clone(),
        });
        let serving = tokio::spawn(axum::serve(listener, router(caller.clone())).into_future());
        open.insert(module.to_owned(), (caller, serving.abort_handle()));
        Ok(dir)
    }
}

fn router(caller: Arc<Caller>) -> Router {
    Router::new()
        .route("/v1/identity", get(identity))
        .route("/v1/vrf/prove", post(prove))
        .route("/v1/vrf/verify", post(verify))
        .route("/v1/random", post(random))
        .route("/v1/hash", post(hash))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(caller)
}

type Who = State<Arc<Caller>>;
type Request<T> = Result<Json<T>, JsonRejection>;

#[derive(Serialize)]
struct Identity {
    module: String,
}

async fn identity(State(caller): Who) -> Json<Identity> {
    Json(Identity { module: caller.module.clone() })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProveRequest {
    suite: Suite,
    alpha: String,
}

#[derive(Serialize)]
struct ProveAnswer {
    suite: Suite,
    public_key: String,
    pi: String,
    beta: String,
}

async fn prove(State(caller): Who, request: Request<ProveRequest>) -> Answer<ProveAnswer> {
    caller.check(CryptoUse::Vrf)?;
    let Json(ProveRequest { suite, alpha }) = request?;
    let alpha = unhex("alpha", &alpha)?;
    let secret = caller.root.vrf(&caller.module, suite);
    let proof = secret.prove(&alpha).map_err(ApiError::node)?;
    let hex = |bytes: &[u8]| measure::hex(bytes);
    Ok(Json(ProveAnswer { suite, public_key: hex(secret.public_key()), pi: hex(&proof.pi), beta: hex(&proof.beta) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyRequest {
    suite: Suite,
    public_key: String,
    alpha: String,
    pi: String,
}

#[derive(Serialize)]
struct VerifyAnswer {
    valid: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    beta: Option<String>,
}

async fn verify(State(caller): Who, request: Request<VerifyRequest>) -> Answer<VerifyAnswer> {
    caller.check(CryptoUse::Vrf)?;
    let Json(request) = request?;
    let (key, alpha, pi) = (unhex("public_key", &request.public_key)?, unhex("alpha", &request.alpha)?, unhex("pi", &request.pi)?);
    let beta = PublicKey::new(request.suite, &key).and_then(|key| key.verify(&alpha, &pi)).map_err(ApiError::request)?;
    Ok(Json(VerifyAnswer { valid: beta.is_some(), beta: beta.map(|b| measure::hex(&b)) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RandomRequest {
    bytes: usize,
}

#[derive(Serialize)]
struct RandomAnswer {
    random: String,
}

async fn random(State(caller): Who, request: Request<RandomRequest>) -> Answer<RandomAnswer> {
    caller.check(CryptoUse::Random)?;
    let Json(RandomRequest { bytes }) = request?;
    if !(1..=MOST_RANDOM).contains(&bytes) {
        return Err(ApiError::request(format!("bytes: expected 1 to {MOST_RANDOM}, found {bytes}")));
    }
    let random = caller.tpm.random(bytes).await.map_err(ApiError::tpm)?;
    Ok(Json(RandomAnswer { random: measure::hex(&random) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HashRequest {
    algorithm: Algorithm,
    data: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Algorithm {
    Sha256,
    Sha512,
}

#[derive(Serialize)]
struct HashAnswer {
    hash: String,
}

async fn hash(State(caller): Who, request: Request<HashRequest>) -> Answer<HashAnswer> {
    caller.check(CryptoUse::Hash)?;
    let Json(HashRequest { algorithm, data }) = request?;
    let data = unhex("data", &data)?;
    let hash = match algorithm {
        Algorithm::Sha256 => measure::hex(&Sha256::digest(&data)),
        Algorithm::Sha512 => measure::hex(&Sha512::digest(&data)),
    };
    Ok(Json(HashAnswer { hash }))
}
