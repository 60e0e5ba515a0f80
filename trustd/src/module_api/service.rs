//! Calls of one module: identification, permissions, quotas, batches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use api::ErrorCode;
use api::module::{BatchAnswer, BatchAnswers, BatchCall, BatchRequest};
use axum::http::StatusCode;
use config::{CryptoUse, KeyBinding};
use serde_json::json;
use serde_json::value::RawValue;
use tokio::sync::Semaphore;

use super::caller::Caller;
use super::calls::{self, Call, LocalCall, TpmCall};
use super::gate::Gates;
use super::peer::PeerError;
use crate::audit::{Audit, EventKind};
use crate::engine::inventory::Inventory;
use crate::keys::derive::{Binding, ModuleKeys, RootKey};
use crate::rest::ApiError;
use crate::rest::rate_limit::TokenBucket;
use crate::tpm::Tpm;
use crate::util::lock::lock;
use crate::util::parallel;

/// Number of calls in a batch.
const MAX_BATCH_CALLS: usize = 1024;
/// Delay of the answer to a call that exceeds the quota. With four requests at a time, a module
/// gets at most 200 such answers a second.
const QUOTA_DELAY: Duration = Duration::from_millis(20);

/// State that the sockets of all modules share.
#[derive(Clone)]
pub struct Shared {
    /// The TPM.
    pub tpm: Tpm,
    /// The root key.
    pub root: Arc<RootKey>,
    /// The audit log.
    pub audit: Arc<Audit>,
    /// The containers that trustd started.
    pub inventory: Arc<Inventory>,
    /// Identity of the approvers: [`ledger::TrustPolicy::identity`].
    pub ledger: measure::Digest,
}

/// One module's side of its socket.
pub(super) struct Service {
    module: String,
    shared: Shared,
    gates: Arc<Gates>,
    keys: Mutex<BTreeMap<Binding, Arc<ModuleKeys>>>,
    calls: Mutex<Option<TokenBucket>>,
    tpm_calls: Mutex<Option<TokenBucket>>,
    /// Permit of the one call that may wait for the TPM. The TPM's queue thus has at most one
    /// request of each module.
    tpm_permit: Arc<Semaphore>,
    /// Denials that are in the audit log. Each is recorded once.
    recorded: Mutex<BTreeSet<String>>,
}

impl Service {
    /// Creates the service of a module.
    pub(super) fn new(module: &str, shared: Shared, gates: Arc<Gates>) -> Self {
        Self {
            module: module.to_owned(),
            shared,
            gates,
            keys: Mutex::default(),
            calls: Mutex::default(),
            tpm_calls: Mutex::default(),
            tpm_permit: Arc::new(Semaphore::new(1)),
            recorded: Mutex::default(),
        }
    }

    /// Returns the name of the module.
    pub(super) fn module(&self) -> &str {
        &self.module
    }

    /// Returns the caller that a container is.
    ///
    /// # Errors
    /// [`PeerError`] if trustd did not start the container as this module.
    pub(super) fn identify(&self, container: &str) -> Result<Caller, PeerError> {
        let record = self
            .shared
            .inventory
            .get(container)
            .ok_or_else(|| PeerError::UnknownContainer(container.to_owned()))?;
        if record.module != self.module {
            let (container, module) = (container.to_owned(), record.module);
            return Err(PeerError::OtherModule { container, module });
        }
        let binding = match record.access.keys_bound_to {
            KeyBinding::Approvers => Binding::Approvers(self.shared.ledger),
            KeyBinding::Image => Binding::Image(record.digest.clone()),
        };
        let derive = || Arc::new(self.shared.root.derive_module_keys(&self.module, &binding));
        let keys = lock(&self.keys).entry(binding.clone()).or_insert_with(derive).clone();
        Ok(Caller {
            module: self.module.clone(),
            container: container.to_owned(),
            image: record.digest,
            access: record.access,
            binding,
            keys,
            gate: self.gates.get(container),
        })
    }

    /// Records a denial in the audit log, the first time that it happens. `member` is the name of
    /// `detail` in the event.
    pub(super) async fn record_denial(
        &self,
        kind: EventKind,
        member: &'static str,
        detail: String,
    ) {
        let denial = format!("{kind} {detail}");
        if !lock(&self.recorded).insert(denial.clone()) {
            return;
        }
        logging::warn!("module {}: {kind}: {detail}", self.module);
        let audit = self.shared.audit.clone();
        let event = json!({ "module": self.module, member: detail });
        // In a task of its own: the client may disconnect, and an event that was begun must be
        // completed.
        let recorded = tokio::spawn(async move { audit.record(kind, &event).await }).await;
        if !matches!(recorded, Ok(Ok(()))) {
            logging::error!("module {}: cannot record {kind}: {recorded:?}", self.module);
            lock(&self.recorded).remove(&denial);
        }
    }

