//! The light client of the consensus specification (specs/altair/light-client/sync-protocol.md and
//! its later forks).
//!
//! Invariants:
//! - `finalized_header` was signed by two thirds of a committee that the pinned checkpoint leads
//!   to.
//! - No header of the store ever goes back.
//!
//! The rules are stricter than the specification:
//! - A forced update (after a period without finality) must be signed by two thirds. The
//!   specification allows any update; this store does not even remember the others for it.
//! - A forced header becomes `finalized_header`, which determines whose committee signs.
//!   `unforced_finalized_header`, which determines the decisions about images, stays the last
//!   header that the chain itself finalized.
//! - A header that less than a third of the committee signed is rejected. So is a header since
//!   Capella that does not name its execution block.

use super::committee::{ValidatedCommittee, committee_root};
use super::error::ChainError;
use super::forks::{Layout, Network};
use super::ssz::{self, Root};
use super::types::{Bootstrap, Hash, Header, SyncCommittee, Update};

/// The specification's `LightClientStore`.
#[derive(Debug, Clone, PartialEq)]
pub struct LightClientStore {
    pub(super) finalized_header: Header,
    /// Newest header that became `finalized_header` without a forced update.
    pub(super) unforced_finalized_header: Header,
    pub(super) current_sync_committee: ValidatedCommittee,
    pub(super) next_sync_committee: Option<ValidatedCommittee>,
    pub(super) best_valid_update: Option<Update>,
    pub(super) optimistic_header: Header,
    pub(super) previous_max_active_participants: usize,
    pub(super) current_max_active_participants: usize,
}

impl LightClientStore {
    /// Starts at the pinned block: `initialize_light_client_store`.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError`] if the bootstrap is not that of the checkpoint, or its proofs or keys
    /// are invalid.
    pub fn bootstrap(
        network: &Network,
        checkpoint: &Root,
        bootstrap: &Bootstrap,
    ) -> Result<Self, ChainError> {
        let header = &bootstrap.header;
        let found = header.beacon.root();
        if found != *checkpoint {
            return Err(ChainError::WrongCheckpoint {
                expected: Hash::new(*checkpoint),
                found: Hash::new(found),
            });
        }
        verify_header(network, header)?;
        verify_branch(
            &committee_root(&bootstrap.current_sync_committee),
            &bootstrap.current_sync_committee_branch,
            network.layout(header.beacon.slot).current_sync_committee,
            &header.beacon.state_root,
            "current sync committee",
        )?;
        let size = network.preset.sync_committee_size;
        Ok(Self {
            finalized_header: header.clone(),
            unforced_finalized_header: header.clone(),
            current_sync_committee: ValidatedCommittee::new(
                &bootstrap.current_sync_committee,
                size,
            )?,
            next_sync_committee: None,
            best_valid_update: None,
            optimistic_header: header.clone(),
            previous_max_active_participants: 0,
            current_max_active_participants: 0,
        })
    }

    /// Returns the period of `current_sync_committee`.
    pub fn period(&self, network: &Network) -> u64 {
        network.preset.period(self.finalized_header.beacon.slot)
    }

    /// Reports whether an update would change nothing. Verifying its signature is then a waste.
    pub fn is_redundant(&self, network: &Network, update: &Update) -> bool {
        let finalized_slot =
            update.finalized_header.as_ref().map_or(0, |header| header.beacon.slot);
        let attested_slot = update.attested_header.beacon.slot;
        let (own_period, period) = (self.period(network), network.preset.period(attested_slot));
        let names_committee = update.next_sync_committee.is_some();
        // The committee after the next one cannot be applied yet, but a period without finality is
        // skipped with its update.
        let prepares_forced_update = period == own_period + 1
            && self
                .best_valid_update
                .as_ref()
                .is_none_or(|best| best.next_sync_committee.is_none());
        let names_next = self.next_sync_committee.is_none() && period == own_period;
        // The specification calls such an update irrelevant: a forced update went past it.
        let is_irrelevant =
            attested_slot <= self.finalized_header.beacon.slot && !(names_committee && names_next);
        period < own_period
            || is_irrelevant
            || finalized_slot <= self.unforced_finalized_header.beacon.slot
                && attested_slot <= self.optimistic_header.beacon.slot
                && !(names_committee && (names_next || prepares_forced_update))
    }

