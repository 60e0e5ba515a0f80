//! What a stranger finds out about a node, and how evidence fails that is not what it should be.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use basalt_trustd::admission::log_sources::Sources;
use basalt_trustd::admission::relays::Relays;
use basalt_trustd::audit::Audit;
use basalt_trustd::images::fetch::Client as Fetch;
use basalt_trustd::keys::root_key;
use basalt_trustd::owner_api::access::Doors;
use basalt_trustd::owner_api::tls::TlsListener;
use basalt_trustd::owner_api::{attest, routes};
use config::{Api, Attest};
use measure::{
    AttestedStatement, Board, BootFacts, Event, MODULES_PCR, Measurements, PLATFORM_PCR, Record,
    boot_events, hex, unhex,
};
use serde_json::{Value, json};
use trustctl::appraisal::{self, Expected};
use trustctl::client::{Address, Client, Refusal};
use trustctl::endorsement::Endorsement;
use trustctl::evidence::{self, Failure};
use trustctl::peers::Group;

use crate::common::Swtpm;
use crate::node::{Node, programs, run};

const ADDRESS: &str = "127.0.0.1:7443";

fn good(output: Output) -> Output {
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A program of Debian's tpm2-tools on a software TPM.
fn tool(swtpm: &Swtpm, program: &str, args: &[&str]) -> Output {
    good(Command::new(program).args(args).args(["-T", &swtpm.tcti]).output().unwrap())
}

/// A boot as init would have measured it: PCR 14 and 15 extended, the log written.
fn boot(swtpm: &Swtpm, dir: &Path) -> (Vec<Event>, Measurements) {
    let events = boot_events(&BootFacts {
        variant: "prod",
        machine: "virt",
        command_line: "console=ttyAMA0",
        device_tree: [1; 32],
        boot_partition: [6; 32],
        node_settings: measure::no_settings(),
        verity_root: "00ff",
        init: [2; 32],
        trustd: [3; 32],
        engine: [4; 32],
        configuration: [5; 32],
    });
    let mut log = String::new();
    for (n, event) in events.iter().enumerate() {
        tool(swtpm, "tpm2_pcrextend", &[&format!("{}:sha256={}", event.pcr, hex(&event.digest()))]);
        log += &Record::new(n as u64, event).line();
    }
    std::fs::write(dir.join("platform.log"), log).unwrap();
    let boards = vec![Board::predict("virt", &events)];
    (
        events,
        Measurements {
            machine: "virt".into(),
            variant: "prod".into(),
            version: "0".into(),
            boards,
        },
    )
}

const NONCE: [u8; 20] = [0xa5; 20];

fn evidence_of(audit: &Audit) -> Value {
    let statement = AttestedStatement::Node { certificate: "ab".repeat(32), nonce: hex(&NONCE) };
    serde_json::to_value(run(audit.evidence(&statement)).unwrap()).unwrap()
}

#[test]
fn every_difference_is_named_and_others_tools_agree() {
    let dir = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::start(dir.path());
    let (events, expected) = boot(&swtpm, dir.path());
    let audit = run(async {
        Audit::open(swtpm.open().await, &dir.path().join("platform.log"), dir.path(), dir.path())
            .await
            .unwrap()
    });
    run(audit.record("module-started", &json!({ "module": "a" }))).unwrap();
    let answer = evidence_of(&audit);
    let checked = evidence::check(&answer, &NONCE, Some(&expected)).unwrap();
    assert_eq!(checked.board.as_deref(), Some("virt"));

    // Each event of the boot, had it been another.
    for (n, event) in events.iter().enumerate() {
        let mut other = events.clone();
        other[n] = Event::new(event.pcr, &event.kind, "something else");
        let other =
            Measurements { boards: vec![Board::predict("virt", &other)], ..expected.clone() };
        let Err(Failure::Boot(found)) = evidence::check(&answer, &NONCE, Some(&other)) else {
            panic!("{} was taken", event.kind)
        };
        assert_eq!((found.event, &found.kind), (n as u64, &event.kind));
        assert_eq!(
            (found.expected.as_deref(), found.found.as_deref()),
            (Some("something else"), Some(&*event.data))
        );
        assert!(!found.likely.is_empty() && Failure::Boot(found).to_string().contains("likely"));
    }
    let shorter =
        Measurements { boards: vec![Board::predict("virt", &events[..11])], ..expected.clone() };
    assert!(
        matches!(evidence::check(&answer, &NONCE, Some(&shorter)), Err(Failure::Boot(m)) if m.event == 11 && m.expected.is_none())
    );

    // Everything in the answer, spoilt.
    let spoilt = |change: &dyn Fn(&mut Value)| {
        let mut answer = answer.clone();
        change(&mut answer);
        evidence::check(&answer, &NONCE, Some(&expected)).err().expect("it was taken").code()
    };
    assert_eq!(evidence::check(&answer, &[1; 20], None).err().unwrap().code(), "nonce");
    let text = answer["statement"].as_str().unwrap().to_owned();
    assert_eq!(spoilt(&|a| a["statement"] = json!(text.replace("abab", "abac"))), "quote");
    assert_eq!(spoilt(&|a| a["statement"] = json!(text.replace(",", ", "))), "malformed");
    assert_eq!(spoilt(&|a| drop(a.as_object_mut().unwrap().remove("key"))), "malformed");
    assert_eq!(spoilt(&|a| a["modules_log"].as_array_mut().unwrap().truncate(1)), "quote");
    assert_eq!(spoilt(&|a| drop(a["modules_log"].as_array_mut().unwrap().remove(0))), "log");
    assert_eq!(spoilt(&|a| a["platform_log"].as_array_mut().unwrap().swap(2, 3)), "log");
    assert_eq!(spoilt(&|a| a["platform_log"][3]["content"]["data"] = json!("other")), "log");
    assert_eq!(spoilt(&|a| a["modules_log"][1]["pcr"] = json!(14)), "quote");
    assert_eq!(spoilt(&|a| a["modules_log"][1]["pcr"] = json!(16)), "quote");
    for key in ["attest", "signature", "key"] {
        let bytes = unhex(answer[key].as_str().unwrap()).unwrap();
        for at in (0..bytes.len()).step_by(3) {
            let mut other = bytes.clone();
            other[at] ^= 1;
            let code = spoilt(&|a| a[key] = json!(hex(&other)));
            assert!(matches!(code, "quote" | "key"), "{key} {at}: {code}");
        }
    }

    // tpm2_checkquote takes the same quote for the same registers, and no others.
    let file = |name: &str, bytes: &[u8]| -> PathBuf {
        std::fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name)
    };
    let bytes = |key: &str| unhex(answer[key].as_str().unwrap()).unwrap();
    let key =
        file("ak.pub", &[&(bytes("key").len() as u16).to_be_bytes(), &bytes("key")[..]].concat());
    let attest = file("attest", &bytes("attest"));
    let signature = bytes("signature");
    // TPMT_SIGNATURE: ECDSA, SHA-256, r and s each after its length.
    let signature = file(
        "signature",
        &[&[0, 0x18, 0, 0x0b, 0, 32], &signature[..32], &[0, 32], &signature[32..]].concat(),
    );
    let registers =
        |modules: [u8; 32]| file("pcrs", &[checked.pcrs[&PLATFORM_PCR].0, modules].concat());
    let check = |registers: &Path| {
        Command::new("tpm2_checkquote")
            .args([
                Path::new("-u"),
                &key,
                Path::new("-m"),
                &attest,
                Path::new("-s"),
                &signature,
                Path::new("-f"),
                registers,
            ])
            .args([
                "-l",
                "sha256:14,15",
                "-g",
                "sha256",
                "-q",
                &hex(&checked.statement.qualifying_data()),
            ])
            .output()
            .unwrap()
    };
    good(check(&registers(checked.pcrs[&MODULES_PCR].0)));
    assert!(!check(&registers([0; 32])).status.success());

    // And with jq and sha256sum alone the logs come to the same registers: the commands of
    // docs/attestation.md.
    file("evidence.json", answer.to_string().as_bytes());
    let document = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/attestation.md"),
    )
    .unwrap();
    let script = document
        .split("```sh\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("the commands are gone");
    let programs = programs();
    let replayed = Command::new("bash")
        .args(["-euc", script])
        .current_dir(dir.path())
        .env("PATH", format!("{}:/usr/bin", programs.join("usr/bin").display()))
        .env("LD_LIBRARY_PATH", programs.join("usr/lib/x86_64-linux-gnu"))
        .output()
        .unwrap();
    let said = String::from_utf8(good(replayed).stdout).unwrap();
    for (pcr, value) in &checked.pcrs {
        assert!(said.contains(&format!("PCR {pcr} = {}\n", hex(&value.0))), "{said}");
    }
}

