//! Specs on the data partition, over updates of the node's image.

use deployment::{DesiredState, SignedSpec, Spec};
use rcgen::SigningKey as _;

use super::*;
use crate::modules::status::{ModuleState, ModuleView};

/// SHA-256 of the node's certificate, hex.
const NODE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const OTHER_NODE: &str = "2222222222222222222222222222222222222222222222222222222222222222";

/// Data partition of a node, the modules of its image, and its owner.
struct Place {
    dir: tempfile::TempDir,
    key: rcgen::KeyPair,
    certificate: Vec<u8>,
    generation: u64,
}

fn digest(image: char) -> String {
    format!("sha256:{}", String::from(image).repeat(64))
}

fn module_file(image: char, more: &str) -> String {
    format!("[image]\ndigest = \"{}\"\n{more}", digest(image))
}

impl Place {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        Self { dir, key, certificate: certificate.der().to_vec(), generation: 0 }
    }

    /// Replaces the node's image by one that ships the module `app` with this image, or ships none.
    fn update(&self, image: Option<char>) {
        let file = self.dir.path().join("etc/app.toml");
        let text = image.map(|image| module_file(image, &format!("archive = \"/{image}.tar\"\n")));
        match text {
            Some(text) => std::fs::write(file, text).unwrap(),
            None => std::fs::remove_file(file).unwrap(),
        }
    }

    fn open(&self) -> DesiredStates {
        let owners = vec![measure::hex(&Sha256::digest(&self.certificate))];
        let identities = Identities { node: NODE.into(), owners };
        let path = |sub: &str| self.dir.path().join(sub);
        DesiredStates::open(&path("data"), &path("etc"), identities).unwrap()
    }

    /// Restarts trustd and returns the module's history and why its spec is rejected.
    fn restart(&self) -> (Option<History>, Option<String>) {
        let mut loaded = self.open().load().unwrap();
        (loaded.histories.remove("app"), loaded.rejected.remove("app"))
    }

    /// Returns the history of a module whose spec is not rejected.
    fn history(&self) -> History {
        let (history, rejected) = self.restart();
        assert_eq!(rejected, None);
        history.unwrap()
    }

    fn sign(&self, spec: &str, message: &[u8]) -> SignedSpec {
        SignedSpec {
            certificate: measure::hex(&self.certificate),
            signature: measure::hex(&self.key.sign(message).unwrap()),
            spec: spec.to_owned(),
        }
    }

    fn spec(&mut self, node: &str, desired: DesiredState, toml: Option<String>) -> SignedSpec {
        self.generation += 1;
        let (generation, module, node) = (self.generation, "app".to_owned(), node.to_owned());
        let text = Spec { desired, generation, module, node, toml }.text();
        self.sign(&text, &deployment::signed_bytes(&text))
    }

    /// Applies a spec as [`crate::modules::Modules::apply`] does.
    fn apply(&mut self, desired: DesiredState, toml: Option<String>) -> Version {
        let signed = self.spec(NODE, desired, toml);
        let (store, (history, _)) = (self.open(), self.restart());
        let (_, version) = store.verify(&signed).unwrap();
        let last_good = history.and_then(|history| history.last_good);
        store.persist("app", &signed, last_good.as_ref()).unwrap();
        version
    }

    fn plant(&self, text: &str) {
        std::fs::create_dir_all(self.dir.path().join("data")).unwrap();
        std::fs::write(self.dir.path().join("data/app.desired.json"), text).unwrap();
    }
}

fn view(history: History) -> Option<ModuleView> {
    ModuleState::new(history).view("app")
}

#[test]
fn a_spec_without_a_file_follows_the_shipped_one_and_its_updates() {
    let mut place = Place::new();
    place.update(Some('a'));
    let before = place.history();
    assert_eq!(before.desired.unwrap().desired, DesiredState::Run);
    for desired in [DesiredState::Stop, DesiredState::Run] {
        place.update(Some('a'));
        place.apply(desired, None);
        for image in ['a', 'b'] {
            place.update(Some(image));
            let version = place.history().desired.unwrap();
            assert_eq!((version.desired, version.source.digest), (desired, digest(image)));
            assert_eq!(version.source.archive, Some(format!("/{image}.tar")));
            assert_eq!(version.generation, place.generation);
        }
    }
}

