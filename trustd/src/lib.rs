//! The trust engine of a Basalt node.
//!
//! It alone speaks to the TPM (after init's handover) and to the Docker Engine; it lets the engine run what the ledger
//! approves, records what it does in PCR 15, and gives modules their cryptography.
#![forbid(unsafe_code)]

pub mod api;
pub mod approvals;
pub mod audit;
mod background;
pub mod crypto;
pub mod engine;
pub mod fetch;
pub mod files;
pub mod init;
pub mod modules;
pub mod settings;
pub mod sources;
pub mod started;
pub mod steps;
pub mod store;
pub mod tpm;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::net::UnixListener;

use crate::api::{
    attest,
    doors::Doors,
    module::{Shared, Sockets},
    owner,
    tls::TlsListener,
};
use crate::settings::Settings;

/// Runs until it is told to stop.
pub async fn run(settings: Settings) -> Result<()> {
    let boot: config::Boot = read(&settings.etc.join("boot.toml"))?;
    let machine = config::Machine::from_command_line(&std::fs::read_to_string("/proc/cmdline").context("cannot read /proc/cmdline")?)?;
    for dir in [settings.data.join("modules"), settings.data.join("tls"), settings.run.clone()] {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let tpm = tpm::Tpm::open(&settings.tcti).await.context("the TPM")?;
    let audit = Arc::new(audit::Audit::open(tpm.clone(), &settings.platform_log, &settings.run, &settings.data).await?);
    let own = settings::own(&settings.own, audit.platform())?;
    let node = config::node(&text(&settings.etc.join("node.toml"))?, own.as_deref())?;
    let root = Arc::new(crypto::keys::RootKey::open(&tpm, &settings.data.join("root.sealed")).await?);
    let approvals =
        Arc::new(approvals::Approvals::open(&node, &settings.etc, &settings.data, boot.built, tpm.clone(), root.clone()).await?);
    let tickets = Arc::new(engine::Tickets::default());
    engine::serve(tickets.clone(), &settings.plugin)?;
    let fetcher = fetcher(&node, &settings.data)?;
    let sources = sources::Sources::new(&node, &settings.boot_log, fetcher.client().clone()).map_err(anyhow::Error::msg)?;
    let sources = Arc::new(sources);
    let started = Arc::new(started::Ledger::open(&settings.run)?);
    let shared = Shared { tpm, root, audit: audit.clone(), started, ledger: approvals.identity() };
    let modules = Arc::new(modules::Modules::open(modules::Parts {
        approvals: approvals.clone(),
        audit: audit.clone(),
        fetcher,
        sockets: Arc::new(Sockets::new(settings.modules.clone(), shared)),
        tickets: tickets.clone(),
        settings: settings.clone(),
        owners: node.owner.certificates.clone(),
        taken: node.api.listen.parse::<std::net::SocketAddr>().map(|a| a.port()).into_iter().collect(),
    })?);

    let tls = TlsListener::bind(&node.api, &node.owner.certificates, &settings.data.join("tls")).await?;
    let this = Arc::new(owner::Node {
        boot,
        machine: machine.name,
        modules: modules.clone(),
        approvals: approvals.clone(),
        audit,
        sources: sources.clone(),
        tickets,
        init: settings.init.clone(),
        certificate: tls.fingerprint.clone(),
    });
    let router = owner::router(this.clone());
    let doors = Doors { owner: router.clone(), stranger: attest::router(this) };
    let path = settings.run.join("api.sock");
    let _ = std::fs::remove_file(&path);
    let local = UnixListener::bind(&path).with_context(|| format!("cannot listen on {}", path.display()))?;
    tokio::spawn(modules.clone().keep());
    tokio::spawn(sources.keep(approvals, move || modules.wake()));
    let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        served = axum::serve(local, router).into_future() => served.context("the local API ended"),
        served = axum::serve(tls, doors).into_future() => served.context("the API ended"),
        _ = end.recv() => Ok(()),
    }
}

/// Where images come from, and where they are kept.
pub fn fetcher(node: &config::Node, data: &Path) -> Result<fetch::Fetcher> {
    let store = store::Store::open(&data.join("store"), node.store.quota_mib << 20, oci::Limits::default())?;
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
