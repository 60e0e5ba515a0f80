//! The registry contract (contracts/ImageRegistry.sol) from the approvers' side: deploying it,
//! voting, reading it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use k256::ecdsa::SigningKey;
use ledger::ethereum::types::Hex;
use ledger::ethereum::{Approval, Hash, Record, keccak, list_of, string};
use serde::Deserialize;
use serde_json::json;

use super::nodes::{Execution, number, quantity};

/// Where a node does not say what is usual: 1 gwei.
const USUAL_TIP: u64 = 1_000_000_000;
/// Whatever a node says: 100 gwei.
const MOST_TIP: u64 = 100_000_000_000;
const POLL: Duration = Duration::from_secs(1);
/// So often in a row a node may fail to answer.
const MOST_FAILURES: u32 = 20;
/// Blocks come every few seconds; one that is full for so long is a network in trouble.
const MINED_WITHIN: Duration = Duration::from_secs(600);

/// What was compiled from the contract's source; a test of contracts/ holds the two together.
#[derive(Deserialize)]
struct Compiled {
    bytecode: String,
    code: String,
}

fn compiled() -> Result<Compiled> {
    serde_json::from_str(include_str!("../../../contracts/registry.json"))
        .context("contracts/registry.json")
}

/// Keccak-256 of the registry's code once it is deployed: what nodes pin.
pub fn code_hash() -> Result<Hash> {
    let code = compiled()?.code;
    let bytes = code
        .strip_prefix("0x")
        .and_then(measure::unhex)
        .context("contracts/registry.json: the code is no hex")?;
    Ok(Hash::new(keccak(&bytes)))
}

/// Who pays for transactions and votes with them.
pub enum Signer {
    /// A key that is here.
    Key(Box<SigningKey>),
    /// An account of somebody else who signs: a JSON-RPC signer that takes `eth_sendTransaction`.
    Rpc { signer: Execution, from: Hex<20> },
}

impl Signer {
    /// From 64 hex digits, with or without `0x`.
    pub fn from_hex(text: &str) -> Result<Self> {
        let hex = text.trim();
        let bytes = measure::unhex(&hex.strip_prefix("0x").unwrap_or(hex).to_lowercase())
            .context("it is not hex")?;
        Ok(Self::Key(Box::new(
            SigningKey::from_slice(&bytes)
                .map_err(|_| anyhow::anyhow!("it is no secp256k1 key of 64 hex digits"))?,
        )))
    }

    /// From the file of an account's key.
    pub fn load(path: &Path) -> Result<Self> {
        let hint = || {
            format!(
                "no account's key at {}; make one with `trustctl key new chain`, or name a signer with --signer",
                path.display()
            )
        };
        let text = std::fs::read_to_string(path).with_context(hint)?;
        Self::from_hex(&text).with_context(|| path.display().to_string())
    }

    pub fn address(&self) -> Hex<20> {
        match self {
            Self::Rpc { from, .. } => *from,
            Self::Key(key) => {
                let point = key.verifying_key().to_sec1_point(false);
                let hash = keccak(&point.as_bytes()[1..]);
                let mut address = [0; 20];
                address.copy_from_slice(&hash[12..]);
                Hex(address)
            }
        }
    }

    /// Sends a transaction; its hash. It is one of EIP-1559, which counts on its chain only.
    fn send(&self, node: &Execution, to: Option<Hex<20>>, data: &[u8], gas: u64) -> Result<Hash> {
        let from = self.address();
        let chain = node.number("eth_chainId", json!([]))?;
        let block = node.call("eth_getBlockByNumber", json!(["latest", false]))?;
        let base = quantity(&block["baseFeePerGas"])
            .context("the newest block has no base fee: a network of before London")?;
        let tip =
            node.number("eth_maxPriorityFeePerGas", json!([])).unwrap_or(USUAL_TIP).min(MOST_TIP);
        // The fee may rise by an eighth a block until it is in; what is not needed is not taken.
        let most = base.saturating_mul(2).saturating_add(tip);
        let sent = match self {
            Self::Rpc { signer, .. } => {
                let number = |n: u64| format!("{n:#x}");
                let mut fields = json!({
                    "from": from, "data": hex(data), "gas": number(gas), "value": "0x0", "chainId": number(chain),
                    "maxFeePerGas": number(most), "maxPriorityFeePerGas": number(tip),
                });
                if let Some(to) = to {
                    fields["to"] = json!(to);
                }
                signer.call("eth_sendTransaction", json!([fields]))?
            }
            Self::Key(key) => {
                let pending = node.number("eth_getTransactionCount", json!([from, "pending"]));
                let nonce = pending
                    .or_else(|_| node.number("eth_getTransactionCount", json!([from, "latest"])))?;
                let to = to.map_or(Vec::new(), |to| to.0.to_vec());
                let numbers = [chain, nonce, tip, most, gas].map(minimal);
                let fields = numbers
                    .into_iter()
                    .chain([to, Vec::new(), data.to_vec()])
                    .map(|field| string(&field));
                // And no access list.
                let unsigned = [fields.collect::<Vec<_>>().concat(), vec![0xc0]].concat();
                let typed = |payload: &[u8]| [vec![2], list_of(payload)].concat();
                let (signature, recovery) =
                    key.sign_prehash_recoverable(&keccak(&typed(&unsigned)));
                let (r, s) = signature.split_bytes();
                let proof = [minimal(recovery.is_y_odd().into()), trimmed(&r), trimmed(&s)]
                    .map(|field| string(&field))
                    .concat();
                node.call(
                    "eth_sendRawTransaction",
                    json!([hex(&typed(&[unsigned, proof].concat()))]),
                )?
            }
        };
        sent.as_str()
            .and_then(|hash| hash.parse().ok())
            .with_context(|| format!("a transaction was sent, and answered with {sent}"))
    }
}

