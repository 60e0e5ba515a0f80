//! Parts that both HTTP/1.1 + JSON interfaces share: errors, and the parsing of common members.
//! docs/api.md describes the interfaces.

pub(crate) mod drain;
pub mod rate_limit;

use std::error::Error;

use api::{ErrorBody, ErrorCode, ErrorDetail};
use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::tpm::TpmError;
use crate::util::error_chain::error_chain;

/// Length of a verifier's nonce in bytes (docs/attestation.md).
const NONCE_BYTES: std::ops::RangeInclusive<usize> = 8..=32;

/// Error of a call, which is answered with its status and an [`ErrorBody`].
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    detail: ErrorDetail,
}

impl ApiError {
    /// Creates an error with a message for people.
    pub fn new(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Self {
        Self { status, detail: ErrorDetail { code, message: message.into() } }
    }

    /// Creates an error whose message is that of `error` and its causes.
    pub fn from_error(status: StatusCode, code: ErrorCode, error: &(dyn Error + 'static)) -> Self {
        Self::new(status, code, error_chain(error))
    }

    /// Creates the error of a malformed request.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, message)
    }

    /// Creates the error of a call, module or document that does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, message)
    }

    /// Creates the error of a failure on the node.
    pub fn failed(error: impl Error + 'static) -> Self {
        Self::from_error(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Failed, &error)
    }

    /// Creates the error of a failed TPM operation. A busy TPM is reported as such, because the
    /// same call may succeed later.
    pub fn tpm(error: TpmError) -> Self {
        match error {
            TpmError::Busy => {
                Self::from_error(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Busy, &error)
            }
            other => Self::failed(other),
        }
    }

    /// Returns the code and the message.
    pub fn into_detail(self) -> ErrorDetail {
        self.detail
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status, Json(ErrorBody { error: self.detail })).into_response()
    }
}

impl From<JsonRejection> for ApiError {
    fn from(rejection: JsonRejection) -> Self {
        let status = match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, ErrorCode::BadRequest, rejection.body_text())
    }
}

/// Result of a handler.
pub type Answer<T> = Result<Json<T>, ApiError>;

/// Decodes a member of a request. The error names the member and not its value.
pub(crate) fn parse_hex(member: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    measure::unhex(text).ok_or_else(|| {
        let expected = "expected lower-case hex digits, an even number of them";
        ApiError::bad_request(format!("{member}: {expected}"))
    })
}

/// Verifies the length of a verifier's nonce and returns it in hex, as it is attested.
pub(crate) fn check_nonce(nonce: String) -> Result<String, ApiError> {
    let (len, min, max) =
        (parse_hex("nonce", &nonce)?.len(), NONCE_BYTES.start(), NONCE_BYTES.end());
    if NONCE_BYTES.contains(&len) {
        return Ok(nonce);
    }
    Err(ApiError::bad_request(format!("nonce: expected {min} to {max} bytes, found {len}")))
}

/// Answers a request for a path or method that does not exist.
pub(crate) async fn unknown_call() -> ApiError {
    ApiError::not_found("there is no such call; docs/api.md lists them")
}
