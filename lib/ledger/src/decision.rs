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
    /// Where a chain is asked for: its record too.
    pub chain: Option<ChainEvidence>,
}

/// What the chain's registry says of an approved image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainEvidence {
    /// The final execution block.
    pub block: u64,
    /// The record's sequence in the registry.
    pub seq: u64,
    pub not_after: u64,
}

/// Why the chain does not let an image run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainReason {
    #[error(
        "the chain was not followed yet: no relay gave a bundle that holds (`trustctl status` names them)"
    )]
    NotFollowed,
    #[error("the chain was not asked for it yet; the relays are asked now")]
    NotAsked,
    #[error(
        "the registry did not have it at block {block}: its approvers did not approve it there (`trustctl chain approve`)"
    )]
    Absent { block: u64 },
    #[error("the registry had it revoked at block {block} (record {seq}); a revocation is final")]
    Revoked { seq: u64, block: u64 },
    #[error(
        "its approval in the registry (record {seq}) expired: it held until {not_after}, now is {now}; approve it again"
    )]
    Expired { seq: u64, not_after: u64, now: u64 },
    #[error("the registry had it as clear at block {block}, this node asks for proof")]
    NoProof { block: u64 },
    #[error(
        "the chain's newest final block that is known of it, {block}, is of {time}, now is {now}, at most {max_age} s may lie between; are the relays reached?"
    )]
    Stale { block: u64, time: u64, now: u64, max_age: u64 },
    #[error("the clock is not set: it says {now}, a block of {floor} is final already")]
    Clock { now: u64, floor: u64 },
    #[error("{0}")]
    Unusable(String),
}

impl ChainReason {
    fn code(&self) -> &'static str {
        match self {
            Self::NotFollowed => "chain-not-followed",
            Self::NotAsked => "chain-not-asked",
            Self::Absent { .. } => "chain-absent",
            Self::Revoked { .. } => "chain-revoked",
            Self::Expired { .. } => "chain-expired",
            Self::NoProof { .. } => "chain-no-proof",
            Self::Stale { .. } => "chain-stale",
            Self::Clock { .. } => "clock",
            Self::Unusable(_) => "chain",
        }
    }
}

/// Why an image may not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("{digest} is not in the ledger: nobody approved it (`trustctl approve {digest}`)")]
    Unknown { digest: String },
    #[error("{digest} was revoked by statement {seq}; a revocation is final")]
    Revoked { digest: String, seq: u64 },
    #[error(
        "the approval of {digest} (statement {seq}) expired: it held until {exp}, now is {now}; approve it again"
    )]
    Expired { digest: String, seq: u64, exp: u64, now: u64 },
    #[error(
        "the approval of {digest} (statement {seq}) holds from {iat}, now is {now}; is the clock right?"
    )]
    NotYet { digest: String, seq: u64, iat: u64, now: u64 },
    #[error(
        "the clock is not set: it says {now}, which is before {floor}, when this node's image was built or its ledger was witnessed"
    )]
    Clock { now: u64, floor: u64 },
    #[error(
        "the ledger is too old: enough witnesses saw it at {witnessed}, now is {now}, at most {max_age} s may lie between; trustctl log cosign, then push"
    )]
    Stale { witnessed: u64, now: u64, max_age: u64 },
    #[error("the ledger cannot be used: {0}")]
    Ledger(String),
    #[error("the chain does not let {digest} run: {reason}")]
    Chain { digest: String, reason: ChainReason },
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
            Self::Chain { reason, .. } => reason.code(),
        }
    }
}
