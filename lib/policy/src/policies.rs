//! `policies.json`: signed policies, one for each boot that may unseal the root key.

use measure::{Board, Digest, MAX_POLICIES_BYTES, Pcr};
use serde::{Deserialize, Serialize};

use crate::signer::{REFERENCE, authorized_hash, pcr_policy};
use crate::{InvalidPublicKey, PublicKey, SignedPolicy, Signer};

/// Policies of one signer. The file has the members in the order of the fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// Public key of the signer: SEC 1, uncompressed, hex.
    pub signer: String,
    /// One policy for each board.
    pub policies: Vec<SignedPolicy>,
}

/// Error of parsing policies.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The text is too long.
    #[error("expected at most {MAX_POLICIES_BYTES} bytes, found {found}")]
    Size {
        /// Length of the text in bytes.
        found: usize,
    },
    /// The text is not JSON of the expected form.
    #[error("not a list of policies")]
    Json(#[from] serde_json::Error),
    /// The signer's key does not decode.
    #[error("invalid signer")]
    Signer(#[from] InvalidPublicKey),
    /// A policy is malformed, or its signature is not the signer's.
    #[error("policy {index} ({board}): {problem}")]
    Policy {
        /// Position in the list, from 0 on.
        index: usize,
        /// Name of the board.
        board: String,
        /// Description of the problem.
        problem: &'static str,
    },
}

/// Reason why no policy of a list authorises a boot.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyMismatch {
    /// Another key signed the policies.
    #[error("policies are signed by {found}, expected {expected}")]
    Signer {
        /// Key whose policies count, hex.
        expected: String,
        /// Key that signed the policies, hex.
        found: String,
    },
    /// No policy has the value of PCR 14.
    #[error("no policy for PCR 14 {pcr14} of this boot")]
    Boot {
        /// Value of PCR 14, hex.
        pcr14: String,
    },
}

/// Arguments of TPM2_PolicyAuthorize.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizedPolicy {
    /// Key that signed the policy.
    pub signer: PublicKey,
    /// Digest of the policy (approvedPolicy).
    pub policy: Digest,
    /// Digest that is signed (aHash).
    pub digest: Digest,
    /// ECDSA signature, r and s of 32 bytes each.
    pub signature: [u8; 64],
}

impl AuthorizedPolicy {
    /// Qualifier of the policy (policyRef).
    pub const REFERENCE: &[u8] = REFERENCE;
}

impl Policies {
    /// Signs one policy for each board of an image.
    pub fn sign(signer: &Signer, boards: &[Board]) -> Self {
        let policies =
            boards.iter().map(|board| signer.sign(&board.board, &board.platform_pcr())).collect();
        Self { signer: signer.public().hex(), policies }
    }

