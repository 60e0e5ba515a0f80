//! An Ethereum network on the loopback interface: Lodestar with its validators is the consensus
//! node, EthereumJS the execution node.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ledger::ethereum::Hash;
use ledger::ethereum::types::Hex;
use serde_json::{Value, json};
use trustctl::chain::{BeaconNode, ExecutionNode, Signer, pin};

use crate::node::programs;

/// Time for the nodes to start, before the first slot.
const GENESIS_DELAY_SECONDS: u64 = 40;
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// Parameters of a network.
#[derive(Clone, Copy)]
pub(crate) struct Kind {
    /// Lodestar's preset: `minimal` has 32 keys in a committee and 8 slots in an epoch, `mainnet`
    /// 512 and 32.
    pub(crate) preset: &'static str,
    /// Slots in an epoch of the preset.
    pub(crate) slots_per_epoch: u64,
    /// Number of validators, all of which Lodestar runs.
    pub(crate) validators: usize,
    /// Epoch of the Capella fork. Earlier blocks have no proof of the execution block.
    pub(crate) capella: u64,
    /// Duration of a slot.
    pub(crate) seconds_per_slot: u64,
}

/// A running network. Its processes are killed on drop.
pub(crate) struct Devnet {
    consensus: Child,
    execution: Child,
    pub(crate) kind: Kind,
    pub(crate) beacon_url: String,
    pub(crate) execution_url: String,
    /// Newest slot, and when it was first observed.
    progress: std::sync::Mutex<(u64, Instant)>,
}

/// The chain makes no progress, because its nodes fell behind their own clock.
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

