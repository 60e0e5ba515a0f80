//! What anybody may ask a node for, so that anybody can find out what it is: quotes, and which TPM
//! made them. docs/attestation.md

use axum::Json;
use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use measure::AttestedStatement;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Semaphore;

use super::common::{Base, This, add, open_routes};
use crate::audit::Evidence;
use crate::rest::rate_limit::Bucket;
use crate::rest::{Answer, ApiError, nonce, unhex};
use crate::tpm;

/// Of all strangers together: each lets the TPM work for up to a second.
const STRANGERS_PER_S: u32 = 2;
/// The largest credential has some 150 bytes.
const LARGEST_REQUEST: usize = 4096;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuoteRequest {
    nonce: String,
}

pub(super) async fn quote(
    State(base): This,
    request: Result<Json<QuoteRequest>, JsonRejection>,
) -> Answer<Evidence> {
    let nonce = nonce(request?.0.nonce)?;
    let statement = AttestedStatement::Node { certificate: base.certificate.clone(), nonce };
    Ok(Json(base.audit.evidence(&statement).await.map_err(ApiError::node)?))
}

/// Which TPM this is.
#[derive(Serialize)]
pub(super) struct Endorsement {
    /// TPMT_PUBLIC
    key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
}

pub(super) async fn endorsement(State(base): This) -> Answer<Endorsement> {
    let tpm::Endorsement { area, certificate } =
        base.audit.tpm().endorsement().await.map_err(ApiError::tpm)?;
    Ok(Json(Endorsement {
        key: measure::hex(&area),
        certificate: certificate.map(|c| measure::hex(&c)),
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Credential {
    blob: String,
    seed: String,
}

#[derive(Serialize)]
pub(super) struct Activated {
    secret: String,
}

/// Proves that the attestation key is in the TPM for whose endorsement key the credential was made.
pub(super) async fn activate(
    State(base): This,
    request: Result<Json<Credential>, JsonRejection>,
) -> Answer<Activated> {
    let Json(credential) = request?;
    let (blob, seed) = (unhex("blob", &credential.blob)?, unhex("seed", &credential.seed)?);
    let activated = base.audit.tpm().activate(blob, seed).await.map_err(|error| match error {
        wrong if wrong.is_of("ActivateCredential") => {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "credential", wrong)
        }
        other => ApiError::tpm(other),
    })?;
    Ok(Json(Activated { secret: measure::hex(&activated) }))
}

/// Who shows no certificate gets these calls and no others.
pub fn router(base: Arc<Base>) -> Router {
    let router = open_routes().into_iter().fold(Router::new(), add);
    let gate = Arc::new((
        Mutex::new(Bucket::new(STRANGERS_PER_S, Instant::now())),
        Arc::new(Semaphore::new(1)),
    ));
    let in_turn = axum::middleware::from_fn(move |request: Request, next: Next| {
        let gate = gate.clone();
        async move { in_turn(&gate.0, gate.1.clone(), request, next).await }
    });
    let stranger = async || {
        ApiError::new(
            StatusCode::FORBIDDEN,
            "certificate",
            "show a client certificate that node.toml pins; without one there is attestation only",
        )
    };
    router
        .layer(in_turn)
        .fallback(stranger)
        .method_not_allowed_fallback(stranger)
        .layer(DefaultBodyLimit::max(LARGEST_REQUEST))
        .with_state(base)
}

async fn in_turn(
    bucket: &Mutex<Bucket>,
    turn: Arc<Semaphore>,
    request: Request,
    next: Next,
) -> Response {
    let taken = bucket.lock().unwrap_or_else(PoisonError::into_inner).take(
        1,
        STRANGERS_PER_S,
        Instant::now(),
    );
    match taken {
        Ok(()) => {
            // One stranger's request at a time is the TPM's affair, and it stays his turn even if
            // he goes away.
            let answered = tokio::spawn(async move {
                let _turn = turn.acquire().await;
                next.run(request).await
            });
            answered.await.unwrap_or_else(|error| ApiError::node(error).into_response())
        }
        Err(after) => {
            let message = format!(
                "others are being answered; try again in {} ms",
                after.unwrap_or_default().as_millis().max(1)
            );
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "quota", message).into_response()
        }
    }
}
