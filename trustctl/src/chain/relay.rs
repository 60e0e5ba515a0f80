//! Making bundles for nodes, which check all of it: whoever runs a relay can be slow or silent, and
//! nothing else.

use anyhow::{Context as _, Result, ensure};
use ledger::ethereum::payload::{ApiBootstrap, ApiUpdate};
use ledger::ethereum::types::{
    Account, AccountValue, Bootstrap, Bytes, Format, Header, Hex, Proofs, Slot, Update,
};
use ledger::ethereum::{Block, Bundle, Hash, LARGEST_BUNDLE, MOST_DIGESTS, keccak, storage_key};
use serde::Deserialize;
use serde_json::{Value, json};

use super::nodes::{Beacon, Execution, number};

/// So many updates a beacon node gives at once (beacon-APIs, MAX_REQUEST_LIGHT_CLIENT_UPDATES).
const UPDATES_AT_ONCE: u64 = 128;

pub struct Relay {
    beacon: Beacon,
    execution: Execution,
    contract: Hex<20>,
    mapping: u64,
    slots_per_period: u64,
    /// More than this would be too long for a node.
    most_periods: u64,
}

/// Where a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// It has heard nothing yet.
    Checkpoint(Hash),
    /// It needs the updates from this period on.
    Period(u64),
}

/// What a node wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    pub from: From,
    pub digests: Vec<Hash>,
}

impl Ask {
    /// As it stands behind the `?` of a request: `checkpoint=0x…` or `period=N`, and any number of
    /// `digest=…`.
    pub fn parse(query: &str) -> Result<Self, String> {
        let (mut from, mut digests) = (None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| format!("{pair:?} has no value"))?;
            match key {
                "checkpoint" => from = Some(From::Checkpoint(value.parse()?)),
                "period" => {
                    from = Some(From::Period(
                        value.parse().map_err(|_| format!("{value:?} is no period"))?,
                    ))
                }
                "digest" => digests.push(super::nodes::digest(value)?),
                other => {
                    return Err(format!("expected checkpoint, period or digest, found {other:?}"));
                }
            }
        }
        if digests.len() > MOST_DIGESTS {
            return Err(format!("at most {MOST_DIGESTS} digests at once"));
        }
        Ok(Self { from: from.ok_or("expected checkpoint=ROOT or period=NUMBER")?, digests })
    }
}

/// `eth_getProof`, EIP-1186.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Proof {
    account_proof: Vec<Bytes>,
    nonce: String,
    balance: String,
    storage_hash: Hash,
    code_hash: Hash,
    storage_proof: Vec<StorageProof>,
}

#[derive(Deserialize)]
struct StorageProof {
    value: String,
    proof: Vec<Bytes>,
}

impl Relay {
    /// Asks the beacon node for its network's sizes.
    pub fn new(beacon: &str, execution: &str, contract: Hex<20>, mapping: u64) -> Result<Self> {
        let beacon = Beacon::new(beacon);
        let slots_per_period = beacon
            .spec("SLOTS_PER_EPOCH")?
            .saturating_mul(beacon.spec("EPOCHS_PER_SYNC_COMMITTEE_PERIOD")?);
        ensure!(slots_per_period > 0, "the beacon node says that a period has no slots");
        // Each key has 48 bytes, in hex, and what is around them is less than half of the smallest
        // committee.
        let most_periods = LARGEST_BUNDLE as u64
            / (beacon.spec("SYNC_COMMITTEE_SIZE")?.saturating_mul(102) + 4000);
        Ok(Self {
            beacon,
            execution: Execution::new(execution),
            contract,
            mapping,
            slots_per_period,
            most_periods,
        })
    }

    pub fn bundle(&self, ask: &Ask) -> Result<Bundle> {
        let finality = self.update("/eth/v1/beacon/light_client/finality_update")?;
        // A node without one is no reason to give nothing.
        let optimistic = self.update("/eth/v1/beacon/light_client/optimistic_update").ok();
        let optimistic = optimistic.filter(|newer| {
            newer.attested_header.beacon.slot > finality.attested_header.beacon.slot
        });
        let bootstrap = match &ask.from {
            From::Checkpoint(root) => Some(self.bootstrap(root)?),
            From::Period(_) => None,
        };
        let first = match (&ask.from, &bootstrap) {
            (_, Some(bootstrap)) => self.period(&bootstrap.header),
            (From::Period(period), None) => *period,
            (From::Checkpoint(_), None) => 0,
        };
        let last = self.period(&finality.attested_header);
        let periods = (last + 1).saturating_sub(first);
        ensure!(
            periods <= self.most_periods,
            "{periods} periods are too many for one bundle: a newer checkpoint is needed"
        );
        let shown = finality
            .finalized_header
            .as_ref()
            .context("the beacon node has no final block yet; wait for two more epochs")?;
        let at_final = self.proofs(shown, &ask.digests)?;
        let attested_header = &optimistic.as_ref().unwrap_or(&finality).attested_header;
        let attested = self.proofs(attested_header, &ask.digests).ok();
        Ok(Bundle {
            format: Format::V1,
            bootstrap,
            updates: self.updates(first, last)?,
            finality,
            optimistic,
            at_final,
            attested,
        })
    }

