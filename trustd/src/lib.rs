//! The trust engine of a Basalt node.
//!
//! It alone accesses the TPM (after init's handover) and the Docker Engine. It lets the engine run
//! only what the ledger approves, records in PCR 15 what it does, and computes cryptography for
//! modules. ARCHITECTURE.md describes its parts.
#![forbid(unsafe_code)]

pub mod admission;
pub mod audit;
pub mod engine;
pub mod images;
pub mod keys;
pub mod module_api;
pub mod modules;
pub mod owner_api;
pub mod reader;
pub mod rest;
pub mod sandbox;
pub mod settings;
pub mod tpm;
pub mod util;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::admission::Admission;
use crate::admission::log_sources::LogPoller;
use crate::admission::relays::RelayPoller;
use crate::audit::Audit;
use crate::engine::Tickets;
use crate::engine::inventory::Inventory;
use crate::images::fetch::{Fetcher, RegistryClient, STALL_TIMEOUT};
use crate::images::store::Store;
use crate::keys::derive::RootKey;
use crate::keys::error::VaultError;
use crate::keys::node_secret;
use crate::keys::root_key::RootKeyVault;
use crate::module_api::{Shared, Sockets};
use crate::modules::{Dependencies, Modules};
use crate::owner_api::access::RoleRouter;
use crate::owner_api::state::{NodeState, OwnerState};
use crate::owner_api::tls::TlsListener;
use crate::owner_api::{attest, locked, routes};
use crate::reader::Readers;
use crate::settings::Settings;
use crate::tpm::Tpm;
use crate::util::error_chain::error_chain;

/// Time between the unlocking of a node and its restart, in which the client that unlocked it gets
/// its answer.
const ANSWER_DELAY: Duration = Duration::from_secs(1);

