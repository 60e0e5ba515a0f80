//! Accounts that pay for transactions and sign them.

use std::path::Path;

use anyhow::{Context as _, Result};
use k256::ecdsa::SigningKey;
use ledger::ethereum::types::Hex;
use ledger::ethereum::{Hash, keccak256, rlp_bytes, rlp_list_of_encoded};
use serde_json::json;

use super::encoding::{prefixed_hex, quantity, without_leading_zeros};
use super::nodes::ExecutionNode;

/// Priority fee if the node suggests none: 1 gwei.
const DEFAULT_TIP_WEI: u64 = 1_000_000_000;
/// Highest priority fee that is paid, whatever the node suggests: 100 gwei.
const MAX_TIP_WEI: u64 = 100_000_000_000;

/// Account of an approver, which pays for transactions and signs them.
pub enum Signer {
    /// Account whose key is known.
    Key(Box<SigningKey>),
    /// Account at a JSON-RPC signer that serves `eth_sendTransaction`.
    Rpc {
        /// Client of the signer.
        signer: ExecutionNode,
        /// Address of the account.
        from: Hex<20>,
    },
}

/// Fields of a transaction that both kinds of signers need.
struct Transaction<'a> {
    chain: u64,
    to: Option<Hex<20>>,
    data: &'a [u8],
    gas: u64,
    max_fee: u64,
    tip: u64,
}

impl Signer {
    /// Parses a key: 64 hex digits, with or without `0x`.
    ///
    /// # Errors
    /// Returns an error if the text is not a secp256k1 key in hex.
    pub fn from_hex(text: &str) -> Result<Self> {
        let hex = text.trim();
        let bytes = measure::unhex(&hex.strip_prefix("0x").unwrap_or(hex).to_lowercase())
            .context("the key is not hex")?;
        Ok(Self::Key(Box::new(
            SigningKey::from_slice(&bytes)
                .map_err(|_| anyhow::anyhow!("the key is not a secp256k1 key of 64 hex digits"))?,
        )))
    }

    /// Loads an account's key from a file.
    ///
    /// # Errors
    /// Returns an error if the file is absent or malformed.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "no account's key at {}; make one with `trustctl key new chain`, \
                 or name a signer with --signer",
                path.display()
            )
        })?;
        Self::from_hex(&text).with_context(|| path.display().to_string())
    }

    /// Returns the account's address.
    pub fn address(&self) -> Hex<20> {
        match self {
            Self::Rpc { from, .. } => *from,
            Self::Key(key) => {
                let point = key.verifying_key().to_sec1_point(false);
                let hash = keccak256(&point.as_bytes()[1..]);
                let mut address = [0; 20];
                address.copy_from_slice(&hash[12..]);
                Hex(address)
            }
        }
    }

    /// Sends a transaction and returns its hash. It is of the type of EIP-1559 and valid only on
    /// the node's chain.
    pub(super) fn send(
        &self,
        node: &ExecutionNode,
        to: Option<Hex<20>>,
        data: &[u8],
        gas: u64,
    ) -> Result<Hash> {
        let chain = node.number("eth_chainId", json!([]))?;
        let block = node.call("eth_getBlockByNumber", json!(["latest", false]))?;
        let base = quantity(&block["baseFeePerGas"])
            .context("the newest block has no base fee: the network is older than London")?;
        let tip = node
            .number("eth_maxPriorityFeePerGas", json!([]))
            .unwrap_or(DEFAULT_TIP_WEI)
            .min(MAX_TIP_WEI);
        // The base fee can rise by an eighth in each block until the transaction is included. Only
        // the fee that is needed is paid.
        let max_fee = base.saturating_mul(2).saturating_add(tip);
        let transaction = Transaction { chain, to, data, gas, max_fee, tip };
        let sent = match self {
            Self::Rpc { signer, from } => transaction.send_unsigned(signer, *from)?,
            Self::Key(key) => transaction.sign_and_send(node, key, self.address())?,
        };
        sent.as_str().and_then(|hash| hash.parse().ok()).with_context(|| {
            format!("expected the hash of the transaction that was sent, found {sent}")
        })
    }
}

impl Transaction<'_> {
    fn send_unsigned(&self, signer: &ExecutionNode, from: Hex<20>) -> Result<serde_json::Value> {
        let number = |n: u64| format!("{n:#x}");
        let mut fields = json!({
            "from": from, "data": prefixed_hex(self.data), "gas": number(self.gas),
            "value": "0x0", "chainId": number(self.chain),
            "maxFeePerGas": number(self.max_fee), "maxPriorityFeePerGas": number(self.tip),
        });
        if let Some(to) = self.to {
            fields["to"] = json!(to);
        }
        signer.call("eth_sendTransaction", json!([fields]))
    }

    fn sign_and_send(
        &self,
        node: &ExecutionNode,
        key: &SigningKey,
        from: Hex<20>,
    ) -> Result<serde_json::Value> {
        let nonce = node
            .number("eth_getTransactionCount", json!([from, "pending"]))
            .or_else(|_| node.number("eth_getTransactionCount", json!([from, "latest"])))?;
        let to = self.to.map_or(Vec::new(), |to| to.0.to_vec());
        let numbers = [self.chain, nonce, self.tip, self.max_fee, self.gas].map(number);
        let value = Vec::new();
        let fields: Vec<Vec<u8>> = numbers
            .into_iter()
            .chain([to, value, self.data.to_vec()])
            .map(|field| rlp_bytes(&field))
            .collect();
        // The access list, in RLP an empty list.
        let unsigned = [fields.concat(), vec![0xc0]].concat();
        let typed = |payload: &[u8]| [vec![2], rlp_list_of_encoded(payload)].concat();
        let (signature, recovery) = key.sign_prehash_recoverable(&keccak256(&typed(&unsigned)));
        let (r, s) = signature.split_bytes();
        let signature = [
            number(recovery.is_y_odd().into()),
            without_leading_zeros(&r),
            without_leading_zeros(&s),
        ]
        .map(|field| rlp_bytes(&field))
        .concat();
        let signed = typed(&[unsigned, signature].concat());
        node.call("eth_sendRawTransaction", json!([prefixed_hex(&signed)]))
    }
}

/// Returns a number in the form that RLP requires.
fn number(n: u64) -> Vec<u8> {
    without_leading_zeros(&n.to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derives_the_address_of_a_well_known_account() {
        // The first account of a well-known development mnemonic.
        let key = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
        assert_eq!(
            Signer::from_hex(key).unwrap().address().to_string(),
            "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"
        );
        for bad in ["", "0x12", &"0".repeat(64), &"f".repeat(64), "zz"] {
            assert!(Signer::from_hex(bad).is_err(), "{bad}");
        }
    }
}
