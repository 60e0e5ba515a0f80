//! Attestation of a node by an anonymous client.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use api::{ErrorCode, Evidence};
use basalt_trustd::keys::node_secret;
use basalt_trustd::owner_api::access::RoleRouter;
use basalt_trustd::owner_api::tls::TlsListener;
use basalt_trustd::owner_api::{attest, routes};
use config::{Api, AttestationAccess};
use measure::{AttestedStatement, Board, Measurements, hex, unhex};
use serde_json::json;
use trustctl::appraisal::{self, ReferenceValues, SavedEvidence};
use trustctl::client::{Address, Client, Refusal};
use trustctl::endorsement::Endorsement;
use trustctl::evidence::EvidenceError;
use trustctl::peers::Group;

use crate::api::owner_state;
use crate::common::Swtpm;
use crate::evidence::{require_success, run_tool};
use crate::node::{Node, programs, run};

pub(crate) const ADDRESS: &str = "127.0.0.1:7443";

/// Has swtpm's certificate authority certify the endorsement key, and stores the certificate in the
/// TPM, as a manufacturer does. Returns the folder with the authority's certificates.
fn certify_endorsement_key(swtpm: &Swtpm, dir: &Path) -> PathBuf {
    let ca = dir.join("ca");
    std::fs::create_dir_all(&ca).unwrap();
    let state = ca.display();
    std::fs::write(
        dir.join("localca.conf"),
        format!(
            "statedir = {state}\nsigningkey = {state}/signkey.pem\n\
             issuercert = {state}/issuercert.pem\ncertserial = {state}/certserial\n"
        ),
    )
    .unwrap();
    let options = "--tpm-manufacturer IBM\n--tpm-model swtpm-libtpms\n--tpm-version 2\n\
                   --platform-manufacturer Basalt\n--platform-version 1\n--platform-model test\n";
    std::fs::write(dir.join("localca.options"), options).unwrap();
    let area = run(async { swtpm.open().await.read_endorsement().await.unwrap().public_area });
    let key = measure::TpmKey::endorsement(&area).unwrap().sec1();
    let programs = programs();
    let certified = Command::new(programs.join("usr/bin/swtpm_localca"))
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
    require_success(certified);
    let certificate = dir.join("ek.cert");
    let size = std::fs::metadata(&certificate).unwrap().len().to_string();
    let index = "0x01c0000a";
    let attributes = "ppwrite|writedefine|ppread|ownerread|authread|no_da|platformcreate";
    run_tool(swtpm, "tpm2_nvdefine", &[index, "-C", "p", "-s", &size, "-a", attributes]);
    run_tool(swtpm, "tpm2_nvwrite", &[index, "-C", "p", "-i", &certificate.to_string_lossy()]);
    let authorities = dir.join("authorities");
    std::fs::create_dir_all(&authorities).unwrap();
    for name in ["issuercert.pem", "swtpm-localca-rootca-cert.pem"] {
        std::fs::copy(ca.join(name), authorities.join(name)).unwrap();
    }
    authorities
}

/// Listens with the certificate of the node, which is made at the first time.
pub(crate) async fn bind(node: &Node, api: &Api) -> TlsListener {
    let tls_dir = node.settings.data.join("tls");
    std::fs::create_dir_all(&tls_dir).unwrap();
    let secret = node_secret::open(node.audit.tpm(), &tls_dir.join("node.sealed")).await.unwrap();
    let (owners, tpm_keys) = ([node.owner.fingerprint()], secret.derive_own_keys());
    TlsListener::bind(api, &owners, &tls_dir, &tpm_keys).await.unwrap()
}

/// Serves the owner's API over TLS, as trustd does.
pub(crate) async fn serve(node: &Node, access: AttestationAccess) {
    let api = Api { listen: ADDRESS.into(), attest: access };
    let tls = bind(node, &api).await;
    let state = node.node_state(&tls.fingerprint);
    let owner = owner_state(node, state.clone());
    let anonymous = attest::anonymous_router(state);
    let roles = RoleRouter { owner: routes::router(owner), anonymous };
    tokio::spawn(axum::serve(tls, roles).into_future());
}

/// A node that serves its API, as an anonymous client sees it.
struct Target<'a> {
    node: &'a Node,
    /// Folder of keys without an owner's key.
    keys: PathBuf,
    /// Certificates of the TPM's manufacturer.
    authorities: PathBuf,
}

impl Target<'_> {
    fn client(&self) -> Client {
        Client::new(ADDRESS.parse::<Address>().unwrap(), &self.keys)
    }

    fn reference(&self) -> ReferenceValues {
        ReferenceValues { authorities: Some(self.authorities.clone()), ..Default::default() }
    }
}

/// Returns the code of the error for saved evidence.
#[track_caller]
fn rejection(saved: &SavedEvidence, reference: &ReferenceValues) -> &'static str {
    let error = appraisal::appraise(saved, None, reference).err().expect("it was accepted");
    error.downcast::<EvidenceError>().unwrap().code()
}

