//! `policies.json`: which boots may unseal, each signed.

use measure::{Board, Digest, LARGEST_POLICIES as LARGEST, Pcr};
use serde::{Deserialize, Serialize};

use crate::signer::{REFERENCE, pcr_policy, to_sign};
use crate::{NotAKey, PublicKey, Signer};

/// Policies of one signer. The fields are in the order in which they are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policies {
    /// SEC 1, uncompressed, hex.
    pub signer: String,
    pub policies: Vec<SignedPolicy>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedPolicy {
    /// For people; not signed.
    pub board: String,
    /// Hex.
    pub pcr14: String,
    /// ECDSA: r and s, 32 bytes each, hex.
    pub signature: String,
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("there are more than {LARGEST} bytes")]
    Size,
    #[error("it is not a list of policies: {0}")]
    Form(#[from] serde_json::Error),
    #[error("the signer: {0}")]
    Signer(#[from] NotAKey),
    #[error("policy {n} ({board}): {problem}")]
    Policy { n: usize, board: String, problem: &'static str },
}

/// Why no policy lets this boot unseal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    #[error("they are signed by {found}, expected {expected}")]
    Signer { expected: String, found: String },
    #[error("none is for this boot's PCR 14 {pcr14}")]
    Boot { pcr14: String },
}

/// What the TPM is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approved {
    pub signer: PublicKey,
    /// approvedPolicy of TPM2_PolicyAuthorize.
    pub policy: Digest,
    /// The digest that is signed.
    pub digest: Digest,
    pub signature: [u8; 64],
}

impl Approved {
    /// policyRef of TPM2_PolicyAuthorize.
    pub const REFERENCE: &[u8] = REFERENCE;
}

impl Policies {
    /// For these boards of an image.
    pub fn sign(signer: &Signer, boards: &[Board]) -> Self {
        let policies =
            boards.iter().map(|board| signer.sign(&board.board, &board.platform())).collect();
        Self { signer: signer.public().hex(), policies }
    }

    pub fn text(&self) -> String {
        // Strings only: this cannot fail.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// Reads policies, of which each must be signed by whom they name: whether that is somebody
    /// whose policies count is another question.
    ///
    /// # Errors
    /// [`PolicyError`]; one bad policy spoils all.
    pub fn read(text: &[u8]) -> Result<Self, PolicyError> {
        if text.len() as u64 > LARGEST {
            return Err(PolicyError::Size);
        }
        let policies: Self = serde_json::from_slice(text)?;
        let signer = PublicKey::from_hex(&policies.signer)?;
        for (n, policy) in policies.policies.iter().enumerate() {
            let fail = |problem| PolicyError::Policy { n, board: policy.board.clone(), problem };
            let (digest, signature) = policy
                .parts()
                .ok_or_else(|| fail("expected a digest and a signature in lower-case hex"))?;
            if !signer.signed(&digest, &signature) {
                return Err(fail("its signature is not the signer's"));
            }
        }
        Ok(policies)
    }

    /// The one for a boot that ended with this value of PCR 14.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn find(&self, signer: &PublicKey, pcr14: &Pcr) -> Result<Approved, Missing> {
        if self.signer != signer.hex() {
            return Err(Missing::Signer { expected: signer.hex(), found: self.signer.clone() });
        }
        let pcr14 = measure::hex(&pcr14.0);
        let found = self
            .policies
            .iter()
            .filter(|policy| policy.pcr14 == pcr14)
            .find_map(SignedPolicy::parts);
        let (policy, signature) = found.ok_or(Missing::Boot { pcr14 })?;
        Ok(Approved { signer: *signer, policy, digest: to_sign(&policy), signature })
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
        let signer = Signer::of_builder(&[7; 32]);
        Policies {
            signer: signer.public().hex(),
            policies: vec![signer.sign("a", &Pcr([1; 32])), signer.sign("b", &Pcr([2; 32]))],
        }
    }

    #[test]
    fn the_file_is_the_one_that_init_hands_over() {
        assert_eq!(format!("/boot/{}", crate::FILE), measure::POLICIES);
    }

    #[test]
    fn a_policy_is_for_one_boot_and_of_one_signer() {
        let (policies, signer) = (signed(), Signer::of_builder(&[7; 32]).public());
        assert_eq!(Policies::read(policies.text().as_bytes()).unwrap(), policies);
        assert_eq!(policies.text(), signed().text(), "the same at every build");
        let found = policies.find(&signer, &Pcr([2; 32])).unwrap();
        assert!(signer.signed(&found.policy, &found.signature));
        assert!(matches!(policies.find(&signer, &Pcr([3; 32])), Err(Missing::Boot { .. })));
        let other = Signer::of_builder(&[8; 32]).public();
        assert!(matches!(policies.find(&other, &Pcr([1; 32])), Err(Missing::Signer { .. })));
    }

    #[test]
    fn nothing_in_it_can_be_altered() {
        let good = signed();
        let refused = |alter: &dyn Fn(&mut Policies)| {
            let mut bad = good.clone();
            alter(&mut bad);
            Policies::read(bad.text().as_bytes()).unwrap_err().to_string()
        };
        assert!(
            refused(&|p| p.signer = Signer::of_builder(&[8; 32]).public().hex())
                .contains("policy 0 (a)")
        );
        assert!(refused(&|p| p.signer.truncate(64)).contains("NIST P-256"));
        assert!(
            refused(&|p| p.signer = format!("04{}", "11".repeat(64))).contains("NIST P-256"),
            "not on the curve"
        );
        assert!(
            refused(&|p| p.policies[1].pcr14 = p.policies[0].pcr14.clone())
                .contains("policy 1 (b)")
        );
        assert!(refused(&|p| p.policies[0].signature.truncate(126)).contains("policy 0 (a)"));
        assert!(
            refused(&|p| p.policies[0].board = "x".repeat(LARGEST as usize)).contains("more than")
        );
        let unknown = good.text().replacen("\"signer\"", "\"more\": 1, \"signer\"", 1);
        assert!(
            Policies::read(unknown.as_bytes()).unwrap_err().to_string().contains("unknown field")
        );
    }
}
