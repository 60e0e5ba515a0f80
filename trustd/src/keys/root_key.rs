//! The root key of the modules' keys, under the TPM's seal.
//!
//! Invariants:
//! - The root key is sealed to the signer of policies (docs/crypto.md): the TPM returns it to boots
//!   for which that signer signed a policy. Neither this program nor a file decides that.
//! - The root key moves from one signer to the next only in a boot for which both signed.
//! - An existing root key is replaced only by one that the holder of the recovery key restores
//!   after an exchange of the TPM, so a mistake with policies loses nothing.
//! - The sealed key is written before its escrow. A missing escrow is made at the next start.

use std::path::{Path, PathBuf};

use measure::Pcr;
use policy::{AuthorizedPolicy, Escrow, Policies, PolicyMismatch, PublicKey, RecoveryPublicKey};
use zeroize::Zeroizing;

use super::derive::{ROOT_KEY_BYTES, RootKey, generate_random};
use super::error::{LockReason, ProvisionError, VaultError};
use super::sealed_file::{decode, encode, is_permanent, read};
use crate::tpm::{SealedSecret, Tpm, TpmError};
use crate::util::atomic_file;
use crate::util::error_chain::error_chain;

/// Number of policies that a node stores. The newest stay.
const MAX_STORED_POLICIES: usize = 100;

/// The place of the root key on this node, in this boot.
pub struct RootKeyVault {
    tpm: Tpm,
    pcr14: Pcr,
    /// Signer to whom a new root key is sealed. The file of a sealed key names its own signer.
    signer: PublicKey,
    recovery: Option<RecoveryPublicKey>,
    /// Whether a node without a root key waits for one instead of generating it.
    await_restore: bool,
    data: PathBuf,
    /// Policies on the boot partition.
    shipped_policies: PathBuf,
}

impl RootKeyVault {
    /// Creates the vault without reading any file.
    ///
    /// # Errors
    /// Fails if `boot` or `keys` contains an invalid public key.
    pub fn new(
        tpm: Tpm,
        pcr14: Pcr,
        boot: &config::Boot,
        keys: &config::Keys,
        data: &Path,
        shipped_policies: &Path,
    ) -> anyhow::Result<Self> {
        let signer = PublicKey::from_hex(keys.signer.as_ref().unwrap_or(&boot.signer))?;
        let recovery = keys.recovery.as_deref().map(RecoveryPublicKey::from_hex).transpose()?;
        Ok(Self {
            tpm,
            pcr14,
            signer,
            recovery,
            await_restore: keys.restore,
            data: data.to_owned(),
            shipped_policies: shipped_policies.to_owned(),
        })
    }

    fn sealed_key_path(&self) -> PathBuf {
        self.data.join("root.sealed")
    }

    fn stored_policies_path(&self) -> PathBuf {
        self.data.join("policies.json")
    }

    fn escrow_path(&self) -> PathBuf {
        self.data.join("root.escrow")
    }

    /// Unseals the root key, or generates one at the first start.
    ///
    /// # Errors
    /// [`VaultError::Locked`] if this boot cannot have the root key, another [`VaultError`] if the
    /// TPM or a file fails.
    pub async fn open(&self) -> Result<RootKey, VaultError> {
        let root = match self.read_sealed()? {
            None if self.await_restore => return Err(LockReason::AwaitingRestore.into()),
            None => {
                let secret = Zeroizing::new(generate_random(&self.tpm, ROOT_KEY_BYTES).await?);
                return self.store(RootKey::from_bytes(&secret)).await;
            }
            Some((sealed, signer)) => {
                let policy = self.find_policy(&signer)?;
                let secret = self.tpm.unseal(sealed, Some(policy)).await;
                let secret = Zeroizing::new(secret.map_err(|e| self.classify(e))?);
                let root = RootKey::from_bytes(&secret);
                // The old signer authorised a boot that has another signer. If that one also
                // authorises the boot, the key is sealed to it from here on.
                if signer != self.signer && self.find_policy(&self.signer).is_ok() {
                    return self.store(root).await;
                }
                root
            }
        };
        let escrow = self.escrow()?;
        let is_outdated = |key: RecoveryPublicKey| {
            escrow.is_none_or(|escrow| escrow.recovery() != key.to_string())
        };
        if self.recovery.is_some_and(is_outdated) {
            self.write_escrow(&root)?;
        }
        Ok(root)
    }

    /// Seals a root key, and verifies that it can be unsealed before anything depends on it.
    async fn store(&self, root: RootKey) -> Result<RootKey, VaultError> {
        let policy = self.find_policy(&self.signer)?;
        let (secret, authorization) =
            (root.as_bytes().to_vec(), self.signer.authorization_policy());
        let sealed = self.tpm.seal(secret, Some(authorization)).await?;
        let unsealed = self.tpm.unseal(sealed.clone(), Some(policy)).await;
        unsealed.map(Zeroizing::new).map_err(|e| self.classify(e))?;
        // An escrow of another key must not outlive that key.
        atomic_file::remove(&self.escrow_path()).map_err(atomic_file::at(&self.escrow_path()))?;
        let path = self.sealed_key_path();
        atomic_file::write(&path, &encode(&sealed, self.signer.as_bytes()))
            .map_err(atomic_file::at(&path))?;
        self.write_escrow(&root)?;
        Ok(root)
    }

    /// Distinguishes a locked node from a temporary failure of the TPM.
    fn classify(&self, source: TpmError) -> VaultError {
        if is_permanent(&source) {
            LockReason::Tpm { path: self.sealed_key_path(), source }.into()
        } else {
            source.into()
        }
    }

