//! `trustctl vrf`: verifies the proof of a verifiable random function.

use anyhow::{Context as _, Result};
use measure::{hex, unhex};
use serde_json::json;

use crate::cli::output::{NegativeResult, print_json};

#[derive(clap::Args)]
pub(crate) struct Vrf {
    /// Cipher suite, for example ECVRF-P256-SHA256-TAI
    #[arg(long)]
    suite: String,
    /// Public key of the prover, hex
    #[arg(long, value_name = "HEX")]
    public_key: String,
    /// Input (alpha) that the proof is for, hex
    #[arg(long, value_name = "HEX")]
    alpha: String,
    /// Proof (pi), hex
    #[arg(long, value_name = "HEX")]
    pi: String,
}

/// Verifies the proof and prints the output (beta).
pub(crate) fn run(args: &Vrf, as_json: bool) -> Result<()> {
    let bytes = |option: &str, text: &str| {
        unhex(text).with_context(|| format!("--{option}: expected hex digits, found {text:?}"))
    };
    let suite: vrf::Suite = serde_json::from_value(json!(args.suite))
        .with_context(|| format!("--suite {:?}", args.suite))?;
    let key = bytes("public-key", &args.public_key)?;
    let (alpha, pi) = (bytes("alpha", &args.alpha)?, bytes("pi", &args.pi)?);
    let beta = vrf::PublicKey::new(suite, &key)
        .and_then(|key| key.verify(&alpha, &pi))
        .map_err(NegativeResult::from_error)?;
    let Some(beta) = beta else {
        return Err(NegativeResult("the proof is invalid".into()).into());
    };
    if as_json {
        return print_json(&json!({ "valid": true, "beta": hex(&beta) }));
    }
    println!("the proof is valid\nbeta {}", hex(&beta));
    Ok(())
}