fn hex(bytes: &[u8]) -> String {
    format!("0x{}", measure::hex(bytes))
}

fn minimal(n: u64) -> Vec<u8> {
    trimmed(&n.to_be_bytes())
}

fn trimmed(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().skip_while(|byte| *byte == 0).collect()
}

/// A call as Solidity's ABI has it: the selector, and words.
fn call(signature: &str, words: &[[u8; 32]]) -> Vec<u8> {
    [&keccak(signature.as_bytes())[..4], &words.concat()].concat()
}

fn word(n: u64) -> [u8; 32] {
    let mut word = [0; 32];
    word[24..].copy_from_slice(&n.to_be_bytes());
    word
}

fn padded(address: &Hex<20>) -> [u8; 32] {
    let mut word = [0; 32];
    word[12..].copy_from_slice(&address.0);
    word
}

/// `(address[], uint16, uint16)`.
fn approvers(who: &[Hex<20>], quorum: u16, revocations: u16) -> Vec<[u8; 32]> {
    let head = [word(96), word(quorum.into()), word(revocations.into()), word(who.len() as u64)];
    head.into_iter().chain(who.iter().map(padded)).collect()
}

/// A transaction that is in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mined {
    /// The transaction.
    pub hash: Hash,
    pub block: u64,
    pub gas: u64,
    /// Of what was deployed.
    pub address: Option<Hex<20>>,
    /// Whether the registry changed, or only a vote was counted.
    pub changed: bool,
}

/// A record, and the block at which it was read.
#[derive(Debug, Clone, Copy)]
pub struct Shown {
    pub record: Record,
    pub block: u64,
    /// Of the block, in seconds since 1970.
    pub time: u64,
}

pub struct Registry<'a> {
    pub node: &'a Execution,
    pub address: Hex<20>,
}

impl<'a> Registry<'a> {
    /// Deploys a registry. Its own address is in what comes back.
    pub fn deploy(
        node: &'a Execution,
        signer: &Signer,
        who: &[Hex<20>],
        quorum: u16,
        revocations: u16,
    ) -> Result<(Self, Mined)> {
        let code = compiled()?.bytecode;
        let code = code
            .strip_prefix("0x")
            .and_then(measure::unhex)
            .context("contracts/registry.json: the bytecode is no hex")?;
        let mined = transact(
            node,
            signer,
            None,
            &[code, approvers(who, quorum, revocations).concat()].concat(),
        )?;
        let address = mined.address.context("the receipt of the deployment names no address")?;
        let found = node.call("eth_getCode", json!([address, "latest"]))?;
        ensure!(found == compiled()?.code, "the code at {address} is not what was deployed");
        Ok((Self { node, address }, mined))
    }

    pub fn approve(
        &self,
        signer: &Signer,
        digest: &Hash,
        approval: Approval,
        not_after: u64,
    ) -> Result<Mined> {
        let status = match approval {
            Approval::Clear => 1,
            Approval::Proof => 2,
        };
        self.vote(
            signer,
            &call("approve(bytes32,uint8,uint64)", &[digest.0, word(status), word(not_after)]),
        )
    }

    pub fn revoke(&self, signer: &Signer, digest: &Hash) -> Result<Mined> {
        self.vote(signer, &call("revoke(bytes32)", &[digest.0]))
    }

    pub fn set_approvers(
        &self,
        signer: &Signer,
        who: &[Hex<20>],
        quorum: u16,
        revocations: u16,
    ) -> Result<Mined> {
        self.vote(
            signer,
            &call("setApprovers(address[],uint16,uint16)", &approvers(who, quorum, revocations)),
        )
    }

