//! Scenarios of a whole node on the machine `virt`. Each test boots its own card.
// Test helpers may unwrap, like tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use api::module::VrfProof;
use api::owner::{DenialCode, Module, ModuleStatus, NodeStatus, Status as NodeState, StoredImage};
use basalt_ci::{BOOT_TIMEOUT, Card, EVENT_TIMEOUT, append_statement, poll_until};
use deployment::DesiredState;
use ledger::Status;
use measure::Measurements;
use policy::Policies;
use serde::Deserialize;
use trustctl::module::Verb;

fn running(module: &Module) -> bool {
    matches!(module.status, ModuleStatus::Running { .. })
}

fn denied(module: &Module) -> bool {
    matches!(module.status, ModuleStatus::Denied { .. })
}

fn stopped(module: &Module) -> bool {
    module.status == ModuleStatus::Stopped
}

/// Carries out an owner's verb on the module that ships.
fn carry_out(card: &Card, verb: Verb) {
    trustctl::module::carry_out(&card.client(), &card.dir, "demo", verb).unwrap();
}

/// Returns the status of a node that has its root key.
fn node_status(card: &Card) -> anyhow::Result<NodeState> {
    card.client().status()?.unlocked().map_err(|locked| anyhow::anyhow!("{}", locked.locked))
}

fn ledger_log(card: &Card) -> String {
    card.client().ledger_log().unwrap()
}

/// Returns the output of the demo module.
fn demo_log(card: &Card) -> Result<String, String> {
    let log = card.client().module_log("demo", 200).map_err(|error| error.to_string())?;
    Ok(log.log)
}

/// Proof that the demo module prints, with its input.
#[derive(Deserialize)]
struct DemoProof {
    /// Input, hex.
    alpha: String,
    #[serde(flatten)]
    proof: VrfProof,
}

/// Returns an image and its digest. It has the shipped demo program, which the node can run, and a
/// word that makes the digest unique.
fn image(card: &Card, word: &str) -> (Vec<u8>, String) {
    let demo = std::fs::read(card.dir.join("demo")).unwrap_or_else(|_| b"#!/none".to_vec());
    oci::build(&oci::BuiltImage {
        architecture: "arm64",
        files: &[("demo", 0o755, &demo), ("word", 0o644, word.as_bytes())],
        folders: &["run", "run/basalt"],
        entrypoint: &["/demo"],
        user: "65532:65532",
    })
    .unwrap()
}

fn module_toml(digest: &str) -> String {
    format!(
        "crypto = [\"vrf\", \"random\", \"hash\"]\nmemory-mib = 32\npids = 16\n\
         [image]\ndigest = \"{digest}\"\n[health]\nstays-s = 1\n"
    )
}

/// Uploads an image.
fn send(card: &Card, archive: &[u8]) -> anyhow::Result<StoredImage> {
    let file = card.dir.join("image.tar");
    std::fs::write(&file, archive).unwrap();
    card.client().upload_image(&file)
}

/// Sends a spec that runs an image.
fn spec(card: &Card, name: &str, digest: &str) {
    trustctl::module::send_spec(
        &card.client(),
        &card.dir,
        name,
        DesiredState::Run,
        Some(&module_toml(digest)),
    )
    .unwrap();
}

/// Uploads an image and sends a spec that runs it.
fn apply(card: &Card, name: &str, archive: &[u8], digest: &str) {
    send(card, archive).unwrap();
    spec(card, name, digest);
}

/// Adds a statement on an image to the node's log of approvals.
fn push(card: &Card, digest: &str, status: Status) {
    let log = ledger_log(card);
    let longer = append_statement(&log, digest, status, &card.dir).unwrap();
    card.client().push_log(longer).unwrap();
}

