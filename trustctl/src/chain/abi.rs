//! Calls of the registry contract in the encoding of Solidity's ABI.

use anyhow::{Context as _, Result, ensure};
use ledger::ethereum::keccak256;
use ledger::ethereum::types::Hex;
use serde_json::Value;

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

/// Encodes a proposed set of approvers and the deadline of the vote: `(address[], uint16, uint16,
/// uint64)`.
pub(super) fn proposal(
    addresses: &[Hex<20>],
    quorum: u16,
    revocation_quorum: u16,
    deadline: [u8; 32],
) -> Vec<[u8; 32]> {
    let mut words = approvers(addresses, quorum, revocation_quorum);
    // The addresses follow one more word.
    words[0] = word(128);
    words.insert(3, deadline);
    words
}

/// Decodes a value of words, `0x` and hex digits.
pub(super) fn words(value: &Value) -> Result<Vec<[u8; 32]>> {
    let bytes = value.as_str().and_then(|text| text.strip_prefix("0x")).and_then(measure::unhex);
    let bytes = bytes.with_context(|| format!("expected 0x and hex digits, found {value}"))?;
    let (words, rest) = bytes.as_chunks::<32>();
    ensure!(rest.is_empty(), "expected words of 32 bytes, found {} bytes", bytes.len());
    Ok(words.to_vec())
}

/// Decodes a number; `None` if it has more than 64 bits.
pub(super) fn number(word: &[u8; 32]) -> Option<u64> {
    let (high, low) = word.split_at(24);
    high.iter().all(|byte| *byte == 0).then_some(())?;
    Some(u64::from_be_bytes(low.try_into().ok()?))
}

/// Decodes an address; `None` if the word has other bytes.
pub(super) fn address(word: &[u8; 32]) -> Option<Hex<20>> {
    let (high, low) = word.split_at(12);
    high.iter().all(|byte| *byte == 0).then_some(())?;
    Some(Hex(low.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodes_calls_as_another_implementation_does() {
        // The selectors and the arguments were computed with ethers.js.
        let data = call("withdraw(bytes32)", &[[7; 32]]);
        assert_eq!((data.len(), measure::hex(&data[..4])), (36, "8e19899e".to_owned()));
        let set = proposal(&[Hex([1; 20]), Hex([2; 20])], 2, 1, word(9));
        let data = call("setApprovers(address[],uint16,uint16,uint64)", &set);
        assert_eq!(
            measure::hex(&keccak256(&data)),
            "7aad6fded8e81a50a099c9dd5ba31e0f51d3b6c4e1f5775aa4547e6f0b55d1fe"
        );
        let set = approvers(&[Hex([1; 20]), Hex([2; 20])], 2, 1);
        assert_eq!(set.len(), 6);
        assert_eq!((set[0][31], set[3][31], set[4][11], set[4][12]), (96, 2, 0, 1));
    }

    #[test]
    fn decodes_only_words_of_the_right_size() {
        let value =
            |words: &[[u8; 32]]| Value::from(format!("0x{}", measure::hex(&words.concat())));
        let decoded = words(&value(&[word(7), address_word(&Hex([1; 20]))])).unwrap();
        assert_eq!((number(&decoded[0]), address(&decoded[1])), (Some(7), Some(Hex([1; 20]))));
        assert_eq!((number(&[1; 32]), address(&[1; 32])), (None, None));
        for bad in [Value::Null, "12".into(), "0x1".into(), "0x12".into(), "0xzz".into()] {
            assert!(words(&bad).is_err(), "{bad}");
        }
    }
}
