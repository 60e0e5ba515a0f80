//! What a module gets: a Unix socket of its own, mounted into its container and nobody else's.
//!
//! Invariants:
//! - Who is asking is the container of the process that connected, and only one that trustd itself
//!   started as this module is answered. A key of another module cannot be named.
//! - Each module has a thread of its own, so the kernel shares the processors out fairly: a module
//!   that floods its socket slows down itself. What it can hold at once is bounded.

mod calls;
mod peer;
mod serve;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use config::{Access, BoundTo, CryptoUse};
use measure::AttestedStatement;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

pub use calls::NAMES;

use self::calls::{Call, Plain, TpmCall};
use crate::audit::Audit;
use crate::engine::inventory;
use crate::keys::derive::{Binding, ModuleKeys, RootKey, random};
use crate::rest::ApiError;
use crate::rest::rate_limit::Bucket;
use crate::tpm::Tpm;
use crate::util::parallel;

const MOST_IN_A_BATCH: usize = 1024;
/// Four at a time wait so: some 200 refusals a second.
const REFUSED_AFTER: Duration = Duration::from_millis(20);

/// What all sockets share.
#[derive(Clone)]
pub struct Shared {
    pub tpm: Tpm,
    pub root: Arc<RootKey>,
    pub audit: Arc<Audit>,
    pub started: Arc<inventory::Ledger>,
    /// [`ledger::TrustPolicy::identity`]
    pub ledger: measure::Digest,
}

/// The sockets of all modules.
pub struct Sockets {
    dir: PathBuf,
    shared: Shared,
    /// Dropping what is in it ends the module's thread.
    open: Mutex<BTreeMap<String, oneshot::Sender<()>>>,
}

impl Sockets {
    pub fn new(dir: PathBuf, shared: Shared) -> Self {
        Self { dir, shared, open: Mutex::default() }
    }

    pub fn started(&self) -> &Arc<inventory::Ledger> {
        &self.shared.started
    }

    /// Opens a module's socket if it is not open; returns the folder to mount.
    ///
    /// # Errors
    /// That the folder, the socket or its thread cannot be made.
    pub fn open(&self, module: &str) -> std::io::Result<PathBuf> {
        let dir = self.dir.join(module);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.get(module).is_some_and(|end| !end.is_closed()) {
            return Ok(dir);
        }
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        let path = dir.join("trustd.sock");
        let _ = std::fs::remove_file(&path);
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        listener.set_nonblocking(true)?;
        // Who asks is found out for each connection.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666))?;
        let service = Service::new(module, self.shared.clone());
        open.insert(module.to_owned(), serve::start(listener, service)?);
        Ok(dir)
    }

    /// Ends a module's socket; who is connected is cut off.
    pub fn close(&self, module: &str) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(module);
        let _ = std::fs::remove_file(self.dir.join(module).join("trustd.sock"));
    }
}

impl Shared {
    async fn answer(&self, call: TpmCall) -> Result<Value, ApiError> {
        let evidence = async |statement: AttestedStatement| {
            self.audit.evidence(&statement).await.map_err(ApiError::node)
        };
        match call {
            TpmCall::Random(bytes) => {
                let random = random(&self.tpm, bytes).await.map_err(ApiError::tpm)?;
                Ok(json!({ "random": measure::hex(&random) }))
            }
            TpmCall::Quote(statement) => Ok(json!({ "evidence": evidence(statement).await? })),
            TpmCall::VrfKeys { suite, public_key, statement } => Ok(
                json!({ "evidence": evidence(statement).await?, "public_key": public_key, "suite": suite }),
            ),
        }
    }
}

/// Requests stay text until their call is known.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Batch {
    calls: Vec<Item>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    call: String,
    #[serde(default)]
    request: Option<Box<RawValue>>,
}

/// A container that may ask, and as what.
pub struct Caller {
    module: String,
    container: String,
    /// Digest of the manifest that it runs from.
    image: String,
    access: Access,
    binding: Binding,
    keys: Arc<ModuleKeys>,
}

