/// What the ledger says of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow(Evidence),
    Deny(Reason),
}

/// Why an image may run: the statement that says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    pub digest: String,
    pub seq: u64,
    pub exp: u64,
    pub signers: usize,
}

/// Why an image may not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("{digest} is not in the ledger: nobody approved it (`trustctl approve {digest}`)")]
    Unknown { digest: String },
    #[error("{digest} was revoked by statement {seq}; a revocation is final")]
    Revoked { digest: String, seq: u64 },
    #[error("the approval of {digest} (statement {seq}) expired: it held until {exp}, now is {now}; approve it again")]
    Expired { digest: String, seq: u64, exp: u64, now: u64 },
    #[error("the approval of {digest} (statement {seq}) holds from {iat}, now is {now}; is the clock right?")]
    NotYet { digest: String, seq: u64, iat: u64, now: u64 },
    #[error("the clock is not set: it says {now}, which is before {floor}, when this node's image was built or its ledger was witnessed")]
    Clock { now: u64, floor: u64 },
    #[error(
        "the ledger is too old: enough witnesses saw it at {witnessed}, now is {now}, at most {max_age} s may lie between; trustctl log cosign, then push"
    )]
    Stale { witnessed: u64, now: u64, max_age: u64 },
    #[error("the ledger cannot be used: {0}")]
    Ledger(String),
}

impl Reason {
    /// A short name that stays the same while the reason does.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown",
            Self::Revoked { .. } => "revoked",
            Self::Expired { .. } => "expired",
            Self::NotYet { .. } => "not-yet",
            Self::Clock { .. } => "clock",
            Self::Stale { .. } => "stale",
            Self::Ledger(_) => "ledger",
        }
    }
}
