//! A node's view of the chain: takes bundles, remembers the records that it asked for, decides.
//!
//! Invariants:
//! - A bundle is taken whole or not at all; what it proves is proved at the newest final and
//!   attested header that this node knows. From one that is behind, and that two thirds signed,
//!   revocations are taken and nothing else: who is ahead by a slot hides none.
//! - The final height never goes back, and no record to an older sequence. A revocation stays, but
//!   for one that was only attested and that a later final block does not have.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::client::Store;
use super::committee::Committee;
use super::settings::Settings;
use super::state::Block;
use super::types::{Bundle, Hash, Header, Proofs, SyncCommittee, Update};
use super::{ChainError, Record, Root, committee};
use crate::decision::ChainReason;

/// Two weeks: how long the keys of validators who left may still be bound to what they sign (weak
/// subjectivity).
pub const OLDEST_CHECKPOINT: u64 = 14 * 86_400;
/// Of the bundle's text. One a period for a year is 21 MB; a checkpoint may be two weeks old, which
/// is some 700 kB.
pub const LARGEST_BUNDLE: usize = 4 << 20;
/// A bundle's updates; some hundred days of the public network, and more than `LARGEST_BUNDLE`
/// holds of it.
const MOST_UPDATES: usize = 4096;
/// Whose records one node keeps.
pub const MOST_DIGESTS: usize = 1024;
/// How far two clocks may differ, in seconds.
const CLOCKS_DIFFER: u64 = 300;
/// The final height of how many seconds may be lost to who puts back an older state of the card.
const LOST_AT_MOST: u64 = 3600;

/// A block whose state decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Anchor {
    pub slot: u64,
    /// Of the execution block.
    pub number: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    at: Anchor,
    record: Record,
    /// The attested slot at which it was seen revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    attested: Option<(Anchor, Record)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Follower {
    settings: Settings,
    store: Option<Store>,
    anchor: Option<Anchor>,
    attested: Option<Anchor>,
    records: BTreeMap<Hash, Known>,
}

/// What a node keeps over a restart.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// Of the network, and of the registry in it.
    genesis: Hash,
    contract: Hash,
    finalized: Header,
    last_final: Header,
    optimistic: Header,
    current: SyncCommittee,
    next: Option<SyncCommittee>,
    best: Option<Update>,
    previous_most: usize,
    current_most: usize,
    anchor: Option<Anchor>,
    attested: Option<Anchor>,
    records: BTreeMap<Hash, Known>,
}

/// What is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct View {
    pub slot: u64,
    /// Of the final execution block.
    pub block: u64,
    /// When the final slot was, in seconds since 1970.
    pub time: u64,
    pub attested_slot: u64,
    pub attested_block: u64,
    pub period: u64,
    pub records: usize,
}

/// Why an image may run, as the chain has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub at: Anchor,
    pub seq: u64,
    pub not_after: u64,
}

impl Follower {
    /// One that has heard nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self { settings, store: None, anchor: None, attested: None, records: BTreeMap::new() }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The first period whose next committee it does not know: from there on updates are wanted.
    /// None: with the bootstrap.
    pub fn period(&self, now: u64) -> Option<u64> {
        let store = self.store.as_ref().filter(|store| !self.lapsed(store, now))?;
        Some(store.period(&self.settings.network) + u64::from(store.next.is_some()))
    }

    /// Too long ago to go on from there.
    fn lapsed(&self, store: &Store, now: u64) -> bool {
        now.saturating_sub(self.settings.network.time(store.finalized.beacon.slot))
            > OLDEST_CHECKPOINT
    }

    /// What it is after this bundle, with all records that are in it.
    pub fn take(&self, text: &str, now: u64) -> Result<Self, ChainError> {
        self.take_for(text, now, &|_| true)
    }

