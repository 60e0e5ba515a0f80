//! Samples of every type: the JSON of each variant, with and without its optional members.

use basalt_api::module::*;
use basalt_api::owner::*;
use basalt_api::*;
use measure::{Content, TaggedDigest};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// One type or variant: a sample with every optional member, and one with none.
pub(crate) struct Form {
    pub(crate) full: Value,
    pub(crate) minimal: Value,
}

/// One schema and the type that belongs to it.
pub(crate) struct Type {
    pub(crate) name: &'static str,
    /// One form for a struct, one for each variant of an enum.
    pub(crate) forms: Vec<Form>,
    /// Whether the type is a request, which rejects unknown members.
    pub(crate) is_request: bool,
    /// Parses a value as the type and serialises it again.
    pub(crate) round_trip: fn(Value) -> Result<Value, String>,
}

fn round_trip<T: Serialize + DeserializeOwned>(value: Value) -> Result<Value, String> {
    // From text, as both sides of a connection do; raw values need it.
    let parsed: T = serde_json::from_str(&value.to_string()).map_err(|e| e.to_string())?;
    Ok(serde_json::to_value(parsed).unwrap())
}

/// A struct or an enum without optional members: each form is full and minimal.
fn answer<T: Serialize + DeserializeOwned>(name: &'static str, forms: &[Value]) -> Type {
    let forms = forms.iter().map(|v| Form { full: v.clone(), minimal: v.clone() }).collect();
    Type { name, forms, is_request: false, round_trip: round_trip::<T> }
}

/// A struct with these optional members.
fn optional<T: Serialize + DeserializeOwned>(
    name: &'static str,
    full: Value,
    members: &[&str],
) -> Type {
    let minimal = without(&full, members);
    Type {
        name,
        forms: vec![Form { full, minimal }],
        is_request: false,
        round_trip: round_trip::<T>,
    }
}

fn request<T: Serialize + DeserializeOwned>(name: &'static str, full: Value) -> Type {
    Type { is_request: true, ..answer::<T>(name, &[full]) }
}

fn optional_request<T: Serialize + DeserializeOwned>(
    name: &'static str,
    full: Value,
    members: &[&str],
) -> Type {
    Type { is_request: true, ..optional::<T>(name, full, members) }
}

/// An enum of words, all of which are given.
fn words<T: Serialize + DeserializeOwned>(name: &'static str, all: &[T]) -> Type {
    let all: Vec<Value> = all.iter().map(|word| serde_json::to_value(word).unwrap()).collect();
    answer::<T>(name, &all)
}

pub(crate) fn without(full: &Value, members: &[&str]) -> Value {
    let mut minimal = full.clone();
    for member in members {
        let removed = minimal.as_object_mut().unwrap().remove(*member);
        assert!(removed.is_some(), "the sample has no {member}: {full}");
    }
    minimal
}

fn hex(bytes: usize) -> String {
    "a5".repeat(bytes)
}

fn sha256() -> String {
    format!("sha256:{}", hex(32))
}

fn record() -> Value {
    json!({
        "recnum": 1, "pcr": 15, "content_type": "basalt",
        "digests": [{ "hashAlg": "sha256", "digest": hex(32) }],
        "content": { "type": "module-started", "data": "{}" },
    })
}

fn evidence() -> Value {
    json!({
        "statement": "{}", "attest": "00", "signature": "00", "key": "00",
        "pcrs": { "14": hex(32), "15": hex(32) },
        "platform_log": [record()], "modules_log": [record()],
    })
}

fn error() -> Value {
    json!({ "code": "busy", "message": "later" })
}

