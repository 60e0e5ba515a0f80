//! Differences between the forks of the consensus layer, as data.
//!
//! The generalized indices of the beacon state and of the block's body are those of
//! consensus-specs, specs/FORK/light-client/sync-protocol.md. For Gloas, whose text is not
//! finished, they are those of Lodestar's types (1.50).
//!
//! One index leads from the block's body to the execution block's hash. In Capella the payload
//! header is at 25 of the body and has 16 leaves, in Deneb 32, and the hash is its thirteenth
//! field. In Gloas it is `parent_block_hash` of the bid, the last block that was executed.

use super::ssz::{Root, hash_pair, merkleize};

/// Generalized indices in the Merkle trees of one fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Name of the fork in the consensus specification, in lower case.
    pub name: &'static str,
    /// Index of the current sync committee in the state.
    pub current_sync_committee: u64,
    /// Index of the next sync committee in the state.
    pub next_sync_committee: u64,
    /// Index of the finalized checkpoint's root in the state.
    pub finalized_root: u64,
    /// Index of the execution block's hash in the block's body, `None` before Capella.
    pub block_hash: Option<u64>,
}

/// The forks that this version supports, in their order.
pub const LAYOUTS: [Layout; 7] = [
    Layout {
        name: "altair",
        current_sync_committee: 54,
        next_sync_committee: 55,
        finalized_root: 105,
        block_hash: None,
    },
    Layout {
        name: "bellatrix",
        current_sync_committee: 54,
        next_sync_committee: 55,
        finalized_root: 105,
        block_hash: None,
    },
    Layout {
        name: "capella",
        current_sync_committee: 54,
        next_sync_committee: 55,
        finalized_root: 105,
        block_hash: Some(25 * 16 + 12),
    },
    Layout {
        name: "deneb",
        current_sync_committee: 54,
        next_sync_committee: 55,
        finalized_root: 105,
        block_hash: Some(25 * 32 + 12),
    },
    Layout {
        name: "electra",
        current_sync_committee: 86,
        next_sync_committee: 87,
        finalized_root: 169,
        block_hash: Some(25 * 32 + 12),
    },
    Layout {
        name: "fulu",
        current_sync_committee: 86,
        next_sync_committee: 87,
        finalized_root: 169,
        block_hash: Some(25 * 32 + 12),
    },
    Layout {
        name: "gloas",
        current_sync_committee: 2945,
        next_sync_committee: 2946,
        finalized_root: 735,
        block_hash: Some(2856),
    },
];

/// One fork of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// First epoch of the fork.
    pub epoch: u64,
    /// Fork version, which sync committees sign.
    pub version: [u8; 4],
    /// Generalized indices of the fork.
    pub layout: Layout,
}

/// Constants that a network was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preset {
    /// Number of members of a sync committee.
    pub sync_committee_size: usize,
    /// Number of slots of an epoch.
    pub slots_per_epoch: u64,
    /// Number of epochs for which a sync committee signs.
    pub epochs_per_period: u64,
}

/// The preset `mainnet` of the consensus specification.
pub const MAINNET: Preset =
    Preset { sync_committee_size: 512, slots_per_epoch: 32, epochs_per_period: 256 };
/// The preset `minimal` of the consensus specification.
pub const MINIMAL: Preset =
    Preset { sync_committee_size: 32, slots_per_epoch: 8, epochs_per_period: 8 };

impl Preset {
    /// Returns the number of slots of a sync committee period.
    pub fn slots_per_period(&self) -> u64 {
        self.slots_per_epoch * self.epochs_per_period
    }

    /// Returns the sync committee period of a slot.
    pub fn period(&self, slot: u64) -> u64 {
        slot / self.slots_per_period()
    }
}

/// Properties of a network that a client must know from the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Constants of the network.
    pub preset: Preset,
    /// Root of the validators at genesis, which sync committees sign.
    pub genesis_validators_root: Root,
    /// Start of slot 0 in seconds since 1970.
    pub genesis_time: u64,
    /// Length of a slot in seconds.
    pub seconds_per_slot: u64,
    /// Forks in the order of their epochs. The first one begins with epoch 0.
    pub forks: Vec<Fork>,
}

impl Network {
    /// Returns the fork of a slot.
    pub fn fork(&self, slot: u64) -> &Fork {
        let epoch = slot / self.preset.slots_per_epoch;
        // The last of several forks at one epoch applies: a network can begin with several.
        self.forks.iter().rev().find(|fork| fork.epoch <= epoch).unwrap_or(&self.forks[0])
    }

    /// Returns the generalized indices of a slot's fork.
    pub fn layout(&self, slot: u64) -> &Layout {
        &self.fork(slot).layout
    }

    /// Returns the start of a slot in seconds since 1970.
    pub fn time_of_slot(&self, slot: u64) -> u64 {
        self.genesis_time.saturating_add(slot.saturating_mul(self.seconds_per_slot))
    }

    /// Returns the slot at a time in seconds since 1970.
    pub fn slot_at_time(&self, now: u64) -> u64 {
        now.saturating_sub(self.genesis_time) / self.seconds_per_slot
    }

    /// Computes the message that a sync committee signs for a header: `compute_signing_root`, with
    /// the fork version of the slot before the signature's.
    pub fn signing_root(&self, header: &Root, signature_slot: u64) -> Root {
        let mut version = [0; 32];
        version[..4].copy_from_slice(&self.fork(signature_slot.max(1) - 1).version);
        let data = merkleize(&[version, self.genesis_validators_root], 1);
        // The domain begins with DOMAIN_SYNC_COMMITTEE, 0x07000000.
        let mut domain = [0; 32];
        domain[0] = 7;
        domain[4..].copy_from_slice(&data[..28]);
        hash_pair(header, &domain)
    }
}