/// swtpm's own authority certifies the node's endorsement key, and the certificate goes where a
/// manufacturer puts it.
fn manufacture(swtpm: &Swtpm, dir: &Path) -> PathBuf {
    let ca = dir.join("ca");
    std::fs::create_dir_all(&ca).unwrap();
    let state = ca.display();
    std::fs::write(
        dir.join("localca.conf"),
        format!(
            "statedir = {state}\nsigningkey = {state}/signkey.pem\nissuercert = {state}/issuercert.pem\ncertserial = {state}/certserial\n"
        ),
    )
    .unwrap();
    std::fs::write(dir.join("localca.options"), "--tpm-manufacturer IBM\n--tpm-model swtpm-libtpms\n--tpm-version 2\n--platform-manufacturer Basalt\n--platform-version 1\n--platform-model test\n").unwrap();
    let area = run(async { swtpm.open().await.endorsement().await.unwrap().area });
    let key = measure::TpmKey::endorsement(&area).unwrap().sec1();
    let programs = programs();
    let made = Command::new(programs.join("usr/bin/swtpm_localca"))
        .args([
            "--type",
            "ek",
            "--ek",
            &format!("x={},y={},id=secp256r1", hex(&key[1..33]), hex(&key[33..])),
            "--tpm2",
        ])
        .args(["--vmid", "node", "--dir"])
        .arg(dir)
        .arg("--configfile")
        .arg(dir.join("localca.conf"))
        .arg("--optsfile")
        .arg(dir.join("localca.options"))
        .args(["--tpm-spec-family", "2.0", "--tpm-spec-level", "0", "--tpm-spec-revision", "164"])
        .env("PATH", format!("{}:/usr/bin", programs.join("usr/bin").display()))
        .env(
            "LD_LIBRARY_PATH",
            format!("{0}:{0}/swtpm", programs.join("usr/lib/x86_64-linux-gnu").display()),
        )
        .output()
        .unwrap();
    good(made);
    let certificate = dir.join("ek.cert");
    let size = std::fs::metadata(&certificate).unwrap().len().to_string();
    let index = "0x01c0000a";
    let attributes = "ppwrite|writedefine|ppread|ownerread|authread|no_da|platformcreate";
    tool(swtpm, "tpm2_nvdefine", &[index, "-C", "p", "-s", &size, "-a", attributes]);
    tool(swtpm, "tpm2_nvwrite", &[index, "-C", "p", "-i", &certificate.to_string_lossy()]);
    // What a verifier gets from the manufacturer.
    let known = dir.join("known");
    std::fs::create_dir_all(&known).unwrap();
    for name in ["issuercert.pem", "swtpm-localca-rootca-cert.pem"] {
        std::fs::copy(ca.join(name), known.join(name)).unwrap();
    }
    known
}

