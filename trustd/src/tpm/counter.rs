//! A counter in the TPM's own memory that only goes up (TPM 2.0 Part 1, "NV counter").
//!
//! Even whoever deletes and defines it anew cannot turn it back: the TPM begins where the highest counter it ever had ended.

use tss_esapi::Context;
use tss_esapi::attributes::NvIndexAttributesBuilder;
use tss_esapi::constants::{CapabilityType, NvIndexType};
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, NvPublicBuilder};

use super::TpmError;
use super::device::refused;

/// In the range that the owner of a TPM gives out (TCG Registry of Reserved TPM 2.0 Handles, table 2).
const INDEX: u32 = 0x0180_b0a5;
const SIZE: u16 = 8;

/// Where the counter stands; none if there is no counter yet.
pub(super) fn read(context: &mut Context) -> Result<Option<u64>, TpmError> {
    let Some(handle) = find(context)? else { return Ok(None) };
    let (public, _) = context.execute_without_session(|c| c.nv_read_public(handle)).map_err(refused("NV_ReadPublic"))?;
    if !public.attributes().written() {
        // Defined, and a kill came before its first step.
        return Ok(None);
    }
    let read = context.execute_with_session(Some(AuthSession::Password), |c| c.nv_read(NvAuth::Owner, handle, SIZE, 0));
    let bytes = read.map_err(refused("NV_Read"))?;
    let bytes: [u8; 8] =
        bytes.value().try_into().map_err(|_| TpmError::Answer { what: "NV_Read", problem: "a counter has 8 bytes".into() })?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

/// One up; makes the counter if there is none.
pub(super) fn increment(context: &mut Context) -> Result<u64, TpmError> {
    let handle = match find(context)? {
        Some(handle) => handle,
        None => define(context)?,
    };
    context
        .execute_with_session(Some(AuthSession::Password), |c| c.nv_increment(NvAuth::Owner, handle))
        .map_err(refused("NV_Increment"))?;
    read(context)?.ok_or_else(|| TpmError::Answer { what: "NV_Increment", problem: "the counter is gone".into() })
}

/// Whether there is something at an index. Asked first: the C library complains loudly about one that is not.
pub(super) fn is_defined(context: &mut Context, index: u32) -> Result<bool, TpmError> {
    let listed = context.execute_without_session(|c| c.get_capability(CapabilityType::Handles, index, 1));
    let (CapabilityData::Handles(handles), _) = listed.map_err(refused("GetCapability"))? else {
        return Err(TpmError::Answer { what: "GetCapability", problem: "no list of handles".into() });
    };
    let index = NvIndexTpmHandle::new(index).map_err(refused("the index"))?;
    Ok(handles.into_inner().contains(&TpmHandle::NvIndex(index)))
}

fn find(context: &mut Context) -> Result<Option<NvIndexHandle>, TpmError> {
    if !is_defined(context, INDEX)? {
        return Ok(None);
    }
    let index = NvIndexTpmHandle::new(INDEX).map_err(refused("the counter's index"))?;
    let found = context.execute_without_session(|c| c.tr_from_tpm_public(TpmHandle::NvIndex(index)));
    Ok(Some(found.map_err(refused("NV_ReadPublic"))?.into()))
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
        .execute_with_session(Some(AuthSession::Password), |c| c.nv_define_space(Provision::Owner, None, public))
        .map_err(refused("NV_DefineSpace"))
}
