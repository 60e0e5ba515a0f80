//! What a node's configuration pins of a network, as the network's own nodes have it now.

use anyhow::{Context as _, Result, bail, ensure};
use ledger::ethereum::Hash;
use ledger::ethereum::types::Hex;
use serde_json::Value;

use super::registry::code_hash;
use super::{Beacon, Execution, Registry};

/// As the consensus specification names them.
const FORKS: [&str; 7] = ["ALTAIR", "BELLATRIX", "CAPELLA", "DENEB", "ELECTRA", "FULU", "GLOAS"];
/// Of one that is announced and not scheduled (2^64 - 1).
const NEVER: u64 = u64::MAX;

/// `[ledger.chain]` of node.toml, with the newest final block as checkpoint.
///
/// Whoever asks believes these two nodes for once: compare the checkpoint's root with what others
/// publish.
pub fn pin(
    beacon: &Beacon,
    node: &Execution,
    contract: Hex<20>,
    relays: &[String],
) -> Result<String> {
    Registry { node, address: contract }.check()?;
    let genesis: Value = beacon.data("/eth/v1/beacon/genesis")?;
    let checkpoints: Value = beacon.data("/eth/v1/beacon/states/head/finality_checkpoints")?;
    let text = |value: &Value| {
        value.as_str().map(str::to_owned).with_context(|| format!("the beacon node says {value}"))
    };
    let checkpoint: Hash =
        text(&checkpoints["finalized"]["root"])?.parse().map_err(anyhow::Error::msg)?;
    ensure!(
        checkpoint.0 != [0; 32],
        "the beacon node has no final block yet; wait for some epochs"
    );
    let bootstrap = beacon.get(&format!("/eth/v1/beacon/light_client/bootstrap/{checkpoint}"));
    bootstrap.context("no light client can begin with the final block")?;
    let spec: Value = beacon.data("/eth/v1/config/spec")?;
    let sizes = ["SYNC_COMMITTEE_SIZE", "SLOTS_PER_EPOCH", "EPOCHS_PER_SYNC_COMMITTEE_PERIOD"]
        .map(|name| beacon.spec(name));
    let preset = match sizes {
        [Ok(512), Ok(32), Ok(256)] => "mainnet",
        [Ok(32), Ok(8), Ok(8)] => "minimal",
        other => bail!(
            "this network has neither the sizes of the preset mainnet nor those of minimal: {other:?}"
        ),
    };
    let mut toml = format!(
        "[ledger.chain]\nrelays = {}\n# A node must first start within two weeks from now.\ncheckpoint = \"{checkpoint}\"\ngenesis-validators-root = \"{}\"\ngenesis-time = {}\nseconds-per-slot = {}\npreset = \"{preset}\"\ncontract = \"{contract}\"\ncode-hash = \"{}\"\n",
        serde_json::to_string(relays)?,
        text(&genesis["genesis_validators_root"])?,
        text(&genesis["genesis_time"])?,
        beacon.spec("SECONDS_PER_SLOT")?,
        code_hash()?
    );
    let epoch = |name: &str| {
        spec[format!("{name}_FORK_EPOCH")].as_str().and_then(|text| text.parse::<u64>().ok())
    };
    let known =
        FORKS.iter().filter_map(|name| Some((*name, epoch(name).filter(|epoch| *epoch != NEVER)?)));
    for (n, (name, epoch)) in known.enumerate() {
        let version = text(&spec[format!("{name}_FORK_VERSION")])?;
        // What is before the first of them is never looked at.
        let epoch = if n == 0 { 0 } else { epoch };
        toml += &format!(
            "[[ledger.chain.forks]]\nname = \"{}\"\nepoch = {epoch}\nversion = \"{version}\"\n",
            name.to_lowercase()
        );
    }
    Ok(toml)
}
