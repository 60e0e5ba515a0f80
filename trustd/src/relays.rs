//! Asking relays for bundles of the chain, again and again, and at once when an image comes that nobody asked for before.
//!
//! No relay is trusted (lib/ledger, ethereum): one that lies, is behind, slow or gives half of it is named and the next one asked; all
//! are asked each time, so that none can hide what another has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use config::{LogSource, Node};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use ledger::ethereum::{ChainError, LARGEST_BUNDLE};

use crate::approvals::Approvals;
use crate::chain::Wanted;
use crate::fetch::Client;
use crate::sources::{FIRST_PAUSE, Heard, Hearing, read};
use crate::unapproved::ApprovalError;

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
        let (relays, poll_s) = node.ledger.chain.as_ref().map_or((&[][..], 1), |chain| (&chain.relays, chain.poll_s));
        let list = relays.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        Ok(Self { list, period: Duration::from_secs(poll_s), client, heard: Hearing::default() })
    }

    /// What came of asking each relay.
    pub fn heard(&self) -> BTreeMap<String, Heard> {
        self.heard.all()
    }

    /// Asks without end; `wake` when something is new.
    pub async fn keep(self: Arc<Self>, approvals: Arc<Approvals>, wake: impl Fn()) {
        let mut pause = FIRST_PAUSE;
        while !self.list.is_empty() {
            // Beside each other: a slow one holds up nobody's news.
            let mut each: FuturesUnordered<_> = self.list.iter().map(|relay| self.ask(relay, &approvals)).collect();
            while let Some(new) = each.next().await {
                if new {
                    wake();
                }
            }
            if self.heard().values().any(|heard| heard.problem.is_none()) {
                pause = self.period;
            }
            tokio::select! {
                () = tokio::time::sleep(pause.min(self.period)) => pause = pause.saturating_mul(2),
                () = approvals.asked() => tokio::time::sleep(GATHER).await,
            }
        }
    }

    async fn ask(&self, relay: &LogSource, approvals: &Approvals) -> bool {
        let (mut new, deadline) = (false, tokio::time::Instant::now() + PASS_WITHIN);
        let digests = approvals.wanted().map(|wanted| wanted.digests).unwrap_or_default();
        let groups: Vec<_> = if digests.is_empty() { vec![&[][..]] } else { digests.chunks(AT_ONCE).collect() };
        for group in groups {
            // Where this node is changes with the first bundle.
            let Some(Wanted { from, .. }) = approvals.wanted() else { return new };
            let digests: String = group.iter().map(|digest| format!("&digest={digest}")).collect();
            let asked = with(relay, &format!("{from}{digests}"));
            let late = || format!("it did not answer all within {} s", PASS_WITHIN.as_secs());
            let text = tokio::time::timeout_at(deadline, read(&self.client, &asked, LARGEST_BUNDLE as u64)).await;
            let taken = match text.unwrap_or_else(|_| Err(late())) {
                Ok(text) => approvals.take(&text).await.map_err(|error| said(&error)),
                Err(problem) => Err(problem),
            };
            new |= taken == Ok(true);
            let failed = taken.is_err();
            self.heard.note("chain", relay, taken.err());
            if failed || !matches!(relay, LogSource::Http { .. }) {
                break;
            }
        }
        new
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
