//! A node that follows a real network: `cargo xtask test chain`. The test takes about ten minutes
//! and does not run with the other tests.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use basalt_trustd::admission::relays::RelayPoller;
use basalt_trustd::images::fetch::RegistryClient;
use basalt_trustd::modules::ModuleStatus;
use ledger::Status;
use ledger::ethereum::types::Hex;
use ledger::ethereum::{ApprovalLevel, Hash};
use serde_json::json;
use tokio::runtime::Runtime;
use trustctl::chain::{
    Approvers, BUNDLE_PATH, BundleRequest, ExecutionNode, Proposal, Receipt, Registry, Relay,
    Signer, StartingPoint, parse_digest, serve, wait_until_final,
};

use crate::devnet::{Devnet, Kind, Stalled, account, now};
use crate::images::{TestImage, image};
use crate::node::Node;

/// Network with a fork after the checkpoint, and one change of the committee before the end.
const MINIMAL: Kind =
    Kind { preset: "minimal", slots_per_epoch: 8, validators: 16, capella: 4, seconds_per_slot: 4 };
/// Network with committees as large as on the public network. Its bundles are recorded for other
/// tests.
const MAINNET: Kind = Kind {
    preset: "mainnet",
    slots_per_epoch: 32,
    validators: 64,
    capella: 0,
    seconds_per_slot: 3,
};
/// Expiry of the approvals, in the year 2096.
const NOT_AFTER: u64 = 4_000_000_000;

/// Timeout of the test with its one restart. Processes that hang end with the sandbox.
const TEST_TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Attributes the error of a call to a network that has stalled.
fn stalled(error: impl std::fmt::Debug) -> Stalled {
    Stalled(format!("{error:?}"))
}

/// Runs `trustctl` and returns its output.
fn trustctl(args: &[&str]) -> Result<String, String> {
    let program = std::env::var_os("BASALT_TRUSTCTL")
        .expect("BASALT_TRUSTCTL is not set: cargo xtask test chain sets it");
    let output = std::process::Command::new(program).args(args).output().unwrap();
    let [printed, problem] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() { Ok(printed) } else { Err(format!("trustctl {args:?}: {problem}")) }
}

#[test]
#[ignore = "runs a whole network, alone on the machine: cargo xtask test chain"]
fn a_real_network_decides() {
    let kind = if std::env::var_os("BASALT_CHAIN_512").is_some() { MAINNET } else { MINIMAL };
    std::thread::spawn(|| {
        std::thread::sleep(TEST_TIMEOUT);
        println!("not finished after {} s", TEST_TIMEOUT.as_secs());
        std::process::exit(1);
    });
    // A network that fell behind its own clock never catches up, so it is started a second time.
    if let Err(Stalled(reason)) = follow_a_network(kind) {
        println!("{reason}; starting again");
        follow_a_network(kind).unwrap();
    }
}

/// Bundles that other tests replay.
#[derive(Default)]
struct Recording {
    bundles: Vec<serde_json::Value>,
}

impl Recording {
    fn add(
        &mut self,
        name: &str,
        relay: &Relay,
        from: StartingPoint,
        digests: &[Hash],
    ) -> Result<(), Stalled> {
        let request = BundleRequest { from, digests: digests.to_vec() };
        let bundle = relay.bundle(&request).map_err(stalled)?;
        self.bundles.push(json!({ "name": name, "now": now(), "bundle": bundle }));
        Ok(())
    }

    fn write(&self, kind: Kind, settings: &str, digests: &[Hash]) {
        let Some(dir) = std::env::var_os("BASALT_CHAIN_RECORDING") else { return };
        let path = Path::new(&dir).join(format!("devnet-{}.json", kind.preset));
        let recording =
            json!({ "settings": settings, "digests": digests, "bundles": self.bundles });
        std::fs::write(&path, recording.to_string()).unwrap();
        println!("recorded: {}", path.display());
    }
}

/// Digests that the registry is asked for.
struct Digests {
    /// Approved, and revoked at the end.
    wanted: Hash,
    /// Revoked without an approval.
    revoked: Hash,
    /// Never mentioned.
    absent: Hash,
    /// Image that the boot test of a node in QEMU runs.
    guest: Hash,
}

impl Digests {
    fn all(&self) -> [Hash; 4] {
        [self.wanted, self.revoked, self.absent, self.guest]
    }
}