/// Returns the types that both interfaces have.
fn common_types() -> Vec<Type> {
    vec![
        answer::<ErrorBody>("ErrorBody", &[json!({ "error": error() })]),
        answer::<ErrorDetail>("ErrorDetail", &[error()]),
        words("ErrorCode", ErrorCode::ALL),
        answer::<Evidence>("Evidence", &[evidence()]),
        answer::<Record>("Record", &[record()]),
        answer::<TaggedDigest>("TaggedDigest", &[record()["digests"][0].clone()]),
        answer::<Content>("Content", &[record()["content"].clone()]),
        request::<QuoteRequest>("QuoteRequest", json!({ "nonce": hex(8) })),
    ]
}

/// Types of the calls about keys, randomness and quotes.
fn key_call_types() -> Vec<Type> {
    let suite = Suite::P256Tai;
    let (identity, proof) = (
        json!({ "module": "m", "image": sha256(), "container": hex(32), "bound_to": "image:00" }),
        json!({ "suite": suite, "public_key": "00", "pi": "00", "beta": "00" }),
    );
    let verify = json!({ "suite": suite, "public_key": "00", "alpha": "00", "pi": "00" });
    let mut valid =
        optional::<VrfVerification>("VrfVerification", json!({ "valid": true, "beta": "00" }), &[]);
    valid.forms[0].minimal = json!({ "valid": false });
    vec![
        words("Suite", Suite::ALL),
        request::<IdentityRequest>("IdentityRequest", json!({})),
        answer::<Identity>("Identity", &[identity]),
        optional_request::<VrfKeysRequest>(
            "VrfKeysRequest",
            json!({ "suite": suite, "nonce": hex(8) }),
            &["nonce"],
        ),
        optional::<VrfKeys>(
            "VrfKeys",
            json!({ "suite": suite, "public_key": "00", "evidence": evidence() }),
            &["evidence"],
        ),
        request::<VrfProveRequest>("VrfProveRequest", json!({ "suite": suite, "alpha": "00" })),
        answer::<VrfProof>("VrfProof", &[proof]),
        request::<VrfVerifyRequest>("VrfVerifyRequest", verify),
        valid,
        request::<RandomRequest>("RandomRequest", json!({ "bytes": 16 })),
        answer::<RandomBytes>("RandomBytes", &[json!({ "random": "00" })]),
        answer::<ModuleQuote>("ModuleQuote", &[json!({ "evidence": evidence() })]),
    ]
}

/// Types of the calls about data, and of batches.
fn data_call_types() -> Vec<Type> {
    let (hash, sign) = (HashAlgorithm::Sha256, SignatureAlgorithm::Ed25519);
    vec![
        words("HashAlgorithm", HashAlgorithm::ALL),
        words("SignatureAlgorithm", SignatureAlgorithm::ALL),
        request::<HashRequest>("HashRequest", json!({ "algorithm": hash, "data": "00" })),
        answer::<Hash>("Hash", &[json!({ "hash": "00" })]),
        optional_request::<HmacRequest>(
            "HmacRequest",
            json!({ "algorithm": hash, "data": "00", "label": "00" }),
            &["label"],
        ),
        answer::<Mac>("Mac", &[json!({ "mac": "00" })]),
        request::<SignRequest>("SignRequest", json!({ "algorithm": sign, "data": "00" })),
        answer::<Signature>("Signature", &[json!({ "public_key": "00", "signature": "00" })]),
        request::<VerifyRequest>(
            "VerifyRequest",
            json!({ "algorithm": sign, "public_key": "00", "data": "00", "signature": "00" }),
        ),
        answer::<Verification>("Verification", &[json!({ "valid": true })]),
        optional_request::<SealRequest>(
            "SealRequest",
            json!({ "data": "00", "context": "00" }),
            &["context"],
        ),
        answer::<Sealed>("Sealed", &[json!({ "sealed": "00" })]),
        optional_request::<UnsealRequest>(
            "UnsealRequest",
            json!({ "sealed": "00", "context": "00" }),
            &["context"],
        ),
        answer::<Unsealed>("Unsealed", &[json!({ "data": "00" })]),
        request::<BatchRequest>("BatchRequest", json!({ "calls": [{ "call": "identity" }] })),
        optional_request::<BatchCall>(
            "BatchCall",
            json!({ "call": "hash", "request": { "data": "00" } }),
            &["request"],
        ),
        answer::<BatchAnswers>("BatchAnswers", &[json!({ "answers": [{ "error": error() }] })]),
        answer::<BatchAnswer>(
            "BatchAnswer",
            &[json!({ "answer": { "hash": "00" } }), json!({ "error": error() })],
        ),
    ]
}