#[test]
fn an_anonymous_client_can_only_attest_the_node() {
    run(async {
        let node = Node::start("attest").await;
        let authorities =
            tokio::task::block_in_place(|| certify_endorsement_key(&node.tpm, node.dir.path()));
        serve(&node, AttestationAccess::Anyone).await;
        let keys = node.dir.path().join("anonymous");
        let target = Target { node: &node, keys, authorities };
        tokio::task::block_in_place(|| {
            let (saved, name) = attest_during_idle_connections(&target);
            let named = ReferenceValues { tpm: Some(name.clone()), ..target.reference() };
            appraisal::appraise(&saved, None, &named).unwrap();
            reject_other_tpms(&target, &saved);
            reject_evidence_of_modules(&target, &saved);
            reject_keys_outside_of_the_tpm(&target, &saved);
            deny_other_calls(&target);
            limit_the_rate(&target);
            attest_a_group(&target, &name);
        });
    });
}

/// Idle connections do not lock a client out: the answer comes before the first of them times out.
/// Returns the evidence and the name of the TPM.
fn attest_during_idle_connections(target: &Target<'_>) -> (SavedEvidence, String) {
    let start = Instant::now();
    let idle: Vec<_> = (0..300).map(|_| std::net::TcpStream::connect(ADDRESS).unwrap()).collect();
    let (saved, result) = appraisal::attest(&target.client(), &target.reference()).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    drop(idle);
    let result = result.unwrap();
    assert!(result.activated && result.certificate_verified);
    (saved, result.endorsement.as_ref().unwrap().name())
}

/// Another name, another authority, another or no certificate, and a key that was not activated.
fn reject_other_tpms(target: &Target<'_>, saved: &SavedEvidence) {
    let reference = target.reference();
    let name = Some("000b".to_owned() + &"00".repeat(32));
    assert_eq!(rejection(saved, &ReferenceValues { tpm: name, ..Default::default() }), "tpm");
    let other = target.node.dir.path().join("other");
    std::fs::create_dir_all(&other).unwrap();
    let authority = rcgen::CertificateParams::new(Vec::new())
        .unwrap()
        .self_signed(&rcgen::KeyPair::generate().unwrap())
        .unwrap();
    std::fs::write(other.join("ca.pem"), authority.pem()).unwrap();
    let authorities = Some(other);
    assert_eq!(rejection(saved, &ReferenceValues { authorities, ..Default::default() }), "tpm");

    let with_certificate = |certificate: Option<Vec<u8>>| {
        let mut saved = saved.clone();
        saved.endorsement.as_mut().unwrap().certificate = certificate.map(|bytes| hex(&bytes));
        saved
    };
    let certificate = saved.endorsement.as_ref().unwrap().certificate.as_ref().unwrap();
    let certificate = unhex(certificate).unwrap();
    let mut altered = certificate.clone();
    let end = altered.len() - 20;
    altered[end] ^= 1;
    for other in [None, Some(authority.der().to_vec()), Some(altered)] {
        assert_eq!(rejection(&with_certificate(other), &reference), "tpm");
    }
    // An NV index can be larger than the certificate in it.
    let padded = [&certificate[..], &[0xff; 100]].concat();
    appraisal::appraise(&with_certificate(Some(padded)), None, &reference).unwrap();

    let inactive = SavedEvidence { activated: false, ..saved.clone() };
    assert_eq!(rejection(&inactive, &reference), "tpm");
    assert_eq!(rejection(&inactive, &ReferenceValues::default()), "tpm");
    let certificate = Some("00".repeat(32));
    let other_connection = SavedEvidence { certificate, ..saved.clone() };
    assert_eq!(rejection(&other_connection, &ReferenceValues::default()), "certificate");
}

/// A module could pass the node's nonce to its own calls. Their evidence must not count as the
/// node's.
fn reject_evidence_of_modules(target: &Target<'_>, saved: &SavedEvidence) {
    let nonce = unhex(saved.nonce.as_ref().unwrap()).unwrap();
    let (image, module) = ("sha256:00".to_owned(), "m".to_owned());
    let statements = [
        AttestedStatement::Module {
            image: image.clone(),
            module: module.clone(),
            nonce: hex(&nonce),
        },
        AttestedStatement::VrfKey {
            bound_to: "image:x".into(),
            image,
            module,
            nonce: hex(&nonce),
            public_key: "00".into(),
            suite: "s".into(),
        },
    ];
    let alone = |evidence: &Evidence| {
        SavedEvidence::parse(&json!({ "evidence": evidence }).to_string()).unwrap()
    };
    for statement in statements {
        let evidence = tokio::runtime::Handle::current()
            .block_on(target.node.audit.collect_evidence(&statement))
            .unwrap();
        let module = alone(&evidence);
        let other = SavedEvidence { evidence, ..saved.clone() };
        assert_eq!(rejection(&other, &ReferenceValues::default()), "kind");
        // As evidence of a module it is valid, and says nothing about the TPM.
        let result = appraisal::appraise(&module, Some(&nonce), &ReferenceValues::default());
        assert!(result.unwrap().endorsement.is_none());
        assert!(appraisal::appraise(&module, Some(&nonce), &target.reference()).is_err());
    }
    let incomplete = alone(&saved.evidence);
    let result = appraisal::appraise(&incomplete, Some(&nonce), &ReferenceValues::default());
    assert!(result.is_err(), "evidence of a node needs an endorsement");
}

