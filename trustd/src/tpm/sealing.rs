//! Secrets that only this TPM gives back, and those of them that it gives back only to boots that
//! somebody approved. They cross the bus encrypted: in sessions that are salted with a key of the
//! TPM's own (TPM 2.0 Library, Part 1, 19 and 21).

use measure::{Digest, PLATFORM_PCR};
use policy::Approved;
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{KeyHandle, SessionHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Digest as TpmDigest, EccParameter, EccPoint, EccSignature, KeyDerivationFunctionScheme,
    KeyedHashScheme, Name, Nonce, Private, Public, PublicEccParametersBuilder,
    PublicKeyedHashParameters, SensitiveData, Signature, SymmetricDefinition,
    SymmetricDefinitionObject,
};
use tss_esapi::traits::{Marshall as _, UnMarshall as _};
use tss_esapi::{Context, Error, WrapperErrorKind};

use super::device::{Device, bound_to_tpm, flush, public, refused, restricted_key, selection};
use super::{Sealed, TpmError};

impl Device {
    pub(super) fn seal(
        &mut self,
        secret: &[u8],
        policy: Option<&Digest>,
    ) -> Result<Sealed, TpmError> {
        let secret =
            SensitiveData::try_from(secret.to_vec()).map_err(refused("Create: the secret"))?;
        self.with_primary(Hierarchy::Owner, storage_key(), "Create", |context, parent, _| {
            let name = context
                .tr_get_name(parent.into())
                .map_err(refused("the storage key's name"))?
                .value()
                .to_vec();
            let made = salted(context, parent, SessionType::Hmac, |context, session| {
                let template = sealed_object(policy)?;
                context.execute_with_session(Some(session), |c| {
                    c.create(parent, template, None, Some(secret.clone()), None, None)
                })
            });
            let made = made.map_err(refused("Create"))?;
            let public = made.out_public.marshall().map_err(refused("Create"))?;
            Ok(Sealed { public, private: made.out_private.value().to_vec(), parent: name })
        })
    }

    pub(super) fn unseal(
        &mut self,
        sealed: &Sealed,
        policy: Option<&Approved>,
    ) -> Result<Vec<u8>, TpmError> {
        let public =
            Public::unmarshall(&sealed.public).map_err(refused("Load: the public part"))?;
        let private =
            Private::try_from(sealed.private.clone()).map_err(refused("Load: the private part"))?;
        self.with_primary(Hierarchy::Owner, storage_key(), "Load", |context, parent, _| {
            let name = context.tr_get_name(parent.into()).map_err(refused("the storage key's name"))?;
            if name.value() != sealed.parent {
                let (expected, found) = (measure::hex(&sealed.parent), measure::hex(name.value()));
                let problem = format!("its storage key has the name {found}, and the secret was sealed under {expected}");
                return Err(TpmError::Answer { what: "CreatePrimary", problem });
            }
            let handle = context
                .execute_with_session(Some(AuthSession::Password), |c| c.load(parent, private.clone(), public.clone()))
                .map_err(refused("Load"))?;
            let kind = if policy.is_some() { SessionType::Policy } else { SessionType::Hmac };
            let secret = salted(context, parent, kind, |context, session| {
                if let (Some(policy), AuthSession::PolicySession(session)) = (policy, session) {
                    authorise(context, session, policy)?;
                }
                context.execute_with_session(Some(session), |c| c.unseal(handle.into()))
            });
            flush(context, handle)?;
            Ok(secret.map_err(refused("Unseal"))?.value().to_vec())
        })
    }
}

/// The session's policy is that PCR 14 is as it is, and the signer of the secret's approved that
/// (Part 3, 23.16).
fn authorise(
    context: &mut Context,
    session: PolicySession,
    approved: &Approved,
) -> Result<(), Error> {
    context.execute_without_session(|c| {
        c.policy_pcr(session, TpmDigest::default(), selection(&[PLATFORM_PCR])?)?;
        // A ticket counts only in a hierarchy that has a secret: not in that of null.
        let key =
            c.load_external_public(Public::unmarshall(&approved.signer.area())?, Hierarchy::Owner)?;
        let (r, s) = approved.signature.split_at(32);
        let signature = EccSignature::create(
            HashingAlgorithm::Sha256,
            EccParameter::try_from(r)?,
            EccParameter::try_from(s)?,
        );
        let ticket = signature.and_then(|signature| {
            c.verify_signature(
                key,
                TpmDigest::try_from(&approved.digest[..])?,
                Signature::EcDsa(signature),
            )
        });
        c.flush_context(key.into())?;
        let (policy, reference) =
            (TpmDigest::try_from(&approved.policy[..])?, Nonce::try_from(Approved::REFERENCE)?);
        c.policy_authorize(
            session,
            policy,
            reference,
            &Name::try_from(approved.signer.name().to_vec())?,
            ticket?,
        )
    })
}

/// A session in which the first parameter goes encrypted in both directions; flushed whatever
/// happened in it.
fn salted<T>(
    context: &mut Context,
    with: KeyHandle,
    kind: SessionType,
    use_it: impl FnOnce(&mut Context, AuthSession) -> Result<T, Error>,
) -> Result<T, Error> {
    let started = context.execute_without_session(|c| {
        c.start_auth_session(
            Some(with),
            None,
            None,
            kind,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )
    })?;
    let session = started.ok_or(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm))?;
    // It goes on after the command, so that there is one place where it ends.
    let (attributes, mask) = SessionAttributesBuilder::new()
        .with_decrypt(true)
        .with_encrypt(true)
        .with_continue_session(true)
        .build();
    let used = context
        .tr_sess_set_attributes(session, attributes, mask)
        .and_then(|()| use_it(context, session));
    context.flush_context(SessionHandle::from(session).into())?;
    used
}

fn storage_key() -> Result<Public, Error> {
    let attributes = restricted_key().with_decrypt(true).build()?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    )
    .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
    .build()?;
    public(PublicAlgorithm::Ecc, attributes)?
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// With a policy nothing else unseals it; without one, whoever has the TPM does.
fn sealed_object(policy: Option<&Digest>) -> Result<Public, Error> {
    let attributes = bound_to_tpm().with_user_with_auth(policy.is_none()).build()?;
    let policy = policy
        .map_or_else(|| Ok(TpmDigest::default()), |policy| TpmDigest::try_from(&policy[..]))?;
    public(PublicAlgorithm::KeyedHash, attributes)?
        .with_auth_policy(policy)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(TpmDigest::default())
        .build()
}