/// Returns the time in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Returns an account with some of the currency of the network.
pub(crate) fn account(n: u8) -> Signer {
    Signer::from_hex(&format!("{n:064x}")).unwrap()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Returns a command that runs a script with Node.js of the set `programs`. Node.js reads files of
/// its own below /usr/share.
fn node_js(dir: &Path, log: &str, script: &Path, args: &[String]) -> Command {
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

/// Writes the genesis of a network: the time of the fork, and accounts with some currency.
fn write_genesis(path: &Path, kind: Kind, genesis_time: u64) {
    let mut genesis: Value =
        serde_json::from_str(include_str!("../../../ci/devnet/genesis.json")).unwrap();
    if kind.capella > 0 {
        let delay = kind.capella * kind.slots_per_epoch * kind.seconds_per_slot;
        genesis["config"]["shanghaiTime"] = json!(genesis_time + delay);
    }
    for n in 1..=3 {
        let address = account(n).address().to_string();
        genesis["alloc"][address.trim_start_matches("0x")] =
            json!({ "balance": "0x21e19e0c9bab2400000" });
    }
    std::fs::write(path, genesis.to_string()).unwrap();
}

fn split_words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Ports of a network, all on the loopback interface.
struct Ports {
    rpc: u16,
    engine: u16,
    peers: u16,
    beacon: u16,
    gossip: u16,
}

impl Ports {
    fn choose() -> Self {
        let [rpc, engine, peers, beacon, gossip] = [(); 5].map(|()| free_port());
        Self { rpc, engine, peers, beacon, gossip }
    }

    /// Returns the arguments of the execution node.
    fn execution_args(&self, dir: &Path) -> Vec<String> {
        let Self { rpc, engine, peers, .. } = self;
        split_words(&format!(
            "--gethGenesis {} --dataDir {} --rpc --rpcAddr 127.0.0.1 --rpcPort {rpc} \
             --rpcEngine --rpcEngineAddr 127.0.0.1 --rpcEnginePort {engine} \
             --rpcEngineAuth false --isSingleNode --discDns false --discV4 false --maxPeers 0 \
             --minPeers 0 --extIP 127.0.0.1 --port {peers} --saveReceipts --logLevel info \
             --logFile false",
            dir.join("genesis.json").display(),
            dir.join("execution/data").display()
        ))
    }

    /// Returns the arguments of the consensus node. `genesis_hash` is the hash of the execution
    /// node's first block.
    fn consensus_args(
        &self,
        dir: &Path,
        kind: Kind,
        genesis_time: u64,
        genesis_hash: &str,
    ) -> Vec<String> {
        let Self { engine, beacon, gossip, .. } = self;
        split_words(&format!(
            "dev --genesisValidators {validators} --startValidators 0..{last} \
             --genesisEth1Hash {genesis_hash} --genesisTime {genesis_time} \
             --params.ALTAIR_FORK_EPOCH 0 --params.BELLATRIX_FORK_EPOCH 0 \
             --params.CAPELLA_FORK_EPOCH {capella} --params.TERMINAL_TOTAL_DIFFICULTY 0 \
             --params.SECONDS_PER_SLOT {seconds} --dataDir {data} --rest.namespace * \
             --rest.address 127.0.0.1 --rest.port {beacon} \
             --beaconNodes http://127.0.0.1:{beacon} --listenAddress 127.0.0.1 --port {gossip} \
             --discv5 false --mdns false --targetPeers 0 \
             --network.connectToDiscv5Bootnodes false --sync.isSingleNode \
             --network.allowPublishToZeroPeers --eth1 false \
             --execution.urls http://127.0.0.1:{engine} \
             --suggestedFeeRecipient 0x70997970C51812dc3A010C7d01b50e0d17dc79C8 \
             --metrics false --logLevel info",
            validators = kind.validators,
            last = kind.validators - 1,
            capella = kind.capella,
            seconds = kind.seconds_per_slot,
            data = dir.join("consensus/data").display(),
        ))
    }
}

impl Devnet {
    /// Starts a network and waits until both nodes answer.
    pub(crate) fn start(dir: &Path, kind: Kind) -> Result<Self, Stalled> {
        let packages = PathBuf::from(
            std::env::var_os("BASALT_DEVNET")
                .expect("BASALT_DEVNET is not set: cargo xtask test chain sets it"),
        );
        let _ = std::fs::remove_dir_all(dir);
        for sub in ["execution", "consensus"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let genesis_time = now() + GENESIS_DELAY_SECONDS;
        write_genesis(&dir.join("genesis.json"), kind, genesis_time);
        let ports = Ports::choose();
        let script = packages.join("node_modules/@ethereumjs/client/dist/esm/bin/cli.js");
        let args = ports.execution_args(dir);
        let execution = node_js(&dir.join("execution"), "log", &script, &args).spawn().unwrap();
        let mut network = Self {
            // A placeholder, so that the drop of this value kills both processes from here on.
            consensus: Command::new("true").spawn().unwrap(),
            execution,
            kind,
            beacon_url: format!("http://127.0.0.1:{}", ports.beacon),
            execution_url: format!("http://127.0.0.1:{}", ports.rpc),
            progress: std::sync::Mutex::new((0, Instant::now())),
        };
        let mut block = Value::Null;
        network.until("the execution node answers", || {
            block = network
                .execution()
                .call("eth_getBlockByNumber", json!(["0x0", false]))
                .unwrap_or(Value::Null);
            block["hash"].is_string()
        })?;
        let script = packages.join("node_modules/@chainsafe/lodestar/lib/index.js");
        let genesis_hash = block["hash"].as_str().unwrap();
        let args = ports.consensus_args(dir, kind, genesis_time, genesis_hash);
        let mut consensus = node_js(&dir.join("consensus"), "log", &script, &args);
        let _ = network.consensus.wait();
        network.consensus = consensus
            .env("LODESTAR_PRESET", kind.preset)
            .env("LODESTAR_NETWORK", "dev")
            .spawn()
            .unwrap();
        network.until("the consensus node answers", || {
            network.beacon().get("/eth/v1/beacon/genesis").is_ok()
        })?;
        Ok(network)
    }

    pub(crate) fn beacon(&self) -> BeaconNode {
        BeaconNode::new(&self.beacon_url)
    }

    pub(crate) fn execution(&self) -> ExecutionNode {
        ExecutionNode::new(&self.execution_url)
    }

    /// Returns the slot of the newest block.
    pub(crate) fn head(&self) -> u64 {
        let head = self.beacon().get("/eth/v1/beacon/headers/head").unwrap_or(Value::Null);
        head["data"]["header"]["message"]["slot"]
            .as_str()
            .and_then(|slot| slot.parse().ok())
            .unwrap_or_default()
    }

    /// Waits until a condition is true, for as long as the chain makes progress.
    pub(crate) fn until(&self, what: &str, mut done: impl FnMut() -> bool) -> Result<(), Stalled> {
        let stall_timeout =
            Duration::from_secs(GENESIS_DELAY_SECONDS + 60 + 10 * self.kind.seconds_per_slot);
        *self.progress.lock().unwrap() = (self.head(), Instant::now());
        let (start, timeout) = (
            Instant::now(),
            Duration::from_secs(5 * self.kind.slots_per_epoch * self.kind.seconds_per_slot + 300),
        );
        while !done() {
            let head = self.head();
            let mut progress = self.progress.lock().unwrap();
            if head > progress.0 {
                *progress = (head, Instant::now());
            }
            if progress.1.elapsed() > stall_timeout || start.elapsed() > timeout {
                return Err(Stalled(format!(
                    "{what}: the chain has been at slot {} for {} s",
                    progress.0,
                    progress.1.elapsed().as_secs()
                )));
            }
            drop(progress);
            std::thread::sleep(POLL_INTERVAL);
        }
        println!("slot {:4}: {what}", self.head());
        Ok(())
    }

    /// Returns whether a light client can start.
    pub(crate) fn is_final(&self) -> bool {
        let checkpoints: Value = self
            .beacon()
            .data("/eth/v1/beacon/states/head/finality_checkpoints")
            .unwrap_or(Value::Null);
        let Some(root) = checkpoints["finalized"]["root"].as_str() else { return false };
        self.beacon().get(&format!("/eth/v1/beacon/light_client/bootstrap/{root}")).is_ok()
    }

    /// Returns the section `[ledger.chain]` of a node that follows this network, as `trustctl chain
    /// pin` makes it, and the checkpoint in it.
    pub(crate) fn settings(&self, contract: Hex<20>, relay: &str) -> (String, Hash) {
        let text = pin(&self.beacon(), &self.execution(), contract, &[relay.to_owned()]).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("checkpoint = ")).unwrap();
        let checkpoint = line.trim_matches('"').parse().unwrap();
        (text.replace("checkpoint = ", "poll-s = 2\ncheckpoint = "), checkpoint)
    }
}
