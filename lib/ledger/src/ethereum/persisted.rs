//! The light client's state that a node persists.

use serde::{Deserialize, Serialize};

use super::committee::ValidatedCommittee;
use super::error::ChainError;
use super::records::{BlockRef, Records};
use super::settings::Settings;
use super::store::LightClientStore;
use super::types::{Hash, Header, SyncCommittee, Update};

/// State from which a light client resumes after a restart.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersistedState {
    /// Genesis validators root of the network.
    genesis: Hash,
    /// Identity of the registry contract.
    contract: Hash,
    finalized_header: Header,
    unforced_finalized_header: Header,
    optimistic_header: Header,
    current_sync_committee: SyncCommittee,
    next_sync_committee: Option<SyncCommittee>,
    best_valid_update: Option<Update>,
    previous_max_active_participants: usize,
    current_max_active_participants: usize,
    pub(super) finalized_block: Option<BlockRef>,
    pub(super) attested_block: Option<BlockRef>,
    records: Records,
}

impl PersistedState {
    pub(super) fn new(
        settings: &Settings,
        store: &LightClientStore,
        finalized_block: Option<BlockRef>,
        attested_block: Option<BlockRef>,
        records: &Records,
    ) -> Self {
        Self {
            genesis: Hash::new(settings.network.genesis_validators_root),
            contract: settings.contract_id(),
            finalized_header: store.finalized_header.clone(),
            unforced_finalized_header: store.unforced_finalized_header.clone(),
            optimistic_header: store.optimistic_header.clone(),
            current_sync_committee: store.current_sync_committee.raw.clone(),
            next_sync_committee: store.next_sync_committee.as_ref().map(|next| next.raw.clone()),
            best_valid_update: store.best_valid_update.clone(),
            previous_max_active_participants: store.previous_max_active_participants,
            current_max_active_participants: store.current_max_active_participants,
            finalized_block,
            attested_block,
            records: records.clone(),
        }
    }

    /// Reports whether the state is that of the same network.
    pub(super) fn is_of_network(&self, settings: &Settings) -> bool {
        self.genesis.0 == settings.network.genesis_validators_root
    }

    /// Restores the store, whose keys are validated again, and the records. Records of another
    /// contract are dropped.
    pub(super) fn restore(
        self,
        settings: &Settings,
    ) -> Result<(LightClientStore, Records), ChainError> {
        let size = settings.network.preset.sync_committee_size;
        let validate = |raw: &SyncCommittee| ValidatedCommittee::new(raw, size);
        let store = LightClientStore {
            current_sync_committee: validate(&self.current_sync_committee)?,
            next_sync_committee: self.next_sync_committee.as_ref().map(validate).transpose()?,
            finalized_header: self.finalized_header,
            unforced_finalized_header: self.unforced_finalized_header,
            optimistic_header: self.optimistic_header,
            best_valid_update: self.best_valid_update,
            previous_max_active_participants: self.previous_max_active_participants,
            current_max_active_participants: self.current_max_active_participants,
        };
        let is_of_contract = self.contract == settings.contract_id();
        Ok((store, if is_of_contract { self.records } else { Records::default() }))
    }
}
