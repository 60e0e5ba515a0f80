//! A node's view of the chain: applies bundles, remembers records, and decides about images.
//!
//! Invariants:
//! - A bundle is applied as a whole or not at all. Its records are verified at the newest finalized
//!   and attested headers that this node knows.
//! - From a bundle that is behind this node but signed by two thirds, only revocations are taken,
//!   so that a relay that is one slot ahead cannot hide a revocation that another reports.
//! - The finalized height never goes back.

use sha2::{Digest as _, Sha256};

use super::committee::committee_root;
use super::error::ChainError;
use super::forks::Network;
use super::persisted::PersistedState;
use super::records::{BlockRef, KnownRecord, MAX_DIGESTS, Records};
use super::registry::Record;
use super::settings::Settings;
use super::ssz::Root;
use super::state::ExecutionBlock;
use super::store::LightClientStore;
use super::types::{Bundle, Hash, Header, Proofs, Update};
use crate::decision::ChainReason;

/// Greatest age of a checkpoint: two weeks. Validators that left earlier no longer have a stake to
/// lose for what they sign (weak subjectivity).
pub const MAX_CHECKPOINT_AGE_SECONDS: u64 = 14 * 86_400;
/// Greatest size of a bundle's text. One update a period is about 21 MB a year, and 700 kB in two
/// weeks, the greatest age of a checkpoint.
pub const MAX_BUNDLE_BYTES: usize = 4 << 20;
/// Greatest number of a bundle's updates. [`MAX_BUNDLE_BYTES`] is reached earlier on the public
/// network, with its large sync committees.
const MAX_UPDATES: usize = 4096;
/// Greatest tolerated difference between a node's clock and the chain's.
const MAX_CLOCK_SKEW_SECONDS: u64 = 300;
/// Interval at which the finalized height changes [`LightClient::persistent_root`]. An attacker who
/// restores an older copy of the card can undo at most this much of it.
const HEIGHT_INTERVAL_SECONDS: u64 = 3600;

/// Light client of one chain and its registry.
#[derive(Debug, Clone, PartialEq)]
pub struct LightClient {
    settings: Settings,
    /// `None` until the first bundle.
    store: Option<LightClientStore>,
    /// Newest finalized block whose records were verified.
    finalized_block: Option<BlockRef>,
    /// Newest attested block whose records were verified.
    attested_block: Option<BlockRef>,
    records: Records,
}

/// State of a light client, for the owner.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LightClientStatus {
    /// Slot of the finalized block.
    pub slot: u64,
    /// Number of the finalized execution block.
    pub block: u64,
    /// Start of the finalized slot in seconds since 1970.
    pub time: u64,
    /// Slot of the attested block.
    pub attested_slot: u64,
    /// Number of the attested execution block.
    pub attested_block: u64,
    /// Sync committee period of the finalized header.
    pub period: u64,
    /// Number of known records.
    pub records: usize,
}

/// Approval of an image in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Approval {
    /// The finalized block that has the record.
    pub at: BlockRef,
    /// Sequence of the record.
    pub seq: u64,
    /// First second since 1970 at which the approval is no longer valid.
    pub not_after: u64,
}

