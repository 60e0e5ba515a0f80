//! The TPM, owned by one thread.
//!
//! Invariants: only this thread speaks to the TPM; requests wait in a bounded queue; every handle
//! is flushed on every path.

mod counter;
mod device;
mod endorsement;
mod nv;
mod retry;
mod sealing;

use measure::{Digest, Pcr};
use policy::Approved;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

const QUEUE: usize = 64;

#[derive(Debug, thiserror::Error)]
pub enum TpmError {
    #[error("the TPM refused {what}: {source}")]
    Refused { what: &'static str, source: tss_esapi::Error },
    #[error("the TPM's answer to {what} is not usable: {problem}")]
    Answer { what: &'static str, problem: String },
    #[error(
        "the TPM is locked out after too many wrong passwords (dictionary attack lockout); it ends by itself after its recovery time, nothing that \
         trustd keeps in it can be guessed at and so none of it adds to that"
    )]
    Lockout,
    #[error("the TPM's queue is full; try again")]
    Busy,
    #[error("the TPM's thread has ended")]
    Gone,
}

/// A signed statement of the TPM about its registers.
#[derive(Debug, Clone)]
pub struct SignedQuote {
    /// TPMS_ATTEST as the TPM made it.
    pub attest: Vec<u8>,
    /// ECDSA over its SHA-256: r and s, 32 bytes each.
    pub signature: Vec<u8>,
    /// The attestation key's TPMT_PUBLIC.
    pub key: Vec<u8>,
    /// What is in `attest` of them.
    pub resets: Resets,
}

/// How often the TPM began anew and went on after a sleep (TPM 2.0 Library, Part 1, 36.5
/// "resetCount", "restartCount").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resets {
    pub reset: u32,
    pub restart: u32,
}

/// Which TPM this is.
#[derive(Debug, Clone)]
pub struct Endorsement {
    /// The endorsement key's TPMT_PUBLIC.
    pub area: Vec<u8>,
    /// The manufacturer's certificate for it (X.509, DER), where the TPM has one.
    pub certificate: Option<Vec<u8>>,
}

/// A secret in its sealed form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub public: Vec<u8>,
    pub private: Vec<u8>,
    /// Name of the key that it is sealed under. Sessions are salted with that key: with another
    /// one, somebody on the bus would be listening.
    pub parent: Vec<u8>,
}

enum Request {
    Random(usize, oneshot::Sender<Result<Vec<u8>, TpmError>>),
    Read(u32, oneshot::Sender<Result<Pcr, TpmError>>),
    Extend(u32, Digest, oneshot::Sender<Result<(), TpmError>>),
    Quote(Digest, oneshot::Sender<Result<SignedQuote, TpmError>>),
    Endorsement(oneshot::Sender<Result<Endorsement, TpmError>>),
    Activate(Vec<u8>, Vec<u8>, oneshot::Sender<Result<Vec<u8>, TpmError>>),
    Seal(Vec<u8>, Option<Digest>, oneshot::Sender<Result<Sealed, TpmError>>),
    Unseal(Sealed, Option<Box<Approved>>, oneshot::Sender<Result<Vec<u8>, TpmError>>),
    Counter(oneshot::Sender<Result<Option<u64>, TpmError>>),
    Increment(oneshot::Sender<Result<u64, TpmError>>),
}

/// In two commands: were both one, a TPM that is busy at the second could be asked for another
/// step.
fn increment(tpm: &mut retry::Patient) -> Result<u64, TpmError> {
    tpm.ask(|d| d.step())?;
    tpm.ask(|d| d.counter())?.ok_or_else(|| TpmError::Answer {
        what: "NV_Increment",
        problem: "the counter is gone".into(),
    })
}

/// How to reach the TPM's thread.
#[derive(Clone)]
pub struct Tpm(mpsc::Sender<Request>);

impl TpmError {
    /// The TPM looked at what it was given and found it wrong (format-one codes: TPM 2.0 Library,
    /// Part 2, 6.6.2); nothing was the matter with the TPM.
    pub fn is_of(&self, command: &str) -> bool {
        let found_wrong = |source: &tss_esapi::Error| {
            use tss_esapi::constants::response_code::Tss2ResponseCode;
            matches!(
                source,
                tss_esapi::Error::WrapperError(_)
                    | tss_esapi::Error::Tss2Error(Tss2ResponseCode::FormatOne(_))
            )
        };
        matches!(self, Self::Refused { what, source } if what.starts_with(command) && found_wrong(source))
    }
}

