//! What may run, and as what.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::EventsOptionsBuilder;
use deployment::{DesiredState, Spec};
use futures_util::StreamExt as _;
use ledger::Status;

use crate::images::{Packed, image, index, layered, sha};
use crate::node::{Node, Owner, run, statement};

fn module(digest: &str, more: &str) -> String {
    format!(
        "memory-mib = 32\nstop-within-s = 1\n{more}\n[image]\ndigest = \"{digest}\"\n[health]\nstays-s = 1\n"
    )
}

#[test]
fn approved_runs_and_is_stopped_when_revoked() {
    run(async {
        let mut node = Node::start("approved").await;
        let image = image("it runs");
        node.state(&image.digest, Status::Approved).await;
        node.push(&image.archive()).await.unwrap();
        node.apply("good", &module(&image.digest, "cpu-percent = 50"));
        let container = node.running("good").await;
        assert!(node.own().await.logs(&container, 10).await.unwrap().contains("it runs"));
        // What the engine made of it: nothing but what the template says.
        let found = node.behind().await.inspect_container(&container, None).await.unwrap();
        assert_eq!(found.image.as_deref(), Some(image.digest.as_str()));
        let host = found.host_config.unwrap();
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!(
            (host.readonly_rootfs, host.privileged, host.pids_limit),
            (Some(true), Some(false), Some(64))
        );
        assert_eq!(
            (host.network_mode.as_deref(), host.nano_cpus),
            (Some("none"), Some(500_000_000))
        );
        assert_eq!(host.security_opt, Some(vec!["no-new-privileges".to_owned()]));

        node.state(&image.digest, Status::Revoked).await;
        assert!(node.refused("good").await.starts_with("revoked"));
        node.gone(&container).await;
        let mut kinds = node.kinds().await;
        // A machine with much else to do may let the stream wait.
        kinds.retain(|kind| kind != "engine-events-missed" && kind != "tpm-clock");
        assert_eq!(kinds, ["module-approved", "module-started", "module-stopped", "module-denied"]);
    });
}

#[test]
fn what_is_not_approved_or_altered_never_reaches_the_engine() {
    run(async {
        let mut node = Node::start("refused").await;
        let stranger = image("nobody approved this");
        node.push(&stranger.archive()).await.unwrap();
        node.apply("stranger", &module(&stranger.digest, ""));
        assert!(node.refused("stranger").await.starts_with("unknown"));
        // Approved, and not there.
        let absent = image("approved");
        node.state(&absent.digest, Status::Approved).await;
        node.apply("absent", &module(&absent.digest, ""));
        assert!(node.refused("absent").await.contains("trustctl image push"));
        // Altered on its way: the store does not take it.
        let mut altered = image("altered");
        altered.blobs[0][1000] ^= 1;
        let mut archive = altered.archive();
        // Under the name that the manifest has for it.
        let (wrong, right) = (sha(&altered.blobs[0]), altered.layers[0].clone());
        let at = archive.windows(64).position(|w| w == &wrong.as_bytes()[7..]).unwrap();
        archive[at..at + 64].copy_from_slice(&right.as_bytes()[7..]);
        let mut header = tar::Header::from_byte_slice(&archive[at - 13..at - 13 + 512]).clone();
        header.set_cksum();
        archive[at - 13..at - 13 + 512].copy_from_slice(header.as_bytes());
        assert!(matches!(node.push(&archive).await, Err(oci::OciError::Mismatch { .. })));
        assert!(node.own().await.images().await.unwrap().is_empty());
        assert!(node.own().await.containers().await.unwrap().is_empty());
    });
}

#[test]
fn the_second_lock_lets_nobody_else_in() {
    run(async {
        let mut node = Node::start("lock").await;
        let image = image("good");
        node.state(&image.digest, Status::Approved).await;
        node.push(&image.archive()).await.unwrap();
        node.apply("good", &module(&image.digest, ""));
        let container = node.running("good").await;
        // root on the node, with the engine's own socket.
        let docker = bollard::Docker::connect_with_unix(
            &node.engine.socket.to_string_lossy(),
            60,
            bollard::API_DEFAULT_VERSION,
        )
        .unwrap();
        let said = |error: bollard::errors::Error| {
            let text = error.to_string();
            assert!(text.contains("only trustd may use this engine"), "{text}");
        };
        said(docker.version().await.unwrap_err());
        said(
            docker
                .list_containers(None::<bollard::query_parameters::ListContainersOptions>)
                .await
                .unwrap_err(),
        );
        let body = ContainerCreateBody { image: Some(image.digest.clone()), ..Default::default() };
        said(
            docker
                .create_container(None::<bollard::query_parameters::CreateContainerOptions>, body)
                .await
                .unwrap_err(),
        );
        said(
            docker
                .kill_container(&container, None::<bollard::query_parameters::KillContainerOptions>)
                .await
                .unwrap_err(),
        );
        assert!(node.tickets.refused() >= 4);
        // The lock is in the engine's configuration; a hang-up does not take it out.
        node.running("good").await;
    });
}

