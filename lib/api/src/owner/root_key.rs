//! Policies that unseal the root key, and its restoration.

use serde::{Deserialize, Serialize};

/// Answer of `GET /v1/policies`: the policy that unseals the root key in this boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRequirement {
    /// Key whose policies the node accepts: P-256, SEC 1 uncompressed, hex.
    pub signer: String,
    /// PCR 14 of this boot, hex.
    pub pcr14: String,
}

/// Answer of `PUT /v1/policies`. The request is [`policy::Policies`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedPolicies {
    /// Values of PCR 14 for which the node now has a policy, hex.
    pub pcr14: Vec<String>,
    /// Whether one of them is the value of this boot.
    pub this_boot: bool,
}

/// Request of `PUT /v1/recovery`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootKey {
    /// The root key, 32 bytes, hex.
    pub root: String,
}

impl std::fmt::Debug for RootKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RootKey(..)")
    }
}

/// Answer of `PUT /v1/recovery`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestoredRootKey {
    /// Always true. trustd restarts with the key.
    pub restored: bool,
}
