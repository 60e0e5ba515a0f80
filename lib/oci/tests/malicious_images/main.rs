//! Malicious images: each known way to build one is rejected.
// The helpers of tests may unwrap, as the tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archives;
#[path = "../common/mod.rs"]
mod common;
mod documents;
mod layers;
mod members;
mod properties;

use std::io::Write as _;

use basalt_oci::{Limits, Memory, OciError, import};
use common::*;
use serde_json::{Value, json};

#[track_caller]
fn assert_rejected(archive: &[u8], digest: &str, message: &str) {
    // The corpus separates archives around a valid image, whose blobs stay valid, from invalid
    // images.
    let kind = if digest == good().1 { "archive-around" } else { "archive" };
    add_to_corpus(kind, &[&digest_bytes(digest), archive].concat());
    let error = rejection(check(archive, digest));
    assert!(error.contains(message), "expected {message:?} in: {error}");
}
