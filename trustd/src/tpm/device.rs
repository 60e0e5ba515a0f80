//! An open TPM and its basic commands, through the TPM software stack (crate tss-esapi).

use std::str::FromStr as _;

use measure::{Digest, MODULES_PCR, PLATFORM_PCR, Pcr};
use tss_esapi::attributes::{ObjectAttributes, ObjectAttributesBuilder};
use tss_esapi::handles::{KeyHandle, ObjectHandle, PcrHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Attest, Data, Digest as TpmDigest, DigestValues, EccPoint, EccScheme, HashScheme,
    PcrSelectionList, PcrSelectionListBuilder, PcrSlot, Public, PublicBuilder,
    PublicEccParametersBuilder, Signature, SignatureScheme,
};
use tss_esapi::traits::Marshall as _;
use tss_esapi::{Context, Error, TctiNameConf};

use super::counter;
use super::error::{TpmError, failed};
use super::types::{ResetCounts, SignedQuote};

/// Bytes per GetRandom: the size of the largest digest that every TPM 2.0 has.
const MAX_RANDOM_BYTES: usize = 32;

pub(super) struct Device(pub(super) Context);

impl Device {
    pub(super) fn open(tcti: &str) -> Result<Self, TpmError> {
        let config =
            TctiNameConf::from_str(tcti).map_err(failed("open: the name of the transport"))?;
        Ok(Self(Context::new(config).map_err(failed("open"))?))
    }

    pub(super) fn get_random(&mut self, len: usize) -> Result<Vec<u8>, TpmError> {
        let mut random = Vec::with_capacity(len);
        while random.len() < len {
            let chunk = self
                .0
                .get_random(MAX_RANDOM_BYTES.min(len - random.len()))
                .map_err(failed("GetRandom"))?;
            if chunk.value().is_empty() {
                let problem = "no bytes".into();
                return Err(TpmError::Response { operation: "GetRandom", problem });
            }
            random.extend_from_slice(chunk.value());
        }
        Ok(random)
    }

    pub(super) fn read_pcr(&mut self, pcr: u32) -> Result<Pcr, TpmError> {
        let (_, _, digests) = self
            .0
            .execute_without_session(|c| c.pcr_read(select_pcrs(&[pcr])?))
            .map_err(failed("PCR_Read"))?;
        let value: Option<Digest> = digests.value().first().and_then(|d| d.value().try_into().ok());
        value.map(Pcr).ok_or_else(|| TpmError::Response {
            operation: "PCR_Read",
            problem: "expected one SHA-256 value; is the SHA-256 bank enabled?".into(),
        })
    }

    /// Extends a register. Only PCR 15 is accepted; the others are not trustd's.
    pub(super) fn extend_pcr(&mut self, pcr: u32, digest: &Digest) -> Result<(), TpmError> {
        let handle = match pcr {
            MODULES_PCR => PcrHandle::Pcr15,
            _ => {
                let problem = format!("trustd extends PCR {MODULES_PCR} only, not PCR {pcr}");
                return Err(TpmError::Response { operation: "PCR_Extend", problem });
            }
        };
        let digest = TpmDigest::try_from(&digest[..]).map_err(failed("PCR_Extend"))?;
        let mut values = DigestValues::new();
        values.set(HashingAlgorithm::Sha256, digest);
        self.0
            .execute_with_session(Some(AuthSession::Password), |c| c.pcr_extend(handle, values))
            .map_err(failed("PCR_Extend"))
    }

    pub(super) fn quote(&mut self, qualifying_data: &Digest) -> Result<SignedQuote, TpmError> {
        let data = Data::try_from(qualifying_data.to_vec())
            .map_err(failed("Quote: the qualifying data"))?;
        // The attestation key is a primary key of a fixed template. It is the same key at every
        // call, so there is nothing to store or to lose.
        self.with_primary_key(
            Hierarchy::Endorsement,
            attestation_template(),
            "Quote",
            |context, handle, public| {
                let (attest, signature) = context
                    .execute_with_session(Some(AuthSession::Password), |c| {
                        c.quote(
                            handle,
                            data.clone(),
                            SignatureScheme::Null,
                            select_pcrs(&[PLATFORM_PCR, MODULES_PCR])?,
                        )
                    })
                    .map_err(failed("Quote"))?;
                marshal_quote(&attest, &signature, &public)
            },
        )
    }

