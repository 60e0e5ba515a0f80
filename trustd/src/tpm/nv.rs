//! The TPM's non-volatile memory (TPM 2.0 Library, Part 1, 37 "NV Memory").

use tss_esapi::Context;
use tss_esapi::constants::CapabilityType;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::resource_handles::NvAuth;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, NvPublic};

use super::error::{TpmError, failed};

/// Bytes per NV_Read: every TPM can return that many.
const MAX_READ_BYTES: usize = 512;

/// Returns the handle of an index, or `None` if it is not defined. The list of handles is read
/// first, because the C library prints errors about an undefined index.
pub(super) fn find(context: &mut Context, index: u32) -> Result<Option<NvIndexHandle>, TpmError> {
    let listed =
        context.execute_without_session(|c| c.get_capability(CapabilityType::Handles, index, 1));
    let (CapabilityData::Handles(handles), _) = listed.map_err(failed("GetCapability"))? else {
        return Err(TpmError::Response {
            operation: "GetCapability",
            problem: "expected a list of handles".into(),
        });
    };
    let index = NvIndexTpmHandle::new(index).map_err(failed("GetCapability: the index"))?;
    if !handles.into_inner().contains(&TpmHandle::NvIndex(index)) {
        return Ok(None);
    }
    let object =
        context.execute_without_session(|c| c.tr_from_tpm_public(TpmHandle::NvIndex(index)));
    Ok(Some(object.map_err(failed("NV_ReadPublic"))?.into()))
}

fn read_public(context: &mut Context, handle: NvIndexHandle) -> Result<NvPublic, TpmError> {
    Ok(context
        .execute_without_session(|c| c.nv_read_public(handle))
        .map_err(failed("NV_ReadPublic"))?
        .0)
}

/// Reads the whole index. Returns `None` if nothing was written to it yet.
pub(super) fn read(
    context: &mut Context,
    handle: NvIndexHandle,
) -> Result<Option<Vec<u8>>, TpmError> {
    let public = read_public(context, handle)?;
    if !public.attributes().written() {
        return Ok(None);
    }
    let mut bytes: Vec<u8> = Vec::with_capacity(public.data_size());
    while bytes.len() < public.data_size() {
        // Sizes and offsets in a TPM have 16 bits.
        let (size, offset) =
            ((public.data_size() - bytes.len()).min(MAX_READ_BYTES) as u16, bytes.len() as u16);
        let read = context.execute_with_session(Some(AuthSession::Password), |c| {
            c.nv_read(NvAuth::Owner, handle, size, offset)
        });
        let read = read.map_err(failed("NV_Read"))?;
        if read.value().is_empty() {
            let problem = format!("expected up to {size} bytes, found none");
            return Err(TpmError::Response { operation: "NV_Read", problem });
        }
        bytes.extend_from_slice(read.value());
    }
    Ok(Some(bytes))
}
