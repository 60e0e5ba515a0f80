//! Clients of a chain's nodes: a beacon node's HTTP API (ethereum/beacon-APIs) and an execution
//! node's JSON-RPC (ethereum/execution-apis).

use anyhow::{Context as _, Result, bail};
use ledger::ethereum::types::{Bytes, Hex};
use ledger::ethereum::{Hash, keccak256, rlp_list};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::encoding::{number_bytes, quantity};
use crate::http::{agent, excerpt};

/// Bound of one answer; a year of updates has about 3 MB.
const MAX_ANSWER_BYTES: u64 = 32 << 20;

fn read_json(answer: ureq::http::Response<ureq::Body>, name: &str) -> Result<(u16, Value)> {
    let (status, mut body) = (answer.status().as_u16(), answer.into_body());
    let text = body
        .with_config()
        .limit(MAX_ANSWER_BYTES)
        .read_to_string()
        .with_context(|| format!("cannot read the answer of {name} ({status})"))?;
    let value = serde_json::from_str(&text).with_context(|| {
        format!("the answer of {name} ({status}) is not JSON: {}", excerpt(&text))
    })?;
    Ok((status, value))
}

/// Returns a node's name for error messages: scheme, host and port. The rest of a URL can be the
/// key of an account at a provider.
fn public_name(url: &str) -> String {
    let origin = |uri: ureq::http::Uri| {
        let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
        Some(format!("{}://{}{port}", uri.scheme_str()?, uri.host()?))
    };
    url.parse().ok().and_then(origin).unwrap_or_else(|| "(not a URL)".into())
}

/// Client of a beacon node.
pub struct BeaconNode {
    url: String,
    name: String,
    agent: ureq::Agent,
}

impl BeaconNode {
    /// Makes a client of the node at `url`.
    pub fn new(url: &str) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), name: public_name(url), agent: agent() }
    }

    /// Returns the JSON answer to a GET request.
    ///
    /// # Errors
    /// Returns an error if the node cannot be reached or does not answer with JSON and status 200.
    pub fn get(&self, path: &str) -> Result<Value> {
        let name = format!("{}{path}", self.name);
        let answer = self
            .agent
            .get(format!("{}{path}", self.url))
            .header("accept", "application/json")
            .call()
            .with_context(|| format!("cannot reach the beacon node {name}"))?;
        let (status, value) = read_json(answer, &name)?;
        if status != 200 {
            bail!(
                "the beacon node {name} answers {status}: {}",
                excerpt(value["message"].as_str().unwrap_or_default())
            );
        }
        Ok(value)
    }

    /// Returns the answer's member `data`.
    ///
    /// # Errors
    /// Returns the errors of [`Self::get`], and an error if the data has another form.
    pub fn data<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let mut value = self.get(path)?;
        serde_json::from_value(value["data"].take())
            .with_context(|| format!("{}{path}: not the form of the Beacon API", self.name))
    }

    /// Returns the elements of a list, whether each has an envelope of its own or all have one.
    ///
    /// # Errors
    /// Returns the errors of [`Self::data`].
    pub fn data_list<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
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

    /// Returns a number of the network's configuration.
    ///
    /// # Errors
    /// Returns the errors of [`Self::get`], and an error if the number is absent or malformed.
    pub fn spec(&self, name: &str) -> Result<u64> {
        let spec = self.get("/eth/v1/config/spec")?;
        let text = spec["data"][name].as_str().with_context(|| {
            format!("the configuration of the beacon node {} has no {name}", self.name)
        })?;
        text.parse().with_context(|| format!("{name}: expected a number, found {text:?}"))
    }
}

/// Client of an execution node.
pub struct ExecutionNode {
    url: String,
    name: String,
    agent: ureq::Agent,
}

impl ExecutionNode {
    /// Makes a client of the node at `url`.
    pub fn new(url: &str) -> Self {
        Self { url: url.to_owned(), name: public_name(url), agent: agent() }
    }

    /// Calls a method of the JSON-RPC and returns its result.
    ///
    /// # Errors
    /// Returns an error if the node cannot be reached or answers with an error.
    pub fn call(&self, method: &str, params: Value) -> Result<Value> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let answer = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json")
            .send(body.to_string())
            .with_context(|| format!("cannot reach the execution node {}", self.name))?;
        let (status, mut value) = read_json(answer, &self.name)?;
        let error = &value["error"];
        if !error.is_null() {
            // Nodes that report a contract's own error do so in the data.
            let text = error["message"].as_str().map_or_else(|| error.to_string(), str::to_owned);
            let data = error["data"].as_str().unwrap_or_default();
            bail!(
                "the execution node {} rejects {method}: {} {}",
                self.name,
                excerpt(&text),
                excerpt(data)
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

    /// Calls a method whose result is a number.
    ///
    /// # Errors
    /// Returns the errors of [`Self::call`], and an error if the result is not a number.
    pub fn number(&self, method: &str, params: Value) -> Result<u64> {
        let value = self.call(method, params)?;
        quantity(&value).with_context(|| format!("{method}: expected a number, found {value}"))
    }

    /// Returns the header of a block as RLP, and its number. The header's hash is verified, because
    /// a node may know fields that this program does not.
    ///
    /// # Errors
    /// Returns the errors of [`Self::call`], and an error if the node does not have the block or
    /// its header does not have the hash.
    pub fn header(&self, hash: &Hash) -> Result<(Bytes, u64)> {
        let block = self.call("eth_getBlockByHash", json!([hash.to_string(), false]))?;
        if block.is_null() {
            bail!(
                "the execution node {} does not have the block {hash}; \
                 is it still syncing, or on another network?",
                self.name
            );
        }
        let encoded =
            encode_header(&block).with_context(|| format!("the block {hash} of {}", self.name))?;
        if keccak256(&encoded) != hash.0 {
            bail!(
                "the header of the block {hash} has fields that this version of trustctl does not \
                 know: use a newer one"
            );
        }
        let number = quantity(&block["number"]).context("the block has no number")?;
        Ok((Bytes(encoded), number))
    }

    /// Returns the code at an address at the newest block, as `0x` and hex digits.
    ///
    /// # Errors
    /// Returns the errors of [`Self::call`].
    pub(super) fn code(&self, address: Hex<20>) -> Result<Value> {
        self.call("eth_getCode", json!([address, "latest"]))
    }
}

/// Fields of a block's header in their order (yellow paper 4.3, EIPs 1559, 4895, 4844, 4788, 7685,
/// 7928, 7843), and whether each is a number, which is encoded without leading zeros.
const HEADER_FIELDS: [(&str, bool); 23] = [
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
/// Number of the fields that every header since the London fork has.
const LONDON_FIELDS: usize = 16;

/// Encodes a header with all fields up to the first that it does not have.
fn encode_header(block: &Value) -> Result<Vec<u8>> {
    let mut fields = Vec::new();
    for (n, (name, is_number)) in HEADER_FIELDS.iter().enumerate() {
        let Some(text) = block[name].as_str() else {
            if n < LONDON_FIELDS {
                bail!("the header has no {name}");
            }
            break;
        };
        let malformed = || format!("{name}: expected 0x and hex digits, found {text:?}");
        let digits = text.strip_prefix("0x").with_context(malformed)?;
        let bytes = if *is_number {
            number_bytes(digits)
        } else {
            measure::unhex(&digits.to_ascii_lowercase())
        };
        fields.push(bytes.with_context(malformed)?);
    }
    Ok(rlp_list(&fields))
}