/// A key that is in no TPM cannot activate a credential.
fn reject_keys_outside_of_the_tpm(target: &Target<'_>, saved: &SavedEvidence) {
    let endorsement = Endorsement::parse(saved.endorsement.as_ref().unwrap()).unwrap();
    let mut area = unhex(&saved.evidence.key).unwrap();
    area.truncate(area.len() - 66);
    let point = p256_point();
    area.extend_from_slice(&point[1..33]);
    area.extend_from_slice(&[0, 32]);
    area.extend_from_slice(&point[33..]);
    let forged = measure::TpmKey::attestation(&area).unwrap();
    let error = endorsement.verify_activation(&forged, &target.client()).unwrap_err();
    assert_eq!(error.downcast::<EvidenceError>().unwrap().code(), "tpm");
}

fn deny_other_calls(target: &Target<'_>) {
    let refusal = |error: anyhow::Error| error.downcast::<Refusal>().unwrap();
    for path in ["/v1/status", "/v1/modules", "/v1/audit", "/metrics", "/"] {
        let Refusal { status, code, .. } = refusal(target.client().text(path).unwrap_err());
        assert_eq!((status, code), (403, ErrorCode::Certificate), "{path}");
    }
    let refusal = refusal(target.client().control_node("reboot").unwrap_err());
    assert_eq!(refusal.status, 403);
}

/// All anonymous clients share one rate limit.
fn limit_the_rate(target: &Target<'_>) {
    let statuses: Vec<u16> = (0..40)
        .filter_map(|_| {
            let error = target.client().endorsement().err()?;
            error.downcast::<Refusal>().ok().map(|refusal| refusal.status)
        })
        .collect();
    assert!(statuses.contains(&429) && statuses.iter().all(|s| *s == 429), "{statuses:?}");
}

/// A group of this node and of one that does not answer.
fn attest_a_group(target: &Target<'_>, tpm: &str) {
    let dir = target.node.dir.path();
    let mut boards = vec![Board::predict("virt", &[])];
    boards[0].pcrs.insert("14".into(), "00".repeat(32));
    let (machine, variant, version) = ("virt".into(), "prod".into(), "0".into());
    let measurements = Measurements { machine, variant, version, boards };
    let text = serde_json::to_string(&measurements).unwrap();
    std::fs::write(dir.join("measurements.json"), text).unwrap();
    let list = dir.join("peers.toml");
    let peer = |address: &str| {
        format!("[[node]]\naddress = \"{address}\"\nexpect = \"measurements.json\"\n")
    };
    let one = peer(ADDRESS);
    for invalid in [
        "",
        "quorum = 2\n[[node]]\naddress = \"a:1\"\nexpect = \"m\"\n",
        &format!("{one}{one}"),
        &format!("{one}other = 1\n"),
    ] {
        std::fs::write(&list, invalid).unwrap();
        assert!(Group::read(&list).is_err(), "{invalid}");
    }
    let absent = peer("127.0.0.1:1");
    let head = "ek-ca = \"authorities\"\nquorum = 1\n";
    std::fs::write(&list, format!("{head}{one}tpm = \"{tpm}\"\n{absent}")).unwrap();
    let group = Group::read(&list).unwrap();
    // The rate limit was just exceeded, and the client is the owner of another node.
    trustctl::keys::new_owner(&target.keys).unwrap();
    let results = group.attest(&list, &target.keys);
    assert!(results[0].result.is_ok(), "{:?}", results[0].result.as_ref().err());
    assert!(results[1].result.is_err());
}

#[test]
fn a_node_for_owners_only_rejects_anonymous_clients() {
    run(async {
        let node = Node::start("owners").await;
        serve(&node, AttestationAccess::Owner).await;
        let keys = node.dir.path().join("anonymous");
        tokio::task::block_in_place(|| {
            let client = Client::new(ADDRESS.parse().unwrap(), &keys);
            let error = appraisal::attest(&client, &ReferenceValues::default()).err().unwrap();
            assert!(!error.is::<EvidenceError>(), "{error:#}");
        });
    });
}

/// Returns the generator of P-256 (SEC 2, section 2.4.2), the public key of the secret 1.
fn p256_point() -> Vec<u8> {
    unhex(concat!(
        "04",
        "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296",
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    ))
    .unwrap()
}
