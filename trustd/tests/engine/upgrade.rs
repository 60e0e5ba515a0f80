//! Upgrades and rollbacks of modules.

use basalt_trustd::modules::ModuleStatus;
use deployment::DesiredState;
use ledger::Status;

use crate::images::{TestImage, image};
use crate::node::{Node, run};

fn module(image: &TestImage, more: &str, tables: &str) -> String {
    format!(
        "memory-mib = 32\nstop-within-s = 1\n{more}\n[image]\ndigest = \"{}\"\n{tables}\n",
        image.digest
    )
}

/// Health check of a module that only has to run.
const QUICK: &str = "[health]\nstays-s = 1\nwithin-s = 10\n";
/// Health check by a command.
const CHECKED: &str = "[health]\ncommand = [\"/stay\", \"check\"]\nwithin-s = 6\n";

/// Approves and uploads images.
async fn prepare(node: &mut Node, images: &[&TestImage]) {
    for image in images {
        node.add_statement(&image.digest, Status::Approved).await;
        node.push(&image.archive()).await.unwrap();
    }
}

#[test]
fn two_versions_run_concurrently_and_other_modules_are_not_affected() {
    run(async {
        let mut node = Node::start("upgrade").await;
        let (one, two, other) = (image("one"), image("two"), image("other"));
        prepare(&mut node, &[&one, &two, &other]).await;
        node.apply("app", &module(&one, "", CHECKED));
        node.apply("bystander", &module(&other, "", QUICK));
        let (old, bystander) =
            (node.wait_until_running("app").await, node.wait_until_running("bystander").await);
        let started = |id: String| {
            let behind = node.bypass_plugin();
            async move {
                behind.await.inspect_container(&id, None).await.unwrap().state.unwrap().started_at
            }
        };
        let before = started(bystander.clone()).await;
        node.apply("app", &module(&two, "", CHECKED));
        let upgraded = node.wait_for_event(|e| e.starts_with("module-upgraded")).await;
        assert!(upgraded.contains(&one.digest) && upgraded.contains(&two.digest));
        node.wait_until_removed(&old).await;
        assert_ne!(node.wait_until_running("app").await, old);
        assert_eq!(
            (node.wait_until_running("bystander").await, started(bystander.clone()).await),
            (bystander.clone(), before)
        );
        // The old version stopped only after the new one was healthy.
        let kinds = node.event_kinds().await;
        let at = |kind: &str| kinds.iter().rposition(|k| k == kind).unwrap();
        assert!(
            at("module-started") < at("module-upgraded")
                && at("module-upgraded") < at("module-stopped"),
            "{kinds:?}"
        );
    });
}

