//! The scenarios on `virt`. Each boots its own card.
// Helpers of tests may unwrap as tests may.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use basalt_ci::{BOOT_WITHIN, Card, SOON, wait, with_statement};
use ledger::Status;
use policy::Policies;
use serde_json::{Value, json};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn running(module: &Value) -> bool {
    module["status"]["state"] == "running"
}

/// An image for the node: the demo program of the image, so that it could really run, beside a word
/// that makes it another image.
fn image(card: &Card, word: &str) -> (Vec<u8>, String) {
    let demo = std::fs::read(card.dir.join("demo")).unwrap_or_else(|_| b"#!/none".to_vec());
    oci::build(&oci::Plain {
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
        "crypto = [\"vrf\", \"random\", \"hash\"]\nmemory-mib = 32\npids = 16\n[image]\ndigest = \"{digest}\"\n[health]\nstays-s = 1\n"
    )
}

fn send(card: &Card, archive: &[u8]) -> anyhow::Result<serde_json::Value> {
    let file = card.dir.join("image.tar");
    std::fs::write(&file, archive).unwrap();
    trustctl::module::push(&card.client(), &file)
}

fn wish(card: &Card, name: &str, digest: &str) {
    trustctl::module::send(&card.client(), &card.dir, name, wish::Aim::Run, &module_toml(digest))
        .unwrap();
}

fn apply(card: &Card, name: &str, archive: &[u8], digest: &str) {
    send(card, archive).unwrap();
    wish(card, name, digest);
}

fn push(card: &Card, digest: &str, status: Status) {
    let log = text(&card.client().get("/v1/ledger").unwrap()["log"]);
    let longer = with_statement(&log, digest, status, &card.dir).unwrap();
    card.client().put("/v1/ledger", &json!({ "log": longer })).unwrap();
}

/// The program of the shipped demo module, taken out of its archive in the image.
fn fetch_demo(card: &Card) {
    let image = std::fs::read(card.disk()).unwrap();
    // The archive lies in the root as it is: it begins with the member oci-layout.
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
    panic!("the image holds no demo module");
}

#[test]
fn boots_measures_and_runs_the_approved_module() {
    let card = Card::flash("approved").unwrap();
    let console = card.boot_to_ready().unwrap();
    assert!(
        console.text.contains("the data partition now has 8"),
        "grown to the card:\n{}",
        console.text
    );
    card.wait_for_module("demo", SOON, running).unwrap();

    // Quoted registers = measurements.json, event by event.
    let checked = card.attest().unwrap();
    let kinds: Vec<&str> = checked.modules.iter().map(|r| r.content.kind.as_str()).collect();
    assert_eq!(kinds, ["tpm-clock", "module-approved", "module-started"]);

    // The status page, in a real browser: it shows what the API says, and runs and loads nothing.
    let page = card.client().text("/").unwrap();
    let script = "<script>document.title='owned'</script><img src=https://other.example/x>";
    std::fs::write(
        card.dir.join("page.html"),
        page.replace("</body>", &format!("{script}</body>")),
    )
    .unwrap();
    let looked = card.look_at("page.html").unwrap();
    let modules = card.client().get("/v1/modules").unwrap();
    for word in [
        "demo",
        ">running<",
        ">allowed<",
        &text(&modules["modules"][0]["digest"]),
        "PCR 14",
        &measure::hex(&checked.pcrs[&14].0),
    ] {
        assert!(looked.document.contains(word), "{word} is not in {}", looked.document);
    }
    assert!(!looked.document.contains("<title>owned"), "{}", looked.document);
    let refusals = |what: &str| {
        looked
            .said
            .lines()
            .filter(|l| {
                l.contains("CONSOLE") && l.contains("Content Security Policy") && l.contains(what)
            })
            .count()
    };
    assert!(refusals("script") > 0 && refusals("image") > 0, "{}", looked.said);
    assert_eq!(looked.said.matches("CONSOLE").count(), refusals(""), "{}", looked.said);
    assert!(looked.picture.len() > 20_000, "an empty page? {} bytes", looked.picture.len());
    let metrics = card.client().text("/metrics").unwrap();
    let resident = metrics
        .lines()
        .find_map(|l| l.strip_prefix("process_resident_memory_bytes ")?.parse::<f64>().ok())
        .unwrap();
    println!("trustd has {:.1} MiB in memory after its quotes", resident / (1 << 20) as f64);
    assert!(
        metrics.contains("basalt_module_state{module=\"demo\",state=\"running\"} 1\n"),
        "{metrics}"
    );

    // Its proofs verify here, with nothing but the public values.
    let log = wait(SOON, "the demo's log", || {
        let log = card
            .client()
            .get("/v1/modules/demo/log")
            .map(|v| text(&v["log"]))
            .map_err(|e| e.to_string())?;
        if log.contains("demo: done") { Ok(log) } else { Err(log) }
    })
    .unwrap();
    let mut verified = 0;
    for line in log.lines().filter_map(|l| l.strip_prefix("demo: proof ")) {
        let proof: Value = serde_json::from_str(line).unwrap();
        let bytes = |key: &str| measure::unhex(proof[key].as_str().unwrap()).unwrap();
        let suite: vrf::Suite = serde_json::from_value(proof["suite"].clone()).unwrap();
        let key = vrf::PublicKey::new(suite, &bytes("public_key")).unwrap();
        assert_eq!(key.verify(&bytes("alpha"), &bytes("pi")).unwrap(), Some(bytes("beta")));
        verified += 1;
    }
    assert_eq!(verified, 2, "{log}");

    // A container cannot open the TPM; neither can any service but trustd, which init proves before
    // each start.
    for device in ["/dev/tpm0", "/dev/tpmrm0"] {
        assert!(log.contains(&format!("demo: {device} refused")), "{log}");
    }
    assert!(!log.contains("ALARM"), "{log}");

    // Whoever comes without a certificate finds out what the node is, and nothing else.
    let nobody = card.dir.join("nobody");
    let client = trustctl::client::Client::new(card.client().address().clone(), &nobody);
    let expected = trustctl::verdict::Expected {
        measurements: Some(card.predicted().unwrap()),
        ..Default::default()
    };
    let (_, verdict) = trustctl::verdict::ask(&client, &expected).unwrap();
    assert!(verdict.unwrap().activated);
    assert!(client.get("/v1/status").unwrap_err().to_string().contains("certificate"));

    // Who shows one that is not pinned gets nothing at all.
    let stranger = card.dir.join("stranger");
    trustctl::keys::new_owner(&stranger).unwrap();
    std::fs::copy(stranger.join("owner.key"), card.dir.join("owner.key")).unwrap();
    std::fs::copy(stranger.join("owner.crt"), card.dir.join("owner.crt")).unwrap();
    assert!(card.client().get("/v1/status").is_err());
}

#[test]
fn refuses_what_is_unapproved_revoked_or_altered() {
    let card = Card::flash("refused").unwrap();
    fetch_demo(&card);
    let mut console = card.boot_to_ready().unwrap();
    card.wait_for_module("demo", SOON, running).unwrap();
    let refused = |name: &str, code: &str| {
        let module =
            card.wait_for_module(name, SOON, |m| m["status"]["state"] == "refused").unwrap();
        let reason = text(&module["status"]["reason"]);
        assert!(reason.starts_with(code), "{reason}");
    };

    let (archive, digest) = image(&card, "nobody approved this");
    apply(&card, "stranger", &archive, &digest);
    refused("stranger", "unknown");

    // Approved, and one byte of a layer altered.
    let (mut archive, digest) = image(&card, "approved and altered");
    push(&card, &digest, Status::Approved);
    let layer = archive.windows(2).position(|w| w == [0x1f, 0x8b]).unwrap();
    archive[layer + 100] ^= 1;
    let error = send(&card, &archive).unwrap_err().to_string();
    assert!(error.contains("expected sha256:"), "{error}");
    wish(&card, "altered", &digest);
    refused("altered", "image");

    // Approved: it runs. Revoked: it is stopped and stays so.
    let (archive, digest) = image(&card, "approved, then revoked");
    push(&card, &digest, Status::Approved);
    apply(&card, "fickle", &archive, &digest);
    card.wait_for_module("fickle", SOON, running).unwrap();
    push(&card, &digest, Status::Revoked);
    refused("fickle", "revoked");
    // A log that forgets the revocation is not taken.
    let log = text(&card.client().get("/v1/ledger").unwrap()["log"]);
    let shorter: String =
        log.lines().take(log.lines().count() - 1).map(|l| format!("{l}\n")).collect();
    let error =
        card.client().put("/v1/ledger", &json!({ "log": shorter })).unwrap_err().to_string();
    assert!(error.contains("older state"), "{error}");

    // All of it is in the quote; what was refused was never started.
    let checked = card.attest().unwrap();
    let events: Vec<(String, String)> =
        checked.modules.iter().map(|r| (r.content.kind.clone(), r.content.data.clone())).collect();
    let has = |kind: &str, module: &str| {
        events
            .iter()
            .any(|(k, data)| k == kind && data.contains(&format!("\"module\":\"{module}\"")))
    };
    for module in ["stranger", "altered", "fickle"] {
        assert!(has("module-refused", module), "{module}: {events:?}");
    }
    assert!(!has("module-started", "stranger") && !has("module-started", "altered"), "{events:?}");
    assert!(has("module-started", "fickle") && has("module-stopped", "fickle"), "{events:?}");

    // Over a reboot in good order, the longer log stays.
    let statements = log.lines().count();
    card.client().post("/v1/node/reboot", &json!({})).unwrap();
    console.wait_for("down", SOON).unwrap();
    console.wait_for("ready: all services run", BOOT_WITHIN).unwrap();
    assert!(console.text.matches("cannot be unmounted").count() == 0, "{}", console.text);
    let status =
        wait(SOON, "the status", || card.client().get("/v1/status").map_err(|e| e.to_string()))
            .unwrap();
    assert_eq!(status["ledger"]["statements"], statements, "{status}");
    refused("fickle", "revoked");
    card.attest().unwrap();
}

#[test]
fn modules_reach_their_peers_only_and_are_upgraded_on_the_fly() {
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
            "command = [\"/demo\", {command}]\nnetwork = \"bridge\"\npeers = [{peers}]\nmemory-mib = 32\npids = 16\nstop-within-s = 1\n\
             [image]\ndigest = \"{digest}\"\n[health]\n{health}\n"
        );
        trustctl::module::send(&card.client(), &card.dir, name, wish::Aim::Run, &toml).unwrap();
    };
    let server =
        |digest: &str| run("server", "\"serve\", \"8080\"", digest, "\"asker\"", "port = 8080");
    server(&one.1);
    for (name, peers) in [("asker", "\"server\""), ("stranger", "")] {
        run(name, "\"ask\", \"server:8080\"", &one.1, peers, "stays-s = 1");
    }
    let says = |name: &str, what: &str| {
        wait(SOON, &format!("the log of {name}"), || {
            let log = card.client().get(&format!("/v1/modules/{name}/log?lines=3"));
            match &log {
                Ok(log) if text(&log["log"]).contains(what) => Ok(()),
                other => Err(format!(
                    "{other:?}; {}",
                    card.client().get("/v1/modules").unwrap_or_default()
                )),
            }
        })
        .unwrap();
    };
    says("asker", "server:8080 says one");
    says("stranger", "server:8080 does not answer");
    let container = |name: &str| {
        text(&card.wait_for_module(name, SOON, running).unwrap()["status"]["container"])
    };
    let before = ["server", "asker", "stranger"].map(container);
    server(&two.1);
    says("asker", "server:8080 says two");
    card.wait_for_module("server", SOON, |m| {
        running(m) && m["settled"] == true && m["digest"] == two.1.as_str()
    })
    .unwrap();
    let after = ["server", "asker", "stranger"].map(container);
    assert_ne!(after[0], before[0]);
    assert_eq!(after[1..], before[1..], "nobody else was started anew");
    // What happened is in the quote.
    let checked = card.attest().unwrap();
    assert!(
        checked
            .modules
            .iter()
            .any(|r| r.content.kind == "module-upgraded" && r.content.data.contains(&two.1))
    );
    drop(console);
}

