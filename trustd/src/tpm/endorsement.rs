//! Identity of the TPM: its endorsement key, the manufacturer's certificate for that key, and the
//! proof that the attestation key is in the same TPM.
//!
//! Source: TPM 2.0 Library, Part 1, 24; TCG EK Credential Profile 2.3.

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
use tss_esapi::{Context, Error, WrapperErrorKind};

use super::device::{Device, attestation_template, with_primary_key};
use super::error::{TpmError, failed};
use super::nv;
use super::types::Endorsement;

/// NV index of the certificate of the ECC P-256 key (EK Credential Profile, 2.2.1.4).
const CERTIFICATE_INDEX: u32 = 0x01c0_000a;

fn endorsement_template() -> Result<Public, Error> {
    ek::create_ek_public_from_default_template_2(
        AsymmetricAlgorithmSelection::Ecc(EccCurve::NistP256),
        None,
    )
}

impl Device {
    pub(super) fn read_endorsement(&mut self) -> Result<Endorsement, TpmError> {
        const OPERATION: &str = "CreatePrimary of the endorsement key";
        let public_area = self.with_primary_key(
            Hierarchy::Endorsement,
            endorsement_template(),
            OPERATION,
            |_, _, public| public.marshall().map_err(failed(OPERATION)),
        )?;
        let certificate = match nv::find(&mut self.0, CERTIFICATE_INDEX)? {
            // Some TPMs pad the certificate to the size of the index. The reader uses the length
            // in the certificate.
            Some(handle) => nv::read(&mut self.0, handle)?,
            None => None,
        };
        Ok(Endorsement { public_area, certificate })
    }

    /// Runs TPM2_ActivateCredential: returns the secret only if the attestation key has the name
    /// that the credential was made for.
    pub(super) fn activate_credential(
        &mut self,
        blob: &[u8],
        seed: &[u8],
    ) -> Result<Vec<u8>, TpmError> {
        let blob = IdObject::try_from(blob.to_vec())
            .map_err(failed("ActivateCredential: the credential"))?;
        let seed = EncryptedSecret::try_from(seed.to_vec())
            .map_err(failed("ActivateCredential: the secret"))?;
        self.with_primary_key(
            Hierarchy::Endorsement,
            endorsement_template(),
            "CreatePrimary",
            |context, endorsement, _| {
                with_primary_key(
                    context,
                    Hierarchy::Endorsement,
                    attestation_template(),
                    "CreatePrimary",
                    |context, attestation, _| {
                        let secret = with_endorsement_policy(context, |context, policy| {
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
                        Ok(secret.map_err(failed("ActivateCredential"))?.value().to_vec())
                    },
                )
            },
        )
    }
}

/// Opens a session that may use the endorsement key, passes it to `use_session` and flushes it.
/// The session's policy is PolicySecret of the endorsement hierarchy, whose password is empty.
fn with_endorsement_policy<T>(
    context: &mut Context,
    use_session: impl FnOnce(&mut Context, AuthSession) -> Result<T, Error>,
) -> Result<T, Error> {
    let session = context.execute_without_session(|c| {
        c.start_auth_session(
            None,
            None,
            None,
            SessionType::Policy,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )
    })?;
    let session = session.ok_or(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm))?;
    let policy = PolicySession::try_from(session);
    let result = policy.and_then(|policy| {
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
        use_session(context, session)
    });
    context.flush_context(SessionHandle::from(session).into())?;
    result
}
