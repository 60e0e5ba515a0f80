//! `trustctl relay`: makes bundles for nodes, on request or into a file.

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ledger::ethereum::Hash;
use ledger::ethereum::types::Hex;
use serde_json::json;
use trustctl::chain::{
    self, BUNDLE_PATH, BundleRequest, StartingPoint, parse_address, parse_digest,
};

use crate::cli::output::print_result;

#[derive(clap::Args)]
pub(crate) struct Relay {
    /// HTTP API of a beacon node
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5052")]
    beacon: String,
    /// JSON-RPC of an execution node
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8545")]
    execution: String,
    /// Address of the registry contract
    #[arg(long, value_name = "ADDRESS", value_parser = parse_address)]
    contract: Hex<20>,
    /// Storage slot of the contract's mapping of records
    #[arg(long, value_name = "N", default_value_t = 0)]
    mapping_slot: u64,
    #[command(flatten)]
    output: Output,
    /// With --out: root of the block that the nodes have pinned
    #[arg(long, value_name = "ROOT", conflicts_with = "listen")]
    checkpoint: Option<Hash>,
    /// With --out, instead of --checkpoint: the sync committee period that the nodes are in
    #[arg(long, value_name = "N", conflicts_with_all = ["listen", "checkpoint"])]
    period: Option<u64>,
    /// With --out: digest of an image whose record is needed; once for each
    #[arg(long, value_parser = parse_digest, conflicts_with = "listen")]
    digest: Vec<Hash>,
    /// With --out: rewrite the file every SECONDS
    #[arg(long, value_name = "SECONDS", conflicts_with = "listen")]
    every: Option<u64>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Output {
    /// Serve bundles to nodes at this address (GET /v1/bundle)
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Write one bundle to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &Relay, as_json: bool) -> Result<()> {
    let relay = chain::Relay::new(&args.beacon, &args.execution, args.contract, args.mapping_slot)?;
    if let Some(address) = args.output.listen {
        return serve(relay, address);
    }
    let path = args.output.out.as_ref().context("expected --listen or --out")?;
    let from = match (args.checkpoint, args.period) {
        (Some(root), _) => StartingPoint::Checkpoint(root),
        (None, Some(period)) => StartingPoint::Period(period),
        (None, None) => bail!(
            "--out requires --checkpoint ROOT or --period N, from where the nodes follow the chain"
        ),
    };
    let request = BundleRequest { from, digests: args.digest.clone() };
    let Some(seconds) = args.every.map(|seconds| seconds.max(1)) else {
        return write_and_report(&relay, &request, path, as_json);
    };
    loop {
        if let Err(error) = write_and_report(&relay, &request, path, as_json) {
            eprintln!("{error:#}; next attempt in {seconds} s");
        }
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

fn serve(relay: chain::Relay, address: SocketAddr) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let address = listener.local_addr()?;
        println!(
            "Settings of the nodes: [ledger.chain] relays = [\"http://{address}{BUNDLE_PATH}\"]\n\
             On the Internet, put a TLS server in front of it."
        );
        match chain::serve(Arc::new(relay), listener).await {}
    })
}

fn write_and_report(
    relay: &chain::Relay,
    request: &BundleRequest,
    path: &Path,
    as_json: bool,
) -> Result<()> {
    let bundle = relay.bundle(request)?;
    let text = serde_json::to_string(&bundle)?;
    replace_file(path, &text)?;
    let slot = bundle.finality.finalized_header.map_or(0, |header| header.beacon.slot);
    let (size, records) = (text.len(), request.digests.len());
    print_result(as_json, &json!({ "written": path, "slot": slot, "bytes": size }), || {
        format!("{}: finalized slot {slot}, {size} bytes, {records} records", path.display())
    })
}

/// Replaces a file atomically, so that a node that reads it sees the old bundle or the new one.
fn replace_file(path: &Path, text: &str) -> Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)
        .with_context(|| format!("cannot write into {}", dir.display()))?;
    file.write_all(text.as_bytes())?;
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o644))?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}
