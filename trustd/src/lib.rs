//! The trust engine of a Basalt node.
//!
//! It alone speaks to the TPM (after init's handover) and to the Docker Engine; it lets the engine
//! run what the ledger approves, records what it does in PCR 15, and gives modules their
//! cryptography.
#![forbid(unsafe_code)]

pub mod admission;
pub mod audit;
pub mod engine;
pub mod images;
pub mod keys;
pub mod module_api;
pub mod modules;
pub mod owner_api;
pub mod rest;
pub mod settings;
pub mod tpm;
pub mod util;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::net::UnixListener;

use crate::admission::{log_sources, relays};
use crate::engine::inventory;
use crate::images::fetch;
use crate::keys::derive::RootKey;
use crate::keys::root_key::{self, VaultError};
use crate::module_api::{Shared, Sockets};
use crate::owner_api::access::Doors;
use crate::owner_api::common::Base;
use crate::owner_api::tls::TlsListener;
use crate::owner_api::{attest, locked as locked_api, routes};
use crate::settings::Settings;

const ANSWERED_WITHIN: Duration = Duration::from_secs(1);

/// Runs until it is told to stop.
pub async fn run(settings: Settings) -> Result<()> {
    let boot: config::Boot = read(&settings.etc.join("boot.toml"))?;
    let machine = config::Machine::from_command_line(
        &std::fs::read_to_string("/proc/cmdline").context("cannot read /proc/cmdline")?,
    )?;
    for dir in [settings.data.join("modules"), settings.data.join("tls"), settings.run.clone()] {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let tpm = tpm::Tpm::open(&settings.tcti).await.context("the TPM")?;
    let audit = Arc::new(
        audit::Audit::open(tpm.clone(), &settings.platform_log, &settings.run, &settings.data)
            .await?,
    );
    let own = settings::own(&settings.own, audit.platform())?;
    let node = config::node(&text(&settings.etc.join("node.toml"))?, own.as_deref())?;
    let tls_dir = settings.data.join("tls");
    let secret = root_key::of_this_tpm(&tpm, &tls_dir.join("node.sealed")).await?;
    let tls =
        TlsListener::bind(&node.api, &node.owner.certificates, &tls_dir, &secret.own()).await?;
    let vault = root_key::Vault::new(
        tpm.clone(),
        audit.platform_register(),
        &boot,
        &node.keys,
        &settings.data,
        &settings.policies,
    )?;
    let opened = vault.open().await;
    let base = Arc::new(Base {
        boot,
        machine: machine.name,
        audit,
        vault,
        init: settings.init.clone(),
        certificate: tls.fingerprint.clone(),
        opened: tokio::sync::Notify::new(),
    });
    match opened {
        Ok(root) => open(settings, node, tpm, root, base, tls).await,
        Err(VaultError::Locked(why)) => locked(&settings, &why.to_string(), base, tls).await,
        Err(error) => Err(error).context("the root key"),
    }
}

/// A node that has its root key.
async fn open(
    settings: Settings,
    node: config::Node,
    tpm: tpm::Tpm,
    root: RootKey,
    base: Arc<Base>,
    tls: TlsListener,
) -> Result<()> {
    let (root, built) = (Arc::new(root), base.boot.built);
    let approvals = Arc::new(
        admission::Approvals::open(
            &node,
            &settings.etc,
            &settings.data,
            built,
            tpm.clone(),
            root.clone(),
        )
        .await?,
    );
    let tickets = Arc::new(engine::Tickets::default());
    engine::serve(tickets.clone(), &settings.plugin)?;
    let fetcher = fetcher(&node, &settings.data)?;
    let sources = log_sources::Sources::new(&node, &settings.boot_log, fetcher.client().clone())
        .map_err(anyhow::Error::msg)?;
    let sources = Arc::new(sources);
    let relays =
        Arc::new(relays::Relays::new(&node, fetcher.client().clone()).map_err(anyhow::Error::msg)?);
    let started = Arc::new(inventory::Ledger::open(&settings.run)?);
    let shared =
        Shared { tpm, root, audit: base.audit.clone(), started, ledger: approvals.identity() };
    let modules = Arc::new(modules::Modules::open(modules::Parts {
        approvals: approvals.clone(),
        audit: base.audit.clone(),
        fetcher,
        sockets: Arc::new(Sockets::new(settings.modules.clone(), shared)),
        tickets: tickets.clone(),
        settings: settings.clone(),
        owners: node.owner.certificates.clone(),
        taken: node
            .api
            .listen
            .parse::<std::net::SocketAddr>()
            .map(|a| a.port())
            .into_iter()
            .collect(),
    })?);
    let this = routes::Node {
        base: base.clone(),
        modules: modules.clone(),
        approvals: approvals.clone(),
        sources: sources.clone(),
        relays: relays.clone(),
        tickets,
    };
    let router = routes::router(Arc::new(this));
    tokio::spawn(modules.clone().keep());
    let woken = modules.clone();
    tokio::spawn(sources.keep(approvals.clone(), move || woken.wake()));
    tokio::spawn(relays.keep(approvals, move || modules.wake()));
    serve(&settings, router, base, tls, std::future::pending()).await
}

/// A node that must not run modules yet. It ends when that may be over, and is started again.
async fn locked(settings: &Settings, why: &str, base: Arc<Base>, tls: TlsListener) -> Result<()> {
    println!("LOCKED: no module runs, and what needs the root key is refused: {why}");
    // Whoever asks the engine for anything is refused too.
    engine::serve(Arc::default(), &settings.plugin)?;
    let until = async {
        loop {
            base.opened.notified().await;
            match base.vault.open().await {
                Ok(_) => {
                    println!("the root key is there: trustd starts again");
                    // Whoever brought it is answered first.
                    return tokio::time::sleep(ANSWERED_WITHIN).await;
                }
                Err(error) => println!("LOCKED: {error}"),
            }
        }
    };
    serve(settings, locked_api::router(base.clone(), why), base.clone(), tls, until).await
}

async fn serve(
    settings: &Settings,
    router: axum::Router,
    base: Arc<Base>,
    tls: TlsListener,
    until: impl Future<Output = ()>,
) -> Result<()> {
    let doors = Doors { owner: router.clone(), stranger: attest::router(base) };
    let path = settings.run.join("api.sock");
    let _ = std::fs::remove_file(&path);
    let local = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        served = axum::serve(local, router).into_future() => served.context("the local API ended"),
        served = axum::serve(tls, doors).into_future() => served.context("the API ended"),
        _ = end.recv() => Ok(()),
        () = until => Ok(()),
    }
}

/// Where images come from, and where they are kept.
pub fn fetcher(node: &config::Node, data: &Path) -> Result<fetch::Fetcher> {
    let store = images::store::Store::open(
        &data.join("store"),
        node.store.quota_mib << 20,
        oci::Limits::default(),
    )?;
    let client = fetch::Client::new(&node.registries, fetch::PATIENCE)?;
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        "x86_64" => "amd64",
        other => other,
    };
    Ok(fetch::Fetcher::new(Arc::new(store), client, oci::Platform::linux(architecture)))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    Ok(config::parse(&path.to_string_lossy(), &text(path)?)?)
}

fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
