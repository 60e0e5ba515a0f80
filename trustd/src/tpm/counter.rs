//! A monotonic counter in the TPM's non-volatile memory (TPM 2.0 Library, Part 1, "NV counter").
//!
//! Deleting and redefining the counter cannot turn it back: the TPM starts a new counter at the
//! highest value that any of its counters ever had.

use tss_esapi::Context;
use tss_esapi::attributes::NvIndexAttributesBuilder;
use tss_esapi::constants::NvIndexType;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::NvPublicBuilder;

use super::error::{TpmError, failed};
use super::nv;

/// NV index of the counter, in the range of the TPM's owner (TCG Registry of Reserved TPM 2.0
/// Handles, table 2).
const COUNTER_INDEX: u32 = 0x0180_b0a5;
const COUNTER_BYTES: u16 = 8;

/// Reads the counter. Returns `None` if it is not defined, or if a kill came before its first
/// increment.
pub(super) fn read(context: &mut Context) -> Result<Option<u64>, TpmError> {
    let Some(handle) = nv::find(context, COUNTER_INDEX)? else { return Ok(None) };
    let Some(bytes) = nv::read(context, handle)? else { return Ok(None) };
    let bytes: [u8; 8] = bytes.try_into().map_err(|bytes: Vec<u8>| TpmError::Response {
        operation: "NV_Read",
        problem: format!("expected the 8 bytes of a counter, found {}", bytes.len()),
    })?;
    Ok(Some(u64::from_be_bytes(bytes)))
}

/// Increments the counter; defines it first if there is none.
pub(super) fn increment(context: &mut Context) -> Result<(), TpmError> {
    let handle = match nv::find(context, COUNTER_INDEX)? {
        Some(handle) => handle,
        None => define(context)?,
    };
    context
        .execute_with_session(Some(AuthSession::Password), |c| {
            c.nv_increment(NvAuth::Owner, handle)
        })
        .map_err(failed("NV_Increment"))
}

fn define(context: &mut Context) -> Result<NvIndexHandle, TpmError> {
    let public = || {
        // The counter has no password, so it is exempt from the dictionary attack lockout.
        let attributes = NvIndexAttributesBuilder::new()
            .with_nv_index_type(NvIndexType::Counter)
            .with_owner_write(true)
            .with_owner_read(true)
            .with_no_da(true)
            .build()?;
        NvPublicBuilder::new()
            .with_nv_index(NvIndexTpmHandle::new(COUNTER_INDEX)?)
            .with_index_name_algorithm(HashingAlgorithm::Sha256)
            .with_index_attributes(attributes)
            .with_data_area_size(COUNTER_BYTES.into())
            .build()
    };
    let public = public().map_err(failed("NV_DefineSpace: the counter's attributes"))?;
    context
        .execute_with_session(Some(AuthSession::Password), |c| {
            c.nv_define_space(Provision::Owner, None, public)
        })
        .map_err(failed("NV_DefineSpace"))
}
