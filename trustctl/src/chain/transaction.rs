//! Transactions to the registry: estimated, sent, included in a block, and final.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use ledger::ethereum::types::Hex;
use ledger::ethereum::{Hash, keccak256};
use serde_json::json;

use super::encoding::{prefixed_hex, quantity};
use super::nodes::ExecutionNode;
use super::signer::Signer;

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Errors of a node in a row after which waiting for finality ends.
const MAX_CONSECUTIVE_FAILURES: u32 = 20;
/// Time for a transaction to be included. Blocks come every few seconds, so a network whose blocks
/// have no room for so long is in trouble.
const INCLUSION_TIMEOUT: Duration = Duration::from_secs(600);

/// Receipt of a transaction that is in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Hash of the transaction.
    pub transaction: Hash,
    /// Number of the block.
    pub block: u64,
    /// Gas that was used.
    pub gas: u64,
    /// Address of the contract that was deployed.
    pub contract: Option<Hex<20>>,
    /// Whether the registry changed; if not, a vote was counted.
    pub changed: bool,
}

/// Progress of a transaction's block towards finality.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinalityProgress {
    /// Number of the block that the transaction is in.
    pub block: u64,
    /// Number of the newest finalized block.
    pub finalized: u64,
    /// Number of the newest block.
    pub latest: u64,
}