    /// Reports whether the store knows the committee that signed an update.
    pub(super) fn knows_signers(&self, network: &Network, update: &Update) -> bool {
        network.preset.period(update.signature_slot)
            <= self.period(network) + u64::from(self.next_sync_committee.is_some())
    }

    /// Reports whether two thirds of a known committee signed an update, even if the store has
    /// newer headers.
    pub(super) fn has_valid_supermajority(
        &self,
        network: &Network,
        update: &Update,
        slot: u64,
    ) -> bool {
        is_supermajority(update, network) && self.validate_update(network, update, slot).is_ok()
    }

    /// Verifies and applies an update: `process_light_client_update`. `slot` is the current one.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError`] if the update is invalid. The store may then be partly updated and
    /// must be dropped.
    pub fn process_update(
        &mut self,
        network: &Network,
        update: &Update,
        slot: u64,
    ) -> Result<(), ChainError> {
        let next_committee = self.validate_update(network, update, slot)?;
        let participants = update.sync_aggregate.participants();
        // An update with fewer signers could never be forced, and would displace one that can.
        if is_supermajority(update, network)
            && self
                .best_valid_update
                .as_ref()
                .is_none_or(|best| is_better_update(network, update, best))
        {
            self.best_valid_update = Some(update.clone());
        }
        self.current_max_active_participants =
            self.current_max_active_participants.max(participants);
        let attested = &update.attested_header;
        if participants > self.safety_threshold()
            && attested.beacon.slot > self.optimistic_header.beacon.slot
        {
            self.optimistic_header = attested.clone();
        }
        if !is_supermajority(update, network) {
            return Ok(());
        }
        let Some(finalized) = &update.finalized_header else { return Ok(()) };
        let period = |slot| network.preset.period(slot);
        let names_next = self.next_sync_committee.is_none()
            && update.next_sync_committee.is_some()
            && period(finalized.beacon.slot) == period(attested.beacon.slot);
        if finalized.beacon.slot > self.unforced_finalized_header.beacon.slot {
            self.unforced_finalized_header = finalized.clone();
        }
        if finalized.beacon.slot > self.finalized_header.beacon.slot || names_next {
            self.apply_update(network, finalized, next_committee)?;
            self.best_valid_update = None;
        }
        Ok(())
    }

    /// Applies the best update after a period without finality:
    /// `process_light_client_store_force_update`.
    ///
    /// # Errors
    ///
    /// Returns [`ChainError`] if the keys of the next committee are invalid, or a period is
    /// missing. The store must then be dropped.
    pub fn force_update(&mut self, network: &Network, slot: u64) -> Result<(), ChainError> {
        let timeout = network.preset.slots_per_period();
        let is_due = slot > self.finalized_header.beacon.slot.saturating_add(timeout);
        let Some(best) =
            self.best_valid_update.take_if(|best| is_due && is_supermajority(best, network))
        else {
            return Ok(());
        };
        let finalized = best
            .finalized_header
            .as_ref()
            .filter(|header| header.beacon.slot > self.finalized_header.beacon.slot);
        let next_committee = best
            .next_sync_committee
            .as_ref()
            .map(|next| ValidatedCommittee::new(next, network.preset.sync_committee_size))
            .transpose()?;
        self.apply_update(network, finalized.unwrap_or(&best.attested_header), next_committee)
    }