impl Caller {
    pub fn new(
        root: &RootKey,
        module: &str,
        container: &str,
        image: &str,
        access: Access,
        binding: Binding,
    ) -> Self {
        let keys = Arc::new(root.module(module, &binding));
        Self {
            module: module.to_owned(),
            container: container.to_owned(),
            image: image.to_owned(),
            access,
            binding,
            keys,
        }
    }

    /// Answers a call for which the TPM has nothing to do; none for others.
    ///
    /// # Errors
    /// [`ApiError`], as the caller gets it.
    pub fn compute(&self, name: &str, request: &str) -> Option<Result<Value, ApiError>> {
        match Call::read(name, request, self) {
            Ok(Call::Plain(plain)) => Some(plain.answer(self)),
            Ok(Call::Tpm(_)) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Who has the same keys, as statements and answers say it.
    fn bound_to(&self) -> String {
        match &self.binding {
            Binding::Approvers(ledger) => format!("approvers:{}", measure::hex(ledger)),
            Binding::Image(digest) => format!("image:{digest}"),
        }
    }
}

/// One module's side of its socket.
struct Service {
    module: String,
    shared: Shared,
    keys: Mutex<BTreeMap<Binding, Arc<ModuleKeys>>>,
    calls: Mutex<Option<Bucket>>,
    tpm_calls: Mutex<Option<Bucket>>,
    /// One at a time waits for the TPM, so that its queue is the modules' in turn.
    tpm_turn: Arc<Semaphore>,
    /// What was refused and is in the audit log; it is not said twice.
    said: Mutex<BTreeSet<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    fn new(module: &str, shared: Shared) -> Self {
        Self {
            module: module.to_owned(),
            shared,
            keys: Mutex::default(),
            calls: Mutex::default(),
            tpm_calls: Mutex::default(),
            tpm_turn: Arc::new(Semaphore::new(1)),
            said: Mutex::default(),
        }
    }

    /// Who connected, if it may.
    fn caller(&self, container: &str) -> Result<Caller, String> {
        let started = self
            .shared
            .started
            .of(container)
            .ok_or_else(|| format!("trustd did not start the container {container}"))?;
        if started.module != self.module {
            return Err(format!("the container {container} is of the module {}", started.module));
        }
        let binding = match started.access.keys_bound_to {
            BoundTo::Approvers => Binding::Approvers(self.shared.ledger),
            BoundTo::Image => Binding::Image(started.digest.clone()),
        };
        let keys = lock(&self.keys)
            .entry(binding.clone())
            .or_insert_with(|| Arc::new(self.shared.root.module(&self.module, &binding)))
            .clone();
        Ok(Caller {
            module: self.module.clone(),
            container: container.to_owned(),
            image: started.digest,
            access: started.access,
            binding,
            keys,
        })
    }

    /// In the audit log once, however often it is tried: the log is no place to flood.
    async fn refuse(&self, kind: &'static str, member: &'static str, what: String) {
        let said = format!("{kind} {what}");
        if !lock(&self.said).insert(said.clone()) {
            return;
        }
        println!("module {}: {kind}: {what}", self.module);
        let (audit, event) =
            (self.shared.audit.clone(), json!({ "module": self.module, member: what }));
        // On its own: whoever asked may hang up, and a step that was begun has to be ended.
        let recorded = tokio::spawn(async move { audit.record(kind, &event).await }).await;
        if !matches!(recorded, Ok(Ok(()))) {
            println!("module {}: {kind} is not in the audit log: {recorded:?}", self.module);
            lock(&self.said).remove(&said);
        }
    }

    async fn permit(&self, caller: &Caller, name: &str) -> Result<(), ApiError> {
        let Some(wish) = Call::needs(name).filter(|wish| !caller.access.crypto.contains(wish))
        else {
            return Ok(());
        };
        let word = serde_json::to_string::<CryptoUse>(&wish).unwrap_or_default();
        self.refuse("module-call-denied", "call", name.to_owned()).await;
        let message = format!(
            "the module {} may not call {name}: its file does not list {word} under crypto",
            self.module
        );
        Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message))
    }