impl LightClient {
    /// Makes a client that has not applied a bundle yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            store: None,
            finalized_block: None,
            attested_block: None,
            records: Records::default(),
        }
    }

    /// Returns the settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the first sync committee period whose update the client needs, or `None` if it needs
    /// a bootstrap.
    pub fn first_missing_period(&self, now: u64) -> Option<u64> {
        let store = self.store.as_ref().filter(|store| !self.is_too_old(store, now))?;
        let knows_next = store.next_sync_committee.is_some();
        Some(store.period(&self.settings.network) + u64::from(knows_next))
    }

    /// Reports whether a store is too old to continue from.
    fn is_too_old(&self, store: &LightClientStore, now: u64) -> bool {
        let time = self.settings.network.time_of_slot(store.finalized_header.beacon.slot);
        now.saturating_sub(time) > MAX_CHECKPOINT_AGE_SECONDS
    }

    /// Verifies a bundle and returns the client's next state, with all records of the bundle.
    ///
    /// # Errors
    ///
    /// See [`LightClient::apply_bundle_for`].
    pub fn apply_bundle(&self, text: &str, now: u64) -> Result<Self, ChainError> {
        self.apply_bundle_for(text, now, &|_| true)
    }

    /// Verifies a bundle and returns the client's next state. Ignores records of digests that are
    /// not `wanted`, so that a relay cannot fill the memory.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError`] if any part of the bundle is invalid, or the bundle is behind this
    /// client and has no revocation that the client does not know.
    pub fn apply_bundle_for(
        &self,
        text: &str,
        now: u64,
        wanted: &dyn Fn(&Hash) -> bool,
    ) -> Result<Self, ChainError> {
        if text.len() > MAX_BUNDLE_BYTES {
            return Err(ChainError::Format(format!(
                "it has {} bytes, at most {MAX_BUNDLE_BYTES} are allowed",
                text.len()
            )));
        }
        let mut bundle: Bundle =
            serde_json::from_str(text).map_err(|e| ChainError::Format(e.to_string()))?;
        for proofs in [Some(&mut bundle.at_final), bundle.attested.as_mut()].into_iter().flatten() {
            proofs.records.retain(|digest, _| wanted(digest));
        }
        let network = &self.settings.network;
        check_order(network, &bundle.updates)?;
        let slot = network.slot_at_time(now.saturating_add(MAX_CLOCK_SKEW_SECONDS));
        let mut store = self.load_or_bootstrap(&bundle, now)?;
        process_updates(&mut store, network, &bundle, slot)?;
        self.apply_records(store, &bundle, slot, wanted)
    }

    /// Returns the client's store, or one that starts at the bundle's bootstrap.
    fn load_or_bootstrap(&self, bundle: &Bundle, now: u64) -> Result<LightClientStore, ChainError> {
        if let Some(store) = self.store.as_ref().filter(|store| !self.is_too_old(store, now)) {
            return Ok(store.clone());
        }
        let network = &self.settings.network;
        let bootstrap = bundle.bootstrap.as_ref().ok_or(ChainError::NoBootstrap)?;
        let store = LightClientStore::bootstrap(network, &self.settings.checkpoint, bootstrap)?;
        let time = network.time_of_slot(store.finalized_header.beacon.slot);
        let (age, max_age) = (now.saturating_sub(time), MAX_CHECKPOINT_AGE_SECONDS);
        if age > max_age {
            return Err(ChainError::CheckpointTooOld { age, max_age });
        }
        Ok(store)
    }

    /// Verifies the bundle's records at the headers of `store` and returns the client's next state.
    fn apply_records(
        &self,
        store: LightClientStore,
        bundle: &Bundle,
        slot: u64,
        wanted: &dyn Fn(&Hash) -> bool,
    ) -> Result<Self, ChainError> {
        let network = &self.settings.network;
        let finalized = bundle
            .finality
            .finalized_header
            .as_ref()
            .ok_or(ChainError::Branch("finalized header"))?;
        let newest = &store.unforced_finalized_header;
        let known = self.finalized_block.map_or(0, |block| block.slot).max(newest.beacon.slot);
        let mut next = Self { store: None, ..self.clone() };
        // Records are verified at the store's own headers: a header of the bundle that the store
        // already has is not verified, except for its beacon block.
        let is_newest = finalized.beacon == newest.beacon && finalized.beacon.slot >= known;
        let mut is_news = is_newest;
        if is_newest {
            let (at, records) = self.verify_records(newest, &bundle.at_final)?;
            next.records.apply_finalized(at, records, wanted)?;
            next.finalized_block = Some(at);
        } else if finalized.beacon.slot < newest.beacon.slot
            && store.has_valid_supermajority(network, &bundle.finality, slot)
        {
            let (at, records) = self.verify_records(finalized, &bundle.at_final)?;
            is_news = next.records.apply_older_finalized(at, records);
        }
        let update = bundle.optimistic.as_ref().unwrap_or(&bundle.finality);
        let attested = &update.attested_header;
        if let Some(proofs) = &bundle.attested {
            let optimistic = &store.optimistic_header;
            if attested.beacon == optimistic.beacon {
                let (at, records) = self.verify_records(optimistic, proofs)?;
                is_news |= next.records.apply_attested(at, records);
                next.attested_block = Some(at);
            } else if (newest.beacon.slot + 1..optimistic.beacon.slot)
                .contains(&attested.beacon.slot)
                && store.has_valid_supermajority(network, update, slot)
            {
                // A relay may be a slot behind another one and still be honest.
                let (at, records) = self.verify_records(attested, proofs)?;
                is_news |= next.records.apply_attested(at, records);
            }
        }
        if !is_news {
            return Err(ChainError::OlderState { known, found: finalized.beacon.slot });
        }
        next.store = Some(store);
        Ok(next)
    }

    /// Verifies the proofs of records at a header's execution block.
    fn verify_records(
        &self,
        header: &Header,
        proofs: &Proofs,
    ) -> Result<(BlockRef, Vec<(Hash, Record)>), ChainError> {
        let slot = header.beacon.slot;
        let hash = header.block_hash.as_ref().ok_or(ChainError::NoBlock { slot })?;
        let block = ExecutionBlock::decode(&proofs.header, hash)?;
        let contract = &self.settings.contract;
        let storage_root = contract.verify_account(&block.state_root, &proofs.account)?;
        if proofs.records.len() > MAX_DIGESTS {
            return Err(ChainError::Format(format!(
                "it has records of {} digests, at most {MAX_DIGESTS} are allowed",
                proofs.records.len()
            )));
        }
        let records = proofs.records.iter().map(|(digest, proof)| {
            contract.verify_record(&storage_root, digest, proof)?;
            let record = Record::decode(&proof.word.0)
                .map_err(|problem| ChainError::Record { digest: *digest, problem })?;
            Ok((*digest, record))
        });
        Ok((BlockRef { slot, number: block.number }, records.collect::<Result<_, _>>()?))
    }

    /// Decides whether the chain lets an image run at the time `now`, in seconds since 1970.
    ///
    /// # Errors
    ///
    /// Returns the reason if it does not.
    pub fn decide(&self, digest: &Hash, now: u64) -> Result<Approval, ChainReason> {
        let Some(known) = self.records.0.get(digest) else {
            return Err(match self.finalized_block {
                Some(_) => ChainReason::NotAsked,
                None => ChainReason::NotFollowed,
            });
        };
        if let Some((at, record)) = known.revocation() {
            return Err(ChainReason::Revoked { seq: record.seq(), block: at.number });
        }
        let network = &self.settings.network;
        let (at, time) = (known.at, network.time_of_slot(known.at.slot));
        // A correct clock is never before a finalized block.
        let floor = self
            .finalized_block
            .map_or(time, |block| network.time_of_slot(block.slot))
            .saturating_sub(MAX_CLOCK_SKEW_SECONDS);
        if now < floor {
            return Err(ChainReason::Clock { now, floor });
        }
        let max_age = self.settings.max_age;
        if now.saturating_sub(time) > max_age {
            return Err(ChainReason::Stale { block: at.number, time, now, max_age });
        }
        match known.record {
            Record::Absent => Err(ChainReason::Absent { block: at.number }),
            Record::Revoked { seq, .. } => Err(ChainReason::Revoked { seq, block: at.number }),
            Record::Approved { approval, .. } if approval < self.settings.require => {
                Err(ChainReason::NoProof { block: at.number })
            }
            Record::Approved { not_after, seq, .. } if now >= not_after => {
                Err(ChainReason::Expired { seq, not_after, now })
            }
            Record::Approved { not_after, seq, .. } => Ok(Approval { at, seq, not_after }),
        }
    }

    /// Returns the digests whose records were verified at the newest finalized block.
    pub fn digests(&self) -> impl Iterator<Item = Hash> {
        self.records
            .0
            .iter()
            .filter(|(_, known)| Some(known.at) == self.finalized_block)
            .map(|(digest, _)| *digest)
    }

    /// Reports whether a bundle ever had a record of a digest, even if it proved its absence.
    pub fn has_record(&self, digest: &Hash) -> bool {
        self.records.0.contains_key(digest)
    }

    /// Returns the state for the owner, `None` before the first bundle.
    pub fn status(&self) -> Option<LightClientStatus> {
        let (store, finalized) = (self.store.as_ref()?, self.finalized_block?);
        let attested = self.attested_block.unwrap_or(finalized);
        Some(LightClientStatus {
            slot: finalized.slot,
            block: finalized.number,
            time: self.settings.network.time_of_slot(finalized.slot),
            attested_slot: attested.slot,
            attested_block: attested.number,
            period: store.period(&self.settings.network),
            records: self.records.0.len(),
        })
    }

    /// Returns a hash of the state that must survive the restoring of an older copy of the card:
    /// the committees, the records, and the finalized height by the hour.
    ///
    /// Not every finalized block changes the hash, because a TPM's counter wears out.
    pub fn persistent_root(&self) -> Root {
        let Some(store) = &self.store else { return [0; 32] };
        let slot = store.unforced_finalized_header.beacon.slot;
        let hours = self.settings.network.time_of_slot(slot) / HEIGHT_INTERVAL_SECONDS;
        let next_committee = store.next_sync_committee.as_ref();
        let hasher = Sha256::new()
            .chain_update(self.settings.contract_id().0)
            .chain_update(hours.to_be_bytes())
            .chain_update(committee_root(&store.current_sync_committee.raw))
            .chain_update(next_committee.map_or([0; 32], |next| committee_root(&next.raw)));
        let add_record = |hasher: Sha256, (digest, known): (&Hash, &KnownRecord)| {
            let attested_seq = known.attested.map_or(0, |(_, record)| record.seq());
            hasher
                .chain_update(digest.0)
                .chain_update(known.record.seq().to_be_bytes())
                .chain_update(attested_seq.to_be_bytes())
        };
        self.records
            .0
            .iter()
            .filter(|(_, known)| known.record != Record::Absent || known.attested.is_some())
            .fold(hasher, add_record)
            .finalize()
            .into()
    }

    /// Returns the state to persist, `None` before the first bundle.
    pub fn persisted_state(&self) -> Option<PersistedState> {
        let store = self.store.as_ref()?;
        Some(PersistedState::new(
            &self.settings,
            store,
            self.finalized_block,
            self.attested_block,
            &self.records,
        ))
    }

    /// Restores persisted state that the caller has authenticated. Records of another contract are
    /// dropped; state of another network is discarded.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError`] if the keys of a sync committee are invalid.
    pub fn restore(settings: Settings, state: PersistedState) -> Result<Self, ChainError> {
        if !state.is_of_network(&settings) {
            return Ok(Self::new(settings));
        }
        let (finalized_block, attested_block) = (state.finalized_block, state.attested_block);
        let (store, records) = state.restore(&settings)?;
        Ok(Self { settings, store: Some(store), finalized_block, attested_block, records })
    }
}

