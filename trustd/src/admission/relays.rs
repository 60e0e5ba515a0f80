//! Polls relays for bundles of the chain: at an interval, and immediately when a decision needs an
//! image that no relay was asked for yet.
//!
//! No relay is trusted (lib/ledger, ethereum): one that lies, is behind, is slow or gives an
//! incomplete bundle is reported. All relays are polled concurrently, so that no relay can hide or
//! delay a revocation that another one has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::owner::SourceStatus;
use config::{InvalidValue, LogSource, Node};
use futures_util::future::join_all;
use ledger::ethereum::{ChainError, Hash, MAX_BUNDLE_BYTES};
use tokio::time::Instant;

use super::controller::Admission;
use super::error::AdmissionError;
use super::light_client::BundleRequest;
use super::sources::{BACKOFF_INITIAL, SourceStatuses, read};
use crate::images::fetch::RegistryClient;
use crate::util::error_chain::error_chain;

/// Digests per request, so that the path stays below the limits of common servers.
const MAX_DIGESTS_PER_REQUEST: usize = 64;
/// Time for all requests of one poll of one relay.
const POLL_TIMEOUT: Duration = Duration::from_secs(120);
/// Time to wait for more images, which one request then covers.
const GATHER_DELAY: Duration = Duration::from_millis(200);

/// Polls the relays.
pub struct RelayPoller {
    relays: Vec<LogSource>,
    interval: Duration,
    client: RegistryClient,
    statuses: SourceStatuses,
}

/// Outcome of one poll of one relay.
struct PollOutcome {
    /// A bundle changed the state of the chain.
    is_new: bool,
    /// Every bundle was valid and up to date.
    is_ok: bool,
}

impl RelayPoller {
    /// Creates a poller for the relays in node.toml.
    ///
    /// # Errors
    /// Fails if node.toml contains an invalid relay.
    pub fn new(node: &Node, client: RegistryClient) -> Result<Self, InvalidValue> {
        let (relays, poll_s) =
            node.ledger.chain.as_ref().map_or((&[][..], 1), |chain| (&chain.relays, chain.poll_s));
        let relays = relays.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        let interval = Duration::from_secs(poll_s);
        Ok(Self { relays, interval, client, statuses: SourceStatuses::default() })
    }

    /// Returns the result of the last poll of each relay, by address.
    pub fn statuses(&self) -> BTreeMap<String, SourceStatus> {
        self.statuses.all()
    }

    /// Polls without end, and calls `wake` after each bundle with something new. Each relay is
    /// polled independently, so a slow relay does not delay the others.
    pub async fn poll_forever(self: Arc<Self>, admission: Arc<Admission>, wake: impl Fn()) {
        join_all(self.relays.iter().map(|relay| self.poll_relay(relay, &admission, &wake))).await;
    }

    async fn poll_relay(&self, relay: &LogSource, admission: &Admission, wake: &impl Fn()) {
        let Some(mut requests) = admission.subscribe_to_requests() else { return };
        let mut pause = BACKOFF_INITIAL;
        loop {
            // A request that arrives during the poll triggers the next poll.
            requests.mark_unchanged();
            let PollOutcome { is_new, is_ok } = self.poll(relay, admission).await;
            if is_new {
                wake();
            }
            if is_ok {
                pause = self.interval;
            }
            tokio::select! {
                () = tokio::time::sleep(pause.min(self.interval)) => {
                    pause = pause.saturating_mul(2);
                }
                Ok(()) = requests.changed() => tokio::time::sleep(GATHER_DELAY).await,
            }
        }
    }

    /// Polls one relay for all images that decisions need.
    async fn poll(&self, relay: &LogSource, admission: &Admission) -> PollOutcome {
        let mut outcome = PollOutcome { is_new: false, is_ok: true };
        let deadline = Instant::now() + POLL_TIMEOUT;
        let digests = admission.bundle_request().map(|request| request.digests).unwrap_or_default();
        let groups: Vec<&[Hash]> = if digests.is_empty() {
            vec![&[]]
        } else {
            digests.chunks(MAX_DIGESTS_PER_REQUEST).collect()
        };
        for group in groups {
            // The first bundle changes the starting point of the next request.
            let Some(BundleRequest { from, .. }) = admission.bundle_request() else {
                outcome.is_ok = false;
                return outcome;
            };
            let digests: String = group.iter().map(|digest| format!("&digest={digest}")).collect();
            let source = with_query(relay, &format!("{from}{digests}"));
            let mut is_behind = false;
            let result = match self.read(&source, deadline).await {
                Ok(text) => admission.apply_bundle(&text).await.map_err(|error| {
                    is_behind =
                        matches!(error, AdmissionError::Chain(ChainError::OlderState { .. }));
                    describe(&error)
                }),
                Err(problem) => Err(problem),
            };
            outcome.is_new |= result == Ok(true);
            outcome.is_ok &= result.is_ok();
            let is_broken = result.is_err() && !is_behind;
            self.statuses.update("relay", relay, result.err());
            // A relay that is behind can still have a revocation of another image.
            if is_broken || !matches!(relay, LogSource::Http { .. }) {
                break;
            }
        }
        outcome
    }

    /// Reads a bundle, or returns the description of the problem.
    async fn read(&self, source: &LogSource, deadline: Instant) -> Result<String, String> {
        let reading = read(&self.client, source, MAX_BUNDLE_BYTES as u64);
        match tokio::time::timeout_at(deadline, reading).await {
            Ok(result) => result.map_err(|error| error_chain(&error)),
            Err(_) => Err(format!("the relay did not answer within {} s", POLL_TIMEOUT.as_secs())),
        }
    }
}

/// Adds the query to the address of an HTTP relay. Other sources have no query.
fn with_query(relay: &LogSource, query: &str) -> LogSource {
    match relay {
        LogSource::Http { tls, host, path } => {
            let path = format!("{path}{}{query}", if path.contains('?') { '&' } else { '?' });
            LogSource::Http { tls: *tls, host: host.clone(), path }
        }
        other => other.clone(),
    }
}

fn describe(error: &AdmissionError) -> String {
    match error {
        AdmissionError::Chain(ChainError::OlderState { known, found }) => {
            format!("it is behind: its finalized slot is {found}, this node has {known}")
        }
        other => error_chain(other),
    }
}
