//! The registry contract (contracts/ImageRegistry.sol) from the approvers' side: deploying it,
//! voting, withdrawing votes, reading it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use ledger::ethereum::types::Hex;
use ledger::ethereum::{ApprovalLevel, Hash, Record, keccak256, storage_key};
use serde::Deserialize;
use serde_json::json;

use super::abi::{approvers, call, proposal, word};
use super::encoding::{number_bytes, prefixed_hex, quantity, word_of};
use super::nodes::ExecutionNode;
use super::signer::Signer;
use super::transaction::{Receipt, transact};

/// Time within which a vote must be included in a block. The contract rejects it afterwards, so that
/// a signed transaction that was withheld has no effect later.
const VOTE_INCLUSION_TIMEOUT: Duration = Duration::from_secs(3600);

/// Compiled contract. A test in contracts/ compares it with the source.
#[derive(Deserialize)]
struct CompiledContract {
    /// Code that deploys the contract, `0x` and hex digits.
    bytecode: String,
    /// Code of the deployed contract, `0x` and hex digits.
    code: String,
}

fn compiled() -> Result<CompiledContract> {
    serde_json::from_str(include_str!("../../../contracts/registry.json"))
        .context("contracts/registry.json")
}

fn decode(member: &str, text: &str) -> Result<Vec<u8>> {
    text.strip_prefix("0x")
        .and_then(measure::unhex)
        .with_context(|| format!("contracts/registry.json: {member}: expected 0x and hex digits"))
}

/// Returns the Keccak-256 of the deployed registry's code, which nodes pin.
///
/// # Errors
/// Returns an error if the compiled contract is malformed.
pub fn code_hash() -> Result<Hash> {
    Ok(Hash::new(keccak256(&decode("code", &compiled()?.code)?)))
}

/// Approvers of a registry and the votes that a change needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Approvers {
    /// Addresses of the approvers.
    pub addresses: Vec<Hex<20>>,
    /// Votes that an approval needs.
    pub quorum: u64,
    /// Votes that a revocation needs.
    pub revocation_quorum: u64,
}

/// Record of an image at one block.
#[derive(Debug, Clone, Copy)]
pub struct RecordAtBlock {
    /// The record.
    pub record: Record,
    /// Number of the block.
    pub block: u64,
    /// Time of the block, in seconds since 1970.
    pub time: u64,
}

/// Returns the last second since 1970 at which a vote that is sent now can be included.
fn vote_deadline() -> [u8; 32] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    word((now + VOTE_INCLUSION_TIMEOUT).as_secs())
}

/// A deployed registry, accessed through an execution node.
pub struct Registry<'a> {
    /// Client of the execution node.
    pub node: &'a ExecutionNode,
    /// Address of the contract.
    pub address: Hex<20>,
}

impl<'a> Registry<'a> {
    /// Deploys a registry.
    ///
    /// # Errors
    /// Returns an error if the node cannot be reached, rejects the transaction, or has other code
    /// at the new address.
    pub fn deploy(
        node: &'a ExecutionNode,
        signer: &Signer,
        addresses: &[Hex<20>],
        quorum: u16,
        revocation_quorum: u16,
    ) -> Result<(Self, Receipt)> {
        let contract = compiled()?;
        let arguments = approvers(addresses, quorum, revocation_quorum).concat();
        let data = [decode("bytecode", &contract.bytecode)?, arguments].concat();
        let receipt = transact(node, signer, None, &data)?;
        let address = receipt.contract.context("the deployment's receipt has no address")?;
        let found = node.code(address)?;
        ensure!(found == contract.code, "the code at {address} is not the one that was deployed");
        Ok((Self { node, address }, receipt))
    }

    /// Votes for approving an image until `not_after`, in seconds since 1970.
    ///
    /// # Errors
    /// Returns an error if the contract is not the registry, or the transaction fails.
    pub fn approve(
        &self,
        signer: &Signer,
        digest: &Hash,
        level: ApprovalLevel,
        not_after: u64,
    ) -> Result<Receipt> {
        let status = match level {
            ApprovalLevel::Clear => 1,
            ApprovalLevel::Proof => 2,
        };
        self.vote(
            signer,
            &call(
                "approve(bytes32,uint8,uint64,uint64)",
                &[digest.0, word(status), word(not_after), vote_deadline()],
            ),
        )
    }