/// Checks the number of a bundle's updates, and that they are one a period, the oldest first.
fn check_order(network: &Network, updates: &[Update]) -> Result<(), ChainError> {
    let period = |update: &Update| network.preset.period(update.attested_header.beacon.slot);
    if updates.len() > MAX_UPDATES || !updates.is_sorted_by(|a, b| period(a) < period(b)) {
        return Err(ChainError::Updates(MAX_UPDATES));
    }
    Ok(())
}

/// Applies all updates of a bundle to the store.
fn process_updates(
    store: &mut LightClientStore,
    network: &Network,
    bundle: &Bundle,
    slot: u64,
) -> Result<(), ChainError> {
    let mut previous: Option<&Update> = None;
    for update in bundle.updates.iter().chain([&bundle.finality]).chain(&bundle.optimistic) {
        // A period without finality precedes this update. The best update of that period is forced:
        // it names the committee that signed this one.
        if !store.knows_signers(network, update) {
            store.force_update(network, slot)?;
        }
        // The forced update may have been only a later slot of the period before. Then the bundle's
        // previous update is forced too.
        if let Some(last) = previous.filter(|_| !store.knows_signers(network, update)) {
            store.process_update(network, last, slot)?;
            store.force_update(network, slot)?;
        }
        if !store.is_redundant(network, update) {
            store.process_update(network, update, slot)?;
        }
        previous = Some(update);
    }
    store.force_update(network, slot)
}
