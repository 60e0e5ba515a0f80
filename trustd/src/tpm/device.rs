//! The commands, by way of the TPM software stack (crate tss-esapi).

use std::str::FromStr as _;

use measure::{Digest, MODULES_PCR, PLATFORM_PCR, Pcr};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::handles::{KeyHandle, ObjectHandle, PcrHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Data, Digest as TpmDigest, DigestValues, EccPoint, EccScheme, HashScheme, PcrSelectionList,
    PcrSelectionListBuilder, PcrSlot, Public, PublicBuilder, PublicEccParametersBuilder, Signature,
    SignatureScheme,
};
use tss_esapi::traits::Marshall as _;
use tss_esapi::{Context, Error, TctiNameConf};

use super::{Resets, SignedQuote, TpmError, counter};

/// At most so many bytes come from one TPM2_GetRandom: the size of the largest digest that every
/// TPM 2.0 has.
const RANDOM_CHUNK: usize = 32;

pub(super) struct Device(pub(super) Context);

pub(super) fn refused(what: &'static str) -> impl Fn(Error) -> TpmError {
    move |source| TpmError::Refused { what, source }
}

impl Device {
    pub(super) fn open(tcti: &str) -> Result<Self, TpmError> {
        let conf = TctiNameConf::from_str(tcti).map_err(refused("the transport's name"))?;
        Ok(Self(Context::new(conf).map_err(refused("the first contact"))?))
    }

    pub(super) fn random(&mut self, bytes: usize) -> Result<Vec<u8>, TpmError> {
        let mut random = Vec::with_capacity(bytes);
        while random.len() < bytes {
            let chunk = self
                .0
                .get_random(RANDOM_CHUNK.min(bytes - random.len()))
                .map_err(refused("GetRandom"))?;
            if chunk.value().is_empty() {
                return Err(TpmError::Answer { what: "GetRandom", problem: "no bytes".into() });
            }
            random.extend_from_slice(chunk.value());
        }
        Ok(random)
    }

    pub(super) fn read(&mut self, pcr: u32) -> Result<Pcr, TpmError> {
        let (_, _, digests) = self
            .0
            .execute_without_session(|c| c.pcr_read(selection(&[pcr])?))
            .map_err(refused("PCR_Read"))?;
        let value: Option<Digest> = digests.value().first().and_then(|d| d.value().try_into().ok());
        value.map(Pcr).ok_or_else(|| TpmError::Answer {
            what: "PCR_Read",
            problem: "not one SHA-256 value; is the bank on?".into(),
        })
    }

    pub(super) fn extend(&mut self, pcr: u32, digest: &Digest) -> Result<(), TpmError> {
        let handle = match pcr {
            MODULES_PCR => PcrHandle::Pcr15,
            _ => {
                return Err(TpmError::Answer {
                    what: "PCR_Extend",
                    problem: format!("PCR {pcr} is not trustd's"),
                });
            }
        };
        let digest = TpmDigest::try_from(&digest[..]).map_err(refused("PCR_Extend"))?;
        let mut values = DigestValues::new();
        values.set(HashingAlgorithm::Sha256, digest);
        self.0
            .execute_with_session(Some(AuthSession::Password), |c| c.pcr_extend(handle, values))
            .map_err(refused("PCR_Extend"))
    }

