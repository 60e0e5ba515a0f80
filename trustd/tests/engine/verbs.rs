//! Every verb of `trustctl module` on every kind of module, through the program itself.

use std::path::PathBuf;
use std::process::{Command, Output};

use basalt_trustd::modules::ModuleStatus;
use basalt_trustd::owner_api::routes;
use config::{Api, AttestationAccess};
use deployment::DesiredState;
use ledger::Status;
use serde_json::Value;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::api::owner_state;
use crate::attest;
use crate::images::{TestImage, image};
use crate::node::{Node, run};
use crate::registry::RealRegistry;

/// Exit status of `trustctl` if the node answered with an error.
const REFUSED: i32 = 3;

/// A node with the API that `trustctl` calls, and the folder of the owner's keys.
struct Place {
    node: Node,
    keys: PathBuf,
    address: String,
    server: Option<JoinHandle<()>>,
}

impl Place {
    /// Serves the API of a node on its own socket.
    fn local(node: Node) -> Self {
        let keys = node.dir.path().join("keys");
        node.owner.save(&keys);
        let address = format!("unix:{}", node.dir.path().join("api.sock").display());
        let mut place = Self { node, keys, address, server: None };
        place.serve();
        place
    }

    fn serve(&mut self) {
        let path = self.node.dir.path().join("api.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let state = self.node.node_state(&self.node.certificate);
        let router = routes::router(owner_state(&self.node, state));
        self.server = Some(tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        }));
    }

    /// Ends trustd and starts it again.
    async fn restart(&mut self) {
        let server = self.server.take().unwrap();
        server.abort();
        let _ = server.await;
        self.node.restart().await;
        self.serve();
    }

    /// Runs `trustctl` with the owner's keys.
    fn output(&self, arguments: &[&str]) -> Output {
        let program = std::env::var_os("BASALT_TRUSTCTL")
            .expect("BASALT_TRUSTCTL is not set: cargo xtask test engine sets it");
        let mut command = Command::new(program);
        command.args(["--node", &self.address, "--keys"]).arg(&self.keys).args(arguments);
        command.output().unwrap()
    }

    /// Runs `trustctl` and requires success. Returns its output.
    fn trustctl(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs `trustctl` and requires that it fails with an exit status. Returns the error.
    fn failure(&self, arguments: &[&str], status: i32) -> String {
        let output = self.output(arguments);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        error
    }

    /// Writes a file for `trustctl`, and returns its path.
    fn file(&self, name: &str, data: impl AsRef<[u8]>) -> String {
        let path = self.node.dir.path().join(name);
        std::fs::write(&path, data).unwrap();
        path.to_string_lossy().into_owned()
    }

    /// Returns what `trustctl module list` shows of a module.
    fn listed(&self, name: &str) -> Option<Value> {
        let answer = self.trustctl(&["--json", "module", "list"]);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["modules"].as_array().unwrap().iter().find(|m| m["name"] == name).cloned()
    }

    /// Waits until a module runs with this image, and nothing else of it does.
    async fn wait_until_runs(&self, name: &str, image: &TestImage) {
        let engine = self.node.connect_engine().await;
        let deadline = std::time::Instant::now() + crate::node::WAIT_TIMEOUT;
        loop {
            let all = engine.containers().await.unwrap();
            let own: Vec<_> =
                all.iter().filter(|c| c.name.starts_with(&format!("{name}."))).collect();
            let status = self.node.modules.status(name);
            if let (Some(ModuleStatus::Running { container }), [one]) = (&status, &own[..])
                && one.id == *container
                && one.running
                && one.image == image.digest
            {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{name}: {status:?}, {own:?}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Waits until a module is stopped, and requires that it has no container.
    async fn wait_until_stopped(&self, name: &str) {
        self.node.wait_for_status(name, |s| *s == ModuleStatus::Stopped).await;
        let containers = self.node.connect_engine().await.containers().await.unwrap();
        assert!(
            !containers.iter().any(|c| c.name.starts_with(&format!("{name}."))),
            "{name}: {containers:?}"
        );
    }

    /// Adds a module to the node's image, or replaces it. `version` is in the archive's name.
    fn ship(&self, name: &str, version: &str, image: &TestImage) {
        let archive = self.file(&format!("{version}.tar"), image.archive());
        let text = format!("{}archive = \"{archive}\"\n[health]\nstays-s = 1\n", head(image));
        std::fs::write(self.node.settings.etc.join(format!("modules/{name}.toml")), text).unwrap();
    }
}

/// Returns the start of a module file.
fn head(image: &TestImage) -> String {
    format!("memory-mib = 32\nstop-within-s = 1\n[image]\ndigest = \"{}\"\n", image.digest)
}

/// Returns a module file without a place that the image is fetched from.
fn plain(image: &TestImage) -> String {
    format!("{}[health]\nstays-s = 1\n", head(image))
}

/// Where a module comes from.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Shipped,
    Uploaded,
    FromRegistry,
}

/// Applies a version of a module that does not ship, and waits until it runs.
fn apply(place: &Place, name: &str, kind: Kind, image: &TestImage, registry: &RealRegistry) {
    let archive = place.file("image.tar", image.archive());
    let text = match kind {
        Kind::FromRegistry => {
            image.publish(&registry.storage, "team/app");
            let repository = format!("{}/team/app", registry.address);
            format!("{}registry = \"{repository}\"\n[health]\nstays-s = 1\n", head(image))
        }
        Kind::Shipped | Kind::Uploaded => plain(image),
    };
    let file = place.file("module.toml", text);
    let mut arguments = vec!["module", "apply", name, "--file", &file, "--wait", "100"];
    if kind != Kind::FromRegistry {
        arguments.extend(["--archive", &archive]);
    }
    assert_eq!(place.trustctl(&arguments), format!("{name} runs\n"));
}

#[test]
fn every_verb_works_on_every_kind_of_module_and_outlives_a_restart() {
    run(async {
        let registry = RealRegistry::start();
        let settings = format!("[[registries]]\nhost = \"{}\"\nplain = true\n", registry.address);
        let mut place = Place::local(Node::with("verbs", &settings).await);
        for (name, kind) in [
            ("shipped", Kind::Shipped),
            ("uploaded", Kind::Uploaded),
            ("fetched", Kind::FromRegistry),
        ] {
            let (one, two) = (image(&format!("{name} one")), image(&format!("{name} two")));
            for image in [&one, &two] {
                place.node.add_statement(&image.digest, Status::Approved).await;
            }
            if kind == Kind::Shipped {
                place.ship(name, "shipped-one", &one);
                place.restart().await;
            } else {
                apply(&place, name, kind, &one, &registry);
            }
            place.wait_until_runs(name, &one).await;
            carry_out_every_verb(&mut place, name, kind, (&one, &two), &registry).await;
        }
    });
}

/// Carries out every verb on a module that runs its first version, with a restart after each.
async fn carry_out_every_verb(
    place: &mut Place,
    name: &str,
    kind: Kind,
    (one, two): (&TestImage, &TestImage),
    registry: &RealRegistry,
) {
    let log = place.trustctl(&["module", "logs", name]);
    assert_eq!(log, format!("{name} one\n"));

    place.trustctl(&["module", "stop", name]);
    place.wait_until_stopped(name).await;
    place.restart().await;
    place.wait_until_stopped(name).await;
    place.trustctl(&["module", "start", name]);
    place.wait_until_runs(name, one).await;

    apply(place, name, kind, two, registry);
    place.restart().await;
    place.wait_until_runs(name, two).await;
    place.trustctl(&["module", "rollback", name]);
    place.wait_until_runs(name, one).await;
    place.restart().await;
    place.wait_until_runs(name, one).await;
    assert_eq!(place.listed(name).unwrap()["shipped"], kind == Kind::Shipped);
    // The version that was rolled back is the one before now.
    place.trustctl(&["module", "rollback", name]);
    place.wait_until_runs(name, two).await;

    place.trustctl(&["module", "remove", name]);
    place.wait_until_stopped(name).await;
    place.restart().await;
    place.wait_until_stopped(name).await;
    if kind == Kind::Shipped {
        let removed = place.listed(name).unwrap();
        assert_eq!((&removed["desired"], &removed["shipped"]), (&"remove".into(), &true.into()));
        place.trustctl(&["module", "start", name]);
        place.wait_until_runs(name, one).await;
        apply(place, name, kind, two, registry);
        place.trustctl(&["module", "restore", name]);
        place.wait_until_runs(name, one).await;
    } else {
        assert_eq!(place.listed(name), None);
        assert!(place.failure(&["module", "start", name], 1).contains("has no module"));
        let error = place.failure(&["module", "restore", name], REFUSED);
        assert!(error.contains("the node's image ships no module"), "{error}");
        apply(place, name, kind, one, registry);
    }
    place.restart().await;
    place.wait_until_runs(name, one).await;
}

#[test]
fn an_update_of_the_nodes_image_changes_only_what_follows_it() {
    run(async {
        let mut place = Place::local(Node::start("updates").await);
        let (one, two, own) = (image("one"), image("two"), image("own"));
        for image in [&one, &two, &own] {
            place.node.add_statement(&image.digest, Status::Approved).await;
        }
        let names = ["untouched", "restarted", "stopped", "removed", "upgraded"];
        for name in names {
            place.ship(name, "one", &one);
        }
        place.restart().await;
        for name in names {
            place.wait_until_runs(name, &one).await;
        }
        for (verb, name) in [("stop", "restarted"), ("stop", "stopped"), ("remove", "removed")] {
            place.trustctl(&["module", verb, name]);
            place.wait_until_stopped(name).await;
        }
        place.trustctl(&["module", "start", "restarted"]);
        let (file, archive) =
            (place.file("own.toml", plain(&own)), place.file("own.tar", own.archive()));
        let apply = ["module", "apply", "upgraded", "--file", &file, "--archive", &archive];
        place.trustctl(&[&apply[..], &["--wait", "100"]].concat());

        // The next image ships another version of each module, and no longer has the first.
        for name in names {
            place.ship(name, "two", &two);
        }
        std::fs::remove_file(place.node.dir.path().join("one.tar")).unwrap();
        place.restart().await;
        for name in ["untouched", "restarted"] {
            place.wait_until_runs(name, &two).await;
        }
        place.wait_until_stopped("stopped").await;
        place.wait_until_stopped("removed").await;
        place.wait_until_runs("upgraded", &own).await;
        for (verb, name) in [("start", "stopped"), ("restore", "removed"), ("rollback", "upgraded")]
        {
            place.trustctl(&["module", verb, name]);
            place.wait_until_runs(name, &two).await;
        }

        // An image without a module ends it, and says so.
        std::fs::remove_file(place.node.settings.etc.join("modules/stopped.toml")).unwrap();
        place.restart().await;
        assert_eq!(place.listed("stopped"), None);
        let error = place.failure(&["module", "start", "stopped"], 1);
        assert!(error.contains("the node's image ships no module stopped"), "{error}");
    });
}

#[test]
fn a_spec_is_for_the_node_with_the_pinned_certificate() {
    run(async {
        let mut node = Node::start("identity").await;
        let api = Api { listen: "127.0.0.1:0".into(), attest: AttestationAccess::Owner };
        node.certificate = attest::bind(&node, &api).await.fingerprint;
        node.restart().await;
        attest::serve(&node, AttestationAccess::Owner).await;
        let keys = node.dir.path().join("keys");
        node.owner.save(&keys);
        let place = Place { node, keys, address: attest::ADDRESS.into(), server: None };

        let file = place.file("app.toml", plain(&image("never uploaded")));
        place.trustctl(&["module", "apply", "app", "--file", &file]);
        let spec =
            std::fs::read_to_string(place.node.settings.data.join("modules/app.desired.json"));
        assert!(spec.unwrap().contains(&place.node.certificate));
        let pinned = std::fs::read_to_string(place.keys.join("known_nodes")).unwrap();
        assert_eq!(pinned, format!("{} {}\n", attest::ADDRESS, place.node.certificate));
        assert!(place.trustctl(&["status"]).contains(&place.node.certificate));

        // Signed without a node, for several nodes: each takes its own and refuses the others.
        let (own, other) = (place.node.certificate.clone(), "cd".repeat(32));
        let sign = |nodes: &[&str]| {
            let nodes = nodes.iter().flat_map(|node| ["--for", node]);
            let mut arguments = vec!["module", "sign", "app"];
            arguments.extend(["--file", &file, "--desired", "stop"].into_iter().chain(nodes));
            place.file("specs", place.trustctl(&arguments))
        };
        let error = place.failure(&["module", "send", &sign(&[&other])], 1);
        assert!(error.contains("has no spec for the node"), "{error}");
        place.trustctl(&["module", "send", &sign(&[&other, &own])]);
        assert_eq!(place.listed("app").unwrap()["desired"], "stop");
        place.failure(&["module", "sign", "app", "--file", &file], 2);
        let error = place.failure(&["module", "sign", "app", "--for", "all"], 1);
        assert!(error.contains("64 lower-case hex digits"), "{error}");
        refuse_the_spec_of_another_node(&place, &other);
    });
}

/// Sends a spec for another node, as a program without `trustctl`'s check would.
fn refuse_the_spec_of_another_node(place: &Place, other: &str) {
    let stop = DesiredState::Stop;
    let signed = trustctl::module::sign_spec(&place.keys, other, "app", stop, None).unwrap();
    let client = trustctl::client::Client::new(place.address.parse().unwrap(), &place.keys);
    // The client has a runtime of its own.
    let send = std::thread::spawn(move || client.apply_spec("app", &signed).unwrap_err());
    let error = send.join().unwrap();
    let refusal = error.downcast::<trustctl::client::Refusal>().unwrap();
    assert_eq!((refusal.status, refusal.code), (403, api::ErrorCode::WrongNode));
    assert!(refusal.message.contains(&format!("for the node {other}")), "{}", refusal.message);
}
