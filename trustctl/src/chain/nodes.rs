//! Ordinary nodes of a chain: a beacon node's HTTP API (ethereum/beacon-APIs) and an execution
//! node's JSON-RPC (ethereum/execution-apis).

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use ledger::ethereum::types::{Bytes, Hex};
use ledger::ethereum::{Hash, keccak, list};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const ANSWER_WITHIN: Duration = Duration::from_secs(30);
/// Of one answer: a year of updates has some 3 MB.
const LARGEST_ANSWER: u64 = 32 << 20;

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(ANSWER_WITHIN))
        .http_status_as_error(false)
        .max_redirects(0)
        .build()
        .into()
}

fn read(answer: ureq::http::Response<ureq::Body>, url: &str) -> Result<(u16, Value)> {
    let (status, mut body) = (answer.status().as_u16(), answer.into_body());
    let text = body
        .with_config()
        .limit(LARGEST_ANSWER)
        .read_to_string()
        .with_context(|| format!("{url} answers {status}"))?;
    let value = serde_json::from_str(&text).with_context(|| {
        format!("{url} answers {status} with what is no JSON: {}", shortened(&text))
    })?;
    Ok((status, value))
}

/// A node as errors name it: what comes behind its host may be the key of an account.
fn named(url: &str) -> String {
    let shown = |uri: ureq::http::Uri| {
        let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("{}://{}{port}", uri.scheme_str()?, uri.host()?))
    };
    url.parse().ok().and_then(shown).unwrap_or_else(|| "(no URL)".into())
}

fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// A beacon node.
pub struct Beacon {
    url: String,
    name: String,
    agent: ureq::Agent,
}

impl Beacon {
    pub fn new(url: &str) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), name: named(url), agent: agent() }
    }

    pub fn get(&self, path: &str) -> Result<Value> {
        let name = format!("{}{path}", self.name);
        let asked = self
            .agent
            .get(format!("{}{path}", self.url))
            .header("accept", "application/json")
            .call();
        let (status, value) =
            read(asked.with_context(|| format!("the beacon node {name}"))?, &name)?;
        if status != 200 {
            bail!(
                "the beacon node {name} answers {status}: {}",
                shortened(value["message"].as_str().unwrap_or_default())
            );
        }
        Ok(value)
    }

    /// What is in the answer's `data`.
    pub fn data<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let mut value = self.get(path)?;
        serde_json::from_value(value["data"].take())
            .with_context(|| format!("{}{path}: not what the Beacon API says", self.name))
    }

    /// A list, each with an envelope of its own or all in one.
    pub fn each<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        let value = self.get(path)?;
        let list = value
            .as_array()
            .or_else(|| value["data"].as_array())
            .with_context(|| format!("{}{path}: expected a list", self.name))?;
        let inner = |entry: &Value| {
            if entry["data"].is_null() { entry.clone() } else { entry["data"].clone() }
        };
        let read = |entry: &Value| {
            serde_json::from_value(inner(entry)).with_context(|| format!("{}{path}", self.name))
        };
        list.iter().map(read).collect()
    }

    /// A number of the network's configuration.
    pub fn spec(&self, name: &str) -> Result<u64> {
        let spec = self.get("/eth/v1/config/spec")?;
        let text = spec["data"][name]
            .as_str()
            .with_context(|| format!("the beacon node {} does not say its {name}", self.name))?;
        text.parse().with_context(|| format!("{name} is {text:?}"))
    }
}

/// An execution node.
pub struct Execution {
    url: String,
    name: String,
    agent: ureq::Agent,
}