#[test]
fn services_that_are_killed_come_back_and_the_gate_stays_closed() {
    let card = Card::flash("killed").unwrap();
    let mut console = card.boot_to_ready().unwrap();
    card.wait_for_module("demo", SOON, running).unwrap();
    let (archive, digest) = image(&card, "nobody approved this");
    apply(&card, "stranger", &archive, &digest);
    card.wait_for_module("stranger", SOON, |m| m["status"]["state"] == "refused").unwrap();
    for service in ["trustd", "dockerd", "containerd"] {
        // trustd may be gone before it has answered.
        let _ = card.client().post(&format!("/v1/services/{service}/kill"), &json!({}));
        console.wait_for(&format!("{service} ended (SIGKILL)"), SOON).unwrap();
        console.wait_for(&format!("{service} is ready"), SOON).unwrap();
        card.wait_for_module("demo", SOON, running)
            .unwrap_or_else(|e| panic!("after {service}: {e}\n{}", console.text));
        let stranger =
            card.wait_for_module("stranger", SOON, |m| m["status"]["state"] == "refused").unwrap();
        assert!(text(&stranger["status"]["reason"]).starts_with("unknown"), "{stranger}");
    }
    // The module was never restarted when trustd was, and its socket works again: proofs that are
    // newer than the last kill.
    let proofs = || {
        let log = card
            .client()
            .get("/v1/modules/demo/log")
            .map(|v| text(&v["log"]))
            .map_err(|e| e.to_string())?;
        Ok(log
            .lines()
            .filter(|l| l.starts_with("demo: proof number") && l.ends_with("verified"))
            .count())
    };
    let before = wait(SOON, "the demo's log", proofs).unwrap();
    let _ = card.client().post("/v1/services/trustd/kill", &json!({}));
    console.wait_for("trustd ended (SIGKILL)", SOON).unwrap();
    console.wait_for("trustd is ready", SOON).unwrap();
    wait(SOON, "two more proofs", || match proofs()? {
        n if n >= before + 2 => Ok(()),
        n => Err(format!("{n} proofs, {before} before")),
    })
    .unwrap();
    // The logs still explain the registers: nothing was lost or adopted.
    let checked = card.attest().unwrap();
    assert!(
        checked
            .modules
            .iter()
            .all(|r| r.content.kind != "module-started" || !r.content.data.contains("stranger"))
    );
}

