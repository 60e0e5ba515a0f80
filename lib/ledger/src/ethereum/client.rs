//! The light client of the consensus specification (specs/altair/light-client/sync-protocol.md and
//! its later forks).
//!
//! Invariants:
//! - What is `finalized` here was signed by two thirds of a committee that the pinned checkpoint
//!   leads to.
//! - Neither `finalized`, `last_final` nor `optimistic` ever goes back.
//!
//! Stricter than the specification:
//! - A forced update (a period without finality) is made only of one that two thirds signed, and
//!   only such ones are kept for it; the specification takes any.
//! - A forced header takes the place of `finalized`, which says whose committee signs;
//!   `last_final`, which decides about images, stays the last one that the chain itself made final.
//! - What less than a third of a committee signed is refused, and so is a header since Capella that
//!   does not name its execution block.

use super::ChainError;
use super::committee::{self, Committee};
use super::forks::{Layout, Network};
use super::ssz::{self, Root};
use super::types::{Bootstrap, Hash, Header, SyncCommittee, Update};

#[derive(Debug, Clone, PartialEq)]
pub struct Store {
    pub(super) finalized: Header,
    pub(super) last_final: Header,
    pub(super) optimistic: Header,
    pub(super) current: Committee,
    pub(super) next: Option<Committee>,
    pub(super) best: Option<Update>,
    pub(super) previous_most: usize,
    pub(super) current_most: usize,
}