impl Tpm {
    /// Opens the TPM that a TCTI configuration names (`device:/dev/tpmrm0`, `swtpm:path=…`).
    pub async fn open(tcti: &str) -> Result<Self, TpmError> {
        let (sender, mut receiver) = mpsc::channel(QUEUE);
        let (opened, answer) = oneshot::channel();
        let tcti = tcti.to_owned();
        std::thread::spawn(move || {
            let mut tpm = match retry::Patient::open(&tcti) {
                Ok(tpm) => {
                    let _ = opened.send(Ok(()));
                    tpm
                }
                Err(error) => {
                    let _ = opened.send(Err(error));
                    return;
                }
            };
            // The same for as long as the TPM is.
            let mut endorsement: Option<Endorsement> = None;
            while let Some(request) = receiver.blocking_recv() {
                // Whoever asked may have gone away meanwhile: then only what changes something is
                // done.
                match request {
                    Request::Random(_, to) if to.is_closed() => {}
                    Request::Quote(_, to) if to.is_closed() => {}
                    Request::Endorsement(to) if to.is_closed() => {}
                    Request::Activate(_, _, to) if to.is_closed() => {}
                    Request::Random(n, to) => drop(to.send(tpm.ask(|d| d.random(n)))),
                    Request::Read(pcr, to) => drop(to.send(tpm.ask(|d| d.read(pcr)))),
                    Request::Extend(pcr, digest, to) => {
                        drop(to.send(tpm.ask(|d| d.extend(pcr, &digest))))
                    }
                    Request::Quote(qualifying, to) => {
                        drop(to.send(tpm.ask(|d| d.quote(&qualifying))))
                    }
                    Request::Endorsement(to) => {
                        let found =
                            endorsement.clone().map_or_else(|| tpm.ask(|d| d.endorsement()), Ok);
                        endorsement = found.as_ref().ok().cloned();
                        drop(to.send(found));
                    }
                    Request::Activate(blob, seed, to) => {
                        drop(to.send(tpm.ask(|d| d.activate(&blob, &seed))))
                    }
                    Request::Seal(secret, policy, to) => {
                        drop(to.send(tpm.ask(|d| d.seal(&secret, policy.as_ref()))))
                    }
                    Request::Unseal(sealed, policy, to) => {
                        drop(to.send(tpm.ask(|d| d.unseal(&sealed, policy.as_deref()))))
                    }
                    Request::Counter(to) => drop(to.send(tpm.ask(|d| d.counter()))),
                    Request::Increment(to) => drop(to.send(increment(&mut tpm))),
                }
            }
            // Nobody asks any more: the process is about to end.
            tpm.leave();
        });
        answer.await.map_err(|_| TpmError::Gone)??;
        Ok(Self(sender))
    }

    /// For what must not be lost: waits for a place in the queue.
    async fn insist<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, TpmError>>) -> Request,
    ) -> Result<T, TpmError> {
        let (to, answer) = oneshot::channel();
        self.0.send(make(to)).await.map_err(|_| TpmError::Gone)?;
        answer.await.map_err(|_| TpmError::Gone)?
    }

    async fn ask<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, TpmError>>) -> Request,
    ) -> Result<T, TpmError> {
        let (to, answer) = oneshot::channel();
        self.0.try_send(make(to)).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => TpmError::Busy,
            mpsc::error::TrySendError::Closed(_) => TpmError::Gone,
        })?;
        answer.await.map_err(|_| TpmError::Gone)?
    }

    /// Random bytes from the TPM's own generator.
    pub async fn random(&self, bytes: usize) -> Result<Vec<u8>, TpmError> {
        self.ask(|to| Request::Random(bytes, to)).await
    }

    pub async fn read(&self, pcr: u32) -> Result<Pcr, TpmError> {
        self.insist(|to| Request::Read(pcr, to)).await
    }

    pub async fn extend(&self, pcr: u32, digest: Digest) -> Result<(), TpmError> {
        self.insist(|to| Request::Extend(pcr, digest, to)).await
    }

    /// A quote over PCR 14 and 15 (SHA-256) with this qualifying data:
    /// [`measure::AttestedStatement::qualifying_data`].
    pub async fn quote(&self, qualifying: Digest) -> Result<SignedQuote, TpmError> {
        self.insist(|to| Request::Quote(qualifying, to)).await
    }

    pub async fn endorsement(&self) -> Result<Endorsement, TpmError> {
        self.insist(Request::Endorsement).await
    }

    /// The secret in a credential that was made for this TPM's endorsement key and its attestation
    /// key: TPMS_ID_OBJECT and TPMS_ECC_POINT.
    pub async fn activate(&self, blob: Vec<u8>, seed: Vec<u8>) -> Result<Vec<u8>, TpmError> {
        self.ask(|to| Request::Activate(blob, seed, to)).await
    }

    /// For this TPM alone, and where a policy is given, for nobody who does not satisfy it.
    pub async fn seal(&self, secret: Vec<u8>, policy: Option<Digest>) -> Result<Sealed, TpmError> {
        self.insist(|to| Request::Seal(secret, policy, to)).await
    }

    /// Where trustd's counter stands; none if it was never made.
    pub async fn counter(&self) -> Result<Option<u64>, TpmError> {
        self.insist(Request::Counter).await
    }

    /// One up, for ever.
    pub async fn increment(&self) -> Result<u64, TpmError> {
        self.insist(Request::Increment).await
    }

    /// With the policy that was approved for PCR 14 as it is now, where the secret was sealed to
    /// whoever approves.
    pub async fn unseal(
        &self,
        sealed: Sealed,
        policy: Option<Approved>,
    ) -> Result<Vec<u8>, TpmError> {
        self.insist(|to| Request::Unseal(sealed, policy.map(Box::new), to)).await
    }
}