    /// Votes for revoking an image, which is final.
    ///
    /// # Errors
    /// Returns the errors of [`Self::approve`].
    pub fn revoke(&self, signer: &Signer, digest: &Hash) -> Result<Receipt> {
        self.vote(signer, &call("revoke(bytes32,uint64)", &[digest.0, vote_deadline()]))
    }

    /// Votes for another set of approvers.
    ///
    /// # Errors
    /// Returns the errors of [`Self::approve`].
    pub fn set_approvers(
        &self,
        signer: &Signer,
        addresses: &[Hex<20>],
        quorum: u16,
        revocation_quorum: u16,
    ) -> Result<Receipt> {
        let arguments = proposal(addresses, quorum, revocation_quorum, vote_deadline());
        self.vote(signer, &call("setApprovers(address[],uint16,uint16,uint64)", &arguments))
    }

    /// Withdraws the account's open vote about an image, or about the approvers.
    ///
    /// # Errors
    /// Returns the errors of [`Self::approve`]; the contract rejects it if no vote is open.
    pub fn withdraw(&self, signer: &Signer, digest: Option<&Hash>) -> Result<Receipt> {
        let subject = digest.map_or([0; 32], |digest| digest.0);
        self.vote(signer, &call("withdraw(bytes32)", &[subject]))
    }

    fn vote(&self, signer: &Signer, data: &[u8]) -> Result<Receipt> {
        self.verify_code()?;
        transact(self.node, signer, Some(self.address), data)
    }

    /// Requires that the contract is the registry, before a transaction to it is paid.
    ///
    /// # Errors
    /// Returns an error if there is no contract or another one, or the node cannot be reached.
    pub fn verify_code(&self) -> Result<()> {
        let found = self.node.code(self.address)?;
        if found == "0x" {
            bail!(
                "there is no contract at {}: another network, or never deployed \
                 (trustctl chain deploy)",
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

    /// Reads an image's record at a block: `latest` or `finalized`.
    ///
    /// # Errors
    /// Returns an error if the node cannot be reached, has no such block, or the record is
    /// malformed.
    pub fn record(&self, digest: &Hash, tag: &str) -> Result<RecordAtBlock> {
        let head = self.node.call("eth_getBlockByNumber", json!([tag, false]))?;
        let member = |name: &str| {
            quantity(&head[name]).with_context(|| format!("the {tag} block has no {name}"))
        };
        let (block, time) = (member("number")?, member("timestamp")?);
        let params = json!([self.address, storage_key(digest, 0), format!("{block:#x}")]);
        let value = self.node.call("eth_getStorageAt", params)?;
        let word = value
            .as_str()
            .and_then(|text| text.strip_prefix("0x"))
            .and_then(number_bytes)
            .and_then(|bytes| word_of(&bytes))
            .with_context(|| {
                format!("eth_getStorageAt: expected a word of 32 bytes, found {value}")
            })?;
        let record = Record::decode(&word)
            .with_context(|| format!("the record of {digest} is malformed"))?;
        Ok(RecordAtBlock { record, block, time })
    }

    /// Reads the approvers at the newest block.
    ///
    /// # Errors
    /// Returns an error if the node cannot be reached or answers in another form.
    pub fn approvers(&self) -> Result<Approvers> {
        let read = |signature: &str| -> Result<Vec<u8>> {
            let data = prefixed_hex(&call(signature, &[]));
            let params = json!([{ "to": self.address, "data": data }, "latest"]);
            let value = self.node.call("eth_call", params)?;
            value
                .as_str()
                .and_then(|text| text.strip_prefix("0x"))
                .and_then(measure::unhex)
                .with_context(|| format!("{signature}: expected hex digits, found {value}"))
        };
        let number = |bytes: Vec<u8>| {
            bytes.iter().rev().take(8).rev().fold(0u64, |all, byte| all << 8 | u64::from(*byte))
        };
        // An array of the ABI: two words, its place and its length, before the elements.
        let addresses = read("approvers()")?
            .chunks_exact(32)
            .skip(2)
            .filter_map(|word| Some(Hex(word[12..].try_into().ok()?)))
            .collect();
        Ok(Approvers {
            addresses,
            quorum: number(read("quorum()")?),
            revocation_quorum: number(read("revocationQuorum()")?),
        })
    }
}