    /// What it is after this bundle, of whose records only those that are wanted count: a relay
    /// does not fill its memory.
    pub fn take_for(
        &self,
        text: &str,
        now: u64,
        wanted: &dyn Fn(&Hash) -> bool,
    ) -> Result<Self, ChainError> {
        if text.len() > LARGEST_BUNDLE {
            return Err(ChainError::Format(format!(
                "it has {} bytes, at most {LARGEST_BUNDLE} are read",
                text.len()
            )));
        }
        let mut bundle: Bundle =
            serde_json::from_str(text).map_err(|e| ChainError::Format(e.to_string()))?;
        for proofs in [Some(&mut bundle.at_final), bundle.attested.as_mut()].into_iter().flatten() {
            proofs.records.retain(|digest, _| wanted(digest));
        }
        self.follow(&bundle, now, wanted)
    }

    fn follow(
        &self,
        bundle: &Bundle,
        now: u64,
        wanted: &dyn Fn(&Hash) -> bool,
    ) -> Result<Self, ChainError> {
        let network = &self.settings.network;
        let slot = network.slot(now.saturating_add(CLOCKS_DIFFER));
        let period = |update: &Update| network.preset.period(update.attested_header.beacon.slot);
        if bundle.updates.len() > MOST_UPDATES
            || !bundle.updates.is_sorted_by(|a, b| period(a) < period(b))
        {
            return Err(ChainError::Updates(MOST_UPDATES));
        }
        let mut store = self.begin(bundle, now)?;
        let mut before: Option<&Update> = None;
        for update in bundle.updates.iter().chain([&bundle.finality]).chain(&bundle.optimistic) {
            // A period without finality lies between: what was best in it moves on to the next
            // committee.
            if !store.can_check(network, update) {
                store.force(network, slot)?;
            }
            // What was kept for that may have been no more than another slot of the same period.
            if let Some(last) = before.filter(|_| !store.can_check(network, update)) {
                store.process(network, last, slot)?;
                store.force(network, slot)?;
            }
            if !store.knows(network, update) {
                store.process(network, update, slot)?;
            }
            before = Some(update);
        }
        store.force(network, slot)?;
        let shown = bundle
            .finality
            .finalized_header
            .as_ref()
            .ok_or(ChainError::Branch("finalized header"))?;
        let known = self.anchor.map_or(0, |anchor| anchor.slot).max(store.last_final.beacon.slot);
        let mut new = Self { store: None, ..self.clone() };
        // What goes with the beacon block in the bundle was not looked at, if it was known: the
        // store's own headers were.
        let newest = shown.beacon == store.last_final.beacon && shown.beacon.slot >= known;
        let mut told = newest;
        if newest {
            new.anchor = Some(new.at_final(&store.last_final, &bundle.at_final, wanted)?);
        } else if shown.beacon.slot < store.last_final.beacon.slot
            && store.vouched(network, &bundle.finality, slot)
        {
            told = new.revoked_before(shown, &bundle.at_final)?;
        }
        let update = bundle.optimistic.as_ref().unwrap_or(&bundle.finality);
        let attested = &update.attested_header;
        if let Some(proofs) = &bundle.attested {
            if attested.beacon == store.optimistic.beacon {
                let (at, bad) = new.at_attested(&store.optimistic, proofs)?;
                new.attested = Some(at);
                told |= bad;
            } else if (store.last_final.beacon.slot + 1..store.optimistic.beacon.slot)
                .contains(&attested.beacon.slot)
                && store.vouched(network, update, slot)
            {
                // One that is a slot behind another relay is no liar.
                told |= new.at_attested(attested, proofs)?.1;
            }
        }
        if !told {
            return Err(ChainError::Older { what: "final", known, found: shown.beacon.slot });
        }
        new.store = Some(store);
        Ok(new)
    }

    /// The kept store, or one from the bundle's bootstrap.
    fn begin(&self, bundle: &Bundle, now: u64) -> Result<Store, ChainError> {
        if let Some(store) = self.store.as_ref().filter(|store| !self.lapsed(store, now)) {
            return Ok(store.clone());
        }
        let network = &self.settings.network;
        let store = Store::bootstrap(
            network,
            &self.settings.checkpoint,
            bundle.bootstrap.as_ref().ok_or(ChainError::NoBootstrap)?,
        )?;
        let age = now.saturating_sub(network.time(store.finalized.beacon.slot));
        if age > OLDEST_CHECKPOINT {
            return Err(ChainError::CheckpointTooOld { age, most: OLDEST_CHECKPOINT });
        }
        Ok(store)
    }

