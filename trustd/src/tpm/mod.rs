//! The TPM, owned by one thread.
//!
//! Invariants:
//! - Only this thread accesses the TPM; all other code sends it requests through [`Tpm`].
//! - Requests wait in a bounded queue.
//! - Every handle is flushed on every path.

mod counter;
mod device;
mod endorsement;
mod error;
mod nv;
mod retry;
mod sealing;
mod thread;
mod types;

use measure::{Digest, Pcr};
use policy::AuthorizedPolicy;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use self::thread::{Reply, Request};

pub use self::error::TpmError;
pub use self::types::{Endorsement, ResetCounts, SealedSecret, SignedQuote};

/// Number of requests that may wait for the TPM. Each module and all anonymous clients together
/// have one request at a time, so the queue has room for about 60 modules. When it is full,
/// [`Tpm::get_random`] and [`Tpm::activate_credential`] fail with [`TpmError::Busy`]. All other
/// requests wait for a place.
const REQUEST_QUEUE_LEN: usize = 64;

/// Handle of the thread that owns the TPM.
#[derive(Clone)]
pub struct Tpm(mpsc::Sender<Request>);

impl Tpm {
    /// Opens the TPM that a TCTI configuration names (`device:/dev/tpmrm0`, `swtpm:path=…`).
    ///
    /// # Errors
    /// [`TpmError`] if the TPM cannot be opened.
    pub async fn open(tcti: &str) -> Result<Self, TpmError> {
        let (sender, requests) = mpsc::channel(REQUEST_QUEUE_LEN);
        let (opened, result) = oneshot::channel();
        let tcti = tcti.to_owned();
        std::thread::spawn(move || thread::run(&tcti, opened, requests));
        result.await.map_err(|_| TpmError::Stopped)??;
        Ok(Self(sender))
    }

    /// Sends a request that must not be lost: waits for a place in the queue.
    async fn send<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, TpmError> {
        let (reply, result) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| TpmError::Stopped)?;
        result.await.map_err(|_| TpmError::Stopped)?
    }

    /// Sends a request, or returns [`TpmError::Busy`] if the queue is full.
    async fn try_send<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, TpmError> {
        let (reply, result) = oneshot::channel();
        self.0.try_send(request(reply)).map_err(|error| match error {
            TrySendError::Full(_) => TpmError::Busy,
            TrySendError::Closed(_) => TpmError::Stopped,
        })?;
        result.await.map_err(|_| TpmError::Stopped)?
    }

    /// Returns `len` random bytes of the TPM's own generator.
    ///
    /// # Errors
    /// [`TpmError`], in particular [`TpmError::Busy`].
    pub async fn get_random(&self, len: usize) -> Result<Vec<u8>, TpmError> {
        self.try_send(|reply| Request::GetRandom(len, reply)).await
    }

    /// Reads a register of the SHA-256 bank.
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn read_pcr(&self, pcr: u32) -> Result<Pcr, TpmError> {
        self.send(|reply| Request::ReadPcr(pcr, reply)).await
    }

    /// Extends PCR 15 of the SHA-256 bank.
    ///
    /// # Errors
    /// [`TpmError`], also for every other register. After an error, the register may or may not be
    /// extended.
    pub async fn extend_pcr(&self, pcr: u32, digest: Digest) -> Result<(), TpmError> {
        self.send(|reply| Request::ExtendPcr(pcr, digest, reply)).await
    }

    /// Quotes PCR 14 and 15 (SHA-256) with this qualifying data
    /// ([`measure::AttestedStatement::qualifying_data`]).
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn quote(&self, qualifying_data: Digest) -> Result<SignedQuote, TpmError> {
        self.send(|reply| Request::Quote(qualifying_data, reply)).await
    }

    /// Returns the endorsement key and its certificate.
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn read_endorsement(&self) -> Result<Endorsement, TpmError> {
        self.send(Request::ReadEndorsement).await
    }

    /// Returns the secret of a credential that was made for this TPM's endorsement key and its
    /// attestation key. `blob` is a TPMS_ID_OBJECT, `seed` a TPMS_ECC_POINT.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::is_rejection_of`] `ActivateCredential` if the credential was made
    /// for other keys or is malformed.
    pub async fn activate_credential(
        &self,
        blob: Vec<u8>,
        seed: Vec<u8>,
    ) -> Result<Vec<u8>, TpmError> {
        self.try_send(|reply| Request::ActivateCredential(blob, seed, reply)).await
    }

    /// Seals a secret to this TPM and, if a policy is given, to sessions that satisfy it.
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn seal(
        &self,
        secret: Vec<u8>,
        policy: Option<Digest>,
    ) -> Result<SealedSecret, TpmError> {
        self.send(|reply| Request::Seal(secret, policy, reply)).await
    }

    /// Unseals a secret. One that is sealed to a signer needs a policy that the signer approved for
    /// the present value of PCR 14.
    ///
    /// # Errors
    /// [`TpmError`]; [`TpmError::is_rejection_of`] `Load` or `Unseal` if the secret is not of this
    /// TPM or the policy is not satisfied.
    pub async fn unseal(
        &self,
        sealed: SealedSecret,
        policy: Option<AuthorizedPolicy>,
    ) -> Result<Vec<u8>, TpmError> {
        self.send(|reply| Request::Unseal(sealed, policy.map(Box::new), reply)).await
    }

    /// Returns the value of trustd's monotonic counter, or `None` if it was never incremented.
    ///
    /// # Errors
    /// [`TpmError`].
    pub async fn read_counter(&self) -> Result<Option<u64>, TpmError> {
        self.send(Request::ReadCounter).await
    }

    /// Increments trustd's monotonic counter and returns its new value.
    ///
    /// # Errors
    /// [`TpmError`]. After an error, the counter may or may not be incremented.
    pub async fn increment_counter(&self) -> Result<u64, TpmError> {
        self.send(Request::IncrementCounter).await
    }
}
