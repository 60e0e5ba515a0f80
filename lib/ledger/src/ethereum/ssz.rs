//! The part of SSZ's Merkle trees that a light client needs (consensus-specs:
//! ssz/simple-serialize.md, ssz/merkle-proofs.md).

use sha2::{Digest as _, Sha256};

/// Root of a Merkle tree of SSZ, or one chunk of 32 bytes.
pub type Root = [u8; 32];

pub(super) fn hash_pair(left: &Root, right: &Root) -> Root {
    Sha256::new().chain_update(left).chain_update(right).finalize().into()
}

/// Returns the root of a `uint64`.
pub(super) fn uint64_root(n: u64) -> Root {
    let mut chunk = [0; 32];
    chunk[..8].copy_from_slice(&n.to_le_bytes());
    chunk
}

/// Returns the root of a tree with `2^depth` leaves. Missing leaves are zero, and further leaves
/// are ignored.
pub(super) fn merkleize(leaves: &[Root], depth: u32) -> Root {
    let (mut layer, mut zero) = (leaves.to_vec(), [0; 32]);
    for _ in 0..depth {
        layer =
            layer.chunks(2).map(|pair| hash_pair(&pair[0], pair.get(1).unwrap_or(&zero))).collect();
        zero = hash_pair(&zero, &zero);
    }
    layer.first().copied().unwrap_or(zero)
}

/// Returns the siblings on the path from one leaf of such a tree to its root, from the leaf
/// upwards.
pub(super) fn merkle_branch(leaves: &[Root], depth: u32, mut index: usize) -> Vec<Root> {
    let (mut layer, mut zero, mut siblings) = (leaves.to_vec(), [0; 32], Vec::new());
    for _ in 0..depth {
        siblings.push(layer.get(index ^ 1).copied().unwrap_or(zero));
        layer =
            layer.chunks(2).map(|pair| hash_pair(&pair[0], pair.get(1).unwrap_or(&zero))).collect();
        zero = hash_pair(&zero, &zero);
        index /= 2;
    }
    siblings
}

/// Reports whether `leaf` is at a generalized index under `root`: the specification's
/// `is_valid_normalized_merkle_branch`.
///
/// Data of an earlier fork in the form of a later one has zeros at the start of its branch. A
/// branch of any other length is invalid.
pub(super) fn is_valid_branch(leaf: &Root, branch: &[Root], index: u64, root: &Root) -> bool {
    let Some(padding) =
        index.checked_ilog2().and_then(|depth| branch.len().checked_sub(depth as usize))
    else {
        return false;
    };
    if branch[..padding].iter().any(|sibling| *sibling != [0; 32]) {
        return false;
    }
    let computed = branch[padding..].iter().enumerate().fold(*leaf, |node, (height, sibling)| {
        if index >> height & 1 == 1 { hash_pair(sibling, &node) } else { hash_pair(&node, sibling) }
    });
    computed == *root
}

/// Returns the root of a byte list whose limit has `2^depth` chunks.
pub(super) fn byte_list_root(list: &[u8], depth: u32) -> Root {
    let chunks: Vec<Root> = list.chunks(32).map(pad_chunk).collect();
    hash_pair(&merkleize(&chunks, depth), &uint64_root(list.len() as u64))
}

/// Returns the root of a byte vector, which has a fixed length.
pub(super) fn byte_vector_root(bytes: &[u8]) -> Root {
    let chunks: Vec<Root> = bytes.chunks(32).map(pad_chunk).collect();
    merkleize(&chunks, (chunks.len().max(1) as u64).next_power_of_two().ilog2())
}

fn pad_chunk(bytes: &[u8]) -> Root {
    let mut chunk = [0; 32];
    chunk[..bytes.len().min(32)].copy_from_slice(&bytes[..bytes.len().min(32)]);
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_valid_for_its_own_leaf_and_index_only() {
        let leaves: Vec<Root> = (1..=5).map(uint64_root).collect();
        let root = merkleize(&leaves, 3);
        let zero = [0; 32];
        let pair = |a: u64, b: u64| hash_pair(&uint64_root(a), &uint64_root(b));
        let by_hand = hash_pair(
            &hash_pair(&pair(1, 2), &pair(3, 4)),
            &hash_pair(&hash_pair(&uint64_root(5), &zero), &hash_pair(&zero, &zero)),
        );
        assert_eq!(root, by_hand);
        for (n, leaf) in leaves.iter().enumerate() {
            let branch = merkle_branch(&leaves, 3, n);
            let own_index = 8 + n as u64;
            for index in 0..32 {
                let valid = is_valid_branch(leaf, &branch, index, &root);
                assert_eq!(valid, index == own_index, "leaf {n} at {index}");
            }
            assert!(!is_valid_branch(leaf, &branch[..2], own_index, &root));
            assert!(!is_valid_branch(&uint64_root(9), &branch, own_index, &root));
            let prefixed = |first: Root| [vec![first], branch.clone()].concat();
            assert!(
                is_valid_branch(leaf, &prefixed(zero), own_index, &root),
                "zeros at the start are padding"
            );
            assert!(!is_valid_branch(leaf, &prefixed(uint64_root(1)), own_index, &root));
        }
    }
}
