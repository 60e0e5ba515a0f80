//! The Merkle tree over a log's statements: RFC 6962 section 2.1. RFC 9162 has the same hashes.

use sha2::{Digest as _, Sha256};

/// SHA-256 hash of a node of the tree.
pub type Hash = [u8; 32];

/// Returns the hash of one leaf.
pub fn leaf_hash(data: &[u8]) -> Hash {
    Sha256::new().chain_update([0]).chain_update(data).finalize().into()
}

fn node_hash(left: &Hash, right: &Hash) -> Hash {
    Sha256::new().chain_update([1]).chain_update(left).chain_update(right).finalize().into()
}

/// A tree to which leaves are only appended. It stores its right edge, at most 64 hashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    size: u64,
    /// Roots of the perfect subtrees, the largest first: one for each bit that is set in the size.
    edge: Vec<Hash>,
}

impl Tree {
    /// Appends the hash of one leaf.
    pub fn push(&mut self, leaf: Hash) {
        let mut root = leaf;
        // The leaf completes one subtree for each trailing one bit of the size.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.edge.pop() {
                root = node_hash(&left, &root);
            }
        }
        self.edge.push(root);
        self.size += 1;
    }

    /// Returns the number of leaves.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the root; that of an empty tree is the hash of no bytes.
    pub fn root(&self) -> Hash {
        match self.edge.split_last() {
            Some((last, rest)) => {
                rest.iter().rev().fold(*last, |right, left| node_hash(left, &right))
            }
            None => Sha256::digest([]).into(),
        }
    }
}

impl FromIterator<Hash> for Tree {
    fn from_iter<T: IntoIterator<Item = Hash>>(leaves: T) -> Self {
        let mut tree = Self::default();
        leaves.into_iter().for_each(|leaf| tree.push(leaf));
        tree
    }
}

/// Returns the proof that the tree of all `leaves` continues the tree of the first `old` of them
/// (RFC 6962 section 2.1.2).
///
/// The proof is empty if `old` is 0 or the number of leaves. Returns `None` if `old` is greater.
pub fn consistency_proof(leaves: &[Hash], old: usize) -> Option<Vec<Hash>> {
    if old > leaves.len() {
        return None;
    }
    let mut proof = Vec::new();
    if old > 0 && old < leaves.len() {
        push_subproof(leaves, old, true, &mut proof);
    }
    Some(proof)
}

/// Appends SUBPROOF(old, leaves, known) of RFC 6962 section 2.1.2.
fn push_subproof(leaves: &[Hash], old: usize, known: bool, proof: &mut Vec<Hash>) {
    let root = |leaves: &[Hash]| leaves.iter().copied().collect::<Tree>().root();
    if old == leaves.len() {
        if !known {
            proof.push(root(leaves));
        }
        return;
    }
    // The largest power of two that is smaller than the number of leaves.
    let middle = 1 << (leaves.len() - 1).ilog2();
    let (left, right) = leaves.split_at(middle);
    if old <= middle {
        push_subproof(left, old, known, proof);
        proof.push(root(right));
    } else {
        push_subproof(right, old - middle, false, proof);
        proof.push(root(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(n: u8) -> Vec<Hash> {
        (0..n).map(|n| leaf_hash(&[n])).collect()
    }

    /// Computes the root by the definition in RFC 6962 section 2.1.
    fn root_by_definition(leaves: &[Hash]) -> Hash {
        match leaves.len() {
            0 => Sha256::digest([]).into(),
            1 => leaves[0],
            n => {
                let k = (1..n).rev().find(|k| k.is_power_of_two()).unwrap();
                node_hash(&root_by_definition(&leaves[..k]), &root_by_definition(&leaves[k..]))
            }
        }
    }

    /// Verifies a consistency proof by the algorithm of RFC 9162 section 2.1.4.2.
    fn verify(proof: &[Hash], old: (u64, Hash), new: (u64, Hash)) -> bool {
        let mut path = proof.to_vec();
        if old.0.is_power_of_two() {
            path.insert(0, old.1);
        }
        let (mut f, mut s) = (old.0 - 1, new.0 - 1);
        while f & 1 == 1 {
            (f, s) = (f >> 1, s >> 1);
        }
        let Some((first, rest)) = path.split_first() else { return false };
        let (mut fr, mut sr) = (*first, *first);
        for c in rest {
            if s == 0 {
                return false;
            }
            if f & 1 == 1 || f == s {
                (fr, sr) = (node_hash(c, &fr), node_hash(c, &sr));
                while f & 1 == 0 && f != 0 {
                    (f, s) = (f >> 1, s >> 1);
                }
            } else {
                sr = node_hash(&sr, c);
            }
            (f, s) = (f >> 1, s >> 1);
        }
        fr == old.1 && sr == new.1 && s == 0
    }

    #[test]
    fn roots_match_the_definition_of_the_rfc() {
        for n in 0..70 {
            let tree: Tree = leaves(n).into_iter().collect();
            let expected = (root_by_definition(&leaves(n)), u64::from(n));
            assert_eq!((tree.root(), tree.size()), expected);
        }
        // The published roots of the first trees in the test data of Certificate Transparency.
        let data: [&[u8]; 3] = [&[], &[0], &[0x10]];
        let tree: Tree = data.iter().map(|d| leaf_hash(d)).collect();
        assert_eq!(
            measure::hex(&leaf_hash(&[])),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
        assert_eq!(
            measure::hex(&tree.root()),
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
        );
    }

    #[test]
    fn consistency_proofs_verify_for_their_two_trees_only() {
        for new in 1..40 {
            for old in 1..new {
                let proof = consistency_proof(&leaves(new), old.into()).unwrap();
                let root = |n| root_by_definition(&leaves(n));
                let (older, newer) = ((u64::from(old), root(old)), (u64::from(new), root(new)));
                assert!(verify(&proof, older, newer), "{old} of {new}");
                assert!(!verify(&proof, (older.0, root(new)), newer));
                assert!(!verify(&proof, older, (newer.0, root(old))));
            }
        }
        assert_eq!(consistency_proof(&leaves(3), 0), Some(Vec::new()));
        assert_eq!(consistency_proof(&leaves(3), 3), Some(Vec::new()));
        assert_eq!(consistency_proof(&leaves(3), 4), None);
    }
}