    /// Moves on to a finalized header: `apply_light_client_update`.
    fn apply_update(
        &mut self,
        network: &Network,
        finalized: &Header,
        next_committee: Option<ValidatedCommittee>,
    ) -> Result<(), ChainError> {
        let (period, found) = (self.period(network), network.preset.period(finalized.beacon.slot));
        if self.next_sync_committee.is_none() {
            if found != period {
                return Err(ChainError::Period { known: period, found });
            }
            self.next_sync_committee = next_committee;
        } else if found == period + 1
            && let Some(known) = self.next_sync_committee.take()
        {
            self.current_sync_committee = known;
            self.next_sync_committee = next_committee;
            self.previous_max_active_participants = self.current_max_active_participants;
            self.current_max_active_participants = 0;
        }
        if finalized.beacon.slot > self.finalized_header.beacon.slot {
            self.finalized_header = finalized.clone();
            if finalized.beacon.slot > self.optimistic_header.beacon.slot {
                self.optimistic_header = finalized.clone();
            }
        }
        Ok(())
    }

    /// Returns the number of signers that a new optimistic header must exceed:
    /// `get_safety_threshold`.
    fn safety_threshold(&self) -> usize {
        self.previous_max_active_participants.max(self.current_max_active_participants) / 2
    }

    /// Verifies an update: `validate_light_client_update`. Returns the next sync committee if the
    /// update names it.
    fn validate_update(
        &self,
        network: &Network,
        update: &Update,
        slot: u64,
    ) -> Result<Option<ValidatedCommittee>, ChainError> {
        validate_participation(network, update)?;
        let attested = &update.attested_header;
        verify_header(network, attested)?;
        validate_slots(update, slot)?;
        let (signed, attested_slot) = (update.signature_slot, attested.beacon.slot);
        let (period, found) = (self.period(network), network.preset.period(signed));
        let signers = match &self.next_sync_committee {
            _ if found == period => &self.current_sync_committee,
            Some(next) if found == period + 1 => next,
            _ => return Err(ChainError::Period { known: period, found }),
        };
        let attested_period = network.preset.period(attested_slot);
        let names_next = self.next_sync_committee.is_none()
            && update.next_sync_committee.is_some()
            && attested_period == period;
        let known = self.finalized_header.beacon.slot;
        if attested_slot <= known && !names_next {
            return Err(ChainError::Irrelevant { known, found: attested_slot });
        }
        let layout = network.layout(attested_slot);
        verify_finality(network, layout, update)?;
        let next =
            self.verify_next_committee(network, layout, update, attested_period == period)?;
        let message = network.signing_root(&attested.beacon.root(), signed);
        signers.verify(&update.sync_aggregate, &message)?;
        // The keys are validated last, because that is expensive.
        match next {
            Some(next)
                if self.next_sync_committee.as_ref().is_none_or(|known| known.raw != *next) =>
            {
                ValidatedCommittee::new(next, network.preset.sync_committee_size).map(Some)
            }
            Some(_) => Ok(self.next_sync_committee.clone()),
            None => Ok(None),
        }
    }

    /// Verifies the next sync committee that an update names, except for its keys.
    fn verify_next_committee<'a>(
        &self,
        network: &Network,
        layout: &Layout,
        update: &'a Update,
        in_own_period: bool,
    ) -> Result<Option<&'a SyncCommittee>, ChainError> {
        const NAME: &str = "next sync committee";
        let Some(next) = &update.next_sync_committee else {
            return if update.next_sync_committee_branch.is_empty() {
                Ok(None)
            } else {
                Err(ChainError::Branch(NAME))
            };
        };
        let expected = network.preset.sync_committee_size;
        if next.pubkeys.len() != expected {
            return Err(ChainError::CommitteeSize { expected, found: next.pubkeys.len() });
        }
        if in_own_period && self.next_sync_committee.as_ref().is_some_and(|k| k.raw != *next) {
            return Err(ChainError::ConflictingCommittee);
        }
        verify_branch(
            &committee_root(next),
            &update.next_sync_committee_branch,
            layout.next_sync_committee,
            &update.attested_header.beacon.state_root,
            NAME,
        )?;
        Ok(Some(next))
    }
}

