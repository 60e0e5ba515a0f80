//! `trustctl relay`: makes bundles for nodes, on request or into a file.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use ledger::ethereum::Hash;
use ledger::ethereum::types::Hex;
use tokio::sync::Semaphore;
use trustctl::chain::{Ask, From, Relay, nodes};

use crate::output::said;

/// So many bundles are made at once; whoever comes then waits for his turn.
const AT_ONCE: usize = 4;
/// Connections at once; more are not taken.
const MOST_CONNECTIONS: usize = 256;
const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// Of a whole connection: nodes ask once and go.
const CONNECTION_WITHIN: Duration = Duration::from_secs(120);

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
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        return runtime.block_on(serve(Arc::new(relay), address));
    }
    let path = args.to.out.as_ref().context("expected --listen or --out")?;
    let from = match (args.checkpoint, args.period) {
        (Some(root), _) => From::Checkpoint(root),
        (None, Some(period)) => From::Period(period),
        (None, None) => anyhow::bail!("--out needs --checkpoint ROOT (or --period NUMBER): from where the nodes follow the chain"),
    };
    let ask = Ask { from, digests: args.digest.clone() };
    loop {
        let written = write(&relay, &ask, path);
        match (&written, args.every) {
            (Ok((slot, size)), _) => said(json, &serde_json::json!({ "written": path, "slot": slot, "bytes": size }), || {
                format!("{}: final slot {slot}, {size} bytes, {} records", path.display(), ask.digests.len())
            }),
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
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(std::path::Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(|| format!("cannot write into {}", dir.display()))?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    #[cfg(unix)]
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok((bundle.finality.finalized_header.map_or(0, |header| header.beacon.slot), text.len()))
}

async fn serve(relay: Arc<Relay>, address: SocketAddr) -> Result<()> {
    let listener = tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let at = listener.local_addr()?;
    println!("nodes name it: [ledger.chain] relays = [\"http://{at}/v1/bundle\"]; over the Internet put TLS before it");
    let (turns, places) = (Arc::new(Semaphore::new(AT_ONCE)), Arc::new(Semaphore::new(MOST_CONNECTIONS)));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (relay, turns) = (relay.clone(), turns.clone());
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| answer(relay.clone(), turns.clone(), request));
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADERS_WITHIN)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION_WITHIN, connection).await;
            drop(place);
        });
    }
}

async fn answer(relay: Arc<Relay>, turns: Arc<Semaphore>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
    if request.method() != Method::GET || request.uri().path() != "/v1/bundle" {
        return problem(StatusCode::NOT_FOUND, "expected GET /v1/bundle?checkpoint=ROOT|period=NUMBER&digest=DIGEST…");
    }
    let ask = match Ask::parse(request.uri().query().unwrap_or_default()) {
        Ok(ask) => ask,
        Err(why) => return problem(StatusCode::BAD_REQUEST, &why),
    };
    let _turn = turns.acquire_owned().await?;
    let made = tokio::task::spawn_blocking(move || relay.bundle(&ask).and_then(|bundle| Ok(serde_json::to_vec(&bundle)?))).await?;
    match made {
        Ok(bytes) => Ok(Response::builder().header(CONTENT_TYPE, "application/json").body(Full::from(bytes))?),
        Err(error) => {
            eprintln!("{error:#}");
            problem(StatusCode::BAD_GATEWAY, &format!("{error:#}"))
        }
    }
}

fn problem(status: StatusCode, message: &str) -> Result<Response<Full<Bytes>>> {
    let body = serde_json::json!({ "message": message }).to_string();
    Ok(Response::builder().status(status).header(CONTENT_TYPE, "application/json").body(Full::from(body))?)
}
