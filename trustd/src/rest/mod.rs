//! The two HTTP/1.1 + JSON interfaces. docs/api.md describes both.

pub mod rate_limit;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

/// The one shape of every error: `{"error":{"code":"…","message":"…"}}`.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: message.to_string() }
    }

    /// The request is not as it should be.
    pub fn request(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-request", message)
    }

    /// Something on the node failed.
    pub fn node(message: impl ToString) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", message)
    }

    /// Something on the node is busy; the same call may go through later.
    pub fn tpm(error: crate::tpm::TpmError) -> Self {
        match error {
            crate::tpm::TpmError::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "busy", error),
            other => Self::node(other),
        }
    }

    pub(crate) fn body(&self) -> Value {
        json!({ "error": { "code": self.code, "message": self.message } })
    }

    pub fn not_found(message: impl ToString) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", message)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(self.body())).into_response()
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        // Too much is said as such; all else is a request that is not as it should be.
        let status = if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            rejection.status()
        } else {
            StatusCode::BAD_REQUEST
        };
        Self::new(status, "bad-request", rejection.body_text())
    }
}

/// What a handler returns.
pub type Answer<T> = Result<Json<T>, ApiError>;

pub(crate) fn unhex(what: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    measure::unhex(text).ok_or_else(|| {
        ApiError::request(format!("{what}: expected lower-case hex digits, an even number of them"))
    })
}

/// A verifier's, in hex (docs/attestation.md).
pub(crate) fn nonce(hex: String) -> Result<String, ApiError> {
    const BYTES: std::ops::RangeInclusive<usize> = 8..=32;
    let length = unhex("nonce", &hex)?.len();
    if BYTES.contains(&length) {
        return Ok(hex);
    }
    Err(ApiError::request(format!(
        "nonce: expected {} to {} bytes, found {length}",
        BYTES.start(),
        BYTES.end()
    )))
}

pub(crate) async fn unknown() -> ApiError {
    ApiError::not_found("there is no such call; docs/api.md lists them")
}