    pub(super) fn read_counter(&mut self) -> Result<Option<u64>, TpmError> {
        counter::read(&mut self.0)
    }

    pub(super) fn increment_counter(&mut self) -> Result<(), TpmError> {
        counter::increment(&mut self.0)
    }

    /// Creates a primary key, passes it to `use_key` and flushes it.
    pub(super) fn with_primary_key<T>(
        &mut self,
        hierarchy: Hierarchy,
        template: Result<Public, Error>,
        operation: &'static str,
        use_key: impl FnOnce(&mut Context, KeyHandle, Public) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        with_primary_key(&mut self.0, hierarchy, template, operation, use_key)
    }
}

/// Creates a primary key, passes it to `use_key` and flushes it, also after an error of `use_key`.
pub(super) fn with_primary_key<T>(
    context: &mut Context,
    hierarchy: Hierarchy,
    template: Result<Public, Error>,
    operation: &'static str,
    use_key: impl FnOnce(&mut Context, KeyHandle, Public) -> Result<T, TpmError>,
) -> Result<T, TpmError> {
    let template = template.map_err(failed(operation))?;
    let created = context
        .execute_with_session(Some(AuthSession::Password), |c| {
            c.create_primary(hierarchy, template, None, None, None, None)
        })
        .map_err(failed(operation))?;
    let result = use_key(context, created.key_handle, created.out_public);
    flush(context, created.key_handle)?;
    result
}

fn marshal_quote(
    attest: &Attest,
    signature: &Signature,
    public: &Public,
) -> Result<SignedQuote, TpmError> {
    let Signature::EcDsa(ecdsa) = signature else {
        let problem = "expected an ECDSA signature".into();
        return Err(TpmError::Response { operation: "Quote", problem });
    };
    let signature = [ecdsa.signature_r().value(), ecdsa.signature_s().value()].map(pad_to_32);
    let clock = attest.clock_info();
    Ok(SignedQuote {
        attest: attest.marshall().map_err(failed("Quote"))?,
        signature: signature.concat(),
        key: public.marshall().map_err(failed("Quote"))?,
        reset_counts: ResetCounts { reset: clock.reset_count(), restart: clock.restart_count() },
    })
}

pub(super) fn flush(context: &mut Context, handle: KeyHandle) -> Result<(), TpmError> {
    context.flush_context(ObjectHandle::from(handle)).map_err(failed("FlushContext"))
}

pub(super) fn select_pcrs(pcrs: &[u32]) -> Result<PcrSelectionList, Error> {
    let slots: Vec<PcrSlot> =
        pcrs.iter().map(|n| PcrSlot::try_from(1u32 << n)).collect::<Result<_, _>>()?;
    PcrSelectionListBuilder::new().with_selection(HashingAlgorithm::Sha256, &slots).build()
}

/// Pads a number to 32 bytes; TPMs omit leading zeros.
fn pad_to_32(number: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 32usize.saturating_sub(number.len())];
    bytes.extend_from_slice(number);
    bytes
}

/// Returns the attributes of an object that never leaves this TPM. It has no password, so it is
/// exempt from the dictionary attack lockout.
pub(super) fn tpm_bound_attributes() -> ObjectAttributesBuilder {
    ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_user_with_auth(true)
        .with_no_da(true)
}

/// Returns the attributes of a restricted key that the TPM generates.
pub(super) fn restricted_key_attributes() -> ObjectAttributesBuilder {
    tpm_bound_attributes().with_sensitive_data_origin(true).with_restricted(true)
}

/// Returns the template of the attestation key: ECDSA P-256 with SHA-256, restricted to structures
/// that the TPM itself makes.
pub(super) fn attestation_template() -> Result<Public, Error> {
    let attributes = restricted_key_attributes().with_sign_encrypt(true).build()?;
    let parameters = PublicEccParametersBuilder::new_unrestricted_signing_key(
        EccScheme::EcDsa(HashScheme::new(HashingAlgorithm::Sha256)),
        EccCurve::NistP256,
    )
    .with_restricted(true)
    .build()?;
    new_public(PublicAlgorithm::Ecc, attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// Starts a public area with SHA-256 as name algorithm.
pub(super) fn new_public(
    algorithm: PublicAlgorithm,
    attributes: ObjectAttributes,
) -> PublicBuilder {
    PublicBuilder::new()
        .with_public_algorithm(algorithm)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
}
