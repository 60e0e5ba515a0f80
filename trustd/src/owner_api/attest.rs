//! Attestation: quotes, and the identity of the TPM that made them (docs/attestation.md).
//!
//! Anonymous clients may make these calls, so that a verifier needs no relation to the node. They
//! share one rate limit, because each call keeps the TPM busy for up to a second.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use api::owner::{ActivatedCredential, Credential, Endorsement};
use api::{ErrorCode, Evidence, QuoteRequest};
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use measure::{AttestedStatement, hex};
use tokio::sync::Semaphore;

use super::route::Route;
use super::state::NodeState;
use crate::rest::drain::drain_bodies;
use crate::rest::rate_limit::TokenBucket;
use crate::rest::{Answer, ApiError, check_nonce, parse_hex};
use crate::util::lock::lock;

/// Rate limit of all anonymous clients together, in requests per second.
const MAX_ANONYMOUS_REQUESTS_PER_SECOND: u32 = 2;
/// Size of an anonymous client's request. The largest credential has about 150 bytes.
const MAX_ANONYMOUS_REQUEST_BYTES: usize = 4096;
/// Bytes of an anonymous client's request that are discarded after its answer.
const MAX_ANONYMOUS_DRAINED_BYTES: usize = 1 << 20;

/// Returns the routes of attestation.
pub(super) fn routes() -> Vec<Route<Arc<NodeState>>> {
    vec![
        Route::new("/v1/quote", &["post"], post(quote)),
        Route::new("/v1/endorsement", &["get"], get(endorsement)),
        Route::new("/v1/activate-credential", &["post"], post(activate_credential)),
    ]
}

async fn quote(
    State(node): State<Arc<NodeState>>,
    request: Result<Json<QuoteRequest>, JsonRejection>,
) -> Answer<Evidence> {
    let nonce = check_nonce(request?.0.nonce)?;
    let statement = AttestedStatement::Node { certificate: node.certificate.clone(), nonce };
    Ok(Json(node.audit.collect_evidence(&statement).await.map_err(ApiError::failed)?))
}

async fn endorsement(State(node): State<Arc<NodeState>>) -> Answer<Endorsement> {
    let endorsement = node.audit.tpm().read_endorsement().await.map_err(ApiError::tpm)?;
    Ok(Json(Endorsement {
        key: hex(&endorsement.public_area),
        certificate: endorsement.certificate.map(|certificate| hex(&certificate)),
    }))
}

/// Proves that the attestation key is in the TPM for whose endorsement key the credential was made.
async fn activate_credential(
    State(node): State<Arc<NodeState>>,
    request: Result<Json<Credential>, JsonRejection>,
) -> Answer<ActivatedCredential> {
    let Json(credential) = request?;
    let (blob, seed) = (parse_hex("blob", &credential.blob)?, parse_hex("seed", &credential.seed)?);
    let secret = node.audit.tpm().activate_credential(blob, seed).await.map_err(|error| {
        if error.is_rejection_of("ActivateCredential") {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            return ApiError::from_error(status, ErrorCode::Credential, &error);
        }
        ApiError::tpm(error)
    })?;
    Ok(Json(ActivatedCredential { secret: hex(&secret) }))
}

/// Returns the router for anonymous clients, who may request attestation and nothing else.
pub fn anonymous_router(node: Arc<NodeState>) -> Router {
    let limit = Arc::new(AnonymousLimit {
        bucket: Mutex::new(TokenBucket::new(MAX_ANONYMOUS_REQUESTS_PER_SECOND, Instant::now())),
        permit: Arc::new(Semaphore::new(1)),
    });
    let limited = axum::middleware::from_fn(move |request: Request, next: Next| {
        let limit = limit.clone();
        async move { limit.run(request, next).await }
    });
    let certificate_required = async || {
        let message = "present a client certificate that node.toml pins; without one, only \
                       attestation is allowed";
        ApiError::new(StatusCode::FORBIDDEN, ErrorCode::Certificate, message)
    };
    let router = Route::collect(routes())
        .layer(limited)
        .fallback(certificate_required)
        .method_not_allowed_fallback(certificate_required)
        .layer(DefaultBodyLimit::max(MAX_ANONYMOUS_REQUEST_BYTES));
    drain_bodies(router, MAX_ANONYMOUS_DRAINED_BYTES).with_state(node)
}

/// Limits all anonymous clients together.
struct AnonymousLimit {
    bucket: Mutex<TokenBucket>,
    /// Permit of the one request that the TPM may work on.
    permit: Arc<Semaphore>,
}

impl AnonymousLimit {
    async fn run(&self, request: Request, next: Next) -> Response {
        let taken = lock(&self.bucket).take(1, MAX_ANONYMOUS_REQUESTS_PER_SECOND, Instant::now());
        if let Err(wait) = taken {
            let wait = wait.unwrap_or_default().as_millis().max(1);
            let message = format!("other clients are being answered; retry in {wait} ms");
            return ApiError::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::Quota, message)
                .into_response();
        }
        let permit = self.permit.clone();
        // In a task of its own: the permit is held until the TPM is done, even if the client
        // disconnects.
        let answer = tokio::spawn(async move {
            let _permit = permit.acquire().await;
            next.run(request).await
        });
        answer.await.unwrap_or_else(|error| ApiError::failed(error).into_response())
    }
}