/// Writes the program of the shipped demo module to the test's folder.
fn fetch_demo(card: &Card) {
    let image = std::fs::read(card.disk()).unwrap();
    // The root has the archive uncompressed. Its first member is oci-layout.
    let start = image.windows(11).position(|w| w == b"oci-layout\0").unwrap();
    let mut archive = tar::Archive::new(&image[start..]);
    for entry in archive.entries().unwrap() {
        let mut data = Vec::new();
        std::io::Read::read_to_end(&mut entry.unwrap(), &mut data).unwrap();
        if data.starts_with(&[0x1f, 0x8b]) {
            for file in
                tar::Archive::new(flate2::read::GzDecoder::new(&data[..])).entries().unwrap()
            {
                let mut file = file.unwrap();
                if file.path().unwrap().as_os_str() == "demo" {
                    let mut program = Vec::new();
                    std::io::Read::read_to_end(&mut file, &mut program).unwrap();
                    std::fs::write(card.dir.join("demo"), program).unwrap();
                    return;
                }
            }
        }
    }
    panic!("the image contains no demo module");
}

/// Requires that a real browser shows the status page with the data of the API, and that the page's
/// policy blocks every script and every load.
fn assert_status_page_shows_and_blocks(card: &Card, pcr14: &str) {
    let page = card.client().text("/").unwrap();
    let script = "<script>document.title='owned'</script><img src=https://other.example/x>";
    std::fs::write(
        card.dir.join("page.html"),
        page.replace("</body>", &format!("{script}</body>")),
    )
    .unwrap();
    let page = card.render("page.html").unwrap();
    let modules = card.client().modules().unwrap().modules;
    for word in ["demo", ">running<", ">allowed<", &modules[0].digest, "PCR 14", pcr14] {
        assert!(page.document.contains(word), "{word} is absent from {}", page.document);
    }
    assert!(!page.document.contains("<title>owned"), "{}", page.document);
    let blocked = |kind: &str| {
        page.log
            .lines()
            .filter(|l| {
                l.contains("CONSOLE") && l.contains("Content Security Policy") && l.contains(kind)
            })
            .count()
    };
    assert!(blocked("script") > 0 && blocked("image") > 0, "{}", page.log);
    assert_eq!(page.log.matches("CONSOLE").count(), blocked(""), "{}", page.log);
    assert!(
        page.screenshot.len() > 20_000,
        "the screenshot seems empty: {} bytes",
        page.screenshot.len()
    );
}

/// Requires that the metrics have the state of the demo module. Prints trustd's memory.
fn assert_metrics_of_a_running_module(card: &Card) {
    let metrics = card.client().text("/metrics").unwrap();
    let resident = metrics
        .lines()
        .find_map(|l| l.strip_prefix("process_resident_memory_bytes ")?.parse::<f64>().ok())
        .unwrap();
    println!("trustd uses {:.1} MiB of memory after its quotes", resident / (1 << 20) as f64);
    assert!(
        metrics.contains("basalt_module_state{module=\"demo\",state=\"running\"} 1\n"),
        "{metrics}"
    );
}

/// Verifies the demo module's proofs with only the public values. Returns the module's output.
fn verify_demo_proofs(card: &Card) -> String {
    let log = poll_until(EVENT_TIMEOUT, "the log of the demo module", || {
        let log = demo_log(card)?;
        if log.contains("demo: done") { Ok(log) } else { Err(log) }
    })
    .unwrap();
    let mut verified = 0;
    for line in log.lines().filter_map(|l| l.strip_prefix("demo: proof ")) {
        let DemoProof { alpha, proof } = serde_json::from_str(line).unwrap();
        let bytes = |hex: &str| measure::unhex(hex).unwrap();
        let suite = vrf::Suite::ALL.into_iter().find(|s| s.name() == proof.suite.as_str());
        let key = vrf::PublicKey::new(suite.unwrap(), &bytes(&proof.public_key)).unwrap();
        let beta = key.verify(&bytes(&alpha), &bytes(&proof.pi)).unwrap();
        assert_eq!(beta, Some(bytes(&proof.beta)));
        verified += 1;
    }
    assert_eq!(verified, 2, "{log}");
    log
}