/// Tries a transaction, sends it, and waits until it is in a block.
pub(super) fn transact(
    node: &ExecutionNode,
    signer: &Signer,
    to: Option<Hex<20>>,
    data: &[u8],
) -> Result<Receipt> {
    let mut fields = json!({ "from": signer.address(), "data": prefixed_hex(data) });
    if let Some(to) = to {
        fields["to"] = json!(to);
        // A trial run reports the contract's own error before anything is paid.
        node.call("eth_call", json!([fields, "latest"])).map_err(explain_revert)?;
    }
    let gas = node
        .number("eth_estimateGas", json!([fields]))
        .or_else(|_| node.number("eth_estimateGas", json!([fields, "latest"])))
        .map_err(explain_revert)?;
    let gas = gas.saturating_mul(3) / 2 + gas_for_other_votes(to.map_or(0, |_| data.len()));
    let hash = signer.send(node, to, data, gas)?;
    let deadline = Instant::now() + INCLUSION_TIMEOUT;
    loop {
        if let Some(receipt) = receipt(node, hash).ok().flatten() {
            return receipt;
        }
        ensure!(
            Instant::now() < deadline,
            "the transaction {hash} is in no block after {} s; it may still be included",
            INCLUSION_TIMEOUT.as_secs()
        );
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Returns the gas beyond the estimate: a vote that is included before can make this the deciding
/// one, which then writes a record, or each approver of a new set. `bytes` is the length of the
/// call, and 0 for a deployment.
fn gas_for_other_votes(bytes: usize) -> u64 {
    100_000 + bytes as u64 / 32 * 50_000
}

/// Returns the receipt of a transaction, or the reason why it failed; `None` if it is in no block.
fn receipt(node: &ExecutionNode, transaction: Hash) -> Result<Option<Result<Receipt>>> {
    let receipt = node.call("eth_getTransactionReceipt", json!([transaction]))?;
    let Some(block) = quantity(&receipt["blockNumber"]) else { return Ok(None) };
    if receipt["status"] != "0x1" {
        return Ok(Some(Err(anyhow::anyhow!(
            "the transaction {transaction} failed in block {block}; \
             was another vote included first, or its deadline over?"
        ))));
    }
    let topic = |event: &str| prefixed_hex(&keccak256(event.as_bytes()));
    let changes = [
        topic("Changed(bytes32,uint8,uint64,uint64)"),
        topic("ApproversChanged(uint64,address[],uint16,uint16,uint64)"),
    ];
    let logs = receipt["logs"].as_array().cloned().unwrap_or_default();
    let changed = logs.iter().any(|log| changes.iter().any(|change| log["topics"][0] == *change));
    let contract = receipt["contractAddress"].as_str().and_then(|text| text.parse().ok());
    let gas = quantity(&receipt["gasUsed"]).unwrap_or_default();
    Ok(Some(Ok(Receipt { transaction, block, gas, contract, changed })))
}

/// Replaces a node's error by the words for the contract's own error, which it names by selector.
fn explain_revert(error: anyhow::Error) -> anyhow::Error {
    const ERRORS: [(&str, &str); 9] = [
        (
            "NotAnApprover(address)",
            "this account is not one of the registry's approvers (trustctl chain show)",
        ),
        ("RevocationIsFinal(bytes32)", "the image is revoked, and that is final"),
        (
            "AlreadyVoted(address)",
            "this account voted for that already; other approvers must vote for it too",
        ),
        (
            "NoOpenVote(address)",
            "this account has no open vote about it. A vote that completed a change cannot be \
             withdrawn (trustctl chain revoke ends an approval); one that is not in a block yet \
             can be withdrawn once it is",
        ),
        (
            "TooLate(uint64,uint256)",
            "the vote's deadline is before the chain's time: is the clock of this computer right?",
        ),
        ("NoSuchStatus(uint8)", "there is no such status"),
        ("ExpiresBeforeNow(uint64,uint256)", "the approval would already be expired"),
        ("NoDigest()", "the digest is zero"),
        (
            "NotASetOfApprovers()",
            "invalid set of approvers: expected at most 64, each once, a quorum of 1 to their \
             number, and a revocation quorum of 1 to the quorum",
        ),
    ];
    let text = format!("{error:#}");
    let selector = |name: &str| measure::hex(&keccak256(name.as_bytes())[..4]);
    match ERRORS.iter().find(|(name, _)| text.contains(&selector(name))) {
        Some((_, reason)) => anyhow::anyhow!("the registry rejects the transaction: {reason}"),
        None => error,
    }
}

/// Waits until a transaction is final: its block is not above the finalized one. Before that, its
/// block can be abandoned, and the transaction be included in a later one, or fail there. Calls
/// `report` whenever something changed.
///
/// # Errors
/// Returns an error if the transaction fails, is not final after `timeout`, or the node stops
/// answering.
pub fn wait_until_final(
    node: &ExecutionNode,
    sent: Receipt,
    timeout: Duration,
    mut report: impl FnMut(FinalityProgress),
) -> Result<Receipt> {
    let (deadline, mut reported, mut failures) = (Instant::now() + timeout, None, 0);
    let mut newest = sent;
    loop {
        let block = |tag: &str| {
            node.call("eth_getBlockByNumber", json!([tag, false]))
                .map(|block| quantity(&block["number"]))
        };
        let state =
            block("latest").and_then(|latest| Ok((latest, receipt(node, sent.transaction)?)));
        match state {
            Ok((Some(latest), receipt)) => {
                failures = 0;
                let receipt = receipt.transpose()?;
                newest = receipt.unwrap_or(newest);
                // Some nodes answer with an error until a block is finalized.
                let finalized = block("finalized").ok().flatten().unwrap_or_default();
                let progress = FinalityProgress { block: newest.block, finalized, latest };
                if reported != Some(progress) {
                    report(progress);
                    reported = Some(progress);
                }
                if let Some(receipt) = receipt
                    && finalized >= receipt.block
                {
                    return Ok(receipt);
                }
            }
            Ok((None, _)) => bail!("the execution node has no newest block"),
            Err(error) => {
                failures += 1;
                if failures >= MAX_CONSECUTIVE_FAILURES {
                    return Err(error.context("cannot wait until the transaction is final"));
                }
            }
        }
        if Instant::now() >= deadline {
            bail!(
                "the transaction {} is not final after {} s; \
                 look at the registry later with trustctl chain show",
                sent.transaction,
                timeout.as_secs()
            );
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explains_the_errors_of_the_contract() {
        let selector = measure::hex(&keccak256(b"RevocationIsFinal(bytes32)")[..4]);
        let revert = anyhow::anyhow!("execution reverted 0x{selector}{}", "00".repeat(32));
        let error = explain_revert(revert).to_string();
        assert!(error.contains("that is final"), "{error}");
        let other = explain_revert(anyhow::anyhow!("no route to host"));
        assert_eq!(other.to_string(), "no route to host");
    }
}
