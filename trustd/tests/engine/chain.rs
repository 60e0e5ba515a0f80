//! A node that asks a real network: `cargo xtask test chain`, which takes some ten minutes and is
//! not part of the others.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use basalt_trustd::admission::relays::Relays;
use basalt_trustd::images::fetch::Client;
use basalt_trustd::modules::State;
use ledger::Status;
use ledger::ethereum::{Approval, Hash};
use serde_json::json;
use trustctl::chain::serve::{PATH, serve};
use trustctl::chain::{Ask, From, Registry, Relay, nodes};

use crate::devnet::{Devnet, Kind, Stalled, account, now};
use crate::images::image;
use crate::node::Node;

/// With a fork after the checkpoint, and one change of the committee before the end.
const MINIMAL: Kind =
    Kind { preset: "minimal", slots_per_epoch: 8, validators: 16, capella: 4, seconds_per_slot: 4 };
/// Committees as large as on the public network, which are recorded for the other tests.
const MAINNET: Kind = Kind {
    preset: "mainnet",
    slots_per_epoch: 32,
    validators: 64,
    capella: 0,
    seconds_per_slot: 3,
};
const FAR: u64 = 4_000_000_000;

/// All of it, the restart too; what hangs ends with the sandbox.
const WITHIN: Duration = Duration::from_secs(60 * 60);

/// What a network that stands still makes of a call.
fn stalled(error: impl std::fmt::Debug) -> Stalled {
    Stalled(format!("{error:?}"))
}

/// The command line of `trustctl`, as its users call it; what it says.
fn trustctl(args: &[&str]) -> Result<String, String> {
    let program = std::env::var_os("BASALT_TRUSTCTL")
        .expect("this test needs trustctl: cargo xtask test chain");
    let output = std::process::Command::new(program).args(args).output().unwrap();
    let [said, problem] =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    if output.status.success() { Ok(said) } else { Err(format!("trustctl {args:?}: {problem}")) }
}

#[test]
#[ignore = "a whole network, alone on the machine: cargo xtask test chain"]
fn a_real_network_decides() {
    let kind = if std::env::var_os("BASALT_CHAIN_512").is_some() { MAINNET } else { MINIMAL };
    std::thread::spawn(|| {
        std::thread::sleep(WITHIN);
        println!("not done after {} s", WITHIN.as_secs());
        std::process::exit(1);
    });
    // The one restart: a network that fell behind its own clock never catches up.
    if let Err(Stalled(why)) = decides(kind) {
        println!("{why}; once more from the beginning");
        decides(kind).unwrap();
    }
}

/// What the other tests replay.
#[derive(Default)]
struct Recording {
    bundles: Vec<serde_json::Value>,
}

impl Recording {
    fn take(
        &mut self,
        name: &str,
        relay: &Relay,
        from: From,
        digests: &[Hash],
    ) -> Result<(), Stalled> {
        let bundle = relay.bundle(&Ask { from, digests: digests.to_vec() }).map_err(stalled)?;
        self.bundles.push(json!({ "name": name, "now": now(), "bundle": bundle }));
        Ok(())
    }

    fn write(self, kind: Kind, settings: &str, digests: &[Hash]) {
        let Some(dir) = std::env::var_os("BASALT_CHAIN_RECORDING") else { return };
        let path = Path::new(&dir).join(format!("devnet-{}.json", kind.preset));
        let recording =
            json!({ "settings": settings, "digests": digests, "bundles": self.bundles });
        std::fs::write(&path, recording.to_string()).unwrap();
        println!("recorded: {}", path.display());
    }
}