    fn write_escrow(&self, root: &RootKey) -> Result<(), VaultError> {
        let Some(recovery) = self.recovery else { return Ok(()) };
        let escrow = Escrow::seal(recovery, root.as_bytes())?;
        let escrow = serde_json::to_vec(&escrow).unwrap_or_default();
        Ok(atomic_file::write(&self.escrow_path(), &escrow)
            .map_err(atomic_file::at(&self.escrow_path()))?)
    }

    fn read_sealed(&self) -> Result<Option<(SealedSecret, PublicKey)>, VaultError> {
        let path = self.sealed_key_path();
        let Some(bytes) = read(&path)? else { return Ok(None) };
        let damaged = |problem| LockReason::Damaged { path: path.clone(), problem };
        let (sealed, signer) = decode(&bytes).ok_or_else(|| damaged("it is not a sealed key"))?;
        let signer = PublicKey::from_bytes(&signer)
            .map_err(|_| damaged("it does not contain a signer's public key"))?;
        Ok(Some((sealed, signer)))
    }

    /// Returns the policy for this boot, from the boot partition or from those that were sent.
    fn find_policy(&self, signer: &PublicKey) -> Result<AuthorizedPolicy, VaultError> {
        let mut attempts = Vec::new();
        let places = [
            ("on the boot partition", &self.shipped_policies),
            ("sent to the node", &self.stored_policies_path()),
        ];
        for (place, path) in places {
            let problem = match read(path)?.as_deref().map(Policies::parse) {
                None => "there are no policies".to_owned(),
                Some(Err(error)) => error_chain(&error),
                Some(Ok(policies)) => match policies.find(signer, &self.pcr14) {
                    Ok(policy) => return Ok(policy),
                    Err(mismatch) => error_chain(&mismatch),
                },
            };
            attempts.push(format!("{place}: {problem}"));
        }
        Err(LockReason::Policy {
            signer: signer.hex(),
            pcr14: measure::hex(&self.pcr14.0),
            attempts: attempts.join("; "),
        }
        .into())
    }

    /// Returns the public key whose policies count.
    ///
    /// # Errors
    /// [`VaultError`] if the sealed key cannot be read.
    pub fn signer(&self) -> Result<PublicKey, VaultError> {
        match self.read_sealed() {
            Ok(sealed) => Ok(sealed.map_or(self.signer, |(_, signer)| signer)),
            // A restored root key will be sealed to the configured signer.
            Err(VaultError::Locked(LockReason::Damaged { .. })) => Ok(self.signer),
            Err(error) => Err(error),
        }
    }

    /// Stores policies for this boot or for later ones, in addition to those that were sent before.
    /// Returns the values of PCR 14 (hex) that have a stored policy, newest first.
    ///
    /// # Errors
    /// [`ProvisionError`] if the policies are malformed or of another signer, or if a file fails.
    pub fn accept_policies(&self, text: &[u8]) -> Result<Vec<String>, ProvisionError> {
        let mut policies = Policies::parse(text)?;
        let expected = self.signer()?.hex();
        if policies.signer != expected {
            let mismatch = PolicyMismatch::Signer { expected, found: policies.signer };
            return Err(ProvisionError::Signer(mismatch));
        }
        let path = self.stored_policies_path();
        let stored = read(&path).map_err(VaultError::from)?;
        let stored = stored
            .and_then(|bytes| Policies::parse(&bytes).ok())
            .filter(|stored| stored.signer == policies.signer);
        for policy in stored.map(|stored| stored.policies).unwrap_or_default() {
            if policies.policies.len() < MAX_STORED_POLICIES
                && policies.policies.iter().all(|other| other.pcr14 != policy.pcr14)
            {
                policies.policies.push(policy);
            }
        }
        atomic_file::write(&path, policies.text().as_bytes())
            .map_err(|e| VaultError::from(atomic_file::at(&path)(e)))?;
        Ok(policies.policies.into_iter().map(|policy| policy.pcr14).collect())
    }

    /// Returns the value of PCR 14 of this boot.
    pub fn pcr14(&self) -> Pcr {
        self.pcr14
    }

    /// Returns the root key encrypted for the holder of the recovery key, if there is an escrow.
    ///
    /// # Errors
    /// [`VaultError::File`].
    pub fn escrow(&self) -> Result<Option<Escrow>, VaultError> {
        Ok(read(&self.escrow_path())?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Returns the recovery key that node.toml names, hex.
    pub fn recovery_key(&self) -> Option<String> {
        self.recovery.map(|key| key.to_string())
    }

    /// Checks that a root key may be restored.
    ///
    /// # Errors
    /// [`ProvisionError`] if the node has no recovery key, has its root key, or lacks only a policy
    /// for this boot. In the last case a boot with a policy can still have the key.
    pub async fn check_restorable(&self) -> Result<(), ProvisionError> {
        if self.recovery.is_none() {
            return Err(ProvisionError::NoRecoveryKey);
        }
        match self.open().await {
            Ok(_) => Err(ProvisionError::AlreadyPresent),
            Err(VaultError::Locked(
                LockReason::Tpm { .. } | LockReason::Damaged { .. } | LockReason::AwaitingRestore,
            )) => Ok(()),
            Err(other) => Err(other.into()),
        }
    }

    /// Seals the root key that the holder of the recovery key decrypted from the escrow.
    ///
    /// # Errors
    /// [`ProvisionError`]; see [`Self::check_restorable`].
    pub async fn restore(&self, root: &[u8]) -> Result<(), ProvisionError> {
        self.check_restorable().await?;
        if root.len() != ROOT_KEY_BYTES {
            return Err(ProvisionError::KeyLength(root.len()));
        }
        self.store(RootKey::from_bytes(root)).await?;
        Ok(())
    }
}
