//! What differs between the forks of the consensus layer, as data.
//!
//! Sources: consensus-specs, specs/FORK/light-client/sync-protocol.md: the generalized indices of
//! the beacon state and of the block's body; for Gloas, whose text is not finished, Lodestar's
//! types (1.50). The way to the execution block's hash is one index here: in Capella the payload's
//! header is at 25 of the body and has 16 leaves, in Deneb 32, and the hash is its thirteenth; in
//! Gloas it is the bid's `parent_block_hash`, the last block that was run.

use super::ssz::{Root, merkleize, parent};

/// Where things are in the trees of one fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub name: &'static str,
    pub current_committee: u64,
    pub next_committee: u64,
    pub finalized: u64,
    /// In the body of a block; before Capella a header does not lead to it.
    pub block_hash: Option<u64>,
}

pub const LAYOUTS: [Layout; 7] = [
    Layout {
        name: "altair",
        current_committee: 54,
        next_committee: 55,
        finalized: 105,
        block_hash: None,
    },
    Layout {
        name: "bellatrix",
        current_committee: 54,
        next_committee: 55,
        finalized: 105,
        block_hash: None,
    },
    Layout {
        name: "capella",
        current_committee: 54,
        next_committee: 55,
        finalized: 105,
        block_hash: Some(25 * 16 + 12),
    },
    Layout {
        name: "deneb",
        current_committee: 54,
        next_committee: 55,
        finalized: 105,
        block_hash: Some(25 * 32 + 12),
    },
    Layout {
        name: "electra",
        current_committee: 86,
        next_committee: 87,
        finalized: 169,
        block_hash: Some(25 * 32 + 12),
    },
    Layout {
        name: "fulu",
        current_committee: 86,
        next_committee: 87,
        finalized: 169,
        block_hash: Some(25 * 32 + 12),
    },
    Layout {
        name: "gloas",
        current_committee: 2945,
        next_committee: 2946,
        finalized: 735,
        block_hash: Some(2856),
    },
];

/// A fork of one network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    pub epoch: u64,
    pub version: [u8; 4],
    pub layout: Layout,
}

/// The sizes that a network was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    pub committee: usize,
    pub slots_per_epoch: u64,
    pub epochs_per_period: u64,
}

pub const MAINNET: Preset = Preset { committee: 512, slots_per_epoch: 32, epochs_per_period: 256 };
pub const MINIMAL: Preset = Preset { committee: 32, slots_per_epoch: 8, epochs_per_period: 8 };

impl Preset {
    pub fn slots_per_period(&self) -> u64 {
        self.slots_per_epoch * self.epochs_per_period
    }

    pub fn period(&self, slot: u64) -> u64 {
        slot / self.slots_per_period()
    }
}

/// What a client knows of a network before it has heard anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    pub preset: Preset,
    pub genesis_validators_root: Root,
    /// Seconds since 1970.
    pub genesis_time: u64,
    pub seconds_per_slot: u64,
    /// In the order of their epochs; the first one is from the beginning.
    pub forks: Vec<Fork>,
}

impl Network {
    pub fn fork(&self, slot: u64) -> &Fork {
        let epoch = slot / self.preset.slots_per_epoch;
        // Of forks at the same epoch the last one holds: a network can begin with several.
        self.forks.iter().rev().find(|fork| fork.epoch <= epoch).unwrap_or(&self.forks[0])
    }

    pub fn layout(&self, slot: u64) -> &Layout {
        &self.fork(slot).layout
    }

    /// When a slot begins, in seconds since 1970.
    pub fn time(&self, slot: u64) -> u64 {
        self.genesis_time.saturating_add(slot.saturating_mul(self.seconds_per_slot))
    }

    pub fn slot(&self, now: u64) -> u64 {
        now.saturating_sub(self.genesis_time) / self.seconds_per_slot
    }

    /// What a sync committee signs for a header: `compute_signing_root`, with the version of the
    /// slot before the signature's.
    pub fn signing_root(&self, header: &Root, signature_slot: u64) -> Root {
        let mut version = [0; 32];
        version[..4].copy_from_slice(&self.fork(signature_slot.max(1) - 1).version);
        let data = merkleize(&[version, self.genesis_validators_root], 1);
        // DOMAIN_SYNC_COMMITTEE
        let mut domain = [0; 32];
        domain[0] = 7;
        domain[4..].copy_from_slice(&data[..28]);
        parent(header, &domain)
    }
}