fn validate_participation(network: &Network, update: &Update) -> Result<(), ChainError> {
    let size = network.preset.sync_committee_size;
    let bits = update.sync_aggregate.sync_committee_bits.0.len();
    if bits != size / 8 {
        return Err(ChainError::ParticipationBits { expected: size / 8, found: bits });
    }
    let found = update.sync_aggregate.participants();
    if found * 3 < size {
        return Err(ChainError::Participation { found, size });
    }
    Ok(())
}

fn validate_slots(update: &Update, now: u64) -> Result<(), ChainError> {
    let finalized = update.finalized_header.as_ref().map_or(0, |header| header.beacon.slot);
    let (signed, attested) = (update.signature_slot, update.attested_header.beacon.slot);
    if now >= signed && signed > attested && attested >= finalized {
        return Ok(());
    }
    Err(ChainError::Slots { now, signed, attested, finalized })
}

fn verify_finality(network: &Network, layout: &Layout, update: &Update) -> Result<(), ChainError> {
    let root = match &update.finalized_header {
        None if update.finality_branch.is_empty() => return Ok(()),
        // The state has a zero root until the first finalized block.
        None => [0; 32],
        Some(header) => {
            verify_header(network, header)?;
            header.beacon.root()
        }
    };
    verify_branch(
        &root,
        &update.finality_branch,
        layout.finalized_root,
        &update.attested_header.beacon.state_root,
        "finalized header",
    )
}

/// Verifies that a header leads to the execution block that it names:
/// `is_valid_light_client_header`.
fn verify_header(network: &Network, header: &Header) -> Result<(), ChainError> {
    const NAME: &str = "execution block";
    match (network.layout(header.beacon.slot).block_hash, &header.block_hash) {
        (Some(index), Some(hash)) => {
            let root = &header.beacon.body_root;
            verify_branch(&hash.0, &header.block_hash_branch, index, root, NAME)
        }
        (None, None) if header.block_hash_branch.is_empty() => Ok(()),
        _ => Err(ChainError::Branch(NAME)),
    }
}

fn verify_branch(
    leaf: &Root,
    branch: &[Hash],
    index: u64,
    root: &Hash,
    name: &'static str,
) -> Result<(), ChainError> {
    let siblings: Vec<Root> = branch.iter().map(|hash| hash.0).collect();
    if ssz::is_valid_branch(leaf, &siblings, index, &root.0) {
        Ok(())
    } else {
        Err(ChainError::Branch(name))
    }
}

fn is_supermajority(update: &Update, network: &Network) -> bool {
    update.sync_aggregate.participants() * 3 >= network.preset.sync_committee_size * 2
}

/// Reports whether an update is the better one to force: `is_better_update`.
fn is_better_update(network: &Network, new: &Update, old: &Update) -> bool {
    let period = |slot| network.preset.period(slot);
    let participants = |update: &Update| update.sync_aggregate.participants();
    let supermajority = is_supermajority(new, network);
    if supermajority != is_supermajority(old, network) {
        return supermajority;
    }
    if !supermajority && participants(new) != participants(old) {
        return participants(new) > participants(old);
    }
    let has_relevant_committee = |update: &Update| {
        update.next_sync_committee.is_some()
            && period(update.attested_header.beacon.slot) == period(update.signature_slot)
    };
    if has_relevant_committee(new) != has_relevant_committee(old) {
        return has_relevant_committee(new);
    }
    let has_finality = |update: &Update| !update.finality_branch.is_empty();
    if has_finality(new) != has_finality(old) {
        return has_finality(new);
    }
    let has_committee_finality = |update: &Update| {
        let slot = update.finalized_header.as_ref().map_or(0, |header| header.beacon.slot);
        period(slot) == period(update.attested_header.beacon.slot)
    };
    if has_finality(new) && has_committee_finality(new) != has_committee_finality(old) {
        return has_committee_finality(new);
    }
    if participants(new) != participants(old) {
        return participants(new) > participants(old);
    }
    let slots = |update: &Update| (update.attested_header.beacon.slot, update.signature_slot);
    slots(new) < slots(old)
}
