//! `trustctl relay`: makes bundles for nodes, on request or into a file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ledger::ethereum::Hash;
use ledger::ethereum::types::Hex;
use trustctl::chain::serve::{PATH, serve};
use trustctl::chain::{Ask, From, Relay, nodes};

use crate::cli::output::said;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A beacon node's API
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:5052")]
    beacon: String,
    /// An execution node's JSON-RPC
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8545")]
    execution: String,
    /// The registry's address
    #[arg(long, value_parser = nodes::address)]
    contract: Hex<20>,
    /// Where the mapping of records is in its storage
    #[arg(long, default_value_t = 0)]
    mapping_slot: u64,
    #[command(flatten)]
    to: To,
    /// With --out: the block that the nodes have pinned
    #[arg(long, value_name = "ROOT", conflicts_with = "listen")]
    checkpoint: Option<Hash>,
    /// With --out: the period that the nodes are in already, instead of a checkpoint
    #[arg(long, conflicts_with_all = ["listen", "checkpoint"])]
    period: Option<u64>,
    /// With --out: images whose records are wanted
    #[arg(long, value_parser = nodes::digest, conflicts_with = "listen")]
    digest: Vec<Hash>,
    /// With --out: write it anew again and again, every so many seconds
    #[arg(long, value_name = "SECONDS", conflicts_with = "listen")]
    every: Option<u64>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct To {
    /// Answer nodes here: GET /v1/bundle
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Write one bundle into this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, json: bool) -> Result<()> {
    let relay = Relay::new(&args.beacon, &args.execution, args.contract, args.mapping_slot)?;
    if let Some(address) = args.to.listen {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        return runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
            let at = listener.local_addr()?;
            println!("nodes name it: [ledger.chain] relays = [\"http://{at}{PATH}\"]; over the Internet put TLS before it");
            serve(Arc::new(relay), listener).await
        });
    }
    let path = args.to.out.as_ref().context("expected --listen or --out")?;
    let from = match (args.checkpoint, args.period) {
        (Some(root), _) => From::Checkpoint(root),
        (None, Some(period)) => From::Period(period),
        (None, None) => anyhow::bail!(
            "--out needs --checkpoint ROOT (or --period NUMBER): from where the nodes follow the chain"
        ),
    };
    let ask = Ask { from, digests: args.digest.clone() };
    loop {
        let written = write(&relay, &ask, path);
        match (&written, args.every) {
            (Ok((slot, size)), _) => said(
                json,
                &serde_json::json!({ "written": path, "slot": slot, "bytes": size }),
                || {
                    format!(
                        "{}: final slot {slot}, {size} bytes, {} records",
                        path.display(),
                        ask.digests.len()
                    )
                },
            ),
            (Err(error), Some(_)) => eprintln!("{error:#}; trying again"),
            (Err(_), None) => {}
        }
        match args.every {
            None => return written.map(drop),
            Some(seconds) => std::thread::sleep(Duration::from_secs(seconds.max(1))),
        }
    }
}

fn write(relay: &Relay, ask: &Ask, path: &std::path::Path) -> Result<(u64, usize)> {
    let bundle = relay.bundle(ask)?;
    let text = serde_json::to_string(&bundle)?;
    // A node that reads it in between sees the old one or the new one.
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(std::path::Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir)
        .with_context(|| format!("cannot write into {}", dir.display()))?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    #[cfg(unix)]
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok((bundle.finality.finalized_header.map_or(0, |header| header.beacon.slot), text.len()))
}
