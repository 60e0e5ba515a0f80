//! The files that a user's layer may contain.

use crate::engine::layers::Places;

/// Every pattern of files that the build reads with [`crate::engine::layers`].
pub const PLACES: Places = Places {
    files: &[
        "configs/machines/*.toml",
        "configs/variants/*.toml",
        "configs/modules/*.toml",
        "configs/node.toml",
        "configs/ledger.jsonl",
        "image/kernel/*.config",
        "image/kernel/patches/*.patch",
        "image/kernel-backports/*.config",
        "image/recipes/root.toml",
        "image/recipes/kernels/*.toml",
        "image/recipes/programs/*.toml",
        "image/device-tree/*.dtso",
        "image/root/**",
        "image/hardening.toml",
        "image/sets.toml",
        "image/locks/*.toml",
        "image/release.toml",
    ],
    // Each program is a Cargo workspace with its own lock.
    programs: "programs/**",
    links: "image/root/**",
};