#[test]
fn a_version_that_does_not_become_healthy_is_rolled_back() {
    run(async {
        let mut node = Node::start("rollback").await;
        let (good, sick, ends, better) =
            (image("good"), image("sick"), image("ends at once"), image("better"));
        prepare(&mut node, &[&good, &sick, &ends, &better]).await;
        node.apply("app", &module(&good, "", CHECKED));
        let old = node.wait_until_running("app").await;
        for bad in [&sick, &ends] {
            node.apply("app", &module(bad, "", CHECKED));
            let event = node
                .wait_for_event(|e| e.starts_with("module-rolled-back") && e.contains(&bad.digest))
                .await;
            assert!(event.contains(&good.digest));
            assert_eq!(node.wait_until_running("app").await, old, "the old version stopped");
            // The error is set after the event.
            let deadline = std::time::Instant::now() + crate::node::WAIT_TIMEOUT;
            while !node
                .modules
                .views()
                .iter()
                .any(|(v, _)| v.last_error.as_ref().is_some_and(|t| t.contains("rolled back")))
            {
                assert!(std::time::Instant::now() < deadline);
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
        // It is not tried again, even after a restart of trustd.
        let parts = crate::node::dependencies(
            &node.settings,
            &node.config,
            node.tickets.clone(),
            node.tpm.open().await,
        )
        .await;
        let again = std::sync::Arc::new(basalt_trustd::modules::Modules::open(parts).unwrap());
        let (view, _) = again.views().into_iter().next().unwrap();
        assert!(view.last_error.unwrap().contains("rolled back"));
        // A newer spec is tried.
        node.apply("app", &module(&better, "", CHECKED));
        node.wait_for_event(|e| e.starts_with("module-upgraded") && e.contains(&better.digest))
            .await;
        node.wait_until_removed(&old).await;
    });
}

#[test]
fn a_return_to_the_old_version_while_it_stops_is_no_failure() {
    run(async {
        let mut node = Node::start("return").await;
        let (one, two) = (image("one"), image("two"));
        prepare(&mut node, &[&one, &two]).await;
        // The program ignores SIGTERM, so the stop lasts as long as it may.
        let file =
            |image| module(image, "", QUICK).replace("stop-within-s = 1", "stop-within-s = 5");
        node.apply("app", &file(&one));
        let old = node.wait_until_running("app").await;
        node.apply("app", &file(&two));
        node.wait_for_event(|e| e.starts_with("module-stopped") && e.contains(&one.digest)).await;
        let stopping = || {
            let path = node.settings.run.join("containers").join(&old);
            std::fs::read_to_string(path).is_ok_and(|text| text.contains("\"stopping\":true"))
        };
        crate::node::wait("the stop of the old version", stopping);
        node.apply("app", &file(&one));
        let is_return = |e: &str| e.starts_with("module-upgraded") && e.contains("\"app\"");
        let deadline = std::time::Instant::now() + crate::node::WAIT_TIMEOUT;
        while node.events().await.iter().filter(|e| is_return(e)).count() < 2 {
            assert!(std::time::Instant::now() < deadline, "{:?}", node.events().await);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        node.wait_for_event(|e| e.starts_with("module-stopped") && e.contains(&two.digest)).await;
        let kinds = node.event_kinds().await;
        for failure in ["module-exited", "module-failed", "module-rolled-back"] {
            assert!(!kinds.iter().any(|kind| kind == failure), "{kinds:?}");
        }
        assert_eq!(
            kinds.iter().filter(|kind| *kind == "module-stopped").count(),
            1 + 1,
            "{kinds:?}"
        );
    });
}

#[test]
fn the_old_version_keeps_running_until_an_upgrade_is_approved() {
    run(async {
        let mut node = Node::start("unapproved").await;
        let (good, next) = (image("good"), image("next"));
        prepare(&mut node, &[&good]).await;
        node.push(&next.archive()).await.unwrap();
        node.apply("app", &module(&good, "", QUICK));
        let old = node.wait_until_running("app").await;
        node.apply("app", &module(&next, "", QUICK));
        node.wait_for_event(|e| e.starts_with("module-denied") && e.contains(&next.digest)).await;
        assert_eq!(node.wait_until_running("app").await, old);
        // Once it is approved, the new version replaces the old one.
        node.add_statement(&next.digest, Status::Approved).await;
        node.wait_until_removed(&old).await;
        node.wait_for_event(|e| e.starts_with("module-upgraded")).await;
    });
}

#[test]
fn the_last_good_version_runs_if_the_newest_is_denied() {
    run(async {
        let mut node = Node::start("fallback").await;
        let (good, next) = (image("good"), image("next"));
        prepare(&mut node, &[&good]).await;
        // The engine writes a command of one word with a trailing space.
        let toml = module(&good, "", "[health]\ncommand = [\"/stay\"]\nwithin-s = 3\n");
        node.apply("slow", &toml.replace("\"/stay\"", "\"/none\""));
        node.wait_for_event(|e| e.starts_with("module-failed") && e.contains("slow")).await;
        assert!(
            !node.event_kinds().await.contains(&"module-tampered".to_owned()),
            "the health check counted as an alteration"
        );
        node.apply("app", &module(&good, "", QUICK));
        let old = node.wait_until_running("app").await;
        // The newest version is not approved, and the running container exits.
        node.apply("app", &module(&next, "", QUICK));
        node.wait_for_event(|e| e.starts_with("module-denied") && e.contains(&next.digest)).await;
        node.bypass_plugin()
            .await
            .kill_container(&old, None::<bollard::query_parameters::KillContainerOptions>)
            .await
            .unwrap();
        node.wait_for_event(|e| e.starts_with("module-started") && e.contains(&good.digest)).await;
        let deadline = std::time::Instant::now() + crate::node::WAIT_TIMEOUT;
        loop {
            let containers = node.connect_engine().await.containers().await.unwrap();
            if containers.iter().any(|c| {
                c.id != old && c.running && c.image == good.digest && c.name.starts_with("app")
            }) {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "{containers:?}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
}

#[test]
fn volumes_persist_and_are_never_shared_by_two_versions() {
    run(async {
        let mut node = Node::start("volumes").await;
        let (one, two, sick) = (image("one"), image("two"), image("sick"));
        prepare(&mut node, &[&one, &two, &sick]).await;
        let with_volume = |image: &TestImage, health: &str| {
            module(
                image,
                "command = [\"/stay\", \"/var/lib/app/words\"]",
                &format!("{health}[[volumes]]\nname = \"state\"\npath = \"/var/lib/app\"\n"),
            )
        };
        node.apply("app", &with_volume(&one, CHECKED));
        let old = node.wait_until_running("app").await;
        node.apply("app", &with_volume(&sick, CHECKED));
        node.wait_for_event(|e| e.starts_with("module-rolled-back")).await;
        assert_eq!(node.wait_until_running("app").await, old, "the old container was replaced");
        // The status names the old container all the time. Its output shows when it runs again. A
        // newer spec before that would supersede the rollback.
        let words =
            || std::fs::read_to_string(node.settings.data.join("volumes/app/state/words")).unwrap();
        crate::node::wait("the old version's restart", || words() == "one\nsick\none\n");
        node.apply("app", &with_volume(&two, CHECKED));
        node.wait_until_removed(&old).await;
        node.wait_for_event(|e| e.starts_with("module-upgraded")).await;
        let words =
            std::fs::read_to_string(node.settings.data.join("volumes/app/state/words")).unwrap();
        assert_eq!(words, "one\nsick\none\ntwo\n");
        // A link in place of the volume's folder is not followed.
        let dir = node.settings.data.join("volumes/other");
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("state")).unwrap();
        node.apply("other", &with_volume(&one, QUICK));
        let ModuleStatus::Failed { reason } =
            node.wait_for_status("other", |s| matches!(s, ModuleStatus::Failed { .. })).await
        else {
            unreachable!()
        };
        assert!(reason.contains("expected a folder"), "{reason}");
    });
}

#[test]
fn modules_wait_for_their_needs_reach_their_peers_and_do_not_share_ports() {
    run(async {
        let mut node = Node::start("net").await;
        let (server, client) = (image("serves tea"), image("asks server"));
        prepare(&mut node, &[&server, &client]).await;
        // The client is applied first and waits for the server.
        node.apply(
            "client",
            &module(
                &client,
                "network = \"bridge\"\npeers = [\"server\"]\nneeds = [\"server\"]",
                "[health]\nstays-s = 1\nwithin-s = 10\n",
            ),
        );
        node.wait_for_status(
            "client",
            |s| matches!(s, ModuleStatus::Waiting { reason } if reason.contains("server")),
        )
        .await;
        node.apply(
            "server",
            &module(
                &server,
                "network = \"bridge\"\npeers = [\"client\"]",
                "[health]\nport = 80\nwithin-s = 20\n[[ports]]\nnode = 8080\nmodule = 80\n",
            ),
        );
        node.wait_until_running("server").await;
        let container = node.wait_until_running("client").await;
        let engine = node.connect_engine().await;
        let deadline = std::time::Instant::now() + crate::node::WAIT_TIMEOUT;
        while !engine.logs(&container, 10).await.unwrap().contains("server answered: serves tea") {
            assert!(
                std::time::Instant::now() < deadline,
                "{}",
                engine.logs(&container, 10).await.unwrap()
            );
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        // Another module cannot use the same port.
        let error = node.modules.apply(
            "other",
            &node.spec(
                "other",
                DesiredState::Run,
                &module(&server, "network = \"bridge\"", "[[ports]]\nnode = 8080\nmodule = 80\n"),
            ),
        );
        assert!(error.unwrap_err().to_string().contains("the module server uses 8080/tcp"));
    });
}

#[test]
fn a_module_is_stopped_started_and_removed() {
    run(async {
        let mut node = Node::start("stop").await;
        let image = image("good");
        prepare(&mut node, &[&image]).await;
        let toml = module(&image, "", QUICK);
        node.apply("app", &toml);
        let container = node.wait_until_running("app").await;
        node.modules.apply("app", &node.spec("app", DesiredState::Stop, &toml)).unwrap();
        node.wait_for_status("app", |s| *s == ModuleStatus::Stopped).await;
        node.wait_until_removed(&container).await;
        node.apply("app", &toml);
        let again = node.wait_until_running("app").await;
        node.modules.apply("app", &node.spec("app", DesiredState::Remove, &toml)).unwrap();
        node.wait_until_removed(&again).await;
        node.wait_for_status("app", |s| *s == ModuleStatus::Stopped).await;
        assert!(node.modules.views().is_empty());
        assert!(!node.settings.data.join("modules/app.last-good.json").exists());
        // Its image is not needed any more and is removed.
        let deadline = std::time::Instant::now() + crate::node::WAIT_TIMEOUT;
        // The engine may fail to list images while it removes one.
        while !node.connect_engine().await.images().await.is_ok_and(|images| images.is_empty()) {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
}
