//! The decision about one image, as a value.

/// Decision of the ledger about one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The image may run.
    Allow(ImageApproval),
    /// The image must not run.
    Deny(Reason),
}

/// Approval that allows an image to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageApproval {
    /// Digest of the image's manifest.
    pub digest: String,
    /// Sequence number of the log entry that approved the image.
    pub seq: u64,
    /// First second since 1970 at which the approval is no longer valid.
    pub exp: u64,
    /// Number of approvers that signed the log entry.
    pub signers: usize,
    /// Approval in the chain's registry, if the node requires one.
    pub chain: Option<ChainApproval>,
}

/// Approval of an image in the chain's registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChainApproval {
    /// Number of the finalized execution block that has the record.
    pub block: u64,
    /// Sequence number of the record.
    pub seq: u64,
    /// First second since 1970 at which the approval is no longer valid.
    pub not_after: u64,
}

/// Reason why the chain does not let an image run. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainReason {
    /// The node has not applied a bundle yet.
    #[error(
        "no relay has given a valid bundle yet; `trustctl status` shows the problem of each relay"
    )]
    NotFollowed,
    /// No applied bundle had a record of the image.
    #[error("the relays have not been asked for it yet; they are asked now")]
    NotAsked,
    /// A finalized block proves that the registry has no record of the image.
    #[error(
        "the registry had no record of it at block {block}: its approvers must approve it there \
         (`trustctl chain approve`)"
    )]
    Absent {
        /// Number of the execution block.
        block: u64,
    },
    /// The registry revoked the image, in a finalized or an attested block.
    #[error("the registry had it revoked at block {block} (record {seq}); a revocation is final")]
    Revoked {
        /// Sequence number of the record.
        seq: u64,
        /// Number of the execution block.
        block: u64,
    },
    /// The approval in the registry expired.
    #[error(
        "its approval in the registry (record {seq}) expired: it was valid until {not_after}, now \
         is {now}; approve it again"
    )]
    Expired {
        /// Sequence number of the record.
        seq: u64,
        /// Expiry of the approval.
        not_after: u64,
        /// Time of the decision.
        now: u64,
    },
    /// The node requires an approval with proof.
    #[error("the registry had it as clear at block {block}, but this node requires proof")]
    NoProof {
        /// Number of the execution block.
        block: u64,
    },
    /// The finalized block that the decision would be based on is too old.
    #[error(
        "the newest finalized block with its record, {block}, is from {time}, now is {now}, at \
         most {max_age} s may lie between them; check that the relays are reachable"
    )]
    Stale {
        /// Number of the execution block.
        block: u64,
        /// Time of the block's slot.
        time: u64,
        /// Time of the decision.
        now: u64,
        /// Greatest age of the block in seconds.
        max_age: u64,
    },
    /// The clock is before a block that is already finalized.
    #[error("the clock is not set: it shows {now}, but a block of {floor} is already finalized")]
    Clock {
        /// Time of the decision.
        now: u64,
        /// Earliest possible time.
        floor: u64,
    },
    /// The state of the chain cannot be used, for this reason.
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

/// Reason why an image must not run. Times are in seconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// No log entry names the image.
    #[error(
        "{digest} is not in the ledger: approvers must approve it (`trustctl approve {digest}`)"
    )]
    Unknown {
        /// Digest of the image's manifest.
        digest: String,
    },
    /// A log entry revoked the image.
    #[error("{digest} was revoked by log entry {seq}; a revocation is final")]
    Revoked {
        /// Digest of the image's manifest.
        digest: String,
        /// Sequence number of the log entry.
        seq: u64,
    },
    /// The approval expired.
    #[error(
        "the approval of {digest} (log entry {seq}) expired: it was valid until {exp}, now is \
         {now}; approve it again"
    )]
    Expired {
        /// Digest of the image's manifest.
        digest: String,
        /// Sequence number of the log entry.
        seq: u64,
        /// Expiry of the approval.
        exp: u64,
        /// Time of the decision.
        now: u64,
    },
    /// The approval is not valid yet.
    #[error(
        "the approval of {digest} (log entry {seq}) is valid from {iat}, now is {now}; check the \
         clock"
    )]
    NotYet {
        /// Digest of the image's manifest.
        digest: String,
        /// Sequence number of the log entry.
        seq: u64,
        /// Start of the approval's validity.
        iat: u64,
        /// Time of the decision.
        now: u64,
    },
    /// The clock is before the image's build or before the time of the witnesses.
    #[error(
        "the clock is not set: it shows {now}, which is before {floor}, when this node's image was \
         built or its ledger was witnessed"
    )]
    Clock {
        /// Time of the decision.
        now: u64,
        /// Earliest possible time.
        floor: u64,
    },
    /// The witnesses cosigned the log too long ago.
    #[error(
        "the ledger is too old: enough witnesses saw it at {witnessed}, now is {now}, at most \
         {max_age} s may lie between them; run `trustctl log cosign`, then `trustctl log push`"
    )]
    Stale {
        /// Time that enough witnesses confirm.
        witnessed: u64,
        /// Time of the decision.
        now: u64,
        /// Greatest age of the cosignatures in seconds.
        max_age: u64,
    },
    /// The node has no usable log, for this reason.
    #[error("the ledger cannot be used: {0}")]
    Ledger(String),
    /// The chain does not let the image run.
    #[error("the chain does not allow {digest}: {reason}")]
    Chain {
        /// Digest of the image's manifest.
        digest: String,
        /// Reason of the chain.
        reason: ChainReason,
    },
}

impl Reason {
    /// Returns the code of the reason, which does not depend on its numbers (docs/ledger.md).
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