fn status_types() -> Vec<Type> {
    let source = json!({ "polled": 1, "problem": "gone" });
    let feeds = |mut ledger: Value| {
        ledger["sources"] = json!({ "file:/a": source });
        ledger["relays"] = json!({ "file:/b": source });
        ledger
    };
    let head = ["slot", "block", "time", "age_s", "attested_slot", "attested_block", "period"];
    let mut chain = json!({ "records": 1, "max_age_s": 1, "problem": "gone" });
    for member in head {
        chain[member] = json!(1);
    }
    let unusable = json!({ "problem": "gone" });
    let usable = json!({ "statements": 1, "root": "00", "approvers": ["00"], "threshold": 1 });
    let mut full = usable.clone();
    (full["witnessed"], full["max_age_s"], full["chain"]) = (json!(1), json!(1), chain.clone());
    let ledger = vec![
        Form { full: feeds(unusable.clone()), minimal: unusable.clone() },
        Form { full: feeds(full), minimal: usable.clone() },
    ];
    let memory = json!({ "total_kib": 2, "available_kib": null });
    let registers = json!({ "14": hex(32) });
    let locked = json!({ "machine": "virt", "variant": "prod", "version": "0", "hostname": "n",
        "certificate": hex(32), "uptime_s": null, "locked": "no policy" });
    let status = json!({ "machine": "virt", "variant": "prod", "version": "0", "hostname": "n",
        "certificate": hex(32), "time": 1, "uptime_s": 1.5, "engine": "available", "ledger": usable, "memory": memory,
        "processes": 1, "registers": registers });
    let optional_chain = [&head[..], &["records", "problem"]].concat();
    vec![
        answer::<NodeStatus>("NodeStatus", &[locked.clone(), status.clone()]),
        answer::<Status>("Status", &[status]),
        answer::<LockedStatus>("LockedStatus", &[locked]),
        words("EngineState", EngineState::ALL),
        answer::<Memory>("Memory", &[memory]),
        answer::<Registers>("Registers", &[unusable, registers]),
        Type {
            name: "LedgerStatus",
            forms: ledger,
            is_request: false,
            round_trip: round_trip::<LedgerStatus>,
        },
        optional::<SourceStatus>("SourceStatus", source, &["problem"]),
        optional::<ChainStatus>("ChainStatus", chain, &optional_chain),
    ]
}