impl Store {
    /// From the block that is pinned: `initialize_light_client_store`.
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
        check_header(network, header)?;
        let (leaf, index) = (
            committee::root(&bootstrap.current_sync_committee),
            network.layout(header.beacon.slot).current_committee,
        );
        check_branch(
            &leaf,
            &bootstrap.current_sync_committee_branch,
            index,
            &header.beacon.state_root,
            "current sync committee",
        )?;
        Ok(Self {
            finalized: header.clone(),
            last_final: header.clone(),
            optimistic: header.clone(),
            current: Committee::load(&bootstrap.current_sync_committee, network.preset.committee)?,
            next: None,
            best: None,
            previous_most: 0,
            current_most: 0,
        })
    }

    /// The period whose committee is `current`.
    pub fn period(&self, network: &Network) -> u64 {
        network.preset.period(self.finalized.beacon.slot)
    }

    /// Whether this update would tell nothing new; such ones are not worth their signature's check.
    pub fn knows(&self, network: &Network, update: &Update) -> bool {
        let slot = update.finalized_header.as_ref().map_or(0, |header| header.beacon.slot);
        let (own, period) =
            (self.period(network), network.preset.period(update.attested_header.beacon.slot));
        // The committee after the next one: nothing to apply, but what a period without finality is
        // passed by.
        let further = period == own + 1
            && self.best.as_ref().is_none_or(|best| best.next_sync_committee.is_none());
        let committee = update.next_sync_committee.is_some()
            && (self.next.is_none() && period == own || further);
        // What the specification would call not relevant: a forced update passed it by.
        let passed = update.attested_header.beacon.slot <= self.finalized.beacon.slot
            && !(self.next.is_none() && update.next_sync_committee.is_some() && period == own);
        period < own
            || passed
            || slot <= self.last_final.beacon.slot
                && update.attested_header.beacon.slot <= self.optimistic.beacon.slot
                && !committee
    }

    /// Whether the committee that signed this update is one of those that are known.
    pub(super) fn can_check(&self, network: &Network, update: &Update) -> bool {
        network.preset.period(update.signature_slot)
            <= self.period(network) + u64::from(self.next.is_some())
    }

    /// Whether two thirds of a committee that is known signed it, even if something newer is known.
    pub(super) fn vouched(&self, network: &Network, update: &Update, slot: u64) -> bool {
        supermajority(update.sync_aggregate.participants(), network.preset.committee)
            && self.validate(network, update, slot).is_ok()
    }

    /// `process_light_client_update`.
    pub fn process(
        &mut self,
        network: &Network,
        update: &Update,
        slot: u64,
    ) -> Result<(), ChainError> {
        let next = self.validate(network, update, slot)?;
        let (participants, size) = (update.sync_aggregate.participants(), network.preset.committee);
        // Another one would never be used, and be in the way of those that could.
        if supermajority(participants, size)
            && self.best.as_ref().is_none_or(|best| better(network, update, best))
        {
            self.best = Some(update.clone());
        }
        self.current_most = self.current_most.max(participants);
        let attested = &update.attested_header;
        if participants > self.safety_threshold()
            && attested.beacon.slot > self.optimistic.beacon.slot
        {
            self.optimistic = attested.clone();
        }
        if !supermajority(participants, size) {
            return Ok(());
        }
        let Some(finalized) = &update.finalized_header else { return Ok(()) };
        let period = |slot| network.preset.period(slot);
        let names_next = self.next.is_none()
            && update.next_sync_committee.is_some()
            && period(finalized.beacon.slot) == period(attested.beacon.slot);
        if finalized.beacon.slot > self.last_final.beacon.slot {
            self.last_final = finalized.clone();
        }
        if finalized.beacon.slot > self.finalized.beacon.slot || names_next {
            self.apply(network, finalized, next)?;
            self.best = None;
        }
        Ok(())
    }

    /// `process_light_client_store_force_update`: after a period without finality the best that was
    /// seen moves the client on.
    pub fn force(&mut self, network: &Network, slot: u64) -> Result<(), ChainError> {
        let over =
            slot > self.finalized.beacon.slot.saturating_add(network.preset.slots_per_period());
        let strong = |update: &Update| {
            supermajority(update.sync_aggregate.participants(), network.preset.committee)
        };
        let Some(best) = self.best.take_if(|best| over && strong(best)) else { return Ok(()) };
        let finalized = best
            .finalized_header
            .as_ref()
            .filter(|header| header.beacon.slot > self.finalized.beacon.slot);
        let next = best
            .next_sync_committee
            .as_ref()
            .map(|next| Committee::load(next, network.preset.committee))
            .transpose()?;
        self.apply(network, finalized.unwrap_or(&best.attested_header), next)
    }

    /// `apply_light_client_update`.
    fn apply(
        &mut self,
        network: &Network,
        finalized: &Header,
        next: Option<Committee>,
    ) -> Result<(), ChainError> {
        let (period, found) = (self.period(network), network.preset.period(finalized.beacon.slot));
        if self.next.is_none() {
            if found != period {
                return Err(ChainError::Period { known: period, found });
            }
            self.next = next;
        } else if found == period + 1
            && let Some(known) = self.next.take()
        {
            self.current = known;
            self.next = next;
            self.previous_most = self.current_most;
            self.current_most = 0;
        }
        if finalized.beacon.slot > self.finalized.beacon.slot {
            self.finalized = finalized.clone();
            if finalized.beacon.slot > self.optimistic.beacon.slot {
                self.optimistic = finalized.clone();
            }
        }
        Ok(())
    }

    /// `get_safety_threshold`.
    fn safety_threshold(&self) -> usize {
        self.previous_most.max(self.current_most) / 2
    }

    /// `validate_light_client_update`; gives the next committee, if the update names one that is
    /// not known yet.
    fn validate(
        &self,
        network: &Network,
        update: &Update,
        slot: u64,
    ) -> Result<Option<Committee>, ChainError> {
        let (aggregate, size) = (&update.sync_aggregate, network.preset.committee);
        if aggregate.sync_committee_bits.0.len() != size / 8 {
            return Err(ChainError::Bits {
                expected: size / 8,
                found: aggregate.sync_committee_bits.0.len(),
            });
        }
        let found = aggregate.participants();
        if found * 3 < size {
            return Err(ChainError::Participation { found, size });
        }
        let attested = &update.attested_header;
        check_header(network, attested)?;
        let finalized_slot =
            update.finalized_header.as_ref().map_or(0, |header| header.beacon.slot);
        let (signed, attested_slot) = (update.signature_slot, attested.beacon.slot);
        if !(slot >= signed && signed > attested_slot && attested_slot >= finalized_slot) {
            return Err(ChainError::Slots {
                now: slot,
                signed,
                attested: attested_slot,
                finalized: finalized_slot,
            });
        }
        let (period, found) = (self.period(network), network.preset.period(signed));
        let signer = match &self.next {
            _ if found == period => &self.current,
            Some(next) if found == period + 1 => next,
            _ => return Err(ChainError::Period { known: period, found }),
        };
        let attested_period = network.preset.period(attested_slot);
        let names_next = self.next.is_none()
            && update.next_sync_committee.is_some()
            && attested_period == period;
        if attested_slot <= self.finalized.beacon.slot && !names_next {
            return Err(ChainError::NotRelevant {
                known: self.finalized.beacon.slot,
                found: attested_slot,
            });
        }
        let layout = network.layout(attested_slot);
        check_finality(network, layout, update)?;
        let next = self.check_next(network, layout, update, attested_period == period)?;
        signer.check(aggregate, &network.signing_root(&attested.beacon.root(), signed))?;
        // Its keys are looked at only once it is signed for.
        match next {
            Some(next) if self.next.as_ref().is_none_or(|known| known.raw != *next) => {
                Committee::load(next, size).map(Some)
            }
            Some(_) => Ok(self.next.clone()),
            None => Ok(None),
        }
    }

    fn check_next<'a>(
        &self,
        network: &Network,
        layout: &Layout,
        update: &'a Update,
        same_period: bool,
    ) -> Result<Option<&'a SyncCommittee>, ChainError> {
        let Some(next) = &update.next_sync_committee else {
            return if update.next_sync_committee_branch.is_empty() {
                Ok(None)
            } else {
                Err(ChainError::Branch("next sync committee"))
            };
        };
        if next.pubkeys.len() != network.preset.committee {
            return Err(ChainError::CommitteeSize {
                expected: network.preset.committee,
                found: next.pubkeys.len(),
            });
        }
        if same_period && self.next.as_ref().is_some_and(|known| known.raw != *next) {
            return Err(ChainError::OtherCommittee);
        }
        let root = committee::root(next);
        let state = &update.attested_header.beacon.state_root;
        check_branch(
            &root,
            &update.next_sync_committee_branch,
            layout.next_committee,
            state,
            "next sync committee",
        )?;
        Ok(Some(next))
    }
}