/// The owner's API on TLS, as trustd serves it.
async fn serve(node: &Node, attest_: Attest) {
    let api = Api { listen: ADDRESS.into(), attest: attest_ };
    let tls_dir = node.settings.data.join("tls");
    std::fs::create_dir_all(&tls_dir).unwrap();
    let secret =
        root_key::of_this_tpm(node.audit.tpm(), &tls_dir.join("node.sealed")).await.unwrap();
    let tls = TlsListener::bind(&api, &[node.owner.fingerprint()], &tls_dir, &secret.own())
        .await
        .unwrap();
    let base = node.base(&tls.fingerprint);
    let client = Fetch::new(&[], std::time::Duration::from_secs(3)).unwrap();
    let this = Arc::new(routes::Node {
        base: base.clone(),
        modules: node.modules.clone(),
        approvals: node.approvals.clone(),
        sources: Arc::new(
            Sources::new(&node.config, &node.settings.boot_log, client.clone()).unwrap(),
        ),
        relays: Arc::new(Relays::new(&node.config, client).unwrap()),
        tickets: node.tickets.clone(),
    });
    let doors = Doors { owner: routes::router(this), stranger: attest::router(base) };
    tokio::spawn(axum::serve(tls, doors).into_future());
}

#[test]
fn a_stranger_finds_out_what_a_node_is_and_nothing_else() {
    run(async {
        let node = Node::start("attest").await;
        let known = tokio::task::block_in_place(|| manufacture(&node.tpm, node.dir.path()));
        serve(&node, Attest::Anyone).await;
        let keys = node.dir.path().join("stranger");
        let dir = node.dir.path().to_owned();
        let stranger = || Client::new(ADDRESS.parse::<Address>().unwrap(), &keys);
        tokio::task::block_in_place(|| {
            // Who connects and says nothing keeps nobody out: an answer comes before the first of
            // these is given up.
            let begun = std::time::Instant::now();
            let silent: Vec<_> =
                (0..300).map(|_| std::net::TcpStream::connect(ADDRESS).unwrap()).collect();
            let expected = Expected { authorities: Some(known.clone()), ..Expected::default() };
            let (kept, verdict) = appraisal::ask(&stranger(), &expected).unwrap();
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{:?}", begun.elapsed());
            drop(silent);
            let verdict = verdict.unwrap();
            assert!(verdict.activated && verdict.vouched_for);
            let name = verdict.endorsement.as_ref().unwrap().name();

            // Offline, and by its name alone.
            let named = Expected { tpm: Some(name.clone()), ..expected.clone() };
            appraisal::judge(&kept, None, &named).unwrap();
            let tpm = |expected: &Expected, kept: &Value| {
                appraisal::judge(kept, None, expected)
                    .err()
                    .unwrap()
                    .downcast::<Failure>()
                    .unwrap()
                    .code()
            };
            assert_eq!(
                tpm(
                    &Expected {
                        tpm: Some("000b".to_owned() + &"00".repeat(32)),
                        ..Expected::default()
                    },
                    &kept
                ),
                "tpm"
            );
            // Another authority, another key's certificate, none, an altered one, one that was
            // never activated.
            let other = dir.join("other");
            std::fs::create_dir_all(&other).unwrap();
            let authority = rcgen::CertificateParams::new(Vec::new())
                .unwrap()
                .self_signed(&rcgen::KeyPair::generate().unwrap())
                .unwrap();
            std::fs::write(other.join("ca.pem"), authority.pem()).unwrap();
            assert_eq!(
                tpm(&Expected { authorities: Some(other.clone()), ..Expected::default() }, &kept),
                "tpm"
            );
            let certificate = unhex(kept["endorsement"]["certificate"].as_str().unwrap()).unwrap();
            for (n, change) in [
                None,
                Some(authority.der().to_vec()),
                Some({
                    let mut c = certificate.clone();
                    let end = c.len() - 20;
                    c[end] ^= 1;
                    c
                }),
            ]
            .into_iter()
            .enumerate()
            {
                let mut kept = kept.clone();
                kept["endorsement"]["certificate"] = change.map_or(Value::Null, |c| json!(hex(&c)));
                assert_eq!(tpm(&expected, &kept), "tpm", "{n}");
            }
            let mut kept_ = kept.clone();
            kept_["activated"] = json!(false);
            assert_eq!(tpm(&expected, &kept_), "tpm");
            // Padded, as in an index that is larger than what is in it.
            let mut kept_ = kept.clone();
            kept_["endorsement"]["certificate"] =
                json!(hex(&[&certificate[..], &[0xff; 100]].concat()));
            appraisal::judge(&kept_, None, &expected).unwrap();
            // What was not activated, or is a module's, is not taken for the node's: whoever has a
            // module could pass it on.
            let mut other = kept.clone();
            other["activated"] = json!(false);
            assert_eq!(tpm(&Expected::default(), &other), "tpm");
            let nonce = unhex(kept["nonce"].as_str().unwrap()).unwrap();
            let statements = [
                AttestedStatement::Module {
                    image: "sha256:00".into(),
                    module: "m".into(),
                    nonce: hex(&nonce),
                },
                AttestedStatement::VrfKey {
                    bound_to: "image:x".into(),
                    image: "sha256:00".into(),
                    module: "m".into(),
                    nonce: hex(&nonce),
                    public_key: "00".into(),
                    suite: "s".into(),
                },
            ];
            for statement in statements {
                let answer = tokio::runtime::Handle::current()
                    .block_on(node.audit.evidence(&statement))
                    .unwrap();
                let mut other = kept.clone();
                other["evidence"] = serde_json::to_value(answer).unwrap();
                assert_eq!(tpm(&Expected::default(), &other), "kind");
                // By itself it is a module's evidence, and says of no TPM.
                let alone = json!({ "evidence": other["evidence"] });
                assert!(
                    appraisal::judge(&alone, Some(&nonce), &Expected::default())
                        .unwrap()
                        .endorsement
                        .is_none()
                );
                assert!(appraisal::judge(&alone, Some(&nonce), &expected).is_err());
            }
            let alone = json!({ "evidence": kept["evidence"] });
            assert!(
                appraisal::judge(&alone, Some(&nonce), &Expected::default()).is_err(),
                "a node's own has to be whole"
            );
            // The answer of a node that shows another certificate.
            let mut kept_ = kept.clone();
            kept_["certificate"] = json!("00".repeat(32));
            assert_eq!(tpm(&Expected::default(), &kept_), "certificate");

            // A key that is in no TPM cannot answer, however right all else looks.
            let endorsement = Endorsement::read(&kept["endorsement"]).unwrap();
            let mut area = unhex(kept["evidence"]["key"].as_str().unwrap()).unwrap();
            let begins = area.len() - 66;
            let point = p256_point();
            area.truncate(begins);
            area.extend_from_slice(&point[1..33]);
            area.extend_from_slice(&[0, 32]);
            area.extend_from_slice(&point[33..]);
            let forged = measure::TpmKey::attestation(&area).unwrap();
            let error = endorsement.holds(&forged, &stranger()).unwrap_err();
            assert_eq!(error.downcast::<Failure>().unwrap().code(), "tpm");

            // Nothing else is for strangers.
            for path in ["/v1/status", "/v1/modules", "/v1/audit", "/metrics", "/"] {
                let refused = stranger().get(path).unwrap_err().downcast::<Refusal>().unwrap();
                assert_eq!((refused.status, &*refused.code), (403, "certificate"), "{path}");
            }
            let refused = stranger()
                .post("/v1/node/reboot", &json!({}))
                .unwrap_err()
                .downcast::<Refusal>()
                .unwrap();
            assert_eq!(refused.status, 403);
            // Nor too much of it: they have a quota together.
            let codes: Vec<u16> = (0..40)
                .filter_map(|_| {
                    stranger()
                        .get("/v1/endorsement")
                        .err()?
                        .downcast::<Refusal>()
                        .ok()
                        .map(|r| r.status)
                })
                .collect();
            assert!(codes.contains(&429) && codes.iter().all(|c| *c == 429), "{codes:?}");

            // A group of one, and of one that is not what it should be.
            let owner = dir.join("owner");
            std::fs::create_dir_all(&owner).unwrap();
            let mut boards = vec![Board::predict("virt", &[])];
            boards[0].pcrs.insert("14".into(), "00".repeat(32));
            let measurements = Measurements {
                machine: "virt".into(),
                variant: "prod".into(),
                version: "0".into(),
                boards,
            };
            std::fs::write(
                dir.join("measurements.json"),
                serde_json::to_string(&measurements).unwrap(),
            )
            .unwrap();
            let list = dir.join("peers.toml");
            let one =
                format!("[[node]]\naddress = \"{ADDRESS}\"\nexpect = \"measurements.json\"\n");
            for bad in [
                "",
                "quorum = 2\n[[node]]\naddress = \"a:1\"\nexpect = \"m\"\n",
                &format!("{one}{one}"),
                &format!("{one}other = 1\n"),
            ] {
                std::fs::write(&list, bad).unwrap();
                assert!(Group::read(&list).is_err(), "{bad}");
            }
            std::fs::write(&list, format!("ek-ca = \"known\"\nquorum = 1\n{one}tpm = \"{name}\"\n[[node]]\naddress = \"127.0.0.1:1\"\nexpect = \"measurements.json\"\n")).unwrap();
            let group = Group::read(&list).unwrap();
            // Though the quota was just used up; and though he owns another node.
            trustctl::keys::new_owner(&keys).unwrap();
            let asked = group.ask(&list, &keys);
            assert!(asked[0].verdict.is_ok(), "{:?}", asked[0].verdict.as_ref().err());
            assert!(asked[1].verdict.is_err());
        });
    });
}

#[test]
fn a_node_that_answers_owners_only_lets_no_stranger_in() {
    run(async {
        let node = Node::start("owners").await;
        serve(&node, Attest::Owner).await;
        let keys = node.dir.path().join("stranger");
        tokio::task::block_in_place(|| {
            let error =
                appraisal::ask(&Client::new(ADDRESS.parse().unwrap(), &keys), &Expected::default())
                    .err()
                    .unwrap();
            assert!(!error.is::<Failure>(), "{error:#}");
        });
    });
}

/// Some point of P-256: the public key of the secret 1, which is the generator (SEC 2, section
/// 2.4.2).
fn p256_point() -> Vec<u8> {
    unhex(concat!(
        "04",
        "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    ))
    .unwrap()
}