fn follow_a_network(kind: Kind) -> Result<(), Stalled> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let chain = Devnet::start(Path::new("/cache/devnet"), kind)?;
    let wait_for_finality = || chain.until("a finalized block", || chain.is_final());
    if kind.capella > 0 {
        wait_for_finality()?;
        chain.until("the fork", || chain.head() > kind.capella * kind.slots_per_epoch)?;
    }
    let good = image("good");
    let digests = Digests {
        wanted: parse_digest(&good.digest).unwrap(),
        revoked: Hash::new([0x90; 32]),
        absent: Hash::new([0xab; 32]),
        guest: parse_digest(&crate::pause::image().1).unwrap(),
    };
    let execution = chain.execution();
    let (registry, approved) = approve(&execution, &digests)?;
    if kind.capella == 0 {
        wait_for_finality()?;
    }

    let relay =
        Arc::new(Relay::new(&chain.beacon_url, &chain.execution_url, registry.address, 0).unwrap());
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}{BUNDLE_PATH}", listener.local_addr().unwrap());
    runtime.spawn(serve(relay.clone(), listener));
    let (settings, checkpoint) = chain.settings(registry.address, &url);
    let node = start_node(&runtime, &settings, &good);
    if kind.capella > 0 {
        // The newest block has the approval, but it is not finalized.
        let reason = runtime.block_on(node.wait_until_denied("m"));
        assert!(reason.contains("the chain does not allow"), "{reason}");
    }
    let status = || node.modules.status("m");
    chain.until("the approval is finalized and the module runs", || {
        matches!(status(), Some(ModuleStatus::Running { .. }))
    })?;
    wait_until_final(&execution, approved, Duration::from_secs(5), |_| ()).unwrap();
    let mut recording = Recording::default();
    let from_checkpoint = || StartingPoint::Checkpoint(checkpoint);
    recording.add("approved", &relay, from_checkpoint(), &digests.all())?;
    use_the_command_line(&chain, &node, &runtime, registry.address, checkpoint, &url, &good)?;

    let ana = account(1);
    registry.revoke(&ana, &digests.guest).map_err(stalled)?;
    let revoked = registry.revoke(&ana, &digests.wanted).map_err(stalled)?;
    assert!(revoked.changed);
    chain
        .until("the module is stopped", || matches!(status(), Some(ModuleStatus::Denied { .. })))?;
    let reason = runtime.block_on(node.wait_until_denied("m"));
    assert!(reason.contains("revoked at block"), "{reason}");
    let last = registry.record(&digests.wanted, "finalized").unwrap();
    println!("revoked in block {}, finalized was block {}", revoked.block, last.block);
    assert!(last.block < revoked.block, "a revocation takes effect before it is finalized");
    recording.add("attested", &relay, from_checkpoint(), &digests.all())?;
    if kind.capella > 0 {
        let request =
            || BundleRequest { from: StartingPoint::Period(0), digests: vec![digests.wanted] };
        let bundle = || relay.bundle(&request()).ok();
        // The beacon node has no new finalized header while the committee changes.
        chain.until("the revocation is finalized", || {
            bundle().is_some_and(|b| b.at_final.records[&digests.wanted].word.0[31] == 3)
        })?;
        recording.add("revoked", &relay, from_checkpoint(), &digests.all())?;
        recording.add("period", &relay, StartingPoint::Period(1), &digests.all())?;
    }
    recording.write(kind, &settings, &digests.all());
    Ok(())
}

/// Deploys the registry; two approvers approve two images and revoke one. Returns the registry and
/// the transaction that completed the first approval.
fn approve<'a>(
    execution: &'a ExecutionNode,
    digests: &Digests,
) -> Result<(Registry<'a>, Receipt), Stalled> {
    let (ana, ben) = (account(1), account(2));
    let addresses = vec![ana.address(), ben.address()];
    let (registry, mined) = Registry::deploy(execution, &ana, &addresses, 2, 1).map_err(stalled)?;
    println!("deployed in block {} with {} gas", mined.block, mined.gas);
    withdraw(&registry, &digests.absent)?;
    let (wanted, level) = (&digests.wanted, ApprovalLevel::Proof);
    let rejection = |signer: &Signer, level: ApprovalLevel| {
        registry.approve(signer, wanted, level, NOT_AFTER).unwrap_err().to_string()
    };
    let message = rejection(&account(3), ApprovalLevel::Clear);
    assert!(message.contains("approvers"), "{message}");
    let first = registry.approve(&ana, wanted, level, NOT_AFTER).map_err(stalled)?;
    assert!(!first.changed);
    let message = rejection(&ana, level);
    assert!(message.contains("voted for that already"), "{message}");
    let approved = registry.approve(&ben, wanted, level, NOT_AFTER).map_err(stalled)?;
    assert!(approved.changed);
    for approver in [&ana, &ben] {
        registry
            .approve(approver, &digests.guest, ApprovalLevel::Clear, NOT_AFTER)
            .map_err(stalled)?;
    }
    registry.revoke(&ben, &digests.revoked).map_err(stalled)?;
    let approvers = Approvers { addresses, quorum: 2, revocation_quorum: 1 };
    assert_eq!(registry.approvers().unwrap(), approvers);
    Ok((registry, approved))
}