fn check_finality(network: &Network, layout: &Layout, update: &Update) -> Result<(), ChainError> {
    let root = match &update.finalized_header {
        None if update.finality_branch.is_empty() => return Ok(()),
        // The root of the beginning is zero in the state.
        None => [0; 32],
        Some(header) => {
            check_header(network, header)?;
            header.beacon.root()
        }
    };
    check_branch(
        &root,
        &update.finality_branch,
        layout.finalized,
        &update.attested_header.beacon.state_root,
        "finalized header",
    )
}

/// `is_valid_light_client_header`: it leads to the execution block that it names.
fn check_header(network: &Network, header: &Header) -> Result<(), ChainError> {
    match (network.layout(header.beacon.slot).block_hash, &header.block_hash) {
        (Some(index), Some(hash)) => check_branch(
            &hash.0,
            &header.block_hash_branch,
            index,
            &header.beacon.body_root,
            "execution block",
        ),
        (None, None) if header.block_hash_branch.is_empty() => Ok(()),
        _ => Err(ChainError::Branch("execution block")),
    }
}

fn check_branch(
    leaf: &Root,
    branch: &[Hash],
    index: u64,
    root: &Hash,
    what: &'static str,
) -> Result<(), ChainError> {
    let beside: Vec<Root> = branch.iter().map(|hash| hash.0).collect();
    if ssz::holds(leaf, &beside, index, &root.0) { Ok(()) } else { Err(ChainError::Branch(what)) }
}

pub(super) fn supermajority(participants: usize, size: usize) -> bool {
    participants * 3 >= size * 2
}

/// `is_better_update`.
fn better(network: &Network, new: &Update, old: &Update) -> bool {
    let size = network.preset.committee;
    let period = |slot| network.preset.period(slot);
    let many = |update: &Update| update.sync_aggregate.participants();
    let (enough_new, enough_old) = (supermajority(many(new), size), supermajority(many(old), size));
    if enough_new != enough_old {
        return enough_new;
    }
    if !enough_new && many(new) != many(old) {
        return many(new) > many(old);
    }
    let relevant = |update: &Update| {
        update.next_sync_committee.is_some()
            && period(update.attested_header.beacon.slot) == period(update.signature_slot)
    };
    if relevant(new) != relevant(old) {
        return relevant(new);
    }
    let finality = |update: &Update| !update.finality_branch.is_empty();
    if finality(new) != finality(old) {
        return finality(new);
    }
    let same = |update: &Update| {
        let slot = update.finalized_header.as_ref().map_or(0, |header| header.beacon.slot);
        period(slot) == period(update.attested_header.beacon.slot)
    };
    if finality(new) && same(new) != same(old) {
        return same(new);
    }
    if many(new) != many(old) {
        return many(new) > many(old);
    }
    let when = |update: &Update| (update.attested_header.beacon.slot, update.signature_slot);
    when(new) < when(old)
}