fn decides(kind: Kind) -> Result<(), Stalled> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let chain = Devnet::start(Path::new("/cache/devnet"), kind)?;
    let execution = chain.execution();
    let (ana, ben) = (account(1), account(2));
    let begin = || chain.until("a final block", || chain.is_final());
    if kind.capella > 0 {
        begin()?;
        chain.until("the fork", || chain.head() > kind.capella * kind.slots_per_epoch)?;
    }
    let good = image("good");
    let wanted = nodes::digest(&good.digest).unwrap();
    let (gone, absent) = (Hash::new([0x90; 32]), Hash::new([0xab; 32]));
    let (registry, mined) =
        Registry::deploy(&execution, &ana, &[ana.address(), ben.address()], 2, 1)
            .map_err(stalled)?;
    println!("deployed in block {} with {} gas", mined.block, mined.gas);
    assert!(
        registry
            .approve(&account(3), &wanted, Approval::Clear, FAR)
            .unwrap_err()
            .to_string()
            .contains("approvers")
    );
    let first = registry.approve(&ana, &wanted, Approval::Proof, FAR).map_err(stalled)?;
    assert!(!first.changed);
    assert!(
        registry
            .approve(&ana, &wanted, Approval::Proof, FAR)
            .unwrap_err()
            .to_string()
            .contains("voted for that already")
    );
    let approved = registry.approve(&ben, &wanted, Approval::Proof, FAR).map_err(stalled)?;
    assert!(approved.changed);
    // What the boot test of a node in QEMU runs.
    let guest = nodes::digest(&crate::pause::image().1).unwrap();
    for who in [&ana, &ben] {
        registry.approve(who, &guest, Approval::Clear, FAR).map_err(stalled)?;
    }
    registry.revoke(&ben, &gone).map_err(stalled)?;
    let (who, quorum, revocations) = registry.approvers().unwrap();
    assert_eq!((who, quorum, revocations), (vec![ana.address(), ben.address()], 2, 1));
    if kind.capella == 0 {
        begin()?;
    }

    let relay =
        Arc::new(Relay::new(&chain.beacon_url, &chain.execution_url, registry.address, 0).unwrap());
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}{PATH}", listener.local_addr().unwrap());
    runtime.spawn(serve(relay.clone(), listener));
    let (settings, checkpoint) = chain.settings(registry.address, &url);
    let mut node = runtime.block_on(Node::with("chain", &settings));
    let client = Client::new(&[], Duration::from_secs(30)).unwrap();
    let relays = Arc::new(Relays::new(&node.config, client).unwrap());
    let modules = node.modules.clone();
    runtime.spawn(relays.clone().keep(node.approvals.clone(), move || modules.wake()));
    runtime.block_on(async {
        node.state(&good.digest, Status::Approved).await;
        node.push(&good.archive()).await.unwrap();
        node.apply("m", &format!("memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{}\"\n[health]\nstays-s = 0\n", good.digest));
    });
    if kind.capella > 0 {
        // The approvers signed, the newest block has it; it is not final.
        let reason = runtime.block_on(node.refused("m"));
        assert!(reason.contains("the chain does not let"), "{reason}");
    }
    let state = || node.modules.state("m");
    chain.until("the approval is final and the module runs", || {
        matches!(state(), Some(State::Running { .. }))
    })?;
    trustctl::chain::registry::wait_final(&execution, approved, Duration::from_secs(5), |_| ())
        .unwrap();
    let (asked, mut recording) = ([wanted, gone, absent, guest], Recording::default());
    recording.take("approved", &relay, From::Checkpoint(checkpoint), &asked)?;
    // The same from the command line: into a file, which nodes take too.
    let file = Path::new("/cache/devnet/bundle.json").to_str().unwrap();
    let contract = registry.address.to_string();
    let nodes = [
        "--beacon",
        &chain.beacon_url,
        "--execution",
        &chain.execution_url,
        "--contract",
        &contract,
    ];
    let (root, digest) = (checkpoint.to_string(), good.digest.as_str());
    let to_file =
        [&["relay"][..], &nodes, &["--out", file, "--checkpoint", &root, "--digest", digest]]
            .concat();
    // The node may have heard of a newer block in between, or the committee change.
    chain.until("a bundle from a file is taken", || {
        let said = trustctl(&to_file);
        let taken =
            || runtime.block_on(node.approvals.take(&std::fs::read_to_string(file).unwrap()));
        said.is_ok_and(|said| said.contains("1 records")) && taken().is_ok()
    })?;
    let pinned = trustctl(&[&["chain", "pin"][..], &nodes, &["--relay", &url]].concat()).unwrap();
    assert!(
        pinned.contains(&format!("contract = \"{contract}\"")) && pinned.contains("[ledger.chain]"),
        "{pinned}"
    );
    let shown = trustctl(&[
        "chain",
        "show",
        "--execution",
        &chain.execution_url,
        "--contract",
        &contract,
        digest,
    ])
    .unwrap();
    assert!(shown.contains("proof") && shown.contains("final"), "{shown}");

    registry.revoke(&ana, &guest).map_err(stalled)?;
    let revoked = registry.revoke(&ana, &wanted).map_err(stalled)?;
    assert!(revoked.changed);
    chain.until("the module is stopped", || matches!(state(), Some(State::Refused { .. })))?;
    let reason = runtime.block_on(node.refused("m"));
    assert!(reason.contains("revoked at block"), "{reason}");
    let last = registry.record(&wanted, "finalized").unwrap();
    println!("revoked in block {}, stopped while block {} was final", revoked.block, last.block);
    assert!(last.block < revoked.block, "bad news is not waited for");
    recording.take("attested", &relay, From::Checkpoint(checkpoint), &asked)?;
    if kind.capella > 0 {
        let bundle = || relay.bundle(&Ask { from: From::Period(0), digests: vec![wanted] }).ok();
        // The beacon node gives no new final header while the committee changes.
        chain.until("the revocation is final", || {
            bundle().is_some_and(|bundle| bundle.at_final.records[&wanted].word.0[31] == 3)
        })?;
        recording.take("revoked", &relay, From::Checkpoint(checkpoint), &asked)?;
        recording.take("period", &relay, From::Period(1), &asked)?;
    }
    recording.write(kind, &settings, &asked);
    Ok(())
}
