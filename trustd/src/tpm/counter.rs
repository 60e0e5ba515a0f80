//! A counter in the TPM's own memory that only goes up (TPM 2.0 Part 1, "NV counter").
//!
//! Even whoever deletes and defines it anew cannot turn it back: the TPM begins where the highest
//! counter it ever had ended.

use tss_esapi::Context;
use tss_esapi::attributes::NvIndexAttributesBuilder;
use tss_esapi::constants::NvIndexType;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::NvPublicBuilder;

use super::device::refused;
use super::{TpmError, nv};

/// In the range that the owner of a TPM gives out (TCG Registry of Reserved TPM 2.0 Handles, table
/// 2).
const INDEX: u32 = 0x0180_b0a5;
const SIZE: u16 = 8;

/// Where the counter stands; none if there is no counter yet, or a kill came before its first step.
pub(super) fn read(context: &mut Context) -> Result<Option<u64>, TpmError> {
    let Some(handle) = nv::find(context, INDEX)? else { return Ok(None) };
    let Some(bytes) = nv::read(context, handle)? else { return Ok(None) };
    let bytes: [u8; 8] = bytes.try_into().map_err(|_| TpmError::Answer {
        what: "NV_Read",
        problem: "a counter has 8 bytes".into(),
    })?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

/// One up; makes the counter if there is none.
pub(super) fn increment(context: &mut Context) -> Result<(), TpmError> {
    let handle = match nv::find(context, INDEX)? {
        Some(handle) => handle,
        None => define(context)?,
    };
    context
        .execute_with_session(Some(AuthSession::Password), |c| {
            c.nv_increment(NvAuth::Owner, handle)
        })
        .map_err(refused("NV_Increment"))
}

fn define(context: &mut Context) -> Result<NvIndexHandle, TpmError> {
    let public = || {
        // No password and nothing to guess, so the lockout has nothing to count.
        let attributes = NvIndexAttributesBuilder::new()
            .with_nv_index_type(NvIndexType::Counter)
            .with_owner_write(true)
            .with_owner_read(true)
            .with_no_da(true)
            .build()?;
        NvPublicBuilder::new()
            .with_nv_index(NvIndexTpmHandle::new(INDEX)?)
            .with_index_name_algorithm(HashingAlgorithm::Sha256)
            .with_index_attributes(attributes)
            .with_data_area_size(SIZE.into())
            .build()
    };
    let public = public().map_err(refused("the counter's attributes"))?;
    context
        .execute_with_session(Some(AuthSession::Password), |c| {
            c.nv_define_space(Provision::Owner, None, public)
        })
        .map_err(refused("NV_DefineSpace"))
}
