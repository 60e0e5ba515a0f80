//! Comparison of our list of members with that of the engine's reader, on generated archives.
//!
//! The rule: an archive that we accept has the same members for Go. We may reject more.
//!
//! The tests need a Go toolchain. Ten million archives:
//!
//!     BASALT_GO=/usr/lib/go-1.24/bin/go BASALT_DIFFERENTIAL_INPUTS=10000000 \
//!         cargo test --release --package basalt-oci --test differential -- --nocapture
// The helpers of tests may unwrap, as the tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

// The fuzz target uses the same files, and knows the crate by this name.
extern crate basalt_oci as oci;

mod engine;
mod generate;
mod list;

use std::collections::BTreeMap;

use engine::{Engine, GO};
use generate::Random;

/// Variable with the number of archives.
const INPUTS: &str = "BASALT_DIFFERENTIAL_INPUTS";
const DEFAULT_INPUTS: u64 = 50_000;
/// Archives that are listed at a time.
const BATCH: usize = 4096;

#[test]
fn every_accepted_archive_has_the_same_members_for_the_engine() {
    let Some(mut engine) = Engine::start() else {
        println!("skipped: set {GO} to the path of a go program, such as that of golang-1.24-go");
        return;
    };
    let inputs = std::env::var(INPUTS).map_or(DEFAULT_INPUTS, |n| n.parse().unwrap());
    let seed = std::env::var("BASALT_DIFFERENTIAL_SEED").map_or(1, |n| n.parse().unwrap());
    let mut random = Random::new(seed);
    let (mut done, mut accepted, mut members) = (0, 0u64, 0u64);
    let mut differences = Vec::new();
    // Reasons why we reject what Go accepts.
    let mut stricter = BTreeMap::<String, u64>::new();
    while done < inputs {
        let archives: Vec<Vec<u8>> = (0..BATCH).map(|_| generate::archive(&mut random)).collect();
        let ours = archives.iter().map(|archive| list::list(archive));
        for ((archive, ours), theirs) in archives.iter().zip(ours).zip(engine.list(&archives)) {
            match ours {
                Ok(ours) if ours == theirs => {
                    accepted += 1;
                    members += u64::from(ours.len() > 1);
                }
                Ok(ours) => differences.push((archive.clone(), ours, theirs)),
                Err(error) if theirs != [0] => {
                    // Without names and values, so that there are few.
                    let reason = error.to_string();
                    let reason = reason.split_once(": ").map_or("", |(_, reason)| reason);
                    let reason: String = reason.split(['"', '\'']).step_by(2).collect();
                    let reason = reason.replace(|c: char| c.is_ascii_digit(), "");
                    *stricter.entry(reason).or_default() += 1;
                }
                Err(_) => {}
            }
        }
        done += BATCH as u64;
    }
    println!(
        "{done} archives, {accepted} accepted by both ({members} with members), {} only by Go, {} \
         differences",
        stricter.values().sum::<u64>(),
        differences.len()
    );
    // The seldom ones contain parts of names.
    for (reason, count) in stricter.iter().filter(|(_, count)| **count >= 10) {
        println!("{count:>10} only by Go: {reason}");
    }
    for (archive, ours, theirs) in differences.iter().take(3) {
        println!("archive {}\nours {}\ntheirs {}", hex(archive), hex(ours), hex(theirs));
    }
    assert!(differences.is_empty(), "{} differences", differences.len());
    // Otherwise the generator makes nothing that could differ.
    assert!(members > done / 20, "only {members} of {done} archives were compared");
}

#[test]
fn the_engine_sees_members_that_a_size_hides() {
    let Some(mut engine) = Engine::start() else { return };
    // The program finds differences: a folder with a size has a member inside for Go.
    let hidden = generate::hidden();
    let theirs = engine.list(std::slice::from_ref(&hidden)).remove(0);
    assert!(theirs.windows(4).any(|bytes| bytes == b"evil"), "{}", hex(&theirs));
    assert!(list::list(&hidden).unwrap_err().to_string().contains("size"));
}

fn hex(bytes: &[u8]) -> String {
    measure::hex(bytes)
}