    fn period(&self, header: &Header) -> u64 {
        header.beacon.slot / self.slots_per_period
    }

    fn bootstrap(&self, root: &Hash) -> Result<Bootstrap> {
        let api: ApiBootstrap =
            self.beacon.data(&format!("/eth/v1/beacon/light_client/bootstrap/{root}"))?;
        api.try_into().map_err(anyhow::Error::msg)
    }

    fn update(&self, path: &str) -> Result<Update> {
        let api: ApiUpdate = self.beacon.data(path)?;
        api.try_into().map_err(anyhow::Error::msg)
    }

    /// What names the next committee, a period each. The present period's may not be there yet.
    fn updates(&self, first: u64, last: u64) -> Result<Vec<Update>> {
        let mut found = Vec::new();
        let mut start = first;
        while start <= last {
            let count = (last - start + 1).min(UPDATES_AT_ONCE);
            match self.some_updates(start, count) {
                Ok(given) => found.extend(given),
                // Some nodes give nothing at all if one of them is missing: those before it are
                // given alone.
                Err(_) => {
                    for period in start..start + count {
                        match self.some_updates(period, 1) {
                            Ok(given) => found.extend(given),
                            Err(_) if period == last => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
            start += count;
        }
        Ok(found)
    }

    fn some_updates(&self, start: u64, count: u64) -> Result<Vec<Update>> {
        let path =
            format!("/eth/v1/beacon/light_client/updates?start_period={start}&count={count}");
        self.beacon
            .each::<ApiUpdate>(&path)?
            .into_iter()
            .map(|api| Update::try_from(api).map_err(anyhow::Error::msg))
            .collect()
    }

    fn proofs(&self, header: &Header, digests: &[Hash]) -> Result<Proofs> {
        let slot = header.beacon.slot;
        let hash = header.block_hash.as_ref().with_context(|| {
            format!("slot {slot} is of before Capella: nothing leads to its block")
        })?;
        let (rlp, block) = self.execution.header(hash)?;
        let keys: Vec<String> =
            digests.iter().map(|digest| storage_key(digest, self.mapping).to_string()).collect();
        let params = json!([self.contract.to_string(), keys, format!("{block:#x}")]);
        let answer: Value = self.execution.call("eth_getProof", params)?;
        let proof: Proof = serde_json::from_value(answer)
            .context("eth_getProof gives something else than EIP-1186 says")?;
        // The node goes by the number: if the head was given up meanwhile, that is another block
        // now.
        let root = Block::read(&rlp, hash)?.state_root;
        let proved = proof.account_proof.first().is_some_and(|node| keccak(&node.0) == root);
        ensure!(
            proved,
            "eth_getProof gives proofs of another block than {block} with the hash {hash}"
        );
        let bytes = |text: &str| {
            text.strip_prefix("0x")
                .and_then(number)
                .with_context(|| format!("{text:?} is no number"))
        };
        let nonce =
            bytes(&proof.nonce)?.iter().fold(0, |all: u64, byte| all << 8 | u64::from(*byte));
        let value = AccountValue {
            nonce,
            balance: Bytes(bytes(&proof.balance)?),
            storage: proof.storage_hash,
            code: proof.code_hash,
        };
        // An account that is not there is given as one with nothing in it.
        let absent = value.code.0 == [0; 32]
            || (value.nonce == 0 && value.balance.0.is_empty() && value.code.0 == keccak(&[]));
        let mut records = std::collections::BTreeMap::new();
        for (digest, slot) in digests.iter().zip(proof.storage_proof) {
            let value = bytes(&slot.value)?;
            let mut word = [0; 32];
            let first = 32usize
                .checked_sub(value.len())
                .context("a word of the storage has more than 32 bytes")?;
            word[first..].copy_from_slice(&value);
            records.insert(*digest, Slot { word: Hash::new(word), proof: slot.proof });
        }
        Ok(Proofs {
            header: rlp,
            account: Account { value: (!absent).then_some(value), proof: proof.account_proof },
            records,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read_and_what_is_none_is_refused() {
        let root = format!("0x{}", "ab".repeat(32));
        let digest = "cd".repeat(32);
        let ask =
            Ask::parse(&format!("checkpoint={root}&digest=sha256:{digest}&digest=0x{digest}"))
                .unwrap();
        assert_eq!((ask.from, ask.digests.len()), (From::Checkpoint(root.parse().unwrap()), 2));
        assert_eq!(Ask::parse("period=7").unwrap().from, From::Period(7));
        let many = vec![format!("digest=0x{digest}"); MOST_DIGESTS + 1].join("&");
        for bad in [
            "",
            "period",
            "period=x",
            "period=-1",
            "checkpoint=0x12",
            "period=1&digest=12",
            "period=1&x=1",
            &format!("period=1&{many}"),
        ] {
            assert!(Ask::parse(bad).is_err(), "{bad:.40}");
        }
    }
}