/// Requires that clients without the owner's key have no access but attestation. Replaces the
/// owner's key in the test's folder.
fn assert_access_of_other_clients(card: &Card) {
    // A client without a certificate can attest the node and do nothing else.
    let empty = card.dir.join("no-keys");
    let client = trustctl::client::Client::new(card.client().address().clone(), &empty);
    let reference = trustctl::appraisal::ReferenceValues {
        measurements: Some(card.predict().unwrap()),
        ..Default::default()
    };
    let (_, result) = trustctl::appraisal::attest(&client, &reference).unwrap();
    assert!(result.unwrap().activated);
    assert!(client.status().unwrap_err().to_string().contains("certificate"));

    // A client with a certificate that is not pinned gets no answer.
    let other_owner = card.dir.join("other-owner");
    trustctl::keys::new_owner(&other_owner).unwrap();
    std::fs::copy(other_owner.join("owner.key"), card.dir.join("owner.key")).unwrap();
    std::fs::copy(other_owner.join("owner.crt"), card.dir.join("owner.crt")).unwrap();
    assert!(card.client().status().is_err());
}

#[test]
fn boots_measures_and_runs_the_approved_module() {
    let card = Card::flash("approved").unwrap();
    let console = card.boot_to_ready().unwrap();
    assert!(
        console.text.contains("the data partition now has 8"),
        "the data partition did not grow to the card's size:\n{}",
        console.text
    );
    card.wait_for_module("demo", EVENT_TIMEOUT, running).unwrap();

    // The quoted registers match measurements.json, event by event.
    let evidence = card.attest().unwrap();
    let kinds: Vec<&str> = evidence.modules.iter().map(|r| r.content.kind.as_str()).collect();
    assert_eq!(kinds, ["tpm-clock", "module-approved", "module-started"]);

    assert_status_page_shows_and_blocks(&card, &measure::hex(&evidence.pcrs[&14].0));
    assert_metrics_of_a_running_module(&card);
    let log = verify_demo_proofs(&card);
    // A container cannot open the TPM. Neither can any service but trustd, which init verifies
    // before each start.
    for device in ["/dev/tpm0", "/dev/tpmrm0"] {
        assert!(log.contains(&format!("demo: {device} denied")), "{log}");
    }
    assert!(!log.contains("ALARM"), "{log}");
    assert_access_of_other_clients(&card);
}

