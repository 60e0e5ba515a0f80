//! Admission: which images may run, and with which configuration.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use basalt_trustd::util::error_chain::error_chain;
use bollard::models::ContainerCreateBody;
use bollard::query_parameters::EventsOptionsBuilder;
use deployment::{DesiredState, Spec};
use futures_util::StreamExt as _;
use ledger::Status;

use crate::images::{Compression, image, image_with_layers, index, sha};
use crate::node::{CERTIFICATE, Node, Owner, run, statement};

fn module(digest: &str, more: &str) -> String {
    format!(
        "memory-mib = 32\nstop-within-s = 1\n{more}\n[image]\ndigest = \"{digest}\"\n[health]\n\
         stays-s = 1\n"
    )
}

#[test]
fn an_approved_image_runs_and_is_stopped_when_revoked() {
    run(async {
        let mut node = Node::start("approved").await;
        let image = image("it runs");
        node.add_statement(&image.digest, Status::Approved).await;
        node.push(&image.archive()).await.unwrap();
        node.apply("good", &module(&image.digest, "cpu-percent = 50"));
        let container = node.wait_until_running("good").await;
        assert!(
            node.connect_engine().await.logs(&container, 10).await.unwrap().contains("it runs")
        );
        // The engine applied the template and nothing else.
        let found = node.bypass_plugin().await.inspect_container(&container, None).await.unwrap();
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

        node.add_statement(&image.digest, Status::Revoked).await;
        assert!(node.wait_until_denied("good").await.starts_with("revoked"));
        node.wait_until_removed(&container).await;
        let mut kinds = node.event_kinds().await;
        // On a busy machine the event stream may be late.
        kinds.retain(|kind| kind != "engine-events-missed" && kind != "tpm-clock");
        assert_eq!(kinds, ["module-approved", "module-started", "module-stopped", "module-denied"]);
    });
}

#[test]
fn unapproved_and_altered_images_never_reach_the_engine() {
    run(async {
        let mut node = Node::start("denied").await;
        let unapproved = image("not approved");
        node.push(&unapproved.archive()).await.unwrap();
        node.apply("unapproved", &module(&unapproved.digest, ""));
        assert!(node.wait_until_denied("unapproved").await.starts_with("unknown"));
        // An approved image that is not in the store.
        let absent = image("approved");
        node.add_statement(&absent.digest, Status::Approved).await;
        node.apply("absent", &module(&absent.digest, ""));
        assert!(node.wait_until_denied("absent").await.contains("trustctl image push"));
        // The store rejects an archive that was altered in transit.
        let mut altered = image("altered");
        altered.blobs[0][1000] ^= 1;
        let mut archive = altered.archive();
        // The altered layer has the name that the manifest names.
        let (wrong, right) = (sha(&altered.blobs[0]), altered.layers[0].clone());
        let at = archive.windows(64).position(|w| w == &wrong.as_bytes()[7..]).unwrap();
        archive[at..at + 64].copy_from_slice(&right.as_bytes()[7..]);
        let mut header = tar::Header::from_byte_slice(&archive[at - 13..at - 13 + 512]).clone();
        header.set_cksum();
        archive[at - 13..at - 13 + 512].copy_from_slice(header.as_bytes());
        assert!(matches!(node.push(&archive).await, Err(oci::OciError::Mismatch { .. })));
        assert!(node.connect_engine().await.images().await.unwrap().is_empty());
        assert!(node.connect_engine().await.containers().await.unwrap().is_empty());
    });
}

#[test]
fn the_authorization_plugin_denies_all_requests_but_those_of_trustd() {
    run(async {
        let mut node = Node::start("lock").await;
        let image = image("good");
        node.add_statement(&image.digest, Status::Approved).await;
        node.push(&image.archive()).await.unwrap();
        node.apply("good", &module(&image.digest, ""));
        let container = node.wait_until_running("good").await;
        // Root on the node can connect to the engine's socket.
        let docker = bollard::Docker::connect_with_unix(
            &node.engine.socket.to_string_lossy(),
            60,
            bollard::API_DEFAULT_VERSION,
        )
        .unwrap();
        let assert_denied = |error: bollard::errors::Error| {
            let text = error.to_string();
            assert!(text.contains("only trustd may use this engine"), "{text}");
        };
        assert_denied(docker.version().await.unwrap_err());
        assert_denied(
            docker
                .list_containers(None::<bollard::query_parameters::ListContainersOptions>)
                .await
                .unwrap_err(),
        );
        let body = ContainerCreateBody { image: Some(image.digest.clone()), ..Default::default() };
        assert_denied(
            docker
                .create_container(None::<bollard::query_parameters::CreateContainerOptions>, body)
                .await
                .unwrap_err(),
        );
        assert_denied(
            docker
                .kill_container(&container, None::<bollard::query_parameters::KillContainerOptions>)
                .await
                .unwrap_err(),
        );
        assert!(node.tickets.denied() >= 4);
        // The module is not affected.
        node.wait_until_running("good").await;
    });
}

