//! The thread that owns the TPM.

use measure::{Digest, Pcr};
use policy::AuthorizedPolicy;
use tokio::sync::{mpsc, oneshot};

use super::error::TpmError;
use super::retry::RetryingDevice;
use super::types::{Endorsement, SealedSecret, SignedQuote};

/// Where the answer to a request goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, TpmError>>;

/// One request to the TPM.
pub(super) enum Request {
    GetRandom(usize, Reply<Vec<u8>>),
    ReadPcr(u32, Reply<Pcr>),
    ExtendPcr(u32, Digest, Reply<()>),
    Quote(Digest, Reply<SignedQuote>),
    ReadEndorsement(Reply<Endorsement>),
    ActivateCredential(Vec<u8>, Vec<u8>, Reply<Vec<u8>>),
    Seal(Vec<u8>, Option<Digest>, Reply<SealedSecret>),
    Unseal(SealedSecret, Option<Box<AuthorizedPolicy>>, Reply<Vec<u8>>),
    ReadCounter(Reply<Option<u64>>),
    IncrementCounter(Reply<u64>),
}

impl Request {
    /// Reports whether the client is gone and the request changes nothing, so that it need not run.
    fn is_abandoned(&self) -> bool {
        match self {
            Self::GetRandom(_, reply) | Self::ActivateCredential(_, _, reply) => reply.is_closed(),
            Self::Quote(_, reply) => reply.is_closed(),
            Self::ReadEndorsement(reply) => reply.is_closed(),
            _ => false,
        }
    }
}

/// Opens the TPM, reports the outcome to `opened`, and serves requests until all senders are gone.
pub(super) fn run(tcti: &str, opened: Reply<()>, mut requests: mpsc::Receiver<Request>) {
    let mut tpm = match RetryingDevice::open(tcti) {
        Ok(tpm) => {
            let _ = opened.send(Ok(()));
            tpm
        }
        Err(error) => {
            let _ = opened.send(Err(error));
            return;
        }
    };
    // The endorsement never changes, so it is read once.
    let mut endorsement: Option<Endorsement> = None;
    while let Some(request) = requests.blocking_recv() {
        if !request.is_abandoned() {
            serve(&mut tpm, &mut endorsement, request);
        }
    }
    // All senders are gone because the process is about to exit.
    tpm.leak();
}

fn serve(tpm: &mut RetryingDevice, endorsement: &mut Option<Endorsement>, request: Request) {
    match request {
        Request::GetRandom(len, reply) => drop(reply.send(tpm.run(|d| d.get_random(len)))),
        Request::ReadPcr(pcr, reply) => drop(reply.send(tpm.run(|d| d.read_pcr(pcr)))),
        Request::ExtendPcr(pcr, digest, reply) => {
            drop(reply.send(tpm.run(|d| d.extend_pcr(pcr, &digest))));
        }
        Request::Quote(qualifying_data, reply) => {
            drop(reply.send(tpm.run(|d| d.quote(&qualifying_data))));
        }
        Request::ReadEndorsement(reply) => {
            let result = endorsement.clone().map_or_else(|| tpm.run(|d| d.read_endorsement()), Ok);
            *endorsement = result.as_ref().ok().cloned();
            drop(reply.send(result));
        }
        Request::ActivateCredential(blob, seed, reply) => {
            drop(reply.send(tpm.run(|d| d.activate_credential(&blob, &seed))));
        }
        Request::Seal(secret, policy, reply) => {
            drop(reply.send(tpm.run(|d| d.seal(&secret, policy.as_ref()))));
        }
        Request::Unseal(sealed, policy, reply) => {
            drop(reply.send(tpm.run(|d| d.unseal(&sealed, policy.as_deref()))));
        }
        Request::ReadCounter(reply) => drop(reply.send(tpm.run(|d| d.read_counter()))),
        Request::IncrementCounter(reply) => drop(reply.send(increment_counter(tpm))),
    }
}

/// Increments the counter and returns its new value. The two commands are retried separately: if a
/// busy TPM postponed the read, retrying both would increment the counter again.
fn increment_counter(tpm: &mut RetryingDevice) -> Result<u64, TpmError> {
    tpm.run(|d| d.increment_counter())?;
    tpm.run(|d| d.read_counter())?.ok_or_else(|| TpmError::Response {
        operation: "NV_Increment",
        problem: "the counter is not defined after it was incremented".into(),
    })
}
