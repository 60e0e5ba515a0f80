//! As much of SSZ's Merkle trees as a light client needs (consensus-specs: ssz/simple-serialize.md,
//! ssz/merkle-proofs.md).

use sha2::{Digest as _, Sha256};

pub type Root = [u8; 32];

pub(super) fn parent(left: &Root, right: &Root) -> Root {
    Sha256::new().chain_update(left).chain_update(right).finalize().into()
}

pub(super) fn number(n: u64) -> Root {
    let mut chunk = [0; 32];
    chunk[..8].copy_from_slice(&n.to_le_bytes());
    chunk
}

/// The root of a tree with `2^depth` leaves, of which those that are not given are zero. More than
/// that many do not count.
pub(super) fn merkleize(leaves: &[Root], depth: u32) -> Root {
    let (mut layer, mut zero) = (leaves.to_vec(), [0; 32]);
    for _ in 0..depth {
        layer =
            layer.chunks(2).map(|pair| parent(&pair[0], pair.get(1).unwrap_or(&zero))).collect();
        zero = parent(&zero, &zero);
    }
    layer.first().copied().unwrap_or(zero)
}

/// What is beside the path from one leaf of such a tree to its root, from the bottom up.
pub(super) fn branch(leaves: &[Root], depth: u32, mut index: usize) -> Vec<Root> {
    let (mut layer, mut zero, mut beside) = (leaves.to_vec(), [0; 32], Vec::new());
    for _ in 0..depth {
        beside.push(layer.get(index ^ 1).copied().unwrap_or(zero));
        layer =
            layer.chunks(2).map(|pair| parent(&pair[0], pair.get(1).unwrap_or(&zero))).collect();
        zero = parent(&zero, &zero);
        index /= 2;
    }
    beside
}

/// Whether `leaf` stands at a generalized index under `root`: `is_valid_normalized_merkle_branch`.
/// Data of an earlier fork in the shape of a later one has zeros in front of its branch; one of any
/// other length never holds.
pub(super) fn holds(leaf: &Root, branch: &[Root], index: u64, root: &Root) -> bool {
    let Some(more) =
        index.checked_ilog2().and_then(|depth| branch.len().checked_sub(depth as usize))
    else {
        return false;
    };
    if branch[..more].iter().any(|beside| *beside != [0; 32]) {
        return false;
    }
    let found = branch[more..].iter().enumerate().fold(*leaf, |node, (height, beside)| {
        if index >> height & 1 == 1 { parent(beside, &node) } else { parent(&node, beside) }
    });
    found == *root
}

/// A list of a few bytes, as SSZ has it: its chunks under the limit's depth, and its length beside.
pub(super) fn bytes(list: &[u8], depth: u32) -> Root {
    let chunks: Vec<Root> = list.chunks(32).map(padded).collect();
    parent(&merkleize(&chunks, depth), &number(list.len() as u64))
}

/// Bytes of a fixed length that are more than one chunk.
pub(super) fn vector(bytes: &[u8]) -> Root {
    let chunks: Vec<Root> = bytes.chunks(32).map(padded).collect();
    merkleize(&chunks, (chunks.len().max(1) as u64).next_power_of_two().ilog2())
}

fn padded(bytes: &[u8]) -> Root {
    let mut chunk = [0; 32];
    chunk[..bytes.len().min(32)].copy_from_slice(&bytes[..bytes.len().min(32)]);
    chunk
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_leaf_has_its_branch_and_no_other() {
        let leaves: Vec<Root> = (1..=5).map(number).collect();
        let root = merkleize(&leaves, 3);
        let by_hand = parent(
            &parent(&parent(&number(1), &number(2)), &parent(&number(3), &number(4))),
            &parent(&parent(&number(5), &[0; 32]), &parent(&[0; 32], &[0; 32])),
        );
        assert_eq!(root, by_hand);
        for (n, leaf) in leaves.iter().enumerate() {
            let beside = branch(&leaves, 3, n);
            for index in 0..32 {
                assert_eq!(
                    holds(leaf, &beside, index, &root),
                    index == 8 + n as u64,
                    "leaf {n} at {index}"
                );
            }
            assert!(!holds(leaf, &beside[..2], 8 + n as u64, &root));
            assert!(!holds(&number(9), &beside, 8 + n as u64, &root));
            let longer = |first: Root| [vec![first], beside.clone()].concat();
            assert!(
                holds(leaf, &longer([0; 32]), 8 + n as u64, &root),
                "zeros in front say nothing"
            );
            assert!(!holds(leaf, &longer(number(1)), 8 + n as u64, &root));
        }
    }
}
