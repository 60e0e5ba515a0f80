//! The chain's section of a node's configuration, made from the present state of the network.

use anyhow::{Context as _, Result, bail, ensure};
use ledger::ethereum::Hash;
use ledger::ethereum::types::Hex;
use serde_json::Value;

use super::nodes::{BeaconNode, ExecutionNode};
use super::registry::{Registry, code_hash};

/// Forks by their names in the consensus specification.
const FORKS: [&str; 7] = ["ALTAIR", "BELLATRIX", "CAPELLA", "DENEB", "ELECTRA", "FULU", "GLOAS"];
/// Epoch of a fork that is announced and not scheduled (FAR_FUTURE_EPOCH).
const FAR_FUTURE_EPOCH: u64 = u64::MAX;

/// Returns `[ledger.chain]` of node.toml, with the newest finalized block as the checkpoint.
///
/// This trusts the two nodes once: compare the checkpoint's root with other sources before you use
/// it.
///
/// # Errors
/// Returns an error if a node cannot be reached, nothing is finalized yet, the network's sizes are
/// those of no preset, or the contract is not the registry.
pub fn pin(
    beacon: &BeaconNode,
    node: &ExecutionNode,
    contract: Hex<20>,
    relays: &[String],
) -> Result<String> {
    Registry { node, address: contract }.verify_code()?;
    let genesis: Value = beacon.data("/eth/v1/beacon/genesis")?;
    let checkpoints: Value = beacon.data("/eth/v1/beacon/states/head/finality_checkpoints")?;
    let checkpoint: Hash = text(&checkpoints["finalized"]["root"])?.parse()?;
    ensure!(
        checkpoint.0 != [0; 32],
        "the beacon node has no finalized block yet; wait for some epochs"
    );
    let bootstrap = beacon.get(&format!("/eth/v1/beacon/light_client/bootstrap/{checkpoint}"));
    bootstrap.context("no light client can start from the finalized block")?;
    let spec: Value = beacon.data("/eth/v1/config/spec")?;
    Ok(format!(
        "[ledger.chain]\n\
         relays = {}\n\
         # A node must first start within two weeks from now.\n\
         checkpoint = \"{checkpoint}\"\n\
         genesis-validators-root = \"{}\"\n\
         genesis-time = {}\n\
         seconds-per-slot = {}\n\
         preset = \"{}\"\n\
         contract = \"{contract}\"\n\
         code-hash = \"{}\"\n{}",
        serde_json::to_string(relays)?,
        text(&genesis["genesis_validators_root"])?,
        text(&genesis["genesis_time"])?,
        beacon.spec("SECONDS_PER_SLOT")?,
        preset(beacon)?,
        code_hash()?,
        forks(&spec)?
    ))
}

fn text(value: &Value) -> Result<String> {
    value
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("expected a string from the beacon node, found {value}"))
}

/// Returns the preset whose sizes the network has.
fn preset(beacon: &BeaconNode) -> Result<&'static str> {
    let sizes = ["SYNC_COMMITTEE_SIZE", "SLOTS_PER_EPOCH", "EPOCHS_PER_SYNC_COMMITTEE_PERIOD"]
        .map(|name| beacon.spec(name));
    match sizes {
        [Ok(512), Ok(32), Ok(256)] => Ok("mainnet"),
        [Ok(32), Ok(8), Ok(8)] => Ok("minimal"),
        other => bail!(
            "this network has neither the sizes of the preset mainnet nor those of minimal: \
             {other:?}"
        ),
    }
}

/// Returns the scheduled forks. The first has epoch 0, because nothing before it is verified.
fn forks(spec: &Value) -> Result<String> {
    let scheduled = FORKS.iter().filter_map(|name| {
        let epoch = spec[format!("{name}_FORK_EPOCH")].as_str()?.parse::<u64>().ok()?;
        (epoch != FAR_FUTURE_EPOCH).then_some((*name, epoch))
    });
    let mut toml = String::new();
    for (n, (name, epoch)) in scheduled.enumerate() {
        let version = text(&spec[format!("{name}_FORK_VERSION")])?;
        let epoch = if n == 0 { 0 } else { epoch };
        toml += &format!(
            "[[ledger.chain.forks]]\nname = \"{}\"\nepoch = {epoch}\nversion = \"{version}\"\n",
            name.to_lowercase()
        );
    }
    Ok(toml)
}
