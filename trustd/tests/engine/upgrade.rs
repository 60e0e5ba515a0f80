//! One version after the other, and back.

use basalt_trustd::modules::State;
use deployment::DesiredState;
use ledger::Status;

use crate::images::{Built, image};
use crate::node::{Node, run};

fn module(image: &Built, more: &str, tables: &str) -> String {
    format!(
        "memory-mib = 32\nstop-within-s = 1\n{more}\n[image]\ndigest = \"{}\"\n{tables}\n",
        image.digest
    )
}

const QUICK: &str = "[health]\nstays-s = 1\nwithin-s = 10\n";
const CHECKED: &str = "[health]\ncommand = [\"/stay\", \"check\"]\nwithin-s = 6\n";

async fn ready(node: &mut Node, images: &[&Built]) {
    for image in images {
        node.state(&image.digest, Status::Approved).await;
        node.push(&image.archive()).await.unwrap();
    }
}

#[test]
fn the_new_runs_beside_the_old_and_nobody_else_is_touched() {
    run(async {
        let mut node = Node::start("upgrade").await;
        let (one, two, other) = (image("one"), image("two"), image("other"));
        ready(&mut node, &[&one, &two, &other]).await;
        node.apply("app", &module(&one, "", CHECKED));
        node.apply("bystander", &module(&other, "", QUICK));
        let (old, bystander) = (node.running("app").await, node.running("bystander").await);
        let started = |id: String| {
            let behind = node.behind();
            async move {
                behind.await.inspect_container(&id, None).await.unwrap().state.unwrap().started_at
            }
        };
        let before = started(bystander.clone()).await;
        node.apply("app", &module(&two, "", CHECKED));
        let upgraded = node.event(|e| e.starts_with("module-upgraded")).await;
        assert!(upgraded.contains(&one.digest) && upgraded.contains(&two.digest));
        node.gone(&old).await;
        assert_ne!(node.running("app").await, old);
        assert_eq!(
            (node.running("bystander").await, started(bystander.clone()).await),
            (bystander.clone(), before)
        );
        // Until the new one was healthy, the old one ran.
        let kinds = node.kinds().await;
        let at = |kind: &str| kinds.iter().rposition(|k| k == kind).unwrap();
        assert!(
            at("module-started") < at("module-upgraded")
                && at("module-upgraded") < at("module-stopped"),
            "{kinds:?}"
        );
    });
}