/// Runs trustd until it receives SIGTERM, or until a locked node is unlocked.
///
/// # Errors
/// A part of trustd cannot be started or ended. No container can start then, because the engine
/// asks trustd's authorization plugin for every request.
pub async fn run(settings: Settings) -> Result<()> {
    let boot: config::Boot = parse_file(&settings.etc.join("boot.toml"))?;
    let machine = config::Machine::from_command_line(
        &std::fs::read_to_string("/proc/cmdline").context("cannot read /proc/cmdline")?,
    )?;
    for dir in [settings.data.join("modules"), settings.data.join("tls"), settings.run.clone()] {
        std::fs::create_dir_all(&dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let tpm = Tpm::open(&settings.tcti).await.context("cannot open the TPM")?;
    let audit = Arc::new(
        Audit::open(tpm.clone(), &settings.platform_log, &settings.run, &settings.data).await?,
    );
    let own = settings::read_owner_settings(&settings.owner_settings, audit.platform_records())?;
    let node = config::parse_node(&read_text(&settings.etc.join("node.toml"))?, own.as_deref())?;
    let tls_dir = settings.data.join("tls");
    let secret = node_secret::open(&tpm, &tls_dir.join("node.sealed")).await?;
    let owners = &node.owner.certificates;
    let tls = TlsListener::bind(&node.api, owners, &tls_dir, &secret.derive_own_keys()).await?;
    let vault = RootKeyVault::new(
        tpm.clone(),
        audit.platform_pcr(),
        &boot,
        &node.keys,
        &settings.data,
        &settings.policies,
    )?;
    let root = vault.open().await;
    let state = Arc::new(NodeState {
        boot,
        machine: machine.name,
        audit,
        vault,
        init_socket: settings.init_socket.clone(),
        certificate: tls.fingerprint.clone(),
        unlock: Notify::new(),
    });
    match root {
        Ok(root) => run_unlocked(settings, node, tpm, root, state, tls).await,
        Err(VaultError::Locked(reason)) => {
            run_locked(&settings, &error_chain(&reason), state, tls).await
        }
        Err(error) => Err(error).context("cannot open the root key"),
    }
}

/// Runs a node that has its root key.
async fn run_unlocked(
    settings: Settings,
    node: config::Node,
    tpm: Tpm,
    root: RootKey,
    state: Arc<NodeState>,
    tls: TlsListener,
) -> Result<()> {
    let (root, built) = (Arc::new(root), state.boot.built);
    let admission = Arc::new(
        Admission::open(&node, &settings.etc, &settings.data, built, tpm.clone(), root.clone())
            .await?,
    );
    let tickets = Arc::new(Tickets::default());
    engine::serve_plugin(tickets.clone(), &settings.plugin_socket)?;
    let fetcher = fetcher(&node, &settings)?;
    let registry = fetcher.client().clone();
    let log_sources = Arc::new(LogPoller::new(&node, &settings.boot_log, registry.clone())?);
    let relays = Arc::new(RelayPoller::new(&node, registry)?);
    let inventory = Arc::new(Inventory::open(&settings.run)?);
    let audit = state.audit.clone();
    let shared =
        Shared { tpm, root, audit: audit.clone(), inventory, ledger: admission.identity() };
    let api_port = node.api.listen.parse::<SocketAddr>().map(|address| address.port());
    let modules = Arc::new(Modules::open(Dependencies {
        admission: admission.clone(),
        audit,
        fetcher,
        sockets: Arc::new(Sockets::new(settings.modules.clone(), shared)),
        tickets: tickets.clone(),
        settings: settings.clone(),
        certificate: state.certificate.clone(),
        owners: node.owner.certificates.clone(),
        reserved_ports: api_port.into_iter().collect(),
    })?);
    let router = routes::router(Arc::new(OwnerState {
        node: state.clone(),
        modules: modules.clone(),
        admission: admission.clone(),
        log_sources: log_sources.clone(),
        relays: relays.clone(),
        tickets,
    }));
    tokio::spawn(modules.clone().run());
    let woken = modules.clone();
    tokio::spawn(log_sources.poll_forever(admission.clone(), move || woken.wake()));
    tokio::spawn(relays.poll_forever(admission, move || modules.wake()));
    serve(&settings, router, state, tls, std::future::pending()).await
}

/// Runs a locked node, which runs no modules. Returns when the node may be unlocked, so that init
/// starts trustd again.
async fn run_locked(
    settings: &Settings,
    reason: &str,
    state: Arc<NodeState>,
    tls: TlsListener,
) -> Result<()> {
    logging::warn!(
        "LOCKED: no module runs, and calls that need the root key are rejected: {reason}"
    );
    // Without tickets, the plugin denies every request to the engine.
    engine::serve_plugin(Arc::default(), &settings.plugin_socket)?;
    let unlocked = async {
        loop {
            state.unlock.notified().await;
            match state.vault.open().await {
                Ok(_) => {
                    logging::info!("the root key is there; trustd restarts");
                    return tokio::time::sleep(ANSWER_DELAY).await;
                }
                Err(error) => logging::warn!("LOCKED: {}", error_chain(&error)),
            }
        }
    };
    serve(settings, locked::router(state.clone(), reason), state.clone(), tls, unlocked).await
}

/// Serves the owner's API until SIGTERM or the end of `until`.
async fn serve(
    settings: &Settings,
    owner: Router,
    state: Arc<NodeState>,
    tls: TlsListener,
    until: impl Future<Output = ()>,
) -> Result<()> {
    let path = settings.run.join("api.sock");
    let _ = std::fs::remove_file(&path);
    let local = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    let roles = RoleRouter { owner: owner.clone(), anonymous: attest::anonymous_router(state) };
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        result = axum::serve(local, owner).into_future() => result.context("the local API ended"),
        result = axum::serve(tls, roles).into_future() => result.context("the TLS API ended"),
        _ = terminated.recv() => Ok(()),
        () = until => Ok(()),
    }
}

/// Creates the fetcher of images, with the blob store below the data folder.
///
/// # Errors
/// The store cannot be opened, or node.toml has an invalid registry.
pub fn fetcher(node: &config::Node, settings: &Settings) -> Result<Fetcher> {
    let quota_bytes = node.store.quota_mib << 20;
    let readers = Readers::new(settings.reader_program.clone(), settings.landlock);
    let dir = settings.data.join("store");
    let store = Store::open(&dir, quota_bytes, oci::Limits::default(), readers)?;
    let client = RegistryClient::new(&node.registries, STALL_TIMEOUT)?;
    let architecture = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        "x86_64" => "amd64",
        other => other,
    };
    Ok(Fetcher::new(Arc::new(store), client, oci::Platform::linux(architecture)))
}

fn parse_file<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    Ok(config::parse(&path.to_string_lossy(), &read_text(path)?)?)
}

fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