    fn at_final(
        &mut self,
        header: &Header,
        proofs: &Proofs,
        wanted: &dyn Fn(&Hash) -> bool,
    ) -> Result<Anchor, ChainError> {
        let (at, records) = self.read(header, proofs)?;
        for (digest, record) in records {
            let known = self.records.get(&digest);
            if let Some(old) = known.filter(|old| {
                record.seq() < old.record.seq() || old.record.revoked() && !record.revoked()
            }) {
                return Err(ChainError::Sequence {
                    digest,
                    known: old.record.seq(),
                    found: record.seq(),
                });
            }
            let attested =
                known.and_then(|old| old.attested).filter(|(seen, _)| seen.slot > at.slot);
            self.records.insert(digest, Known { at, record, attested });
        }
        // What nobody wants goes first, and bad news last.
        while self.records.len() > MOST_DIGESTS {
            let rank = |digest: &Hash, known: &Known| {
                (wanted(digest), known.record.revoked() || known.attested.is_some(), known.at.slot)
            };
            let first = self
                .records
                .iter()
                .min_by_key(|(digest, known)| rank(digest, known))
                .map(|(digest, _)| *digest);
            first.and_then(|digest| self.records.remove(&digest));
        }
        Ok(at)
    }

    /// What was revoked in a final block before the newest one, and is not known to be. Nothing
    /// else is taken from there: an approval may be over since.
    fn revoked_before(&mut self, header: &Header, proofs: &Proofs) -> Result<bool, ChainError> {
        let mut new = false;
        let (at, records) = self.read(header, proofs)?;
        for (digest, record) in records.into_iter().filter(|(_, record)| record.revoked()) {
            if let Some(known) = self
                .records
                .get_mut(&digest)
                .filter(|known| !known.record.revoked() && known.record.seq() < record.seq())
            {
                (known.record, known.at) =
                    (record, if at.slot > known.at.slot { at } else { known.at });
                new = true;
            }
        }
        Ok(new)
    }

    /// Whether anything is revoked there that was not known to be.
    fn at_attested(
        &mut self,
        header: &Header,
        proofs: &Proofs,
    ) -> Result<(Anchor, bool), ChainError> {
        let (at, records) = self.read(header, proofs)?;
        let mut new = false;
        for (digest, record) in records.into_iter().filter(|(_, record)| record.revoked()) {
            if let Some(known) =
                self.records.get_mut(&digest).filter(|known| !known.record.revoked())
            {
                new |= known.attested.is_none();
                known.attested = Some(
                    known.attested.filter(|(seen, _)| seen.slot > at.slot).unwrap_or((at, record)),
                );
            }
        }
        Ok((at, new))
    }

    /// What the registry says at this header's block.
    fn read(
        &self,
        header: &Header,
        proofs: &Proofs,
    ) -> Result<(Anchor, Vec<(Hash, Record)>), ChainError> {
        let slot = header.beacon.slot;
        let hash = header.block_hash.as_ref().ok_or(ChainError::NoBlock { slot })?;
        let block = Block::read(&proofs.header, hash)?;
        let contract = &self.settings.contract;
        let storage = contract.storage(&block.state_root, &proofs.account)?;
        if proofs.records.len() > MOST_DIGESTS {
            return Err(ChainError::Format(format!(
                "it has records of more than {MOST_DIGESTS} digests"
            )));
        }
        let records = proofs.records.iter().map(|(digest, slot)| {
            contract.check(&storage, digest, slot)?;
            let record = Record::read(&slot.word.0)
                .map_err(|problem| ChainError::Record { digest: *digest, problem })?;
            Ok((*digest, record))
        });
        Ok((Anchor { slot, number: block.number }, records.collect::<Result<_, _>>()?))
    }