#[test]
fn a_file_that_the_owner_signed_outlives_an_update_of_the_image() {
    let mut place = Place::new();
    place.update(Some('a'));
    place.apply(DesiredState::Run, Some(module_file('c', "")));
    let history = place.history();
    assert_eq!(history.desired.unwrap().source.digest, digest('c'));
    // The shipped version ran before, and the new one falls back to it.
    assert_eq!(history.last_good.unwrap().source.digest, digest('a'));
    place.update(Some('b'));
    let history = place.history();
    let version = history.desired.clone().unwrap();
    assert_eq!(
        (version.source.digest.clone(), version.source.archive.clone()),
        (digest('c'), None)
    );
    // Once it is healthy, a rollback leads to the shipped version, also after a restart.
    place.open().persist_good("app", &version).unwrap();
    let view = view(place.history()).unwrap();
    let previous = view.previous.unwrap();
    assert_eq!((view.shipped, previous.shipped, previous.digest), (false, true, digest('b')));
}

#[test]
fn a_removed_module_stays_removed_and_can_be_started_again() {
    let mut place = Place::new();
    place.update(Some('a'));
    place.apply(DesiredState::Run, Some(module_file('c', "")));
    for toml in [Some(module_file('c', "")), None] {
        place.update(Some('a'));
        place.apply(DesiredState::Remove, toml);
        place.update(Some('b'));
        let history = place.history();
        assert!(history.versions().all(|version| version.desired != DesiredState::Remove));
        let shown = view(history).unwrap();
        assert_eq!((shown.desired, shown.shipped), (DesiredState::Remove, true));
        assert_eq!(shown.digest, digest('b'));
        // The image that ships it no longer forgets neither the removal nor its generation.
        place.update(None);
        let history = place.history();
        assert_eq!(history.generation, place.generation);
        assert!(view(history).is_none());
    }
}

#[test]
fn a_module_that_no_longer_ships_is_reported() {
    let mut place = Place::new();
    place.update(Some('a'));
    place.apply(DesiredState::Run, None);
    place.update(None);
    let (history, rejected) = place.restart();
    assert!(rejected.unwrap().contains("the node's image ships no module app"));
    let history = history.unwrap();
    assert_eq!((history.desired.is_none(), history.generation), (true, place.generation));
}

#[test]
fn a_spec_gets_the_archive_of_its_digest_and_names_none() {
    let mut place = Place::new();
    place.update(Some('a'));
    let version = place.apply(DesiredState::Run, Some(module_file('a', "")));
    assert_eq!((version.source.archive.as_deref(), version.shipped), (Some("/a.tar"), false));
    let version = place.apply(DesiredState::Run, Some(module_file('b', "")));
    assert_eq!(version.source.archive, None);
    let named = module_file('a', "archive = \"/a.tar\"\n");
    let signed = place.spec(NODE, DesiredState::Run, Some(named));
    let error = place.open().verify(&signed).unwrap_err();
    assert!(matches!(error, ModuleError::Config(SpecRejection::Archive)), "{error}");
}

#[test]
fn a_rejected_spec_on_the_disk_stops_the_shipped_module_and_is_reported() {
    let mut place = Place::new();
    place.update(Some('a'));
    let foreign = place.spec(OTHER_NODE, DesiredState::Run, Some(module_file('c', "")));
    let error = place.open().verify(&foreign).unwrap_err();
    assert!(matches!(error, ModuleError::WrongNode { .. }), "{error}");
    // The form before specs named their node.
    let text = r#"{"desired":"run","generation":1,"module":"app","toml":"x"}"#;
    let retired = place.sign(text, &deployment::retired_signed_bytes(text));
    let own = place.spec(NODE, DesiredState::Run, None);
    let mut altered = own.clone();
    altered.spec = altered.spec.replace("run", "stop");
    let json = |signed: &SignedSpec| serde_json::to_string(signed).unwrap();
    for (planted, reason) in [
        (json(&foreign), "the spec is for the node 2222"),
        (json(&retired), "sign it again"),
        (json(&altered), "does not verify"),
        ("{".to_owned(), "malformed"),
    ] {
        place.plant(&planted);
        let (history, rejected) = place.restart();
        assert!(rejected.unwrap().contains(reason));
        let version = history.unwrap().desired.unwrap();
        assert_eq!((version.desired, version.source.digest), (DesiredState::Stop, digest('a')));
    }
    // The owner's next spec ends that.
    place.plant(&json(&own));
    assert_eq!(place.history().desired.unwrap().desired, DesiredState::Run);
}