#[test]
fn denies_unapproved_revoked_and_altered_images() {
    let card = Card::flash("denied").unwrap();
    fetch_demo(&card);
    let mut console = card.boot_to_ready().unwrap();
    card.wait_for_module("demo", EVENT_TIMEOUT, running).unwrap();
    let is_denied = |name: &str, code: &str| {
        let module = card.wait_for_module(name, EVENT_TIMEOUT, denied).unwrap();
        let reason = module.status.reason().unwrap();
        assert!(reason.starts_with(code), "{reason}");
    };

    let (archive, digest) = image(&card, "without an approval");
    apply(&card, "unapproved", &archive, &digest);
    is_denied("unapproved", "unknown");

    // An approved image with one altered byte of a layer is rejected.
    let (mut archive, digest) = image(&card, "approved and altered");
    push(&card, &digest, Status::Approved);
    let layer = archive.windows(2).position(|w| w == [0x1f, 0x8b]).unwrap();
    archive[layer + 100] ^= 1;
    let error = send(&card, &archive).unwrap_err().to_string();
    assert!(error.contains("expected sha256:"), "{error}");
    spec(&card, "altered", &digest);
    is_denied("altered", "image");

    // An approved image runs. After its revocation it is stopped and stays stopped.
    let (archive, digest) = image(&card, "approved, then revoked");
    push(&card, &digest, Status::Approved);
    apply(&card, "revoked", &archive, &digest);
    card.wait_for_module("revoked", EVENT_TIMEOUT, running).unwrap();
    push(&card, &digest, Status::Revoked);
    is_denied("revoked", "revoked");
    // A log without the revocation is rejected.
    let log = ledger_log(&card);
    let shorter: String =
        log.lines().take(log.lines().count() - 1).map(|l| format!("{l}\n")).collect();
    let error = card.client().push_log(shorter).unwrap_err().to_string();
    assert!(error.contains("older state"), "{error}");

    // The quote covers all denials. A denied module never started. The ledger's decision takes
    // effect before its event is recorded.
    let evidence = poll_until(EVENT_TIMEOUT, "the event of the denial", || {
        let evidence = card.attest().map_err(|error| error.to_string())?;
        let is_recorded = evidence.modules.iter().any(|record| {
            record.content.kind == "module-denied"
                && record.content.data.contains("\"module\":\"revoked\"")
        });
        if is_recorded { Ok(evidence) } else { Err("it is not recorded".to_owned()) }
    })
    .unwrap();
    let events: Vec<_> =
        evidence.modules.iter().map(|r| (&r.content.kind, &r.content.data)).collect();
    let has = |kind: &str, module: &str| {
        let member = format!("\"module\":\"{module}\"");
        events.iter().any(|(k, data)| *k == kind && data.contains(&member))
    };
    for module in ["unapproved", "altered", "revoked"] {
        assert!(has("module-denied", module), "{module}: {events:?}");
    }
    assert!(
        !has("module-started", "unapproved") && !has("module-started", "altered"),
        "{events:?}"
    );
    assert!(has("module-started", "revoked") && has("module-stopped", "revoked"), "{events:?}");

    // The owner stops the module that ships. That and the longer log persist over a regular reboot.
    carry_out(&card, Verb::Stop);
    card.wait_for_module("demo", EVENT_TIMEOUT, stopped).unwrap();
    let statements = log.lines().count();
    card.client().control_node("reboot").unwrap();
    console.wait_for("down", EVENT_TIMEOUT).unwrap();
    console.wait_for("ready: all services run", BOOT_TIMEOUT).unwrap();
    assert!(console.text.matches("cannot be unmounted").count() == 0, "{}", console.text);
    let status =
        poll_until(EVENT_TIMEOUT, "the status", || node_status(&card).map_err(|e| e.to_string()))
            .unwrap();
    let found = status.ledger.log.usable().map(|log| log.statements);
    assert_eq!(found, Some(statements as u64), "{status:?}");
    is_denied("revoked", "revoked");
    card.wait_for_module("demo", EVENT_TIMEOUT, stopped).unwrap();
    carry_out(&card, Verb::Start);
    card.wait_for_module("demo", EVENT_TIMEOUT, running).unwrap();
    card.attest().unwrap();
}

#[test]
fn modules_reach_only_their_peers_and_are_upgraded_while_they_run() {
    let card = Card::flash("peers").unwrap();
    fetch_demo(&card);
    let console = card.boot_to_ready().unwrap();
    let (one, two) = (image(&card, "one"), image(&card, "two"));
    for (archive, digest) in [&one, &two] {
        push(&card, digest, Status::Approved);
        send(&card, archive).unwrap();
    }
    let run = |name: &str, command: &str, digest: &str, peers: &str, health: &str| {
        let toml = format!(
            "command = [\"/demo\", {command}]\nnetwork = \"bridge\"\npeers = [{peers}]\n\
             memory-mib = 32\npids = 16\nstop-within-s = 1\n\
             [image]\ndigest = \"{digest}\"\n[health]\n{health}\n"
        );
        trustctl::module::send_spec(
            &card.client(),
            &card.dir,
            name,
            DesiredState::Run,
            Some(&toml),
        )
        .unwrap();
    };
    let server =
        |digest: &str| run("server", "\"serve\", \"8080\"", digest, "\"client\"", "port = 8080");
    server(&one.1);
    for (name, peers) in [("client", "\"server\""), ("unapproved", "")] {
        run(name, "\"ask\", \"server:8080\"", &one.1, peers, "stays-s = 1");
    }
    let wait_for_log = |name: &str, text: &str| {
        poll_until(EVENT_TIMEOUT, &format!("the log of {name}"), || {
            match card.client().module_log(name, 3) {
                Ok(log) if log.log.contains(text) => Ok(()),
                other => Err(format!("{other:?}; {:?}", card.client().modules())),
            }
        })
        .unwrap();
    };
    wait_for_log("client", "server:8080 says one");
    wait_for_log("unapproved", "server:8080 does not answer");
    let container = |name: &str| {
        let module = card.wait_for_module(name, EVENT_TIMEOUT, running).unwrap();
        module.status.container().unwrap().to_owned()
    };
    let before = ["server", "client", "unapproved"].map(container);
    server(&two.1);
    wait_for_log("client", "server:8080 says two");
    card.wait_for_module("server", EVENT_TIMEOUT, |m| {
        running(m) && m.reconciled && m.digest == two.1
    })
    .unwrap();
    let after = ["server", "client", "unapproved"].map(container);
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1..], before[1..], "another module was restarted");
    // The quote covers the upgrade.
    let evidence = card.attest().unwrap();
    assert!(
        evidence
            .modules
            .iter()
            .any(|r| r.content.kind == "module-upgraded" && r.content.data.contains(&two.1))
    );
    drop(console);
}

