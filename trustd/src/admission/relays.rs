//! Asking relays for bundles of the chain, again and again, and at once when an image comes that
//! nobody asked for before.
//!
//! No relay is trusted (lib/ledger, ethereum): one that lies, is behind, slow or gives half of it
//! is named; all are asked, each in its own time, so that none can hide or hold up what another
//! has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use config::{LogSource, Node};
use futures_util::future::join_all;
use ledger::ethereum::{ChainError, LARGEST_BUNDLE};

use crate::admission::Approvals;
use crate::admission::error::ApprovalError;
use crate::admission::light_client::Wanted;
use crate::admission::log_sources::{FIRST_PAUSE, Heard, Hearing, read};
use crate::images::fetch::Client;

/// So many digests in one question: what is before a path's length limit in common servers.
const AT_ONCE: usize = 64;
/// All questions to one relay, one after the other.
const PASS_WITHIN: Duration = Duration::from_secs(120);
/// Images that come together are asked for together.
const GATHER: Duration = Duration::from_millis(200);

pub struct Relays {
    list: Vec<LogSource>,
    period: Duration,
    client: Client,
    heard: Hearing,
}

impl Relays {
    pub fn new(node: &Node, client: Client) -> Result<Self, String> {
        let (relays, poll_s) =
            node.ledger.chain.as_ref().map_or((&[][..], 1), |chain| (&chain.relays, chain.poll_s));
        let list = relays.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        Ok(Self { list, period: Duration::from_secs(poll_s), client, heard: Hearing::default() })
    }

    /// What came of asking each relay.
    pub fn heard(&self) -> BTreeMap<String, Heard> {
        self.heard.all()
    }

    /// Asks without end; `wake` when something is new. Each in its own time: a slow one holds up
    /// nobody's news.
    pub async fn keep(self: Arc<Self>, approvals: Arc<Approvals>, wake: impl Fn()) {
        join_all(self.list.iter().map(|relay| self.follow(relay, &approvals, &wake))).await;
    }

    async fn follow(&self, relay: &LogSource, approvals: &Approvals, wake: &impl Fn()) {
        let (mut pause, Some(mut asked)) = (FIRST_PAUSE, approvals.asked()) else { return };
        loop {
            // What is asked for from here on is asked for again.
            asked.mark_unchanged();
            let (new, good) = self.ask(relay, approvals).await;
            if new {
                wake();
            }
            if good {
                pause = self.period;
            }
            tokio::select! {
                () = tokio::time::sleep(pause.min(self.period)) => pause = pause.saturating_mul(2),
                Ok(()) = asked.changed() => tokio::time::sleep(GATHER).await,
            }
        }
    }

    /// Whether something is new, and whether all that it gave holds.
    async fn ask(&self, relay: &LogSource, approvals: &Approvals) -> (bool, bool) {
        let (mut new, mut failed, deadline) =
            (false, false, tokio::time::Instant::now() + PASS_WITHIN);
        let digests = approvals.wanted().map(|wanted| wanted.digests).unwrap_or_default();
        let groups: Vec<_> =
            if digests.is_empty() { vec![&[][..]] } else { digests.chunks(AT_ONCE).collect() };
        for group in groups {
            // Where this node is changes with the first bundle.
            let Some(Wanted { from, .. }) = approvals.wanted() else { return (new, false) };
            let digests: String = group.iter().map(|digest| format!("&digest={digest}")).collect();
            let asked = with(relay, &format!("{from}{digests}"));
            let late = || format!("it did not answer all within {} s", PASS_WITHIN.as_secs());
            let text = tokio::time::timeout_at(
                deadline,
                read(&self.client, &asked, LARGEST_BUNDLE as u64),
            )
            .await;
            let mut behind = false;
            let taken = match text.unwrap_or_else(|_| Err(late())) {
                Ok(text) => approvals.take(&text).await.map_err(|error| {
                    behind = matches!(error, ApprovalError::Chain(ChainError::Older { .. }));
                    said(&error)
                }),
                Err(problem) => Err(problem),
            };
            new |= taken == Ok(true);
            failed |= taken.is_err();
            let broken = taken.is_err() && !behind;
            self.heard.note("chain", relay, taken.err());
            // Who is behind may know of a revocation all the same.
            if broken || !matches!(relay, LogSource::Http { .. }) {
                break;
            }
        }
        (new, !failed)
    }
}

/// What is wanted stands in the question; a file is what it is.
fn with(relay: &LogSource, query: &str) -> LogSource {
    match relay {
        LogSource::Http { tls, host, path } => {
            let path = format!("{path}{}{query}", if path.contains('?') { '&' } else { '?' });
            LogSource::Http { tls: *tls, host: host.clone(), path }
        }
        other => other.clone(),
    }
}

fn said(error: &ApprovalError) -> String {
    match error {
        ApprovalError::Chain(ChainError::Older { what, known, found }) => {
            format!("it is behind: its {what} slot is {found}, this node has {known}")
        }
        other => other.to_string(),
    }
}