#[test]
fn a_flipped_byte_in_the_root_never_reaches_ready() {
    let card = Card::flash("flipped").unwrap();
    // In trustd, which init reads whole before it measures it.
    card.flip_text(b"trustd stops and the gate is closed").unwrap();
    let mut console = card.boot().unwrap();
    let line = console
        .wait_for_any(&["Kernel panic", "STOPPED", "ready: all services run"], BOOT_WITHIN)
        .unwrap();
    assert!(line.contains("dm-verity device corrupted"), "{}", console.text);
    assert!(!console.text.contains("handover"), "{}", console.text);
}

#[test]
fn without_a_tpm_the_node_stops_with_one_clear_line() {
    let mut card = Card::flash("no-tpm").unwrap();
    card.tpm = false;
    // The device tree of the image still promises one.
    let mut console = card.boot().unwrap();
    let line = console
        .wait_for_any(&["STOPPED", "ready: all services run", "Kernel panic"], BOOT_WITHIN)
        .unwrap();
    assert!(line.contains("STOPPED: no TPM"), "{line}");
    assert!(!console.text.contains("handover"), "{}", console.text);
}

#[test]
fn a_power_cut_at_any_moment_leaves_a_clean_next_boot() {
    let card = Card::flash("power").unwrap();
    // While the data partition grows, while the engine starts, while an image is loaded, and just
    // after a module runs.
    for moment in ["handover", "containerd is ready", "module-approved", "module-started"] {
        let mut console = card.boot().unwrap();
        console.wait_for(moment, BOOT_WITHIN).unwrap();
        console.cut();
    }
    // Somebody has the card in hands and puts something among what the engine keeps (the journal is
    // replayed first).
    std::fs::write(card.dir.join("planted"), "evil").unwrap();
    card.with_data("e2fsck -fy data.img >&2; [ $? -le 1 ] && debugfs -w -R 'write planted engine/planted' data.img >&2").unwrap();
    let there = card.with_data("debugfs -R 'ls -p engine' data.img").unwrap();
    assert!(there.contains("planted"), "{there}");

    let mut console = card.boot_to_ready().unwrap();
    console.wait_for("module-started", SOON).unwrap();
    card.wait_for_module("demo", SOON, running).unwrap();
    card.attest().unwrap();
    card.client().post("/v1/node/poweroff", &json!({})).unwrap();
    console.wait_for("down", SOON).unwrap();
    console.wait_for_end(Duration::from_secs(60)).unwrap();
    let there = card.with_data("debugfs -R 'ls -p engine' data.img").unwrap();
    assert!(
        there.contains("/..//") && !there.contains("planted"),
        "the engine's folder is made anew at each boot: {there}"
    );
}