/// trustd cannot start without its TPM, so nothing watches the modules.
#[test]
fn modules_end_while_trustd_is_absent() {
    let card = Card::flash("absent").unwrap();
    let mut console = card.boot_to_ready().unwrap();
    card.wait_for_module("demo", EVENT_TIMEOUT, running).unwrap();
    console.break_tpm();
    let _ = card.client().control_service("trustd", "kill");
    console.wait_for("trustd is absent for 30 s: ending what it watches", EVENT_TIMEOUT).unwrap();
    console.wait_for("trustd: all that it watches has ended", EVENT_TIMEOUT).unwrap();
    assert!(!console.text.contains("cannot end"), "{}", console.text);
}

#[test]
fn killed_services_restart_and_denied_modules_stay_denied() {
    let card = Card::flash("killed").unwrap();
    let mut console = card.boot_to_ready().unwrap();
    card.wait_for_module("demo", EVENT_TIMEOUT, running).unwrap();
    let (archive, digest) = image(&card, "without an approval");
    apply(&card, "unapproved", &archive, &digest);
    card.wait_for_module("unapproved", EVENT_TIMEOUT, denied).unwrap();
    for service in ["trustd", "dockerd", "containerd"] {
        // trustd may exit before it answers.
        let _ = card.client().control_service(service, "kill");
        console.wait_for(&format!("{service} exited (SIGKILL)"), EVENT_TIMEOUT).unwrap();
        console.wait_for(&format!("{service} is ready"), EVENT_TIMEOUT).unwrap();
        card.wait_for_module("demo", EVENT_TIMEOUT, running)
            .unwrap_or_else(|e| panic!("after {service}: {e}\n{}", console.text));
        let unapproved = card.wait_for_module("unapproved", EVENT_TIMEOUT, denied).unwrap();
        assert!(unapproved.status.reason().unwrap().starts_with("unknown"), "{unapproved:?}");
    }
    // The module keeps running while trustd restarts, and its socket works again: it makes proofs
    // after the last kill.
    let proofs = || {
        let log = demo_log(&card)?;
        Ok(log
            .lines()
            .filter(|l| l.starts_with("demo: proof number") && l.ends_with("verified"))
            .count())
    };
    let before = poll_until(EVENT_TIMEOUT, "the log of the demo module", proofs).unwrap();
    let _ = card.client().control_service("trustd", "kill");
    console.wait_for("trustd exited (SIGKILL)", EVENT_TIMEOUT).unwrap();
    console.wait_for("trustd is ready", EVENT_TIMEOUT).unwrap();
    poll_until(EVENT_TIMEOUT, "two more proofs", || match proofs()? {
        n if n >= before + 2 => Ok(()),
        n => Err(format!("{n} proofs, {before} before")),
    })
    .unwrap();
    // The logs still replay to the registers. No event is missing, and no container was adopted.
    let evidence = card.attest().unwrap();
    assert!(
        evidence
            .modules
            .iter()
            .all(|r| r.content.kind != "module-started" || !r.content.data.contains("unapproved"))
    );
}

