//! `cargo xtask bench`: measures performance and compares it with the limits in the README.

mod boot;
pub mod stats;

use anyhow::{Context as _, Result};

use crate::engine::host;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// Subject of the measurement
    #[arg(value_enum, default_value = "boot")]
    subject: Subject,
    /// Boot this number of times and print the medians
    #[arg(long, default_value_t = 3)]
    boots: usize,
}

/// The subject of a measurement.
#[derive(clap::ValueEnum, Clone, Copy)]
enum Subject {
    /// Measure the boot times that the README promises
    Boot,
    /// Compare the image with Debian: systemd, the generic kernel and the same engine
    Image,
    /// Compare calls to the engine through trustd with calls to the engine alone
    Gate,
    /// Compare the cryptographic calls of modules with other implementations, and measure how a
    /// module that floods its socket affects other modules
    Crypto,
    /// Measure the cost of following a chain
    Ledger,
    /// Measure how a log of 100,000 entries is taken in
    Log,
}

/// Measures, prints the figures, and fails if one misses a promise of the README.
///
/// # Errors
///
/// Fails if a measurement fails or misses a promise.
pub fn run(args: Args) -> Result<()> {
    let boots = args.boots.max(1);
    match args.subject {
        Subject::Boot => boot::run(boots),
        Subject::Image => image(boots),
        Subject::Gate => super::engine::bench_gate(),
        Subject::Crypto => super::engine::bench_crypto(),
        Subject::Ledger => super::chain::bench(),
        Subject::Log => super::engine::bench_log(),
    }
}

/// Runs `ci/src/bin/bench-image.rs`, which needs a client of the node's API that xtask does not
/// contain.
fn image(boots: usize) -> Result<()> {
    let shell = host::shell()?;
    host::cargo(&shell, &["run", "--quiet", "--package", "basalt-ci", "--bin", "bench-image"])
        .args(["--", &boots.to_string()])
        .env("BASALT_XTASK", std::env::current_exe()?)
        .run()
        .context("the benchmark of the image failed")
}
