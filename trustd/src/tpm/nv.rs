//! What is kept in the TPM's own memory (TPM 2.0 Library, Part 1, 37 "NV Memory").

use tss_esapi::Context;
use tss_esapi::constants::CapabilityType;
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::resource_handles::NvAuth;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, NvPublic};

use super::TpmError;
use super::device::refused;

/// At most so many bytes come at once: every TPM can do that.
const CHUNK: usize = 512;

/// The index, if there is one. Asked first: the C library complains loudly about one that is not.
pub(super) fn find(context: &mut Context, index: u32) -> Result<Option<NvIndexHandle>, TpmError> {
    let listed =
        context.execute_without_session(|c| c.get_capability(CapabilityType::Handles, index, 1));
    let (CapabilityData::Handles(handles), _) = listed.map_err(refused("GetCapability"))? else {
        return Err(TpmError::Answer {
            what: "GetCapability",
            problem: "no list of handles".into(),
        });
    };
    let index = NvIndexTpmHandle::new(index).map_err(refused("the index"))?;
    if !handles.into_inner().contains(&TpmHandle::NvIndex(index)) {
        return Ok(None);
    }
    let found =
        context.execute_without_session(|c| c.tr_from_tpm_public(TpmHandle::NvIndex(index)));
    Ok(Some(found.map_err(refused("NV_ReadPublic"))?.into()))
}

fn public(context: &mut Context, handle: NvIndexHandle) -> Result<NvPublic, TpmError> {
    Ok(context
        .execute_without_session(|c| c.nv_read_public(handle))
        .map_err(refused("NV_ReadPublic"))?
        .0)
}

/// All of it; nothing if nothing was written yet.
pub(super) fn read(
    context: &mut Context,
    handle: NvIndexHandle,
) -> Result<Option<Vec<u8>>, TpmError> {
    let public = public(context, handle)?;
    if !public.attributes().written() {
        return Ok(None);
    }
    let mut bytes: Vec<u8> = Vec::with_capacity(public.data_size());
    while bytes.len() < public.data_size() {
        // Sizes and offsets in a TPM have 16 bits.
        let (size, offset) =
            ((public.data_size() - bytes.len()).min(CHUNK) as u16, bytes.len() as u16);
        let read = context.execute_with_session(Some(AuthSession::Password), |c| {
            c.nv_read(NvAuth::Owner, handle, size, offset)
        });
        let read = read.map_err(refused("NV_Read"))?;
        if read.value().is_empty() {
            return Err(TpmError::Answer { what: "NV_Read", problem: "no bytes".into() });
        }
        bytes.extend_from_slice(read.value());
    }
    Ok(Some(bytes))
}