/// One of two approvers votes and withdraws the vote, so that the other's vote does not complete the
/// approval; neither does a vote after the other approver withdrew.
fn withdraw(registry: &Registry, image: &Hash) -> Result<(), Stalled> {
    let (ana, ben) = (account(1), account(2));
    let level = ApprovalLevel::Clear;
    let approve = |approver| {
        let receipt = registry.approve(approver, image, level, NOT_AFTER).map_err(stalled)?;
        assert!(!receipt.changed, "a withdrawn vote counts");
        Ok(())
    };
    approve(&ana)?;
    registry.withdraw(&ana, Some(image)).map_err(stalled)?;
    let message = registry.withdraw(&ana, Some(image)).unwrap_err().to_string();
    assert!(message.contains("no open vote"), "{message}");
    approve(&ben)?;
    let votes = registry.open_votes(Some(image)).unwrap();
    let proposal = Proposal::Approve { level, not_after: NOT_AFTER };
    assert_eq!(votes.len(), 1, "{votes:?}");
    assert_eq!((votes[0].approver, votes[0].proposal), (ben.address(), proposal));
    assert_eq!(registry.recent_votes().unwrap().digests, [*image].into());
    registry.withdraw(&ben, Some(image)).map_err(stalled)?;
    assert_eq!(registry.open_votes(Some(image)).unwrap(), []);
    Ok(())
}

/// Starts a node that polls the relay and has a module of this image.
fn start_node(runtime: &Runtime, settings: &str, image: &TestImage) -> Node {
    let mut node = runtime.block_on(Node::with("chain", settings));
    let client = RegistryClient::new(&[], Duration::from_secs(30)).unwrap();
    let relays = Arc::new(RelayPoller::new(&node.config, client).unwrap());
    let modules = node.modules.clone();
    runtime.spawn(relays.poll_forever(node.admission.clone(), move || modules.wake()));
    runtime.block_on(async {
        node.add_statement(&image.digest, Status::Approved).await;
        node.push(&image.archive()).await.unwrap();
        node.apply(
            "m",
            &format!(
                "memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{}\"\n\
                 [health]\nstays-s = 0\n",
                image.digest
            ),
        );
    });
    node
}

/// The commands of trustctl make a bundle that the node accepts, pin the chain, and show the record
/// of the image.
fn use_the_command_line(
    chain: &Devnet,
    node: &Node,
    runtime: &Runtime,
    contract: Hex<20>,
    checkpoint: Hash,
    relay_url: &str,
    image: &TestImage,
) -> Result<(), Stalled> {
    let file = "/cache/devnet/bundle.json";
    let (contract, root) = (contract.to_string(), checkpoint.to_string());
    let execution = ["--execution", &chain.execution_url, "--contract", &contract];
    let nodes = [&["--beacon", &*chain.beacon_url][..], &execution].concat();
    let output = ["--out", file, "--checkpoint", &root, "--digest", &image.digest];
    let make_bundle = [&["relay"][..], &nodes, &output].concat();
    let apply = || {
        let bundle = std::fs::read_to_string(file).unwrap();
        runtime.block_on(node.admission.apply_bundle(&bundle))
    };
    // The node can have applied a newer block in the meantime, or the committee can have changed.
    chain.until("the node accepts a bundle from a file", || {
        let output = trustctl(&make_bundle);
        output.is_ok_and(|output| output.contains("1 records")) && apply().is_ok()
    })?;
    let pin = [&["chain", "pin"][..], &nodes, &["--relay", relay_url]].concat();
    let pinned = trustctl(&pin).unwrap();
    let line = format!("contract = \"{contract}\"");
    assert!(pinned.contains(&line) && pinned.contains("[ledger.chain]"), "{pinned}");
    let show = [&["chain", "show"][..], &execution, &[image.digest.as_str()]].concat();
    let shown = trustctl(&show).unwrap();
    assert!(shown.contains("proof") && shown.contains("final"), "{shown}");
    let votes = trustctl(&[&["chain", "votes"][..], &execution].concat()).unwrap();
    assert!(votes.contains("no vote is open"), "{votes}");
    Ok(())
}
