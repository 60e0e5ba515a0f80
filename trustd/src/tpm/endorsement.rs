//! How others know which TPM this is: its endorsement key, the manufacturer's certificate for it,
//! and the proof that the attestation key is in the same TPM (TPM 2.0 Library, Part 1, 24; TCG EK
//! Credential Profile 2.3).

use tss_esapi::abstraction::{AsymmetricAlgorithmSelection, ek};
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{AuthHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Digest, EncryptedSecret, IdObject, Nonce, Public, SymmetricDefinition,
};
use tss_esapi::traits::Marshall as _;
use tss_esapi::{Context, Error};

use super::device::{Device, attestation_key, refused};
use super::{Endorsement, TpmError, nv};

/// The certificate of the ECC P-256 key (EK Credential Profile, 2.2.1.4).
const CERTIFICATE: u32 = 0x01c0_000a;

fn template() -> Result<Public, Error> {
    ek::create_ek_public_from_default_template_2(
        AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
        None,
    )
}

impl Device {
    pub(super) fn endorsement(&mut self) -> Result<Endorsement, TpmError> {
        let area = self.with_primary(
            Hierarchy::Endorsement,
            template(),
            "CreatePrimary of the endorsement key",
            |_, _, public| {
                public.marshall().map_err(refused("CreatePrimary of the endorsement key"))
            },
        )?;
        let certificate = match nv::find(&mut self.0, CERTIFICATE)? {
            // Padded to the index's size in some TPMs: the reader goes by the length inside.
            Some(handle) => nv::read(&mut self.0, handle)?,
            None => None,
        };
        Ok(Endorsement { area, certificate })
    }

    /// TPM2_ActivateCredential: gives the secret back only if the attestation key has the name that
    /// it was made for.
    pub(super) fn activate(&mut self, blob: &[u8], seed: &[u8]) -> Result<Vec<u8>, TpmError> {
        let blob = IdObject::try_from(blob.to_vec())
            .map_err(refused("ActivateCredential: the credential"))?;
        let seed = EncryptedSecret::try_from(seed.to_vec())
            .map_err(refused("ActivateCredential: the secret"))?;
        self.with_primary(
            Hierarchy::Endorsement,
            template(),
            "CreatePrimary",
            |context, endorsement, _| {
                Self::primary(
                    context,
                    Hierarchy::Endorsement,
                    attestation_key(),
                    "CreatePrimary",
                    |context, attestation, _| {
                        let secret = with_policy(context, |context, policy| {
                            context.execute_with_sessions(
                                (Some(AuthSession::Password), Some(policy), None),
                                |c| {
                                    c.activate_credential(
                                        attestation,
                                        endorsement,
                                        blob.clone(),
                                        seed.clone(),
                                    )
                                },
                            )
                        });
                        Ok(secret.map_err(refused("ActivateCredential"))?.value().to_vec())
                    },
                )
            },
        )
    }
}

/// A session that may use the endorsement key: PolicySecret of its hierarchy, whose password is
/// empty.
fn with_policy<T>(
    context: &mut Context,
    use_it: impl FnOnce(&mut Context, AuthSession) -> Result<T, Error>,
) -> Result<T, Error> {
    let started = context.execute_without_session(|c| {
        c.start_auth_session(
            None,
            None,
            None,
            SessionType::Policy,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )
    })?;
    let session =
        started.ok_or(Error::WrapperError(tss_esapi::WrapperErrorKind::WrongValueFromTpm))?;
    let policy = PolicySession::try_from(session);
    let used = policy.and_then(|policy| {
        context.execute_with_session(Some(AuthSession::Password), |c| {
            c.policy_secret(
                policy,
                AuthHandle::Endorsement,
                Nonce::default(),
                Digest::default(),
                Nonce::default(),
                None,
            )
        })?;
        use_it(context, session)
    });
    context.flush_context(SessionHandle::from(session).into())?;
    used
}
