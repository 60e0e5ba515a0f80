//! The requests and answers of both HTTP interfaces, as the types that trustd, its clients and the
//! tests share.
//!
//! | part | interface | described by |
//! |---|---|---|
//! | [`owner`] | the owner's API, also its part for anonymous clients | `trustd/openapi.json` |
//! | [`module`] | the socket of a module | `trustd/openapi-module.json` |
//! | the crate's root | what both have: errors, evidence | both |
//!
//! Invariants:
//! - Every type has the name and the members of one schema in the OpenAPI files, and every schema
//!   there has a type. `tests/openapi.rs` compares them.
//! - A request with an unknown member is rejected. An answer that is no request may have unknown
//!   members, so that a client can read the answers of a newer node.
//! - Bytes are lower-case hex. Times are seconds since 1970-01-01 UTC.
//! - No I/O, no clock, no unsafe code.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod error;
mod evidence;
pub mod module;
#[cfg(feature = "owner")]
pub mod owner;
mod text_enum;

pub use error::{ErrorBody, ErrorCode, ErrorDetail};
pub use evidence::{Evidence, QuoteRequest};
