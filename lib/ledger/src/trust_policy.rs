//! The approvers and witnesses that a node trusts.

use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::approver_key::ApproverKey;
use crate::statement::{ImageStatement, Statement, Status};
use crate::witness::{WitnessPolicy, WitnessPolicyError};

const MAX_APPROVERS: usize = 64;

/// Reason why approvers or witnesses are rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TrustPolicyError {
    /// The text is not a public key.
    #[error("approver {key:?}: expected an Ed25519 public key, 64 lower-case hex digits")]
    ApproverKey {
        /// The rejected text.
        key: String,
    },
    /// An approver is listed twice.
    #[error("the approver {key} is listed twice")]
    RepeatedApprover {
        /// The approver's public key, hex.
        key: String,
    },
    /// The threshold cannot be reached, or there are too many approvers.
    #[error(
        "a threshold of {threshold} does not fit {approvers} approvers: expected 1 to their \
         number, and at most {MAX_APPROVERS} approvers"
    )]
    Threshold {
        /// Number of signatures that an approval needs.
        threshold: usize,
        /// Number of listed approvers.
        approvers: usize,
    },
    /// The keys of the log or of the witnesses are invalid.
    #[error(transparent)]
    Witnesses(#[from] WitnessPolicyError),
}

/// The keys whose signatures a node trusts, and how many of them are required.
#[derive(Debug, Clone)]
pub struct TrustPolicy {
    /// Name of the ledger. Signatures are bound to it.
    pub name: String,
    /// Approvers of the first log entry. Later entries may replace them.
    pub(crate) approvers: Arc<Approvers>,
    /// Checkpoint and cosignatures that a log must have in addition.
    pub witness_policy: Option<WitnessPolicy>,
}

impl TrustPolicy {
    /// Makes a policy without witnesses. The approvers are Ed25519 public keys in hex.
    ///
    /// # Errors
    ///
    /// Returns [`TrustPolicyError`] for a malformed, weak or repeated key, for too many approvers,
    /// and for a threshold that is zero or exceeds their number.
    pub fn new(
        name: &str,
        approvers: &[String],
        threshold: usize,
    ) -> Result<Self, TrustPolicyError> {
        let approvers = Arc::new(Approvers::new(approvers, threshold)?);
        Ok(Self { name: name.to_owned(), approvers, witness_policy: None })
    }

    /// Returns the SHA-256 of the name, the threshold and the keys. It stays the same when a log
    /// entry replaces the approvers.
    pub fn identity(&self) -> measure::Digest {
        let mut keys: Vec<&[u8]> =
            self.approvers.keys.iter().map(|key| &key.as_bytes()[..]).collect();
        keys.sort_unstable();
        let hasher = Sha256::new()
            .chain_update(b"basalt-ledger-v1\0")
            .chain_update(self.name.as_bytes())
            .chain_update([0])
            .chain_update((self.approvers.threshold as u64).to_be_bytes());
        keys.into_iter().fold(hasher, |hasher, key| hasher.chain_update(key)).finalize().into()
    }
}

impl TryFrom<&config::Ledger> for TrustPolicy {
    type Error = TrustPolicyError;

    fn try_from(settings: &config::Ledger) -> Result<Self, TrustPolicyError> {
        let config::Ledger { name, approvers, threshold, checkpoints, .. } = settings;
        let witness_policy = checkpoints
            .as_ref()
            .map(|c| WitnessPolicy::new(&c.log, &c.witnesses, c.threshold, c.max_age_s))
            .transpose()?;
        Ok(Self { witness_policy, ..Self::new(name, approvers, *threshold)? })
    }
}

/// The approvers at one place of the log.
#[derive(Debug, Clone)]
pub(crate) struct Approvers {
    pub(crate) keys: Vec<Arc<ApproverKey>>,
    pub(crate) threshold: usize,
}

impl Approvers {
    pub(crate) fn new(approvers: &[String], threshold: usize) -> Result<Self, TrustPolicyError> {
        let mut keys: Vec<Arc<ApproverKey>> = Vec::new();
        for hex in approvers {
            let key = ApproverKey::parse(hex)
                .ok_or_else(|| TrustPolicyError::ApproverKey { key: hex.clone() })?;
            if keys.iter().any(|known| known.is_same_point(&key)) {
                return Err(TrustPolicyError::RepeatedApprover { key: hex.clone() });
            }
            keys.push(Arc::new(key));
        }
        if threshold == 0 || threshold > keys.len() || keys.len() > MAX_APPROVERS {
            return Err(TrustPolicyError::Threshold { threshold, approvers: keys.len() });
        }
        Ok(Self { keys, threshold })
    }

    /// Replaces keys by equal ones of `other`, whose multiples may be computed already.
    pub(crate) fn sharing_keys_with(mut self, other: &Self) -> Self {
        for key in &mut self.keys {
            if let Some(known) = other.keys.iter().find(|known| known.hex() == key.hex()) {
                key.clone_from(known);
            }
        }
        self
    }

    /// Returns how many approvers must sign a statement. Any single approver can revoke.
    pub(crate) fn required_signatures(&self, statement: &Statement) -> usize {
        match statement {
            Statement::Image(ImageStatement { status: Status::Revoked, .. }) => 1,
            _ => self.threshold,
        }
    }
}