    fn vote(&self, signer: &Signer, data: &[u8]) -> Result<Mined> {
        self.check()?;
        transact(self.node, signer, Some(self.address), data)
    }

    /// That this is the registry, before anybody pays for talking to something else.
    pub fn check(&self) -> Result<()> {
        let found = self.node.call("eth_getCode", json!([self.address, "latest"]))?;
        if found == "0x" {
            bail!(
                "there is no contract at {}: another network, or never deployed (trustctl chain deploy)",
                self.address
            );
        }
        ensure!(
            found == compiled()?.code,
            "the code at {} is not the registry of this version of trustctl",
            self.address
        );
        Ok(())
    }

    /// What the registry says at a block: `latest` or `finalized`.
    pub fn record(&self, digest: &Hash, at: &str) -> Result<Shown> {
        let block = self.node.call("eth_getBlockByNumber", json!([at, false]))?;
        let of = |name: &str| {
            quantity(&block[name]).with_context(|| format!("the {at} block has no {name}"))
        };
        let (number_, time) = (of("number")?, of("timestamp")?);
        let key = ledger::ethereum::storage_key(digest, 0);
        let value = self
            .node
            .call("eth_getStorageAt", json!([self.address, key, format!("{number_:#x}")]))?;
        let text = value.as_str().with_context(|| format!("eth_getStorageAt gives {value}"))?;
        let bytes = text
            .strip_prefix("0x")
            .and_then(number)
            .filter(|bytes| bytes.len() <= 32)
            .with_context(|| format!("{text:?} is no word"))?;
        let mut word = [0; 32];
        word[32 - bytes.len()..].copy_from_slice(&bytes);
        let record = Record::read(&word)
            .map_err(|problem| anyhow::anyhow!("the record of {digest} is not one: {problem}"))?;
        Ok(Shown { record, block: number_, time })
    }

    /// The approvers, how many of them an approval needs, and a revocation.
    pub fn approvers(&self) -> Result<(Vec<Hex<20>>, u64, u64)> {
        let read = |signature: &str| -> Result<Vec<u8>> {
            let params =
                json!([{ "to": self.address, "data": hex(&call(signature, &[])) }, "latest"]);
            let value = self.node.call("eth_call", params)?;
            value
                .as_str()
                .and_then(|text| text.strip_prefix("0x"))
                .and_then(measure::unhex)
                .with_context(|| format!("{signature} gives {value}"))
        };
        let last = |bytes: Vec<u8>| {
            bytes.iter().rev().take(8).rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte))
        };
        let listed = read("approvers()")?;
        let who = listed
            .chunks_exact(32)
            .skip(2)
            .filter_map(|word| Some(Hex(word[12..].try_into().ok()?)));
        Ok((who.collect(), last(read("quorum()")?), last(read("revocationQuorum()")?)))
    }
}

/// Tries a transaction, sends it, and waits until it is in a block.
fn transact(node: &Execution, signer: &Signer, to: Option<Hex<20>>, data: &[u8]) -> Result<Mined> {
    let mut fields = json!({ "from": signer.address(), "data": hex(data) });
    if let Some(to) = to {
        fields["to"] = json!(to);
        // What the contract refuses is refused here, with its name, before it costs anything.
        if let Err(error) = node.call("eth_call", json!([fields, "latest"])) {
            return Err(refused(error));
        }
    }
    let gas = node
        .number("eth_estimateGas", json!([fields]))
        .or_else(|_| node.number("eth_estimateGas", json!([fields, "latest"])));
    let gas = gas.map_err(refused)?.saturating_mul(3) / 2 + votes(to.map_or(0, |_| data.len()));
    let hash = signer.send(node, to, data, gas)?;
    let deadline = Instant::now() + MINED_WITHIN;
    loop {
        if let Some(mined) = receipt(node, hash).ok().flatten() {
            return mined;
        }
        ensure!(
            Instant::now() < deadline,
            "the transaction {hash} is in no block after {} s; it may still come",
            MINED_WITHIN.as_secs()
        );
        std::thread::sleep(POLL);
    }
}

/// Whoever votes at the same time may make this the vote that counts: then it writes a record, or
/// each approver of a new set. The bytes of a contract are no votes.
fn votes(bytes: usize) -> u64 {
    100_000 + bytes as u64 / 32 * 50_000
}

