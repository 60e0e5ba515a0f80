//! Calls of the registry contract in the encoding of Solidity's ABI.

use ledger::ethereum::keccak256;
use ledger::ethereum::types::Hex;

/// Encodes a call: four bytes that select the function, then the arguments as words.
pub(super) fn call(signature: &str, words: &[[u8; 32]]) -> Vec<u8> {
    [&keccak256(signature.as_bytes())[..4], &words.concat()].concat()
}

/// Encodes a number.
pub(super) fn word(n: u64) -> [u8; 32] {
    let mut word = [0; 32];
    word[24..].copy_from_slice(&n.to_be_bytes());
    word
}

fn address_word(address: &Hex<20>) -> [u8; 32] {
    let mut word = [0; 32];
    word[12..].copy_from_slice(&address.0);
    word
}

/// Encodes a set of approvers: `(address[], uint16, uint16)`.
pub(super) fn approvers(
    addresses: &[Hex<20>],
    quorum: u16,
    revocation_quorum: u16,
) -> Vec<[u8; 32]> {
    let head = [
        word(96),
        word(quorum.into()),
        word(revocation_quorum.into()),
        word(addresses.len() as u64),
    ];
    head.into_iter().chain(addresses.iter().map(address_word)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_calls_as_another_implementation_does() {
        // The selector was computed with ethers.js.
        let data = call("revoke(bytes32)", &[[7; 32]]);
        assert_eq!((data.len(), measure::hex(&data[..4])), (36, "b75c7dc6".to_owned()));
        let set = approvers(&[Hex([1; 20]), Hex([2; 20])], 2, 1);
        assert_eq!(set.len(), 6);
        assert_eq!((set[0][31], set[3][31], set[4][11], set[4][12]), (96, 2, 0, 1));
    }
}