    async fn require_permission(&self, caller: &Caller, name: &str) -> Result<(), ApiError> {
        let Some(missing) =
            calls::permission(name).filter(|needed| !caller.access.crypto.contains(needed))
        else {
            return Ok(());
        };
        let word = serde_json::to_string::<CryptoUse>(&missing).unwrap_or_default();
        self.record_denial(EventKind::ModuleCallDenied, "call", name.to_owned()).await;
        let message = format!(
            "the module {} may not call {name}: its file does not list {word} under crypto",
            self.module
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, ErrorCode::Forbidden, message))
    }

    fn take_tokens(
        bucket: &Mutex<Option<TokenBucket>>,
        calls: u32,
        per_second: u32,
        unit: &str,
    ) -> Result<(), ApiError> {
        let now = Instant::now();
        let taken = lock(bucket)
            .get_or_insert_with(|| TokenBucket::new(per_second, now))
            .take(calls, per_second, now);
        taken.map_err(|wait| {
            let wait = wait.map_or_else(
                || "it never allows this many calls at once".into(),
                |wait| format!("retry in {} ms", wait.as_millis().max(1)),
            );
            let message =
                format!("the module's quota of {per_second} {unit} a second is used up; {wait}");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, ErrorCode::Quota, message)
        })
    }

    /// Charges calls to the module's quota before anything is computed.
    ///
    /// The error is delayed, because answering it as fast as a module calls would cost the other
    /// modules more than the calls themselves.
    async fn charge(&self, caller: &Caller, calls: u32) -> Result<(), ApiError> {
        let per_second = caller.access.quota.calls_per_s;
        let charged = Self::take_tokens(&self.calls, calls, per_second, "calls");
        if charged.is_err() {
            tokio::time::sleep(QUOTA_DELAY).await;
        }
        charged
    }

    /// Answers one call that is not a batch.
    ///
    /// # Errors
    /// [`ApiError`] as the caller gets it.
    pub(super) async fn call(
        &self,
        caller: &Caller,
        name: &str,
        request: &str,
    ) -> Result<Box<RawValue>, ApiError> {
        self.charge(caller, 1).await?;
        match self.parse(caller, name, request).await? {
            Call::Local(call) => call.compute(caller),
            Call::Tpm(call) => self.call_tpm(caller, call).await,
        }
    }

    async fn parse(&self, caller: &Caller, name: &str, request: &str) -> Result<Call, ApiError> {
        self.require_permission(caller, name).await?;
        Call::parse(name, request, caller)
    }

    async fn call_tpm(&self, caller: &Caller, call: TpmCall) -> Result<Box<RawValue>, ApiError> {
        let per_second = caller.access.quota.tpm_calls_per_s;
        Self::take_tokens(&self.tpm_calls, 1, per_second, "calls of the TPM")?;
        let (tpm, audit) = (self.shared.tpm.clone(), self.shared.audit.clone());
        let (permit, gate) = (self.tpm_permit.clone(), caller.gate.clone());
        // In a task of its own: a client that disconnects gets no second permit while the TPM still
        // works on its first call.
        let answer = tokio::spawn(async move {
            let _permit = permit.acquire_owned().await.map_err(ApiError::failed)?;
            if gate.is_closed() {
                return Err(ended());
            }
            call.compute(&tpm, &audit).await
        });
        answer.await.map_err(ApiError::failed)?
    }

    /// Answers each call of a batch with an answer or an error, in the order of the calls.
    ///
    /// # Errors
    /// [`ApiError`] if the batch itself is malformed or exceeds the quota.
    pub(super) async fn batch(
        &self,
        caller: &Caller,
        request: &str,
    ) -> Result<BatchAnswers, ApiError> {
        self.charge(caller, 1).await?;
        let BatchRequest { calls } = calls::parse_batch(request)?;
        if calls.len() > MAX_BATCH_CALLS {
            let found = calls.len();
            return Err(ApiError::bad_request(format!(
                "calls: expected at most {MAX_BATCH_CALLS}, found {found}"
            )));
        }
        self.charge(caller, calls.len().saturating_sub(1) as u32).await?;
        let mut answers: Vec<Option<BatchAnswer>> = Vec::with_capacity(calls.len());
        let mut local: Vec<(usize, LocalCall)> = Vec::new();
        for (index, BatchCall { call: name, request }) in calls.into_iter().enumerate() {
            let request = request.as_ref().map_or("{}", |request| request.get());
            answers.push(match self.parse(caller, &name, request).await {
                Ok(Call::Local(call)) => {
                    local.push((index, call));
                    None
                }
                Ok(Call::Tpm(call)) => Some(to_answer(self.call_tpm(caller, call).await)),
                Err(error) => Some(to_answer(Err(error))),
            });
        }
        let compute = |call: LocalCall| {
            if caller.gate.is_closed() { Err(ended()) } else { call.compute(caller) }
        };
        for (index, answer) in parallel::map(local, |(at, call)| (at, compute(call))) {
            answers[index] = Some(to_answer(answer));
        }
        Ok(BatchAnswers { answers: answers.into_iter().flatten().collect() })
    }
}

/// Returns the result of a call whose container's gate was closed. The container does not get it.
fn ended() -> ApiError {
    let message = "the ledger no longer allows the module's image";
    ApiError::new(StatusCode::FORBIDDEN, ErrorCode::UnknownPeer, message)
}

fn to_answer(result: Result<Box<RawValue>, ApiError>) -> BatchAnswer {
    match result {
        Ok(answer) => BatchAnswer::Answer(answer),
        Err(error) => BatchAnswer::Error(error.into_detail()),
    }
}