/// What became of a transaction; none: it is in no block.
fn receipt(node: &Execution, hash: Hash) -> Result<Option<Result<Mined>>> {
    let receipt = node.call("eth_getTransactionReceipt", json!([hash]))?;
    let Some(block) = quantity(&receipt["blockNumber"]) else { return Ok(None) };
    if receipt["status"] != "0x1" {
        return Ok(Some(Err(anyhow::anyhow!(
            "the transaction {hash} failed in block {block}; did somebody else's vote come first?"
        ))));
    }
    let topic = |name: &str| hex(&keccak(name.as_bytes()));
    let changes = [
        topic("Changed(bytes32,uint8,uint64,uint64)"),
        topic("ApproversChanged(uint64,address[],uint16,uint16,uint64)"),
    ];
    let logs = receipt["logs"].as_array().cloned().unwrap_or_default();
    let changed = logs.iter().any(|log| changes.iter().any(|change| log["topics"][0] == *change));
    let address = receipt["contractAddress"].as_str().and_then(|text| text.parse().ok());
    Ok(Some(Ok(Mined {
        hash,
        block,
        gas: quantity(&receipt["gasUsed"]).unwrap_or_default(),
        address,
        changed,
    })))
}

/// The contract's own errors, by their selectors.
fn refused(error: anyhow::Error) -> anyhow::Error {
    const ERRORS: [(&str, &str); 7] = [
        (
            "NotAnApprover(address)",
            "this account is not one of the registry's approvers (trustctl chain show)",
        ),
        ("RevocationIsFinal(bytes32)", "the image is revoked, and that is final"),
        ("AlreadyVoted(address)", "this account voted for that already; others must too"),
        ("NoSuchStatus(uint8)", "no such status"),
        ("ExpiresBeforeNow(uint64,uint256)", "it would expire before it holds"),
        ("NoDigest()", "no digest"),
        (
            "NotASetOfApprovers()",
            "these approvers cannot be: each once, at most 64, quorum among them, revocations at most the quorum",
        ),
    ];
    let text = format!("{error:#}");
    let found =
        ERRORS.iter().find(|(name, _)| text.contains(&measure::hex(&keccak(name.as_bytes())[..4])));
    match found {
        Some((_, says)) => anyhow::anyhow!("the registry refuses: {says}"),
        None => error,
    }
}

/// How far the chain is on its way to making a block final.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finality {
    pub wanted: u64,
    pub finalized: u64,
    pub latest: u64,
}

/// Waits until a transaction is final: it is in a block that is not above the final one. A block
/// can be given up before, and the transaction come into a later one, or fail there. `hear` is told
/// whenever something moved.
pub fn wait_final(
    node: &Execution,
    mined: Mined,
    within: Duration,
    mut hear: impl FnMut(Finality),
) -> Result<Mined> {
    let (deadline, mut before, mut failures) = (Instant::now() + within, None, 0);
    let mut known = mined;
    loop {
        let at = |tag: &str| {
            node.call("eth_getBlockByNumber", json!([tag, false]))
                .map(|block| quantity(&block["number"]))
        };
        let found = at("latest").and_then(|latest| Ok((latest, receipt(node, mined.hash)?)));
        match found {
            Ok((Some(latest), found)) => {
                failures = 0;
                let mined = found.transpose()?;
                known = mined.unwrap_or(known);
                // Before the first final block some nodes say that there is none.
                let finalized = at("finalized").ok().flatten().unwrap_or_default();
                let now = Finality { wanted: known.block, finalized, latest };
                if before != Some(now) {
                    hear(now);
                    before = Some(now);
                }
                if let Some(mined) = mined
                    && finalized >= mined.block
                {
                    return Ok(mined);
                }
            }
            Ok((None, _)) => bail!("the execution node has no newest block"),
            Err(error) => {
                failures += 1;
                if failures >= MOST_FAILURES {
                    return Err(error.context("waiting until it is final"));
                }
            }
        }
        if Instant::now() >= deadline {
            bail!(
                "the transaction {} is not final after {} s; trustctl chain show says later what came of it",
                mined.hash,
                within.as_secs()
            );
        }
        std::thread::sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_the_address_that_everybody_gives_it() {
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

    #[test]
    fn calls_are_as_the_abi_has_them() {
        // approve(bytes32,uint8,uint64), by another implementation of the ABI.
        let data = call("revoke(bytes32)", &[[7; 32]]);
        assert_eq!((data.len(), measure::hex(&data[..4])), (36, "b75c7dc6".to_owned()));
        let set = approvers(&[Hex([1; 20]), Hex([2; 20])], 2, 1);
        assert_eq!(set.len(), 6);
        assert_eq!((set[0][31], set[3][31], set[4][11], set[4][12]), (96, 2, 0, 1));
    }

    #[test]
    fn what_the_contract_refuses_is_said_in_words() {
        let selector = measure::hex(&keccak(b"RevocationIsFinal(bytes32)")[..4]);
        let error = refused(anyhow::anyhow!("execution reverted 0x{selector}{}", "00".repeat(32)))
            .to_string();
        assert!(error.contains("that is final"), "{error}");
        assert_eq!(refused(anyhow::anyhow!("no route to host")).to_string(), "no route to host");
    }
}
