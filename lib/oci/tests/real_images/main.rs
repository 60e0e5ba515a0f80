//! Images as the common tools make them: all of them are accepted.
// The helpers of tests may unwrap, as the tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archives;
#[path = "../common/mod.rs"]
mod common;
mod documents;
mod layers;

use basalt_oci::{Limits, Memory, OciError, import};
use common::*;
use serde_json::{Value, json};

#[track_caller]
fn assert_accepted((archive, digest): (Vec<u8>, String)) {
    if let Err(error) = check(&archive, &digest) {
        panic!("{error}");
    }
}