#[test]
fn what_does_not_become_healthy_is_rolled_back() {
    run(async {
        let mut node = Node::start("rollback").await;
        let (good, sick, ends, better) =
            (image("good"), image("sick"), image("ends at once"), image("better"));
        ready(&mut node, &[&good, &sick, &ends, &better]).await;
        node.apply("app", &module(&good, "", CHECKED));
        let old = node.running("app").await;
        for bad in [&sick, &ends] {
            node.apply("app", &module(bad, "", CHECKED));
            let event = node
                .event(|e| e.starts_with("module-rolled-back") && e.contains(&bad.digest))
                .await;
            assert!(event.contains(&good.digest));
            assert_eq!(node.running("app").await, old, "the old one never stopped");
            // Said first, then remembered.
            let deadline = std::time::Instant::now() + crate::node::PATIENCE;
            while !node
                .modules
                .views()
                .iter()
                .any(|(v, _)| v.trouble.as_ref().is_some_and(|t| t.contains("rolled back")))
            {
                assert!(std::time::Instant::now() < deadline);
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        }
        // It is not tried again, not even by a trustd that starts anew.
        let parts = crate::node::parts(
            &node.settings,
            &node.config,
            node.tickets.clone(),
            node.tpm.open().await,
        )
        .await;
        let again = std::sync::Arc::new(basalt_trustd::modules::Modules::open(parts).unwrap());
        let (view, _) = again.views().into_iter().next().unwrap();
        assert!(view.trouble.unwrap().contains("rolled back"));
        // A newer spec is.
        node.apply("app", &module(&better, "", CHECKED));
        node.event(|e| e.starts_with("module-upgraded") && e.contains(&better.digest)).await;
        node.gone(&old).await;
    });
}

#[test]
fn an_upgrade_that_is_not_approved_leaves_the_old_one_running() {
    run(async {
        let mut node = Node::start("unapproved").await;
        let (good, next) = (image("good"), image("next"));
        ready(&mut node, &[&good]).await;
        node.push(&next.archive()).await.unwrap();
        node.apply("app", &module(&good, "", QUICK));
        let old = node.running("app").await;
        node.apply("app", &module(&next, "", QUICK));
        node.event(|e| e.starts_with("module-denied") && e.contains(&next.digest)).await;
        assert_eq!(node.running("app").await, old);
        // Approved later, it takes over.
        node.state(&next.digest, Status::Approved).await;
        node.gone(&old).await;
        node.event(|e| e.starts_with("module-upgraded")).await;
    });
}

#[test]
fn the_good_version_runs_when_the_newest_cannot_be() {
    run(async {
        let mut node = Node::start("fallback").await;
        let (good, next) = (image("good"), image("next"));
        ready(&mut node, &[&good]).await;
        // One word: the engine writes it with a blank after it.
        let toml = module(&good, "", "[health]\ncommand = [\"/stay\"]\nwithin-s = 3\n");
        node.apply("slow", &toml.replace("\"/stay\"", "\"/none\""));
        node.event(|e| e.starts_with("module-failed") && e.contains("slow")).await;
        assert!(
            !node.kinds().await.contains(&"module-tampered".to_owned()),
            "its check is not somebody's doing"
        );
        node.apply("app", &module(&good, "", QUICK));
        let old = node.running("app").await;
        // Never approved; and what runs ends.
        node.apply("app", &module(&next, "", QUICK));
        node.event(|e| e.starts_with("module-denied") && e.contains(&next.digest)).await;
        node.behind()
            .await
            .kill_container(&old, None::<bollard::query_parameters::KillContainerOptions>)
            .await
            .unwrap();
        node.event(|e| e.starts_with("module-started") && e.contains(&good.digest)).await;
        let deadline = std::time::Instant::now() + crate::node::PATIENCE;
        loop {
            let containers = node.own().await.containers().await.unwrap();
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
fn folders_last_and_are_never_shared_by_two_versions() {
    run(async {
        let mut node = Node::start("volumes").await;
        let (one, two, sick) = (image("one"), image("two"), image("sick"));
        ready(&mut node, &[&one, &two, &sick]).await;
        let with_folder = |image: &Built, health: &str| {
            module(
                image,
                "command = [\"/stay\", \"/var/lib/app/words\"]",
                &format!("{health}[[volumes]]\nname = \"state\"\npath = \"/var/lib/app\"\n"),
            )
        };
        node.apply("app", &with_folder(&one, CHECKED));
        let old = node.running("app").await;
        node.apply("app", &with_folder(&sick, CHECKED));
        node.event(|e| e.starts_with("module-rolled-back")).await;
        assert_eq!(node.running("app").await, old, "stopped for the trial, and started again");
        // The state names it throughout; the engine says when it is up again. A newer spec before
        // that would come first.
        let words =
            || std::fs::read_to_string(node.settings.data.join("volumes/app/state/words")).unwrap();
        crate::node::wait("the old version's restart", || words() == "one\nsick\none\n");
        node.apply("app", &with_folder(&two, CHECKED));
        node.gone(&old).await;
        node.event(|e| e.starts_with("module-upgraded")).await;
        let words =
            std::fs::read_to_string(node.settings.data.join("volumes/app/state/words")).unwrap();
        assert_eq!(words, "one\nsick\none\ntwo\n");
        // A link in place of the folder is not followed.
        let dir = node.settings.data.join("volumes/other");
        std::fs::create_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("state")).unwrap();
        node.apply("other", &with_folder(&one, QUICK));
        let State::Failed { reason } =
            node.until("other", |s| matches!(s, State::Failed { .. })).await
        else {
            unreachable!()
        };
        assert!(reason.contains("no folder"), "{reason}");
    });
}

#[test]
fn order_ports_and_peers() {
    run(async {
        let mut node = Node::start("net").await;
        let (server, client) = (image("serves tea"), image("asks server"));
        ready(&mut node, &[&server, &client]).await;
        // The one that needs the other is desired first, and waits.
        node.apply(
            "client",
            &module(
                &client,
                "network = \"bridge\"\npeers = [\"server\"]\nneeds = [\"server\"]",
                "[health]\nstays-s = 1\nwithin-s = 10\n",
            ),
        );
        node.until(
            "client",
            |s| matches!(s, State::Waiting { reason } if reason.contains("server")),
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
        node.running("server").await;
        let container = node.running("client").await;
        let engine = node.own().await;
        let deadline = std::time::Instant::now() + crate::node::PATIENCE;
        while !engine.logs(&container, 10).await.unwrap().contains("server said: serves tea") {
            assert!(
                std::time::Instant::now() < deadline,
                "{}",
                engine.logs(&container, 10).await.unwrap()
            );
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        // Nobody else may have the port.
        let error = node.modules.apply(
            "thief",
            &node.spec(
                "thief",
                DesiredState::Run,
                &module(&server, "network = \"bridge\"", "[[ports]]\nnode = 8080\nmodule = 80\n"),
            ),
        );
        assert!(error.unwrap_err().to_string().contains("taken by the module server"));
    });
}

#[test]
fn stopped_started_and_removed() {
    run(async {
        let mut node = Node::start("stop").await;
        let image = image("good");
        ready(&mut node, &[&image]).await;
        let toml = module(&image, "", QUICK);
        node.apply("app", &toml);
        let container = node.running("app").await;
        node.modules.apply("app", &node.spec("app", DesiredState::Stop, &toml)).unwrap();
        node.until("app", |s| *s == State::Stopped).await;
        node.gone(&container).await;
        node.apply("app", &toml);
        let again = node.running("app").await;
        node.modules.apply("app", &node.spec("app", DesiredState::Remove, &toml)).unwrap();
        node.gone(&again).await;
        node.until("app", |s| *s == State::Stopped).await;
        assert!(node.modules.views().is_empty());
        assert!(!node.settings.data.join("modules/app.good.json").exists());
        // Its image is nobody's any more.
        let deadline = std::time::Instant::now() + crate::node::PATIENCE;
        // While it goes, the engine may not be able to list it.
        while !node.own().await.images().await.is_ok_and(|images| images.is_empty()) {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
}
