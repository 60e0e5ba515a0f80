//! Secrets under the TPM's seal, above all the root key of modules' keys.
//!
//! Invariants:
//! - The root key is sealed to whoever signs policies (docs/crypto.md): the TPM gives it back to
//!   boots for which there is a signed policy. Neither this program nor a file decides that.
//! - From one signer to the next it goes in a boot for which both signed.
//! - A root key that is there is never replaced, but by the one that the holder of the recovery key
//!   brings back to another TPM: a mistake with policies loses nothing.
//! - First the sealed key is on disk, then its escrow; an escrow that is missing is made at the
//!   next start.

use std::path::{Path, PathBuf};

use measure::Pcr;
use policy::{
    Approved, Escrow, EscrowError, Missing, Policies, PolicyError, PublicKey, RecoveryPublic,
};
use zeroize::Zeroizing;

use crate::keys::derive::{RootKey, random};
use crate::tpm::{Sealed, Tpm, TpmError};
use crate::util::atomic_file;

const ROOT_BYTES: usize = 32;
/// What was sent is kept with what was sent before, up to so many.
const MOST_POLICIES: usize = 100;

/// What is the matter with a node that has no root key: nothing that starting again would mend.
#[derive(Debug, thiserror::Error)]
pub enum Locked {
    #[error(
        "no policy of {signer} lets this boot (PCR 14 {pcr14}) have the root key: {tried}. Whoever built or set up this image signs one: trustctl \
         policy sign, then trustctl policy send"
    )]
    Policy { signer: String, pcr14: String, tried: String },
    #[error(
        "{path} cannot be unsealed: {source}; was the TPM exchanged or cleared? With the recovery key: trustctl recovery restore"
    )]
    Tpm { path: PathBuf, source: TpmError },
    #[error("{path} is damaged: {problem}. With the recovery key: trustctl recovery restore")]
    Damaged { path: PathBuf, problem: &'static str },
    #[error(
        "there is no root key, and keys.restore of node.toml says to wait for one: trustctl recovery restore"
    )]
    Waiting,
}

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error(transparent)]
    Locked(#[from] Locked),
    #[error(transparent)]
    Tpm(#[from] TpmError),
    #[error(transparent)]
    File(#[from] atomic_file::PathError),
    #[error("the root key's escrow: {0}")]
    Escrow(#[from] EscrowError),
}

/// Why a policy or a root key is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Form(#[from] PolicyError),
    #[error("the policies are not for this node: {0}")]
    Signer(Missing),
    #[error("node.toml names no keys.recovery: nobody can bring a root key to this node")]
    NoRecovery,
    #[error("this node has its root key")]
    There,
    #[error("expected {ROOT_BYTES} bytes, found {0}")]
    Length(usize),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// The root key's place on this node, in this boot.
pub struct Vault {
    tpm: Tpm,
    pcr14: Pcr,
    /// Whose policies count for a root key that is yet to be sealed; one that is sealed says
    /// itself.
    signer: PublicKey,
    recovery: Option<RecoveryPublic>,
    restore: bool,
    data: PathBuf,
    /// The policies of the boot partition.
    shipped: PathBuf,
}

impl Vault {
    /// # Errors
    /// Where `boot` or `keys` have something that is no key.
    pub fn new(
        tpm: Tpm,
        pcr14: Pcr,
        boot: &config::Boot,
        keys: &config::Keys,
        data: &Path,
        shipped: &Path,
    ) -> anyhow::Result<Self> {
        let signer = PublicKey::from_hex(keys.signer.as_ref().unwrap_or(&boot.signer))?;
        let recovery = keys.recovery.as_deref().map(RecoveryPublic::from_hex).transpose()?;
        Ok(Self {
            tpm,
            pcr14,
            signer,
            recovery,
            restore: keys.restore,
            data: data.to_owned(),
            shipped: shipped.to_owned(),
        })
    }

    fn root(&self) -> PathBuf {
        self.data.join("root.sealed")
    }

    /// Kept policies that were sent.
    fn sent(&self) -> PathBuf {
        self.data.join("policies.json")
    }

    fn escrow_path(&self) -> PathBuf {
        self.data.join("root.escrow")
    }

    /// Unseals the root key, or makes one at the first start.
    pub async fn open(&self) -> Result<RootKey, VaultError> {
        let root = match self.sealed()? {
            None if self.restore => return Err(Locked::Waiting.into()),
            None => {
                let secret = Zeroizing::new(random(&self.tpm, ROOT_BYTES).await?);
                return self.put(RootKey::from_bytes(&secret)).await;
            }
            Some((sealed, signer)) => {
                let approved = self.approved(&signer)?;
                let root = Zeroizing::new(
                    self.tpm.unseal(sealed, Some(approved)).await.map_err(|e| self.locked(e))?,
                );
                let root = RootKey::from_bytes(&root);
                // Its signer let a boot have it that goes by another signer: from here on it is
                // that one's.
                if signer != self.signer && self.approved(&self.signer).is_ok() {
                    return self.put(root).await;
                }
                root
            }
        };
        let known = self.escrow()?;
        if self
            .recovery
            .is_some_and(|key| known.is_none_or(|escrow| escrow.recovery() != key.to_string()))
        {
            self.keep_escrow(&root)?;
        }
        Ok(root)
    }

    /// Seals a root key, and shows that it can be had again before anything depends on it.
    async fn put(&self, root: RootKey) -> Result<RootKey, VaultError> {
        let approved = self.approved(&self.signer)?;
        let sealed =
            self.tpm.seal(root.as_bytes().to_vec(), Some(self.signer.authorises())).await?;
        self.tpm.unseal(sealed.clone(), Some(approved)).await.map_err(|e| self.locked(e))?;
        // An escrow of another key must not outlive it.
        atomic_file::remove(&self.escrow_path()).map_err(atomic_file::at(&self.escrow_path()))?;
        atomic_file::write(&self.root(), &encode(&sealed, self.signer.as_bytes()))
            .map_err(atomic_file::at(&self.root()))?;
        self.keep_escrow(&root)?;
        Ok(root)
    }

    fn locked(&self, source: TpmError) -> VaultError {
        if for_good(&source) {
            Locked::Tpm { path: self.root(), source }.into()
        } else {
            source.into()
        }
    }

    fn keep_escrow(&self, root: &RootKey) -> Result<(), VaultError> {
        let Some(recovery) = self.recovery else { return Ok(()) };
        let escrow =
            serde_json::to_vec(&Escrow::seal(recovery, root.as_bytes())?).unwrap_or_default();
        Ok(atomic_file::write(&self.escrow_path(), &escrow)
            .map_err(atomic_file::at(&self.escrow_path()))?)
    }

    fn sealed(&self) -> Result<Option<(Sealed, PublicKey)>, VaultError> {
        let Some(bytes) = read(&self.root())? else { return Ok(None) };
        let damaged = |problem| Locked::Damaged { path: self.root(), problem };
        let (sealed, signer) = decode(&bytes).ok_or_else(|| damaged("it is not a sealed key"))?;
        Ok(Some((
            sealed,
            PublicKey::from_bytes(&signer).map_err(|_| damaged("it names no signer"))?,
        )))
    }

    /// The policy for this boot: from the boot partition, or from what was sent.
    fn approved(&self, signer: &PublicKey) -> Result<Approved, VaultError> {
        let mut tried = Vec::new();
        for (origin, path) in
            [("on the boot partition", &self.shipped), ("of those that were sent", &self.sent())]
        {
            let problem = match read(path)?.as_deref().map(Policies::read) {
                None => "there are none".to_owned(),
                Some(Err(error)) => error.to_string(),
                Some(Ok(policies)) => match policies.find(signer, &self.pcr14) {
                    Ok(approved) => return Ok(approved),
                    Err(missing) => missing.to_string(),
                },
            };
            tried.push(format!("{origin}: {problem}"));
        }
        Err(Locked::Policy {
            signer: signer.hex(),
            pcr14: measure::hex(&self.pcr14.0),
            tried: tried.join("; "),
        }
        .into())
    }

    /// Whose policies count here.
    ///
    /// # Errors
    /// [`VaultError`] where the sealed key cannot be read.
    pub fn signer(&self) -> Result<PublicKey, VaultError> {
        match self.sealed() {
            Ok(found) => Ok(found.map_or(self.signer, |(_, signer)| signer)),
            // It will be sealed anew.
            Err(VaultError::Locked(Locked::Damaged { .. })) => Ok(self.signer),
            Err(error) => Err(error),
        }
    }

    /// Keeps policies for this or for coming boots; says for which values of PCR 14 there are any.
    pub fn accept(&self, text: &[u8]) -> Result<Vec<String>, Refusal> {
        let mut policies = Policies::read(text)?;
        let expected = self.signer()?.hex();
        if policies.signer != expected {
            return Err(Refusal::Signer(Missing::Signer { expected, found: policies.signer }));
        }
        let known = read(&self.sent()).map_err(VaultError::from)?;
        let known = known
            .and_then(|bytes| Policies::read(&bytes).ok())
            .filter(|known| known.signer == policies.signer);
        for policy in known.map(|known| known.policies).unwrap_or_default() {
            if policies.policies.len() < MOST_POLICIES
                && policies.policies.iter().all(|other| other.pcr14 != policy.pcr14)
            {
                policies.policies.push(policy);
            }
        }
        atomic_file::write(&self.sent(), policies.text().as_bytes())
            .map_err(|e| VaultError::from(atomic_file::at(&self.sent())(e)))?;
        Ok(policies.policies.into_iter().map(|policy| policy.pcr14).collect())
    }

    /// PCR 14 of this boot.
    pub fn pcr14(&self) -> Pcr {
        self.pcr14
    }

    /// The root key for the holder of the recovery key.
    pub fn escrow(&self) -> Result<Option<Escrow>, VaultError> {
        Ok(read(&self.escrow_path())?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    pub fn recovery(&self) -> Option<String> {
        self.recovery.map(|key| key.to_string())
    }

    /// Whether a root key may be brought back.
    pub async fn wants_root(&self) -> Result<(), Refusal> {
        if self.recovery.is_none() {
            return Err(Refusal::NoRecovery);
        }
        match self.open().await {
            Ok(_) => Err(Refusal::There),
            Err(VaultError::Locked(
                Locked::Tpm { .. } | Locked::Damaged { .. } | Locked::Waiting,
            )) => Ok(()),
            // It may well be there for a boot that has a policy.
            Err(other) => Err(other.into()),
        }
    }

    /// Takes the root key that the holder of the recovery key read from the escrow.
    pub async fn restore(&self, root: &[u8]) -> Result<(), Refusal> {
        self.wants_root().await?;
        if root.len() != ROOT_BYTES {
            return Err(Refusal::Length(root.len()));
        }
        self.put(RootKey::from_bytes(root)).await?;
        Ok(())
    }
}

/// Some errors of unsealing are the secret's, others only the TPM's bad moment.
fn for_good(error: &TpmError) -> bool {
    matches!(error, TpmError::Answer { .. }) || error.is_of("Load") || error.is_of("Unseal")
}

/// A secret for this TPM alone, whatever was booted; made when there is none.
pub async fn of_this_tpm(tpm: &Tpm, path: &Path) -> Result<RootKey, VaultError> {
    if let Some((sealed, _)) = read(path)?.as_deref().and_then(decode) {
        match tpm.unseal(sealed, None).await {
            Ok(secret) => return Ok(RootKey::from_bytes(&Zeroizing::new(secret))),
            // Another TPM's, or none: begun anew.
            Err(error) if for_good(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let secret = Zeroizing::new(random(tpm, ROOT_BYTES).await?);
    let sealed = tpm.seal(secret.to_vec(), None).await?;
    atomic_file::write(path, &encode(&sealed, &[])).map_err(atomic_file::at(path))?;
    Ok(RootKey::from_bytes(&secret))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, atomic_file::PathError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(atomic_file::at(path)(error)),
    }
}

/// Four parts, each with its length before it.
fn encode(sealed: &Sealed, signer: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in [&sealed.public, &sealed.private, &sealed.parent, signer] {
        bytes.extend((part.len() as u32).to_be_bytes());
        bytes.extend(part);
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<(Sealed, Vec<u8>)> {
    fn part(bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (part, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        Some((part.to_vec(), rest))
    }
    let (public, rest) = part(bytes)?;
    let (private, rest) = part(rest)?;
    let (parent, rest) = part(rest)?;
    let (signer, rest) = part(rest)?;
    rest.is_empty().then_some((Sealed { public, private, parent }, signer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_file_is_not_a_sealed_key() {
        let good = encode(
            &Sealed { public: vec![1; 5], private: vec![2; 6], parent: vec![3; 34] },
            &[4; 65],
        );
        assert!(decode(&good).is_some());
        for end in 0..good.len() {
            assert!(decode(&good[..end]).is_none());
        }
        assert!(decode(&[&good[..], &[0]].concat()).is_none());
    }
}