    /// Serializes the policies in the form of the file.
    pub fn text(&self) -> String {
        // Serializing strings cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Parses policies and verifies that the signer they name signed each of them. The caller
    /// decides whether that signer's policies count.
    ///
    /// # Errors
    ///
    /// Returns [`PolicyError`] if the text is too long or malformed, or if any policy is invalid.
    pub fn parse(text: &[u8]) -> Result<Self, PolicyError> {
        if text.len() as u64 > MAX_POLICIES_BYTES {
            return Err(PolicyError::Size { found: text.len() });
        }
        let policies: Self = serde_json::from_slice(text)?;
        let signer = PublicKey::from_hex(&policies.signer)?;
        for (index, policy) in policies.policies.iter().enumerate() {
            let reject =
                |problem| PolicyError::Policy { index, board: policy.board.clone(), problem };
            let (digest, signature) = policy
                .parts()
                .ok_or_else(|| reject("expected a digest and a signature in lower-case hex"))?;
            if !signer.verifies(&digest, &signature) {
                return Err(reject("the signature is not the signer's"));
            }
        }
        Ok(policies)
    }

    /// Returns the policy for a boot with this value of PCR 14.
    ///
    /// # Errors
    ///
    /// Returns [`PolicyMismatch`] if the policies are of another signer, or if none has the value.
    pub fn find(
        &self,
        signer: &PublicKey,
        pcr14: &Pcr,
    ) -> Result<AuthorizedPolicy, PolicyMismatch> {
        if self.signer != signer.hex() {
            return Err(PolicyMismatch::Signer {
                expected: signer.hex(),
                found: self.signer.clone(),
            });
        }
        let pcr14 = measure::hex(&pcr14.0);
        let found = self
            .policies
            .iter()
            .filter(|policy| policy.pcr14 == pcr14)
            .find_map(SignedPolicy::parts);
        let (policy, signature) = found.ok_or(PolicyMismatch::Boot { pcr14 })?;
        Ok(AuthorizedPolicy {
            signer: *signer,
            policy,
            digest: authorized_hash(&policy),
            signature,
        })
    }
}

impl SignedPolicy {
    fn parts(&self) -> Option<(Digest, [u8; 64])> {
        let pcr14: Digest = measure::unhex(&self.pcr14)?.try_into().ok()?;
        Some((pcr_policy(&Pcr(pcr14)), measure::unhex(&self.signature)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> Policies {
        let signer = Signer::from_builder_key(&[7; 32]);
        Policies {
            signer: signer.public().hex(),
            policies: vec![signer.sign("a", &Pcr([1; 32])), signer.sign("b", &Pcr([2; 32]))],
        }
    }

    fn chain(error: &PolicyError) -> String {
        let cause = std::error::Error::source(error);
        cause.map_or(error.to_string(), |cause| format!("{error}: {cause}"))
    }

    #[test]
    fn the_file_name_matches_the_path_that_init_reads() {
        assert_eq!(format!("/boot/{}", crate::FILE_NAME), measure::POLICIES_PATH);
    }

    #[test]
    fn a_policy_authorises_one_boot_under_one_signer() {
        let (policies, signer) = (signed(), Signer::from_builder_key(&[7; 32]).public());
        assert_eq!(Policies::parse(policies.text().as_bytes()).unwrap(), policies);
        assert_eq!(policies.text(), signed().text(), "signatures are deterministic");
        let found = policies.find(&signer, &Pcr([2; 32])).unwrap();
        assert!(signer.verifies(&found.policy, &found.signature));
        assert!(matches!(policies.find(&signer, &Pcr([3; 32])), Err(PolicyMismatch::Boot { .. })));
        let other = Signer::from_builder_key(&[8; 32]).public();
        assert!(matches!(policies.find(&other, &Pcr([1; 32])), Err(PolicyMismatch::Signer { .. })));
    }

    #[test]
    fn altered_policies_are_rejected() {
        let good = signed();
        let error = |alter: &dyn Fn(&mut Policies)| {
            let mut bad = good.clone();
            alter(&mut bad);
            chain(&Policies::parse(bad.text().as_bytes()).unwrap_err())
        };
        assert!(
            error(&|p| p.signer = Signer::from_builder_key(&[8; 32]).public().hex())
                .contains("policy 0 (a)")
        );
        assert!(error(&|p| p.signer.truncate(64)).contains("NIST P-256"));
        assert!(
            error(&|p| p.signer = format!("04{}", "11".repeat(64))).contains("NIST P-256"),
            "not on the curve"
        );
        assert!(
            error(&|p| p.policies[1].pcr14 = p.policies[0].pcr14.clone()).contains("policy 1 (b)")
        );
        assert!(error(&|p| p.policies[0].signature.truncate(126)).contains("policy 0 (a)"));
        assert!(
            error(&|p| p.policies[0].board = "x".repeat(MAX_POLICIES_BYTES as usize))
                .contains("at most")
        );
        let unknown = good.text().replacen("\"signer\"", "\"more\": 1, \"signer\"", 1);
        let error = chain(&Policies::parse(unknown.as_bytes()).unwrap_err());
        assert!(error.starts_with("not a list of policies: unknown field"), "{error}");
    }
}