    pub(super) fn quote(&mut self, qualifying: &Digest) -> Result<SignedQuote, TpmError> {
        let data =
            Data::try_from(qualifying.to_vec()).map_err(refused("Quote: the qualifying data"))?;
        // A primary key of a fixed template: the same key at every call, so there is nothing to
        // store or to lose.
        self.with_primary(
            Hierarchy::Endorsement,
            attestation_key(),
            "Quote",
            |context, handle, public| {
                let (attest, signature) = context
                    .execute_with_session(Some(AuthSession::Password), |c| {
                        c.quote(
                            handle,
                            data.clone(),
                            SignatureScheme::Null,
                            selection(&[PLATFORM_PCR, MODULES_PCR])?,
                        )
                    })
                    .map_err(refused("Quote"))?;
                let answer =
                    |problem: &str| TpmError::Answer { what: "Quote", problem: problem.to_owned() };
                let Signature::EcDsa(ecdsa) = signature else {
                    return Err(answer("the signature is not ECDSA"));
                };
                let signature =
                    [ecdsa.signature_r().value(), ecdsa.signature_s().value()].map(padded);
                let marshalled = |bytes: Result<Vec<u8>, Error>| bytes.map_err(refused("Quote"));
                let clock = attest.clock_info();
                Ok(SignedQuote {
                    attest: marshalled(attest.marshall())?,
                    signature: signature.concat(),
                    key: marshalled(public.marshall())?,
                    resets: Resets { reset: clock.reset_count(), restart: clock.restart_count() },
                })
            },
        )
    }

    pub(super) fn counter(&mut self) -> Result<Option<u64>, TpmError> {
        counter::read(&mut self.0)
    }

    pub(super) fn step(&mut self) -> Result<(), TpmError> {
        counter::increment(&mut self.0)
    }

    pub(super) fn with_primary<T>(
        &mut self,
        hierarchy: Hierarchy,
        template: Result<Public, Error>,
        what: &'static str,
        use_it: impl FnOnce(&mut Context, KeyHandle, Public) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        Self::primary(&mut self.0, hierarchy, template, what, use_it)
    }

    /// Makes a primary key, uses it and flushes it, whatever happened in between.
    pub(super) fn primary<T>(
        context: &mut Context,
        hierarchy: Hierarchy,
        template: Result<Public, Error>,
        what: &'static str,
        use_it: impl FnOnce(&mut Context, KeyHandle, Public) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let template = template.map_err(refused(what))?;
        let made = context
            .execute_with_session(Some(AuthSession::Password), |c| {
                c.create_primary(hierarchy, template, None, None, None, None)
            })
            .map_err(refused(what))?;
        let result = use_it(context, made.key_handle, made.out_public);
        flush(context, made.key_handle)?;
        result
    }
}

pub(super) fn flush(context: &mut Context, handle: KeyHandle) -> Result<(), TpmError> {
    context.flush_context(ObjectHandle::from(handle)).map_err(refused("FlushContext"))
}

pub(super) fn selection(pcrs: &[u32]) -> Result<PcrSelectionList, Error> {
    let slots: Vec<PcrSlot> =
        pcrs.iter().map(|n| PcrSlot::try_from(1u32 << n)).collect::<Result<_, _>>()?;
    PcrSelectionListBuilder::new().with_selection(HashingAlgorithm::Sha256, &slots).build()
}

/// TPMs leave out leading zeros.
fn padded(number: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 32usize.saturating_sub(number.len())];
    bytes.extend_from_slice(number);
    bytes
}

/// An object that never leaves this TPM; no password, so the lockout against guessing has nothing
/// to count.
pub(super) fn bound_to_tpm() -> ObjectAttributesBuilder {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_user_with_auth(true)
        .with_no_da(true)
}

pub(super) fn restricted_key() -> ObjectAttributesBuilder {
    bound_to_tpm().with_sensitive_data_origin(true).with_restricted(true)
}

/// ECDSA P-256 with SHA-256, restricted to what the TPM itself makes.
pub(super) fn attestation_key() -> Result<Public, Error> {
    let attributes = restricted_key().with_sign_encrypt(true).build()?;
    let parameters = PublicEccParametersBuilder::new_unrestricted_signing_key(
        EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)),
        EccCurve::NistP256,
    )
    .with_restricted(true)
    .build()?;
    public(PublicAlgorithm::Ecc, attributes)?
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

pub(super) fn public(
    algorithm: PublicAlgorithm,
    attributes: tss_esapi::attributes::ObjectAttributes,
) -> Result<PublicBuilder, Error> {
    Ok(PublicBuilder::new()
        .with_public_algorithm(algorithm)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes))
}
