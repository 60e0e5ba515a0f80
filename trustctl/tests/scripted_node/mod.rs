//! A node whose answers are scripted, for tests of the commands of a chain.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use ledger::ethereum::Hash;
use serde_json::{Value, json};

type Answers = Arc<dyn Fn(&str, &Value) -> (u16, Value) + Send + Sync>;

/// A node whose answers are scripted, by the method of a JSON-RPC call or by the path of another
/// request.
pub(crate) struct ScriptedNode {
    pub(crate) url: String,
    /// Method or path, and parameters, of each request.
    requests: Arc<Mutex<Vec<(String, Value)>>>,
}

impl ScriptedNode {
    pub(crate) fn start(
        answers: impl Fn(&str, &Value) -> (u16, Value) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answers, recorded): (Answers, _) = (Arc::new(answers), requests.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut line, mut length) = (String::new(), 0);
                reader.read_line(&mut line).unwrap();
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                loop {
                    let mut header = String::new();
                    reader.read_line(&mut header).unwrap();
                    if let Some((name, value)) = header.split_once(':')
                        && name.eq_ignore_ascii_case("content-length")
                    {
                        length = value.trim().parse().unwrap();
                    }
                    if header.trim().is_empty() {
                        break;
                    }
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let name = body["method"].as_str().map_or(path, str::to_owned);
                recorded.lock().unwrap().push((name.clone(), body["params"].clone()));
                let (status, value) = answers(&name, &body["params"]);
                let text = value.to_string();
                let mut stream = stream;
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
                    text.len()
                );
            }
        });
        Self { url, requests }
    }

    /// Returns the parameters of the requests with this method or path.
    pub(crate) fn requests(&self, wanted: &str) -> Vec<Value> {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|(name, _)| name == wanted)
            .map(|(_, params)| params.clone())
            .collect()
    }
}

pub(crate) fn result(value: Value) -> (u16, Value) {
    (200, json!({ "jsonrpc": "2.0", "id": 1, "result": value }))
}

pub(crate) fn hash(n: u8) -> Hash {
    Hash::new([n; 32])
}

fn code() -> Value {
    let compiled: Value =
        serde_json::from_str(include_str!("../../../contracts/registry.json")).unwrap();
    compiled["code"].clone()
}

/// Answers of a node that includes every transaction at once, in block 10.
pub(crate) fn regular_answer(method: &str) -> (u16, Value) {
    result(match method {
        "eth_getCode" => code(),
        "eth_call" => json!("0x"),
        "eth_estimateGas" => json!("0x11170"),
        "eth_chainId" => json!("0x7e7e"),
        "eth_getBlockByNumber" => {
            json!({ "number": "0xa", "baseFeePerGas": "0x64", "timestamp": "0x1" })
        }
        "eth_maxPriorityFeePerGas" => json!("0xffffffffffff"),
        "eth_getTransactionCount" => json!("0x3"),
        "eth_sendTransaction" | "eth_sendRawTransaction" => json!(hash(7)),
        "eth_getTransactionReceipt" => {
            json!({ "blockNumber": "0xa", "status": "0x1", "gasUsed": "0x1234", "logs": [] })
        }
        _ => Value::Null,
    })
}