#[test]
fn a_flipped_bit_in_the_root_stops_the_boot() {
    let card = Card::flash("flipped").unwrap();
    // The bit is in trustd. Init reads all of trustd to measure it.
    card.flip_bit_of(b"trustd stops; the engine denies every request").unwrap();
    let mut console = card.boot().unwrap();
    let line = console
        .wait_for_any(&["Kernel panic", "STOPPED", "ready: all services run"], BOOT_TIMEOUT)
        .unwrap();
    assert!(line.contains("dm-verity device corrupted"), "{}", console.text);
    assert!(!console.text.contains("handover"), "{}", console.text);
}

#[test]
fn without_a_tpm_the_node_stops_with_one_clear_line() {
    let mut card = Card::flash("no-tpm").unwrap();
    card.tpm = false;
    // The device tree of the image still declares a TPM.
    let mut console = card.boot().unwrap();
    let line = console
        .wait_for_any(&["STOPPED", "ready: all services run", "Kernel panic"], BOOT_TIMEOUT)
        .unwrap();
    assert!(line.contains("STOPPED: no TPM"), "{line}");
    assert!(!console.text.contains("handover"), "{}", console.text);
}

#[test]
fn a_power_cut_at_any_moment_leaves_a_clean_next_boot() {
    let card = Card::flash("power").unwrap();
    // The power fails while the data partition grows, while the engine starts, while an image is
    // loaded, and right after a module started.
    for moment in ["handover", "containerd is ready", "module-approved", "module-started"] {
        let mut console = card.boot().unwrap();
        console.wait_for(moment, BOOT_TIMEOUT).unwrap();
        console.cut_power();
    }
    // An attacker with the card plants a file in the engine's folder, after a replay of the
    // journal.
    std::fs::write(card.dir.join("planted"), "evil").unwrap();
    card.edit_data_partition(
        "e2fsck -fy data.img >&2; [ $? -le 1 ] && \
         debugfs -w -R 'write planted engine/planted' data.img >&2",
    )
    .unwrap();
    let listing = card.edit_data_partition("debugfs -R 'ls -p engine' data.img").unwrap();
    assert!(listing.contains("planted"), "{listing}");

    let mut console = card.boot_to_ready().unwrap();
    console.wait_for("module-started", EVENT_TIMEOUT).unwrap();
    card.wait_for_module("demo", EVENT_TIMEOUT, running).unwrap();
    card.attest().unwrap();
    card.client().control_node("poweroff").unwrap();
    console.wait_for("down", EVENT_TIMEOUT).unwrap();
    console.wait_for_shutdown(Duration::from_secs(60)).unwrap();
    let listing = card.edit_data_partition("debugfs -R 'ls -p engine' data.img").unwrap();
    assert!(
        listing.contains("/..//") && !listing.contains("planted"),
        "the engine's folder was not recreated at boot: {listing}"
    );
}