fn modules_types() -> Vec<Type> {
    let state = |state: &str| json!({ "state": state });
    let reason = |state: &str| json!({ "state": state, "reason": "why" });
    let container = |state: &str| json!({ "state": state, "container": hex(32) });
    let previous = json!({ "digest": sha256(), "toml": "", "shipped": true });
    let rejected = json!({ "module": "m", "reason": "why" });
    let layer = json!({ "digest": sha256(), "size": 2, "received": 1 });
    let deny = json!({ "decision": "deny", "code": "unknown", "reason": "why" });
    let allow = json!({ "decision": "allow", "statement": 1, "until": 2, "signers": 1 });
    let module = json!({ "name": "m", "desired": "run", "generation": 1, "digest": sha256(),
        "toml": "", "shipped": false, "previous": previous, "status": state("fetching"), "reconciled": false,
        "last_error": "why", "progress": { "layers": [layer] }, "restarts": 0, "ledger": deny });
    vec![
        optional::<Modules>(
            "Modules",
            json!({ "modules": [module], "rejected": [rejected] }),
            &["rejected"],
        ),
        answer::<RejectedSpec>("RejectedSpec", &[rejected]),
        optional::<Module>("Module", module.clone(), &["previous", "last_error", "progress"]),
        words("DesiredState", &[DesiredState::Run, DesiredState::Stop, DesiredState::Remove]),
        answer::<PreviousVersion>("PreviousVersion", &[previous]),
        answer::<ModuleStatus>(
            "ModuleStatus",
            &[
                reason("waiting"),
                state("fetching"),
                container("starting"),
                container("running"),
                state("stopped"),
                reason("denied"),
                reason("failed"),
            ],
        ),
        answer::<Progress>("Progress", &[json!({ "layers": [layer] })]),
        answer::<LayerProgress>("LayerProgress", std::slice::from_ref(&layer)),
        answer::<LedgerDecision>("LedgerDecision", &[allow, deny]),
        words("DenialCode", DenialCode::ALL),
        request::<SignedSpec>(
            "SignedSpec",
            json!({ "certificate": "00", "signature": "00", "spec": "{}" }),
        ),
        answer::<AppliedSpec>("AppliedSpec", &[json!({ "applied": "m" })]),
        answer::<StoredImage>("StoredImage", &[json!({ "blobs": [sha256()] })]),
        answer::<ModuleLog>("ModuleLog", &[json!({ "log": "" })]),
    ]
}

fn node_types() -> Vec<Type> {
    let signer = hex(65);
    let policy = json!({ "board": "virt", "pcr14": hex(32), "signature": hex(64) });
    let escrow = json!({ "recovery": hex(32), "enc": hex(32), "ciphertext": hex(48) });
    let (requirement, accepted) = (
        json!({ "signer": signer, "pcr14": hex(32) }),
        json!({ "pcr14": [hex(32)], "this_boot": true }),
    );
    vec![
        answer::<AuditLog>("AuditLog", &[json!({ "events": [record()] })]),
        answer::<AcceptedRequest>("AcceptedRequest", &[json!({ "requested": "reboot" })]),
        optional::<Endorsement>(
            "Endorsement",
            json!({ "key": "00", "certificate": "00" }),
            &["certificate"],
        ),
        request::<Credential>("Credential", json!({ "blob": "00", "seed": "00" })),
        answer::<ActivatedCredential>("ActivatedCredential", &[json!({ "secret": "00" })]),
        answer::<LedgerUpdate>("LedgerUpdate", &[json!({ "statements": 1, "updated": true })]),
        answer::<BundleUpdate>("BundleUpdate", &[json!({ "updated": true })]),
        answer::<LedgerReset>("LedgerReset", &[json!({ "statements": 1 })]),
        answer::<PolicyRequirement>("PolicyRequirement", &[requirement]),
        request::<Policies>("Policies", json!({ "signer": signer, "policies": [policy] })),
        request::<SignedPolicy>("SignedPolicy", policy),
        answer::<AcceptedPolicies>("AcceptedPolicies", &[accepted]),
        answer::<Escrow>("Escrow", &[escrow]),
        request::<RootKey>("RootKey", json!({ "root": hex(32) })),
        answer::<RestoredRootKey>("RestoredRootKey", &[json!({ "restored": true })]),
    ]
}

/// Returns all types of the owner's API.
pub(crate) fn owner_types() -> Vec<Type> {
    [common_types(), status_types(), modules_types(), node_types()].into_iter().flatten().collect()
}

/// Returns all types of the modules' API.
pub(crate) fn module_types() -> Vec<Type> {
    [common_types(), key_call_types(), data_call_types()].into_iter().flatten().collect()
}

/// Returns the samples of [`ModuleStatus`], one for each variant.
pub(crate) fn module_statuses() -> Vec<Value> {
    let types = modules_types();
    let kind = types.into_iter().find(|kind| kind.name == "ModuleStatus").unwrap();
    kind.forms.into_iter().map(|form| form.full).collect()
}