    fn spend(
        bucket: &Mutex<Option<Bucket>>,
        calls: u32,
        per_s: u32,
        what: &str,
    ) -> Result<(), ApiError> {
        let now = Instant::now();
        let taken =
            lock(bucket).get_or_insert_with(|| Bucket::new(per_s, now)).take(calls, per_s, now);
        taken.map_err(|after| {
            let after = after.map_or_else(
                || "this many at once are never allowed".into(),
                |after| format!("there is room again in {} ms", after.as_millis().max(1)),
            );
            let message =
                format!("the module's quota of {per_s} {what} a second is used up; {after}");
            ApiError::new(StatusCode::TOO_MANY_REQUESTS, "quota", message)
        })
    }

    /// Before anything is looked at. Who asks for too much waits for the refusal: to refuse as fast
    /// as a module asks would cost the others more than to answer it.
    async fn spend_call(&self, caller: &Caller, calls: u32) -> Result<(), ApiError> {
        let spent = Self::spend(&self.calls, calls, caller.access.quota.calls_per_s, "calls");
        if spent.is_err() {
            tokio::time::sleep(REFUSED_AFTER).await;
        }
        spent
    }

    /// One call that is not a batch.
    async fn call(&self, caller: &Caller, name: &str, request: &str) -> Result<Value, ApiError> {
        self.spend_call(caller, 1).await?;
        match self.begin(caller, name, request).await? {
            Call::Plain(plain) => plain.answer(caller),
            Call::Tpm(call) => self.ask_tpm(caller, call).await,
        }
    }

    async fn begin(&self, caller: &Caller, name: &str, request: &str) -> Result<Call, ApiError> {
        self.permit(caller, name).await?;
        Call::read(name, request, caller)
    }

    async fn ask_tpm(&self, caller: &Caller, call: TpmCall) -> Result<Value, ApiError> {
        Self::spend(&self.tpm_calls, 1, caller.access.quota.tpm_calls_per_s, "calls of the TPM")?;
        let (shared, turn) = (self.shared.clone(), self.tpm_turn.clone());
        // On its own: hanging up gives nobody a second turn while the TPM is still at work for the
        // first.
        let answer = tokio::spawn(async move {
            let _turn = turn.acquire_owned().await.map_err(ApiError::node)?;
            shared.answer(call).await
        });
        answer.await.map_err(ApiError::node)?
    }

    /// Each call has its own answer or error, in their order.
    async fn batch(&self, caller: &Caller, request: &str) -> Result<Value, ApiError> {
        self.spend_call(caller, 1).await?;
        let Batch { calls: items } = serde_json::from_str(request)
            .map_err(|e| ApiError::request(calls::without_values(&e.to_string())))?;
        if items.len() > MOST_IN_A_BATCH {
            return Err(ApiError::request(format!(
                "calls: expected at most {MOST_IN_A_BATCH}, found {}",
                items.len()
            )));
        }
        self.spend_call(caller, items.len().saturating_sub(1) as u32).await?;
        let mut answers: Vec<Option<Result<Value, ApiError>>> = Vec::with_capacity(items.len());
        let mut plain: Vec<(usize, Plain)> = Vec::new();
        for (at, Item { call: name, request }) in items.into_iter().enumerate() {
            answers.push(
                match self
                    .begin(caller, &name, request.as_ref().map_or("{}", |request| request.get()))
                    .await
                {
                    Ok(Call::Plain(call)) => {
                        plain.push((at, call));
                        None
                    }
                    Ok(Call::Tpm(call)) => Some(self.ask_tpm(caller, call).await),
                    Err(error) => Some(Err(error)),
                },
            );
        }
        for (at, answer) in parallel::over(plain, |(at, call)| (at, call.answer(caller))) {
            answers[at] = Some(answer);
        }
        let answers: Vec<Value> = answers
            .into_iter()
            .flatten()
            .map(|answer| match answer {
                Ok(answer) => json!({ "answer": answer }),
                Err(error) => error.body(),
            })
            .collect();
        Ok(json!({ "answers": answers }))
    }
}
