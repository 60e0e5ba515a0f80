//! A whole network of Ethereum's on loopback, from programs that nobody here wrote: Lodestar with
//! its validators, EthereumJS beside it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ledger::ethereum::Hash;
use ledger::ethereum::types::Hex;
use serde_json::{Value, json};
use trustctl::chain::{Beacon, Execution, Signer, pin};

use crate::node::programs;

/// The nodes take so long to come up, and what is before the first slot is nobody's loss.
const BEFORE_GENESIS: u64 = 40;

/// What a network is like.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Lodestar's name of it: 32 keys in a committee and 8 slots in an epoch, or 512 and 32.
    pub(crate) preset: &'static str,
    pub(crate) slots_per_epoch: u64,
    pub(crate) validators: usize,
    /// The epoch of the fork; before it nothing leads to the execution layer.
    pub(crate) capella: u64,
    pub(crate) seconds_per_slot: u64,
}

pub(crate) struct Devnet {
    consensus: Child,
    execution: Child,
    pub(crate) kind: Kind,
    pub(crate) beacon_url: String,
    pub(crate) execution_url: String,
    moved: std::sync::Mutex<(u64, Instant)>,
}

/// The chain does not get on: its nodes fell behind their own clock.
#[derive(Debug)]
pub(crate) struct Stalled(pub(crate) String);