    /// May this image run, as far as the chain is concerned?
    pub fn decide(&self, digest: &Hash, now: u64) -> Result<Found, ChainReason> {
        let Some(known) = self.records.get(digest) else {
            return Err(match self.anchor {
                Some(_) => ChainReason::NotAsked,
                None => ChainReason::NotFollowed,
            });
        };
        let network = &self.settings.network;
        let (at, time) = (known.at, network.time(known.at.slot));
        if let Some((at, record)) =
            known.attested.or(known.record.revoked().then_some((at, known.record)))
        {
            return Err(ChainReason::Revoked { seq: record.seq(), block: at.number });
        }
        // No clock can be right that is before what was final.
        let floor = self
            .anchor
            .map_or(time, |anchor| network.time(anchor.slot))
            .saturating_sub(CLOCKS_DIFFER);
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
            Record::Approved { not_after, seq, .. } => Ok(Found { at, seq, not_after }),
        }
    }

    /// The images of which the newest final block told.
    pub fn told(&self) -> impl Iterator<Item = Hash> {
        self.records
            .iter()
            .filter(|(_, known)| Some(known.at) == self.anchor)
            .map(|(digest, _)| *digest)
    }

    /// Whether it was ever told of this image.
    pub fn has(&self, digest: &Hash) -> bool {
        self.records.contains_key(digest)
    }

    pub fn view(&self) -> Option<View> {
        let (store, anchor) = (self.store.as_ref()?, self.anchor?);
        let attested = self.attested.unwrap_or(anchor);
        Some(View {
            slot: anchor.slot,
            block: anchor.number,
            time: self.settings.network.time(anchor.slot),
            attested_slot: attested.slot,
            attested_block: attested.number,
            period: store.period(&self.settings.network),
            records: self.records.len(),
        })
    }

    /// Changes whenever something happened that must not be undone by putting an older state back:
    /// another committee, a changed record, an hour of final blocks. Not at each final block: a
    /// TPM's counter does not live for ever.
    pub fn essence(&self) -> Root {
        let Some(store) = &self.store else { return [0; 32] };
        let hours = self.settings.network.time(store.last_final.beacon.slot) / LOST_AT_MOST;
        let begun = Sha256::new()
            .chain_update(self.settings.contract_id().0)
            .chain_update(hours.to_be_bytes());
        let begun = begun.chain_update(committee::root(&store.current.raw));
        let begun = begun
            .chain_update(store.next.as_ref().map_or([0; 32], |next| committee::root(&next.raw)));
        let told = |hasher: Sha256, (digest, known): (&Hash, &Known)| {
            let seen = [known.record, known.attested.map_or(Record::Absent, |(_, record)| record)];
            let seen = seen.map(|record| record.seq().to_be_bytes());
            hasher.chain_update(digest.0).chain_update(seen.concat())
        };
        self.records
            .iter()
            .filter(|(_, known)| known.record != Record::Absent || known.attested.is_some())
            .fold(begun, told)
            .finalize()
            .into()
    }

    /// Nothing, if nothing was heard yet.
    pub fn saved(&self) -> Option<Saved> {
        let store = self.store.as_ref()?;
        Some(Saved {
            genesis: Hash::new(self.settings.network.genesis_validators_root),
            contract: self.settings.contract_id(),
            finalized: store.finalized.clone(),
            last_final: store.last_final.clone(),
            optimistic: store.optimistic.clone(),
            current: store.current.raw.clone(),
            next: store.next.as_ref().map(|next| next.raw.clone()),
            best: store.best.clone(),
            previous_most: store.previous_most,
            current_most: store.current_most,
            anchor: self.anchor,
            attested: self.attested,
            records: self.records.clone(),
        })
    }

    /// From what was kept; whose it is, the caller has checked. Of another contract the records do
    /// not count, of another network nothing.
    pub fn restore(settings: Settings, saved: Saved) -> Result<Self, ChainError> {
        if saved.genesis.0 != settings.network.genesis_validators_root {
            return Ok(Self::new(settings));
        }
        let size = settings.network.preset.committee;
        let store = Store {
            current: Committee::load(&saved.current, size)?,
            next: saved.next.as_ref().map(|next| Committee::load(next, size)).transpose()?,
            finalized: saved.finalized,
            last_final: saved.last_final,
            optimistic: saved.optimistic,
            best: saved.best,
            previous_most: saved.previous_most,
            current_most: saved.current_most,
        };
        let records =
            if saved.contract == settings.contract_id() { saved.records } else { BTreeMap::new() };
        Ok(Self {
            settings,
            store: Some(store),
            anchor: saved.anchor,
            attested: saved.attested,
            records,
        })
    }
}
