//! The open votes of a registry: which approvers voted for a change that is not complete, and when.
//!
//! The contract decides which votes are open. Its events only name the images that may have some.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use ledger::ethereum::types::Hex;
use ledger::ethereum::{ApprovalLevel, Hash, keccak256};
use serde_json::{Value, json};

use super::abi::{address, approvers, call, number, words};
use super::encoding::{prefixed_hex, quantity};
use super::registry::{Approvers, Registry};

/// Time after which the contract closes a vote, in seconds (`VOTE_LIFETIME`).
pub const VOTE_LIFETIME_SECONDS: u64 = 30 * 86_400;
/// Number of blocks that are searched for events at once. Many providers allow no more.
const MAX_SEARCHED_BLOCKS: u64 = 10_000;
/// Number of blocks at which a node's refusal is not about the number of blocks.
const MIN_SEARCHED_BLOCKS: u64 = 100;
/// Number of searches after which a network has too many blocks.
const MAX_SEARCHES: u32 = 1_000;
/// Words of one element of the answer to `openVotes`.
const VOTE_WORDS: usize = 5;

/// Change of the registry that approvers vote for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proposal {
    /// The image is approved.
    Approve {
        /// Strength of the approval.
        level: ApprovalLevel,
        /// First second since 1970 at which the approval is no longer valid.
        not_after: u64,
    },
    /// The image is revoked.
    Revoke,
    /// The approvers are replaced by the set with this hash.
    Approvers(Hash),
}

/// Vote that counts as soon as enough other approvers vote for the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenVote {
    /// Address of the approver.
    pub approver: Hex<20>,
    /// Change that the vote is for.
    pub proposal: Proposal,
    /// Time of the block that has the vote, in seconds since 1970.
    pub time: u64,
}

/// Subjects of the votes of the last [`VOTE_LIFETIME_SECONDS`], open or not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecentVotes {
    /// Digests of images.
    pub digests: BTreeSet<Hash>,
    /// Proposed sets of approvers, by the hash in [`Proposal::Approvers`].
    pub sets: BTreeMap<Hash, Approvers>,
}