#[test]
fn settings_of_the_boot_partition_are_applied_and_measured() {
    let card = Card::flash("settings").unwrap();
    let owner = card.dir.join("another-owner");
    let fingerprint = trustctl::keys::new_owner(&owner).unwrap().fingerprint();
    // QEMU forwards to this address, and the node has it from no other source.
    let settings = format!(
        "hostname = \"gate-7\"\ntime-servers = []\n\
         [network]\nkind = \"static\"\naddress = \"10.0.2.15/24\"\ngateway = \"10.0.2.2\"\n\
         [owner]\ncertificates = [\"{fingerprint}\"]\n"
    );
    std::fs::write(card.dir.join("node.toml"), &settings).unwrap();
    card.edit_boot_partition("mcopy -i $BOOT node.toml ::NODE.TOML").unwrap();
    let mut console = card.boot_to_ready().unwrap();
    assert!(console.text.contains("10.0.2.15/24, fixed by node.toml"), "{}", console.text);
    assert!(
        console.text.contains("LOCKED: no module runs"),
        "the node has no policy for these settings and is not locked: {}",
        console.text
    );

    assert!(card.client().status().is_err(), "the image's owner still has access");
    for name in ["owner.key", "owner.crt"] {
        std::fs::copy(owner.join(name), card.dir.join(name)).unwrap();
    }
    let NodeStatus::Locked(status) = card.client().status().unwrap() else {
        panic!("the node is not locked")
    };
    assert_eq!(status.hostname, "gate-7");
    assert!(status.locked.contains("no policy of"), "{}", status.locked);

    // A verifier with the settings predicts the boot. Without them, the boot is another one.
    let plain = card.predict().unwrap();
    let error = card.attest_with(&plain).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("node-settings") && error.contains("--settings"), "{error}");
    let mut expected = plain;
    expected.boards =
        expected.boards.iter().map(|board| board.with_settings(settings.as_bytes())).collect();
    card.attest_with(&expected).unwrap();
    // The builder of the image signs a policy for the settings. The card stays in the node.
    let policies = Policies::sign(&xtask::image::keys::policy_signer().unwrap(), &expected.boards);
    assert!(card.client().send_policies(&policies).unwrap().this_boot);
    console.wait_for("the root key is there", EVENT_TIMEOUT).unwrap();
    card.wait_for_module("demo", EVENT_TIMEOUT, running).unwrap();
    let status = node_status(&card).unwrap();
    assert!(status.processes >= 5, "{status:?}");
    card.attest_with(&expected).unwrap();
    let log = ledger_log(&card);
    drop(console);

    assert_log_of_the_boot_partition_is_used(&card, &log, &expected);

    // An update with policies of the same builder unseals the same root key and verifies the
    // high-water mark of the log.
    std::fs::write(card.dir.join("node.toml"), settings.replace("gate-7", "gate-8")).unwrap();
    card.edit_boot_partition("mcopy -o -i $BOOT node.toml ::NODE.TOML").unwrap();
    card.sign_policies().unwrap();
    let console = card.boot_to_ready().unwrap();
    let status = node_status(&card).unwrap();
    let statements = status.ledger.log.usable().map(|log| log.statements);
    assert!(status.hostname == "gate-8" && statements == Some(2), "{status:?}");
    drop(console);

    assert_invalid_settings_stop_the_boot(&card);
}

/// Requires that a newer log on the boot partition is used and changes no measurement.
fn assert_log_of_the_boot_partition_is_used(card: &Card, log: &str, expected: &Measurements) {
    let listed = trustctl::statement::entries(log).unwrap();
    let ledger::Statement::Image(demo) = &listed[0].statement else { panic!("{log}") };
    let revoked =
        append_statement(log, &demo.digest, Status::Revoked, &trustctl::keys::folder().unwrap())
            .unwrap();
    std::fs::write(card.dir.join("ledger.jsonl"), revoked).unwrap();
    card.edit_boot_partition("mcopy -i $BOOT ledger.jsonl ::ledger.jsonl").unwrap();
    let console = card.boot_to_ready().unwrap();
    let revoked = |m: &Module| m.ledger.denial() == Some(&DenialCode::Revoked) && !running(m);
    card.wait_for_module("demo", EVENT_TIMEOUT, revoked).unwrap();
    card.attest_with(expected).unwrap();
    drop(console);
}

/// Requires that invalid settings on the boot partition stop the node before the handover.
fn assert_invalid_settings_stop_the_boot(card: &Card) {
    std::fs::write(card.dir.join("node.toml"), "hostname = \"gate-7\"\n[ledger]\nkind = \"log\"\n")
        .unwrap();
    card.edit_boot_partition("mcopy -o -i $BOOT node.toml ::NODE.TOML").unwrap();
    let mut console = card.boot().unwrap();
    let line = console.wait_for("STOPPED", BOOT_TIMEOUT).unwrap();
    assert!(line.contains("node.toml on the boot partition"), "{line}");
    assert!(!console.text.contains("handover"), "{}", console.text);
}