#[test]
fn only_newer_specs_of_an_owner_are_applied() {
    run(async {
        let mut node = Node::start("specs").await;
        let toml = module(&sha(b"x"), "");
        let spec = |generation| Spec {
            desired: DesiredState::Run,
            module: "m".into(),
            generation,
            node: CERTIFICATE.into(),
            toml: Some(toml.clone()),
        };
        let assert_rejected = |signed: &deployment::SignedSpec, message: &str| {
            let error = error_chain(&node.modules.apply("m", signed).unwrap_err());
            assert!(error.contains(message), "{error}");
        };
        assert_rejected(&Owner::new().sign(&spec(1)), "not pinned");
        let good = node.owner.sign(&spec(100));
        let mut other = good.clone();
        other.spec = spec(101).text();
        assert_rejected(&other, "signature does not verify");
        let mut cut = good.clone();
        cut.signature.truncate(20);
        assert_rejected(&cut, "signature does not verify");
        let error = node.modules.apply("another", &good).unwrap_err().to_string();
        assert!(error.contains("is for the module m"), "{error}");
        node.modules.apply("m", &good).unwrap();
        assert_rejected(&good, "stale spec");
        // A spec for another node cannot be planted, not even with a newer generation.
        let mut foreign = spec(150);
        foreign.node = "cd".repeat(32);
        let foreign = node.owner.sign(&foreign);
        assert_rejected(&foreign, "the spec is for the node cdcd");
        assert_rejected(&node.owner.sign(&spec(99)), "stale spec");
        // A signature does not allow keys outside of the schema, or conflicts.
        let mut privileged = spec(200);
        privileged.toml = Some(format!("privileged = true\n{toml}"));
        assert_rejected(&node.owner.sign(&privileged), "privileged");
        let mut api = spec(201);
        api.toml =
            Some(format!("network = \"bridge\"\n{toml}[[ports]]\nnode = 7443\nmodule = 80\n"));
        assert_rejected(&node.owner.sign(&api), "the node itself uses port 7443");
        let mut own = spec(202);
        own.toml = Some(format!("needs = [\"m\"]\n{toml}"));
        assert_rejected(&node.owner.sign(&own), "wait for itself");
        // A spec that was altered on the data partition is ignored, and so is one of another node.
        let path = node.settings.data.join("modules/m.desired.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let altered = text.replace("memory-mib = 32", "memory-mib = 64");
        let foreign = serde_json::to_string(&foreign).unwrap();
        for (text, reason) in [(altered, "does not verify"), (foreign, "for the node cdcd")] {
            std::fs::write(&path, text).unwrap();
            node.restart().await;
            assert_eq!(node.modules.status("m"), None);
            let rejected = node.modules.rejected();
            assert!(rejected["m"].contains(reason), "{rejected:?}");
        }
    });
}

#[test]
fn images_with_every_compression_and_an_index_are_loaded() {
    run(async {
        let mut node = Node::start("forms").await;
        let image = image_with_layers(
            "many layers",
            &[Compression::Zstd, Compression::Gzip, Compression::None],
            10_000,
        );
        let list = index(&image);
        let mut blobs = image.blobs.clone();
        blobs.push(list.clone());
        node.push(&crate::images::archive_of(&blobs)).await.unwrap();
        node.add_statement(&sha(&list), Status::Approved).await;
        node.apply("multi", &module(&sha(&list), ""));
        let container = node.wait_until_running("multi").await;
        let found = node.bypass_plugin().await.inspect_container(&container, None).await.unwrap();
        assert_eq!(found.image.as_deref(), Some(image.digest.as_str()));
        let approved = node.wait_for_event(|e| e.starts_with("module-approved")).await;
        assert!(approved.contains(&image.digest) && approved.contains(&sha(&list)), "{approved}");
        // The manifest has no approval of its own, but its revocation counts.
        node.add_statement(&image.digest, Status::Revoked).await;
        assert!(node.wait_until_denied("multi").await.starts_with("revoked"));
        node.wait_until_removed(&container).await;
    });
}

#[test]
fn a_blob_that_was_altered_on_the_data_partition_is_not_loaded() {
    run(async {
        let mut node = Node::start("damaged").await;
        let image = image("good");
        node.push(&image.archive()).await.unwrap();
        let path = node.settings.data.join("store/blobs").join(&image.layers[0][7..]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[500] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        node.add_statement(&image.digest, Status::Approved).await;
        node.apply("good", &module(&image.digest, ""));
        // The layer was verified before, so it is hashed again only while the engine's archive is
        // written. The archive stays incomplete.
        let deadline = std::time::Instant::now() + crate::node::WAIT_TIMEOUT;
        while path.exists() && std::time::Instant::now() < deadline {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(!path.exists(), "the blob is still there");
        assert!(node.connect_engine().await.containers().await.unwrap().is_empty());
        // After another upload the module runs.
        node.push(&image.archive()).await.unwrap();
        node.modules.wake();
        node.wait_until_running("good").await;
    });
}

/// Approves each hostile archive that the tests of lib/oci generate, as if the approvers had been
/// deceived.
#[test]
fn no_hostile_archive_of_the_corpus_reaches_the_engine() {
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
        // A good image is fetched in the same way.
        for (digest, archive) in corpus("archive-good") {
            node.push(&archive).await.unwrap();
            let source = config::ImageSource { digest, registry: None, archive: None };
            node.modules
                .fetcher()
                .fetch("good", &source, &Default::default(), &|_, _| {})
                .await
                .unwrap();
        }
        // Archives with additional members, or others in place of a good image. Each gets its own
        // store, so that no blob of another archive completes it.
        for (digest, archive) in &around {
            let dir = tempfile::tempdir().unwrap();
            let settings = basalt_trustd::settings::Settings {
                data: dir.path().to_owned(),
                ..node.settings.clone()
            };
            let fetcher = crate::node::fetcher(&settings, &node.config, "arm64");
            let source =
                config::ImageSource { digest: digest.clone(), registry: None, archive: None };
            let uploaded = fetcher.upload(std::io::Cursor::new(archive.clone())).await;
            let fetched = fetcher.fetch("case", &source, &Default::default(), &|_, _| {}).await;
            assert!(uploaded.is_err() || fetched.is_err(), "{digest}");
        }
        let digests: std::collections::BTreeSet<&String> =
            cases.iter().map(|(digest, _)| digest).collect();
        let lines = digests
            .iter()
            .enumerate()
            .map(|(n, digest)| statement(&node.key, digest, Status::Approved, n as u64 + 1));
        node.admission.extend_log(&lines.collect::<String>()).await.unwrap();
        for (n, (digest, archive)) in cases.iter().enumerate() {
            // The store keeps blobs that match their names. They make no image.
            let _ = node.push(archive).await;
            node.apply(
                &format!("case-{n}"),
                &format!("memory-mib = 16\n[image]\ndigest = \"{digest}\"\n"),
            );
        }
        for n in 0..cases.len() {
            node.wait_until_denied(&format!("case-{n}")).await;
        }
        assert!(cases.len() >= 30 && around.len() >= 15, "{} and {}", cases.len(), around.len());
        let engine = node.connect_engine().await;
        assert!(
            engine.images().await.unwrap().is_empty()
                && engine.containers().await.unwrap().is_empty()
        );
    });
}

/// Counts the images that the engine loaded since a time in seconds since 1970.
async fn loads(node: &Node, since: u64) -> usize {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 1;
    let filters = HashMap::from([("type", vec!["image"]), ("event", vec!["load"])]);
    let options = EventsOptionsBuilder::default()
        .since(&since.to_string())
        .until(&now.to_string())
        .filters(&filters)
        .build();
    node.bypass_plugin().await.events(Some(options)).count().await
}

/// The engine unpacks the first layers of an allowed image while later layers are verified.
#[test]
fn an_image_is_loaded_in_parts_that_are_removed_afterwards() {
    run(async {
        let mut node = Node::start("parts").await;
        let began = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let image = image_with_layers(
            "in parts",
            &[Compression::Gzip, Compression::Zstd, Compression::None, Compression::Gzip],
            200_000,
        );
        let listed = index(&image);
        let mut blobs = image.blobs.clone();
        blobs.push(listed.clone());
        node.push(&crate::images::archive_of(&blobs)).await.unwrap();
        // The index is approved and the manifest in it is revoked, so the engine gets no layer.
        let lines = statement(&node.key, &sha(&listed), Status::Approved, 1)
            + &statement(&node.key, &image.digest, Status::Revoked, 2);
        node.admission.extend_log(&lines).await.unwrap();
        node.apply("revoked", &module(&sha(&listed), ""));
        assert!(node.wait_until_denied("revoked").await.starts_with("revoked"));
        assert_eq!(loads(&node, began).await, 0);

        let other = image_with_layers(
            "other parts",
            &[Compression::Gzip, Compression::Zstd, Compression::None, Compression::Gzip],
            200_000,
        );
        node.log = lines;
        node.add_statement(&other.digest, Status::Approved).await;
        node.push(&other.archive()).await.unwrap();
        node.apply("good", &module(&other.digest, ""));
        node.wait_until_running("good").await;
        assert!(loads(&node, began).await >= 3, "the image was not loaded in parts");
        let engine = node.connect_engine().await;
        let deadline = std::time::Instant::now() + crate::node::WAIT_TIMEOUT;
        loop {
            let images: Vec<String> =
                engine.images().await.unwrap().into_iter().map(|i| i.digest).collect();
            let known = std::fs::read_dir(node.settings.run.join("images")).unwrap().count();
            if images == [other.digest.clone()] && known == 1 {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{images:?}, {known} in the inventory");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(
            !node.event_kinds().await.iter().any(|kind| kind == "unknown-image-removed"),
            "{:?}",
            node.events().await
        );
    });
}
