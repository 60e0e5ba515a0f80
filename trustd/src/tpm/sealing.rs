//! Sealing: secrets that only this TPM returns and, under a policy, only to boots that the policy's
//! signer authorized.
//!
//! Secrets cross the bus encrypted, in sessions that are salted with a key of the TPM (TPM 2.0
//! Library, Part 1, 19 and 21).

use measure::{Digest, PLATFORM_PCR};
use policy::AuthorizedPolicy;
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

use super::device::{
    Device, flush, new_public, restricted_key_attributes, select_pcrs, tpm_bound_attributes,
};
use super::error::{TpmError, failed};
use super::types::SealedSecret;

impl Device {
    pub(super) fn seal(
        &mut self,
        secret: &[u8],
        policy: Option<&Digest>,
    ) -> Result<SealedSecret, TpmError> {
        let secret =
            SensitiveData::try_from(secret.to_vec()).map_err(failed("Create: the secret"))?;
        self.with_primary_key(
            Hierarchy::Owner,
            storage_template(),
            "Create",
            |context, storage_key, _| {
                let parent = read_name(context, storage_key)?;
                let created = with_salted_session(
                    context,
                    storage_key,
                    SessionType::Hmac,
                    |context, session| {
                        let template = sealed_template(policy)?;
                        context.execute_with_session(Some(session), |c| {
                            c.create(storage_key, template, None, Some(secret.clone()), None, None)
                        })
                    },
                );
                let created = created.map_err(failed("Create"))?;
                let public = created.out_public.marshall().map_err(failed("Create"))?;
                Ok(SealedSecret { public, private: created.out_private.value().to_vec(), parent })
            },
        )
    }

    pub(super) fn unseal(
        &mut self,
        sealed: &SealedSecret,
        policy: Option<&AuthorizedPolicy>,
    ) -> Result<Vec<u8>, TpmError> {
        let public = Public::unmarshall(&sealed.public).map_err(failed("Load: the public part"))?;
        let private =
            Private::try_from(sealed.private.clone()).map_err(failed("Load: the private part"))?;
        self.with_primary_key(
            Hierarchy::Owner,
            storage_template(),
            "Load",
            |context, storage_key, _| {
                require_parent(&read_name(context, storage_key)?, &sealed.parent)?;
                let handle = context
                    .execute_with_session(Some(AuthSession::Password), |c| {
                        c.load(storage_key, private.clone(), public.clone())
                    })
                    .map_err(failed("Load"))?;
                let kind = if policy.is_some() { SessionType::Policy } else { SessionType::Hmac };
                let secret = with_salted_session(context, storage_key, kind, |context, session| {
                    if let (Some(policy), AuthSession::PolicySession(session)) = (policy, session) {
                        authorize(context, session, policy)?;
                    }
                    context.execute_with_session(Some(session), |c| c.unseal(handle.into()))
                });
                flush(context, handle)?;
                Ok(secret.map_err(failed("Unseal"))?.value().to_vec())
            },
        )
    }
}

fn read_name(context: &mut Context, key: KeyHandle) -> Result<Vec<u8>, TpmError> {
    let name = context.tr_get_name(key.into()).map_err(failed("the storage key's name"))?;
    Ok(name.value().to_vec())
}

fn require_parent(found: &[u8], expected: &[u8]) -> Result<(), TpmError> {
    if found == expected {
        return Ok(());
    }
    let problem = format!(
        "the secret was sealed under the storage key {}, found {}",
        measure::hex(expected),
        measure::hex(found)
    );
    Err(TpmError::Response { operation: "CreatePrimary", problem })
}

/// Satisfies the session's policy: PCR 14 has its present value, and the signer to whom the secret
/// is sealed approved that value (Part 3, 23.16).
fn authorize(
    context: &mut Context,
    session: PolicySession,
    authorized: &AuthorizedPolicy,
) -> Result<(), Error> {
    context.execute_without_session(|c| {
        c.policy_pcr(session, TpmDigest::default(), select_pcrs(&[PLATFORM_PCR])?)?;
        // Tickets of the null hierarchy are not valid, so the key is loaded into another one.
        let signer = Public::unmarshall(&authorized.signer.public_area())?;
        let key = c.load_external_public(signer, Hierarchy::Owner)?;
        let (r, s) = authorized.signature.split_at(32);
        let signature = EccSignature::create(
            HashingAlgorithm::Sha256,
            EccParameter::try_from(r)?,
            EccParameter::try_from(s)?,
        );
        let ticket = signature.and_then(|signature| {
            c.verify_signature(
                key,
                TpmDigest::try_from(&authorized.digest[..])?,
                Signature::EcDsa(signature),
            )
        });
        c.flush_context(key.into())?;
        let policy = TpmDigest::try_from(&authorized.policy[..])?;
        let reference = Nonce::try_from(AuthorizedPolicy::REFERENCE)?;
        c.policy_authorize(
            session,
            policy,
            reference,
            &Name::try_from(authorized.signer.name().to_vec())?,
            ticket?,
        )
    })
}

/// Opens a session that encrypts the first parameter in both directions, passes it to
/// `use_session` and flushes it, also after an error of `use_session`.
fn with_salted_session<T>(
    context: &mut Context,
    salt_key: KeyHandle,
    kind: SessionType,
    use_session: impl FnOnce(&mut Context, AuthSession) -> Result<T, Error>,
) -> Result<T, Error> {
    let session = context.execute_without_session(|c| {
        c.start_auth_session(
            Some(salt_key),
            None,
            None,
            kind,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )
    })?;
    let session = session.ok_or(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm))?;
    // The session survives the command, so that it is flushed in one place only.
    let (attributes, mask) = SessionAttributesBuilder::new()
        .with_decrypt(true)
        .with_encrypt(true)
        .with_continue_session(true)
        .build();
    let result = context
        .tr_sess_set_attributes(session, attributes, mask)
        .and_then(|()| use_session(context, session));
    context.flush_context(SessionHandle::from(session).into())?;
    result
}

/// Returns the template of the storage key: restricted decryption, ECC P-256, AES-128-CFB.
fn storage_template() -> Result<Public, Error> {
    let attributes = restricted_key_attributes().with_decrypt(true).build()?;
    let parameters = PublicEccParametersBuilder::new_restricted_decryption_key(
        SymmetricDefinitionObject::AES_128_CFB,
        EccCurve::NistP256,
    )
    .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
    .build()?;
    new_public(PublicAlgorithm::Ecc, attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// Returns the template of a sealed object. With a policy, only a session that satisfies it
/// unseals; without one, every user of the TPM can unseal.
fn sealed_template(policy: Option<&Digest>) -> Result<Public, Error> {
    let attributes = tpm_bound_attributes().with_user_with_auth(policy.is_none()).build()?;
    let policy = policy
        .map_or_else(|| Ok(TpmDigest::default()), |policy| TpmDigest::try_from(&policy[..]))?;
    new_public(PublicAlgorithm::KeyedHash, attributes)
        .with_auth_policy(policy)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(TpmDigest::default())
        .build()
}