impl Registry<'_> {
    /// Reads the open votes about an image, or about the approvers, at the newest block.
    ///
    /// # Errors
    /// Returns an error if the node cannot be reached or answers in another form.
    pub fn open_votes(&self, digest: Option<&Hash>) -> Result<Vec<OpenVote>> {
        let subject = digest.map_or([0; 32], |digest| digest.0);
        let data = prefixed_hex(&call("openVotes(bytes32)", &[subject]));
        let value =
            self.node.call("eth_call", json!([{ "to": self.address, "data": data }, "latest"]))?;
        let words = words(&value).context("openVotes")?;
        // An array of the ABI: two words, its place and its length, before the elements.
        let elements = words.get(2..).unwrap_or_default();
        ensure!(
            words.len() >= 2 && elements.len().is_multiple_of(VOTE_WORDS),
            "openVotes: expected elements of {VOTE_WORDS} words, found {} words",
            words.len()
        );
        let votes = elements.chunks_exact(VOTE_WORDS).map(decode_vote);
        Ok(votes.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Searches the events of the last [`VOTE_LIFETIME_SECONDS`] for what votes were about.
    ///
    /// # Errors
    /// Returns an error if the node cannot be reached, does not serve the events, or the network
    /// has too many blocks in that time.
    pub fn recent_votes(&self) -> Result<RecentVotes> {
        let (mut last, newest_time) = self.block("latest")?;
        let oldest_time = newest_time.saturating_sub(VOTE_LIFETIME_SECONDS);
        let (mut found, mut span) = (RecentVotes::default(), MAX_SEARCHED_BLOCKS);
        for _ in 0..MAX_SEARCHES {
            let first = last.saturating_sub(span - 1);
            match self.vote_events(first, last) {
                Ok(events) => events.iter().try_for_each(|event| found.add(event))?,
                Err(_) if span > MIN_SEARCHED_BLOCKS => {
                    span = (span / 4).max(MIN_SEARCHED_BLOCKS);
                    continue;
                }
                Err(error) => return Err(error.context("cannot search for votes")),
            }
            if first == 0 || self.block(&format!("{first:#x}"))?.1 < oldest_time {
                return Ok(found);
            }
            last = first - 1;
        }
        bail!(
            "the network has more blocks in {} days than can be searched; name the images: \
             trustctl chain votes sha256:…",
            VOTE_LIFETIME_SECONDS / 86_400
        )
    }

    /// Returns the number and the time of a block.
    fn block(&self, tag: &str) -> Result<(u64, u64)> {
        let block = self.node.call("eth_getBlockByNumber", json!([tag, false]))?;
        let member = |name: &str| {
            quantity(&block[name]).with_context(|| format!("the block {tag} has no {name}"))
        };
        Ok((member("number")?, member("timestamp")?))
    }

    fn vote_events(&self, first: u64, last: u64) -> Result<Vec<Value>> {
        let filter = json!({
            "address": self.address, "topics": [[topic(VOTED), topic(VOTED_FOR_APPROVERS)]],
            "fromBlock": format!("{first:#x}"), "toBlock": format!("{last:#x}"),
        });
        let value = self.node.call("eth_getLogs", json!([filter]))?;
        value.as_array().cloned().with_context(|| format!("expected a list, found {value}"))
    }
}

const VOTED: &str = "Voted(bytes32,address,uint8,uint64,uint16,uint16)";
const VOTED_FOR_APPROVERS: &str =
    "VotedForApprovers(address,address[],uint16,uint16,uint16,uint16)";

/// Returns the first topic of an event's log.
fn topic(event: &str) -> String {
    prefixed_hex(&keccak256(event.as_bytes()))
}

impl RecentVotes {
    fn add(&mut self, event: &Value) -> Result<()> {
        if event["topics"][0] == topic(VOTED) {
            let digest = event["topics"][1].as_str().and_then(|text| text.parse().ok());
            self.digests.insert(digest.context("an event Voted has no digest")?);
        } else if event["topics"][0] == topic(VOTED_FOR_APPROVERS) {
            let set = decode_set(&words(&event["data"])?).context("an event has no approvers")?;
            self.sets.insert(set_hash(&set), set);
        }
        Ok(())
    }
}

/// Returns the hash by which the contract names a set.
fn set_hash(set: &Approvers) -> Hash {
    let [quorum, revocation_quorum] =
        [set.quorum, set.revocation_quorum].map(|number| u16::try_from(number).unwrap_or(u16::MAX));
    Hash::new(keccak256(&approvers(&set.addresses, quorum, revocation_quorum).concat()))
}

/// Decodes the data of `VotedForApprovers`: the place of the addresses, quorum, revocation quorum,
/// the two numbers of votes, then the number of addresses and these.
fn decode_set(words: &[[u8; 32]]) -> Option<Approvers> {
    let addresses = words.get(6..)?;
    (number(words.get(5)?)? == addresses.len() as u64).then_some(())?;
    Some(Approvers {
        addresses: addresses.iter().filter_map(address).collect(),
        quorum: number(words.get(1)?)?,
        revocation_quorum: number(words.get(2)?)?,
    })
}

/// Decodes approver, status, notAfter, time and set; `None` for an approver without a vote.
fn decode_vote(words: &[[u8; 32]]) -> Result<Option<OpenVote>> {
    let [approver, status, not_after, time, set] = words else { bail!("expected five words") };
    let number = |word| number(word).context("openVotes: expected a number of 64 bits");
    let approve = |level, not_after| Proposal::Approve { level, not_after };
    let proposal = match number(status)? {
        0 => return Ok(None),
        1 => approve(ApprovalLevel::Clear, number(not_after)?),
        2 => approve(ApprovalLevel::Proof, number(not_after)?),
        3 => Proposal::Revoke,
        4 => Proposal::Approvers(Hash::new(*set)),
        found => bail!("openVotes: expected a status from 0 to 4, found {found}"),
    };
    let approver = address(approver).context("openVotes: expected an address")?;
    Ok(Some(OpenVote { approver, proposal, time: number(time)? }))
}