#[test]
fn only_the_owner_wishes_and_only_forward() {
    run(async {
        let node = Node::start("specs").await;
        let toml = module(&sha(b"x"), "");
        let spec = |generation| Spec {
            desired: DesiredState::Run,
            module: "m".into(),
            generation,
            toml: toml.clone(),
        };
        let refused = |signed: &deployment::SignedSpec, says: &str| {
            let error = node.modules.apply("m", signed).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(&Owner::new().sign(&spec(1)), "not pinned");
        let good = node.owner.sign(&spec(100));
        let mut other = good.clone();
        other.spec = spec(101).text();
        refused(&other, "signature does not hold");
        let mut cut = good.clone();
        cut.signature.truncate(20);
        refused(&cut, "signature does not hold");
        let error = node.modules.apply("another", &good).unwrap_err().to_string();
        assert!(error.contains("is for the module m"), "{error}");
        node.modules.apply("m", &good).unwrap();
        refused(&good, "older");
        refused(&node.owner.sign(&spec(99)), "older");
        // What a module cannot say, it cannot say signed either.
        let mut privileged = spec(200);
        privileged.toml = format!("privileged = true\n{toml}");
        refused(&node.owner.sign(&privileged), "privileged");
        let mut api = spec(201);
        api.toml = format!("network = \"bridge\"\n{toml}[[ports]]\nnode = 7443\nmodule = 80\n");
        refused(&node.owner.sign(&api), "the node's own");
        let mut own = spec(202);
        own.toml = format!("needs = [\"m\"]\n{toml}");
        refused(&node.owner.sign(&own), "wait for itself");
        // Altered on the data partition, the spec counts for nothing.
        let path = node.settings.data.join("modules/m.now.json");
        let text =
            std::fs::read_to_string(&path).unwrap().replace("memory-mib = 32", "memory-mib = 64");
        std::fs::write(&path, text).unwrap();
        let parts = crate::node::parts(
            &node.settings,
            &node.config,
            node.tickets.clone(),
            node.tpm.open().await,
        )
        .await;
        assert_eq!(basalt_trustd::modules::Modules::open(parts).unwrap().state("m"), None);
    });
}

#[test]
fn every_packing_and_an_index_are_loaded() {
    run(async {
        let mut node = Node::start("forms").await;
        let image = layered("many layers", &[Packed::Zstd, Packed::Gzip, Packed::No], 10_000);
        let list = index(&image);
        let mut blobs = image.blobs.clone();
        blobs.push(list.clone());
        node.push(&crate::images::archive_of(&blobs)).await.unwrap();
        node.state(&sha(&list), Status::Approved).await;
        node.apply("multi", &module(&sha(&list), ""));
        let container = node.running("multi").await;
        let found = node.behind().await.inspect_container(&container, None).await.unwrap();
        assert_eq!(found.image.as_deref(), Some(image.digest.as_str()));
        let approved = node.event(|e| e.starts_with("module-approved")).await;
        assert!(approved.contains(&image.digest) && approved.contains(&sha(&list)), "{approved}");
        // The manifest was never approved by itself, and its revocation counts all the same.
        node.state(&image.digest, Status::Revoked).await;
        assert!(node.refused("multi").await.starts_with("revoked"));
        node.gone(&container).await;
    });
}

#[test]
fn a_blob_that_was_altered_on_the_data_partition_is_not_loaded() {
    run(async {
        let mut node = Node::start("spoilt").await;
        let image = image("good");
        node.push(&image.archive()).await.unwrap();
        let path = node.settings.data.join("store/blobs").join(&image.layers[0][7..]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[500] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        node.state(&image.digest, Status::Approved).await;
        node.apply("good", &module(&image.digest, ""));
        // Known from before: only the engine's copy is hashed again, and the archive stays
        // unfinished.
        let deadline = std::time::Instant::now() + crate::node::PATIENCE;
        while path.exists() && std::time::Instant::now() < deadline {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(!path.exists(), "the blob is still there");
        assert!(node.own().await.containers().await.unwrap().is_empty());
        // Sent again, it runs.
        node.push(&image.archive()).await.unwrap();
        node.modules.wake();
        node.running("good").await;
    });
}

/// What the generator of lib/oci's tests made, each approved by its digest, as if the approvers had
/// been fooled.
#[test]
fn nothing_of_the_corpus_reaches_the_engine() {
    run(async {
        let node = Node::made_for("arm64", "corpus", "").await;
        let corpus = |kind: &str| -> Vec<(String, Vec<u8>)> {
            let dir =
                std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(kind);
            let inputs = std::fs::read_dir(dir)
                .unwrap()
                .map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
            inputs
                .map(|input| {
                    (format!("sha256:{}", measure::hex(&input[..32])), input[32..].to_vec())
                })
                .collect()
        };
        let (cases, around) = (corpus("archive"), corpus("archive-around"));
        // The same way, a good one comes through.
        for (digest, archive) in corpus("archive-good") {
            node.push(&archive).await.unwrap();
            let source = config::Source { digest, registry: None, archive: None };
            node.modules
                .fetcher()
                .get("good", &source, &Default::default(), &|_, _| {})
                .await
                .unwrap();
        }
        // Around a good image or in its place: each into a store of its own, where nothing of
        // another helps it.
        for (digest, archive) in &around {
            let dir = tempfile::tempdir().unwrap();
            let settings = basalt_trustd::settings::Settings {
                data: dir.path().to_owned(),
                ..node.settings.clone()
            };
            let fetcher = crate::node::fetcher(&settings, &node.config, "arm64");
            let source = config::Source { digest: digest.clone(), registry: None, archive: None };
            let sent = fetcher.upload(std::io::Cursor::new(archive.clone())).await;
            let got = fetcher.get("case", &source, &Default::default(), &|_, _| {}).await;
            assert!(sent.is_err() || got.is_err(), "{digest}");
        }
        let digests: std::collections::BTreeSet<&String> =
            cases.iter().map(|(digest, _)| digest).collect();
        let lines = digests
            .iter()
            .enumerate()
            .map(|(n, digest)| statement(&node.key, digest, Status::Approved, n as u64 + 1));
        node.approvals.extend(&lines.collect::<String>()).await.unwrap();
        for (n, (digest, archive)) in cases.iter().enumerate() {
            // Whatever of it is what its name says is kept; it makes no image.
            let _ = node.push(archive).await;
            node.apply(
                &format!("case-{n}"),
                &format!("memory-mib = 16\n[image]\ndigest = \"{digest}\"\n"),
            );
        }
        for n in 0..cases.len() {
            node.refused(&format!("case-{n}")).await;
        }
        assert!(cases.len() >= 30 && around.len() >= 15, "{} and {}", cases.len(), around.len());
        let engine = node.own().await;
        assert!(
            engine.images().await.unwrap().is_empty()
                && engine.containers().await.unwrap().is_empty()
        );
    });
}

/// How often the engine was given an image since a moment.
async fn loads(node: &Node, begun: u64) -> usize {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 1;
    let filters = HashMap::from([("type", vec!["image"]), ("event", vec!["load"])]);
    let options = EventsOptionsBuilder::default()
        .since(&begun.to_string())
        .until(&now.to_string())
        .filters(&filters)
        .build();
    node.behind().await.events(Some(options)).count().await
}

/// While the later layers are verified, the engine has the earlier ones already: of an image that
/// may run, and to the end.
#[test]
fn an_image_goes_in_by_parts_and_nothing_else_stays() {
    run(async {
        let mut node = Node::start("parts").await;
        let begun = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let image =
            layered("in parts", &[Packed::Gzip, Packed::Zstd, Packed::No, Packed::Gzip], 200_000);
        let listed = index(&image);
        let mut blobs = image.blobs.clone();
        blobs.push(listed.clone());
        node.push(&crate::images::archive_of(&blobs)).await.unwrap();
        // The index is approved, the manifest in it revoked: not even a part of it reaches the
        // engine.
        let lines = statement(&node.key, &sha(&listed), Status::Approved, 1)
            + &statement(&node.key, &image.digest, Status::Revoked, 2);
        node.approvals.extend(&lines).await.unwrap();
        node.apply("revoked", &module(&sha(&listed), ""));
        assert!(node.refused("revoked").await.starts_with("revoked"));
        assert_eq!(loads(&node, begun).await, 0);

        let other = layered(
            "other parts",
            &[Packed::Gzip, Packed::Zstd, Packed::No, Packed::Gzip],
            200_000,
        );
        node.log = lines;
        node.state(&other.digest, Status::Approved).await;
        node.push(&other.archive()).await.unwrap();
        node.apply("good", &module(&other.digest, ""));
        node.running("good").await;
        assert!(loads(&node, begun).await >= 3, "in parts");
        let engine = node.own().await;
        let deadline = std::time::Instant::now() + crate::node::PATIENCE;
        loop {
            let images: Vec<String> =
                engine.images().await.unwrap().into_iter().map(|i| i.digest).collect();
            let known = std::fs::read_dir(node.settings.run.join("images")).unwrap().count();
            if images == [other.digest.clone()] && known == 1 {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{images:?}, {known} known");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(
            !node.kinds().await.iter().any(|kind| kind == "unknown-image-removed"),
            "{:?}",
            node.events().await
        );
    });
}