impl Drop for Devnet {
    fn drop(&mut self) {
        for child in [&mut self.consensus, &mut self.execution] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Somebody with some of the network's currency.
pub(crate) fn account(n: u8) -> Signer {
    Signer::from_hex(&format!("{n:064x}")).unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Node.js of the set `programs`, which has a part of itself below /usr/share.
fn node(dir: &Path, log: &str, script: &Path, args: &[String]) -> Command {
    let programs = programs();
    let out = std::fs::File::create(dir.join(log)).unwrap();
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            &format!("mount --bind {}/usr/share /usr/share && exec \"$@\"", programs.display()),
            "sh",
        ])
        .arg(programs.join("usr/bin/node"))
        .args(["--require", "/src/ci/devnet/preload.cjs", "--max-old-space-size=2048"])
        .arg(script)
        .args(args)
        .env("LD_LIBRARY_PATH", programs.join("usr/lib/x86_64-linux-gnu"))
        .env("NODE_BACKEND", "js")
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(out);
    command
}

impl Devnet {
    pub(crate) fn start(dir: &Path, kind: Kind) -> Result<Self, Stalled> {
        let packages = PathBuf::from(
            std::env::var_os("BASALT_DEVNET")
                .expect("this test needs npm's packages: cargo xtask test chain"),
        );
        let _ = std::fs::remove_dir_all(dir);
        for sub in ["execution", "consensus"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let genesis_time = now() + BEFORE_GENESIS;
        let mut genesis: Value =
            serde_json::from_str(include_str!("../../../ci/devnet/genesis.json")).unwrap();
        if kind.capella > 0 {
            genesis["config"]["shanghaiTime"] =
                json!(genesis_time + kind.capella * kind.slots_per_epoch * kind.seconds_per_slot);
        }
        for n in 1..=3 {
            let address = account(n).address().to_string();
            genesis["alloc"][address.trim_start_matches("0x")] =
                json!({ "balance": "0x21e19e0c9bab2400000" });
        }
        std::fs::write(dir.join("genesis.json"), genesis.to_string()).unwrap();
        let [rpc, engine, peers, api, gossip] = [(); 5].map(|()| free_port());
        let execution_url = format!("http://127.0.0.1:{rpc}");
        let text = |parts: &str| parts.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let args = text(&format!(
            "--gethGenesis {} --dataDir {} --rpc --rpcAddr 127.0.0.1 --rpcPort {rpc} --rpcEngine --rpcEngineAddr 127.0.0.1 \
             --rpcEnginePort {engine} --rpcEngineAuth false --isSingleNode --discDns false --discV4 false --maxPeers 0 --minPeers 0 \
             --extIP 127.0.0.1 --port {peers} --saveReceipts --logLevel info --logFile false",
            dir.join("genesis.json").display(),
            dir.join("execution/data").display()
        ));
        let script = packages.join("node_modules/@ethereumjs/client/dist/esm/bin/cli.js");
        let execution = node(&dir.join("execution"), "log", &script, &args).spawn().unwrap();
        let mut started = Self {
            // Until the second one is there: whatever happens, both are ended.
            consensus: Command::new("true").spawn().unwrap(),
            execution,
            kind,
            beacon_url: format!("http://127.0.0.1:{api}"),
            execution_url,
            moved: std::sync::Mutex::new((0, Instant::now())),
        };
        let mut block = Value::Null;
        started.until("the execution node's first answer", || {
            block = started
                .execution()
                .call("eth_getBlockByNumber", json!(["0x0", false]))
                .unwrap_or(Value::Null);
            block["hash"].is_string()
        })?;
        let args = text(&format!(
            "dev --genesisValidators {n} --startValidators 0..{} --genesisEth1Hash {} --genesisTime {genesis_time} \
             --params.ALTAIR_FORK_EPOCH 0 --params.BELLATRIX_FORK_EPOCH 0 --params.CAPELLA_FORK_EPOCH {} \
             --params.TERMINAL_TOTAL_DIFFICULTY 0 --params.SECONDS_PER_SLOT {} --dataDir {} --rest.namespace * \
             --rest.address 127.0.0.1 --rest.port {api} --beaconNodes {} --listenAddress 127.0.0.1 --port {gossip} --discv5 false \
             --mdns false --targetPeers 0 --network.connectToDiscv5Bootnodes false --sync.isSingleNode \
             --network.allowPublishToZeroPeers --eth1 false --execution.urls http://127.0.0.1:{engine} \
             --suggestedFeeRecipient 0x70997970C51812dc3A010C7d01b50e0d17dc79C8 --metrics false --logLevel info",
            kind.validators - 1,
            block["hash"].as_str().unwrap(),
            kind.capella,
            kind.seconds_per_slot,
            dir.join("consensus/data").display(),
            started.beacon_url,
            n = kind.validators,
        ));
        let script = packages.join("node_modules/@chainsafe/lodestar/lib/index.js");
        let mut consensus = node(&dir.join("consensus"), "log", &script, &args);
        let _ = started.consensus.wait();
        started.consensus = consensus
            .env("LODESTAR_PRESET", kind.preset)
            .env("LODESTAR_NETWORK", "dev")
            .spawn()
            .unwrap();
        started.until("the consensus node's first answer", || {
            started.beacon().get("/eth/v1/beacon/genesis").is_ok()
        })?;
        Ok(started)
    }

    pub(crate) fn beacon(&self) -> Beacon {
        Beacon::new(&self.beacon_url)
    }

    pub(crate) fn execution(&self) -> Execution {
        Execution::new(&self.execution_url)
    }

    pub(crate) fn head(&self) -> u64 {
        let head = self.beacon().get("/eth/v1/beacon/headers/head").unwrap_or(Value::Null);
        head["data"]["header"]["message"]["slot"]
            .as_str()
            .and_then(|slot| slot.parse().ok())
            .unwrap_or_default()
    }

    /// Waits for as long as the chain gets on.
    pub(crate) fn until(&self, what: &str, mut done: impl FnMut() -> bool) -> Result<(), Stalled> {
        let patience = Duration::from_secs(BEFORE_GENESIS + 60 + 10 * self.kind.seconds_per_slot);
        *self.moved.lock().unwrap() = (self.head(), Instant::now());
        let (begun, longest) = (
            Instant::now(),
            Duration::from_secs(5 * self.kind.slots_per_epoch * self.kind.seconds_per_slot + 300),
        );
        while !done() {
            let head = self.head();
            let mut moved = self.moved.lock().unwrap();
            if head > moved.0 {
                *moved = (head, Instant::now());
            }
            if moved.1.elapsed() > patience || begun.elapsed() > longest {
                return Err(Stalled(format!(
                    "{what}: the chain is at slot {} since {} s",
                    moved.0,
                    moved.1.elapsed().as_secs()
                )));
            }
            drop(moved);
            std::thread::sleep(Duration::from_millis(300));
        }
        println!("slot {:4}: {what}", self.head());
        Ok(())
    }

    /// Whether a client can begin.
    pub(crate) fn is_final(&self) -> bool {
        let checkpoints: Value = self
            .beacon()
            .data("/eth/v1/beacon/states/head/finality_checkpoints")
            .unwrap_or(Value::Null);
        let Some(root) = checkpoints["finalized"]["root"].as_str() else { return false };
        self.beacon().get(&format!("/eth/v1/beacon/light_client/bootstrap/{root}")).is_ok()
    }

    /// `[ledger.chain]` of a node that follows it, as `trustctl chain pin` makes it, and the
    /// checkpoint in it.
    pub(crate) fn settings(&self, contract: Hex<20>, relay: &str) -> (String, Hash) {
        let text = pin(&self.beacon(), &self.execution(), contract, &[relay.to_owned()]).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("checkpoint = ")).unwrap();
        let checkpoint = line.trim_matches('"').parse().unwrap();
        (text.replace("checkpoint = ", "poll-s = 2\ncheckpoint = "), checkpoint)
    }
}