impl Execution {
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), name: named(url), agent: agent() }
    }

    pub fn call(&self, method: &str, params: Value) -> Result<Value> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let sent = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json")
            .send(body.to_string());
        let (status, mut value) =
            read(sent.with_context(|| format!("the execution node {}", self.name))?, &self.name)?;
        let error = &value["error"];
        if !error.is_null() {
            // What a contract says is in the data, where a node has it.
            let said = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            let data = error["data"].as_str().unwrap_or_default();
            bail!(
                "the execution node {} refuses {method}: {} {}",
                self.name,
                shortened(&said),
                shortened(data)
            );
        }
        match value.get_mut("result") {
            Some(result) if status == 200 => Ok(result.take()),
            _ => bail!(
                "the execution node {} answers {status} to {method}, without a result",
                self.name
            ),
        }
    }

    pub fn number(&self, method: &str, params: Value) -> Result<u64> {
        let value = self.call(method, params)?;
        quantity(&value).with_context(|| format!("{method} gives {value}, expected a number"))
    }

    /// The header of a block as RLP, and its number. Whether it has that hash is looked at here: a
    /// node may know fields that this program does not.
    pub fn header(&self, hash: &Hash) -> Result<(Bytes, u64)> {
        let block = self.call("eth_getBlockByHash", json!([hash.to_string(), false]))?;
        if block.is_null() {
            bail!(
                "the execution node {} does not have the block {hash}; is it still syncing, or of another network?",
                self.name
            );
        }
        let encoded =
            header(&block).with_context(|| format!("the block {hash} of {}", self.name))?;
        if keccak(&encoded) != hash.0 {
            bail!(
                "the header of the block {hash} has fields that this program does not know: a newer trustctl is needed"
            );
        }
        let number = quantity(&block["number"]).context("the block has no number")?;
        Ok((Bytes(encoded), number))
    }
}

pub fn quantity(value: &Value) -> Option<u64> {
    u64::from_str_radix(value.as_str()?.strip_prefix("0x")?, 16).ok()
}

/// In the order of the header (yellow paper 4.3, EIPs 1559, 4895, 4844, 4788, 7685, 7928, 7843);
/// the second: whether it is a number, which has no leading zeros.
const FIELDS: [(&str, bool); 23] = [
    ("parentHash", false),
    ("sha3Uncles", false),
    ("miner", false),
    ("stateRoot", false),
    ("transactionsRoot", false),
    ("receiptsRoot", false),
    ("logsBloom", false),
    ("difficulty", true),
    ("number", true),
    ("gasLimit", true),
    ("gasUsed", true),
    ("timestamp", true),
    ("extraData", false),
    ("mixHash", false),
    ("nonce", false),
    ("baseFeePerGas", true),
    ("withdrawalsRoot", false),
    ("blobGasUsed", true),
    ("excessBlobGas", true),
    ("parentBeaconBlockRoot", false),
    ("requestsHash", false),
    ("blockAccessListHash", false),
    ("slotNumber", true),
];
const SINCE_LONDON: usize = 16;

fn header(block: &Value) -> Result<Vec<u8>> {
    let mut fields = Vec::new();
    for (n, (name, is_number)) in FIELDS.iter().enumerate() {
        let Some(text) = block[name].as_str() else {
            if n < SINCE_LONDON {
                bail!("it has no {name}");
            }
            break;
        };
        let digits = text.strip_prefix("0x").with_context(|| format!("{name} is {text:?}"))?;
        let bytes =
            if *is_number { number(digits) } else { measure::unhex(&digits.to_ascii_lowercase()) };
        fields.push(bytes.with_context(|| format!("{name} is {text:?}"))?);
    }
    Ok(list(&fields))
}

/// Big-endian, without leading zeros.
pub fn number(digits: &str) -> Option<Vec<u8>> {
    let even = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits.to_owned() };
    let bytes = measure::unhex(&even.to_ascii_lowercase())?;
    let first = bytes.iter().position(|byte| *byte != 0).unwrap_or(bytes.len());
    Some(bytes[first..].to_vec())
}

/// An address as it stands on a command line, in either case.
pub fn address(text: &str) -> Result<Hex<20>, String> {
    text.to_lowercase().parse()
}

/// An image's digest: `sha256:…` as everywhere else, or `0x…` as the registry has it.
pub fn digest(text: &str) -> Result<Hash, String> {
    let hex = text.strip_prefix("sha256:").or_else(|| text.strip_prefix("0x")).unwrap_or_default();
    format!("0x{hex}")
        .parse()
        .map_err(|_| format!("expected sha256: and 64 lower-case hex digits, found {text:?}"))
}