#[test]
fn the_boot_partitions_settings_are_used_and_measured() {
    let card = Card::flash("settings").unwrap();
    let owner = card.dir.join("another-owner");
    let fingerprint = trustctl::keys::new_owner(&owner).unwrap().fingerprint();
    // The address that QEMU forwards to, which nobody else gives the node here.
    let settings = format!(
        "hostname = \"gate-7\"\ntime-servers = []\n[network]\nkind = \"static\"\naddress = \"10.0.2.15/24\"\ngateway = \"10.0.2.2\"\n[owner]\ncertificates = [\"{fingerprint}\"]\n"
    );
    std::fs::write(card.dir.join("node.toml"), &settings).unwrap();
    card.with_boot("mcopy -i $BOOT node.toml ::NODE.TOML").unwrap();
    let mut console = card.boot_to_ready().unwrap();
    assert!(console.text.contains("10.0.2.15/24 as node.toml says"), "{}", console.text);
    assert!(
        console.text.contains("LOCKED: no module runs"),
        "nobody signed for these settings: {}",
        console.text
    );

    assert!(
        card.client().get("/v1/status").is_err(),
        "the image's owner is not this node's any more"
    );
    for name in ["owner.key", "owner.crt"] {
        std::fs::copy(owner.join(name), card.dir.join(name)).unwrap();
    }
    let status = card.client().get("/v1/status").unwrap();
    assert_eq!(status["hostname"], "gate-7");
    assert!(text(&status["locked"]).contains("no policy of"), "{status}");

    // Whoever knows the settings predicts the boot; to everybody else it is another one.
    let plain = card.predicted().unwrap();
    let error = card.attest_to(&plain).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("node-settings") && error.contains("--settings"), "{error}");
    let mut expected = plain;
    expected.boards =
        expected.boards.iter().map(|board| board.with_settings(settings.as_bytes())).collect();
    card.attest_to(&expected).unwrap();
    // Whoever built the image signs for the settings; the node needs no new card for it.
    let policies = Policies::sign(&xtask::keys::policy_signer().unwrap(), &expected.boards);
    assert_eq!(card.client().put("/v1/policies", &json!(policies)).unwrap()["this_boot"], true);
    console.wait_for("the root key is there", SOON).unwrap();
    card.wait_for_module("demo", SOON, running).unwrap();
    let status = card.client().get("/v1/status").unwrap();
    assert!(status["processes"].as_u64().unwrap() >= 5, "{status}");
    card.attest_to(&expected).unwrap();
    let log = text(&card.client().get("/v1/ledger").unwrap()["log"]);
    drop(console);

    // A newer log, carried there on the card: it is gone by and changes no measurement.
    let listed = trustctl::statement::entries(&log).unwrap();
    let ledger::Statement::Image(demo) = &listed[0].statement else { panic!("{log}") };
    let revoked =
        with_statement(&log, &demo.digest, Status::Revoked, &trustctl::keys::folder().unwrap())
            .unwrap();
    std::fs::write(card.dir.join("ledger.jsonl"), revoked).unwrap();
    card.with_boot("mcopy -i $BOOT ledger.jsonl ::ledger.jsonl").unwrap();
    let console = card.boot_to_ready().unwrap();
    card.wait_for_module("demo", SOON, |m| m["ledger"]["code"] == "revoked" && !running(m))
        .unwrap();
    card.attest_to(&expected).unwrap();
    drop(console);

    // An update for which the same builder signed has the same root key: it knows its own mark
    // again.
    std::fs::write(card.dir.join("node.toml"), settings.replace("gate-7", "gate-8")).unwrap();
    card.with_boot("mcopy -o -i $BOOT node.toml ::NODE.TOML").unwrap();
    card.sign_policies().unwrap();
    let console = card.boot_to_ready().unwrap();
    let status = card.client().get("/v1/status").unwrap();
    assert!(status["hostname"] == "gate-8" && status["ledger"]["statements"] == 2, "{status}");
    drop(console);

    // What cannot be gone by stops the node before it says what it is.
    std::fs::write(card.dir.join("node.toml"), "hostname = \"gate-7\"\n[ledger]\nkind = \"log\"\n")
        .unwrap();
    card.with_boot("mcopy -o -i $BOOT node.toml ::NODE.TOML").unwrap();
    let mut console = card.boot().unwrap();
    let line = console.wait_for("STOPPED", BOOT_WITHIN).unwrap();
    assert!(line.contains("node.toml on the boot partition"), "{line}");
    assert!(!console.text.contains("handover"), "{}", console.text);
}
