//! The tools of the set `image-tools`, and an engine and a registry for them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::images::{program, sha};
use crate::node::{programs, service};
use crate::real_engine::RealEngine;
use crate::registry::RealRegistry;

/// What a build makes of an image.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A tar archive for `trustctl image push`.
    Archive(Vec<u8>),
    /// A repository of the registry.
    Repository(String),
}

/// What the node should make of an image.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Outcome {
    /// The module runs and prints the word.
    Runs,
    /// The upload, or the verification of the image, is refused with this text.
    Refused(&'static str),
}

/// An image that a tool made.
#[derive(Debug, Clone)]
pub(crate) struct ToolImage {
    /// Tool and form.
    pub(crate) name: String,
    /// Word that the program prints.
    pub(crate) word: String,
    /// Digest that the approvers approve.
    pub(crate) digest: String,
    pub(crate) source: Source,
    pub(crate) outcome: Outcome,
}

impl ToolImage {
    /// Creates an image whose word is its name.
    pub(crate) fn new(name: &str, digest: &str, source: Source, outcome: Outcome) -> Self {
        Self {
            name: name.to_owned(),
            word: name.to_owned(),
            digest: digest.to_owned(),
            source,
            outcome,
        }
    }

    /// Creates an image that is uploaded. The archive's index names its digest.
    pub(crate) fn uploaded(name: &str, archive: Vec<u8>, outcome: Outcome) -> Self {
        Self::new(name, &digest_in(&archive), Source::Archive(archive), outcome)
    }

    /// Changes the word.
    #[must_use]
    pub(crate) fn says(mut self, word: &str) -> Self {
        word.clone_into(&mut self.word);
        self
    }

    /// Changes the name.
    #[must_use]
    pub(crate) fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }
}

/// Returns the first digest of `index.json` of an archive, or that of its last blob.
fn digest_in(archive: &[u8]) -> String {
    let mut last = sha(b"no image");
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_string_lossy().trim_start_matches("./").to_owned();
        if name == "index.json" {
            let index: Value = serde_json::from_reader(&mut entry).unwrap();
            return index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        }
        if let Some(hex) = name.strip_prefix("blobs/sha256/").filter(|hex| hex.len() == 64) {
            last = format!("sha256:{hex}");
        }
    }
    last
}

/// Folder for the tools, with their settings.
pub(crate) struct ToolBox {
    dir: tempfile::TempDir,
    pub(crate) registry: RealRegistry,
    engine: RealEngine,
    /// An engine without the containerd image store.
    graph_engine: RealEngine,
}

impl ToolBox {
    /// Starts the registry and the engines.
    pub(crate) async fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("tools").tempdir_in("/run").unwrap();
        let start = |name: &str, image_store: bool| {
            let own = dir.path().join(name);
            std::fs::create_dir(&own).unwrap();
            let settings = serde_json::json!({
                "features": { "containerd-snapshotter": image_store },
            });
            RealEngine::start_with(&own, &format!("tools-{name}"), &settings)
        };
        // One after the other: both change the same tables of the firewall when they start.
        let engine = start("engine", true);
        engine.answers().await;
        let graph_engine = start("graph", false);
        graph_engine.answers().await;
        let this = Self { registry: RealRegistry::start(), engine, graph_engine, dir };
        let (root, tools) = (this.dir.path().display(), sysroot().display().to_string());
        let anything = "{\"default\":[{\"type\":\"insecureAcceptAnything\"}]}";
        for (name, text) in [
            (
                "storage.conf",
                format!(
                    "[storage]\ndriver = \"vfs\"\nrunroot = \"{root}/run\"\n\
                     graphroot = \"{root}/graph\"\n"
                ),
            ),
            (
                "containers.conf",
                format!(
                    "[engine]\nhelper_binaries_dir = [\"{tools}/usr/lib/podman\"]\n\
                 conmon_path = [\"{tools}/usr/bin/conmon\"]\ncgroup_manager = \"cgroupfs\"\n\
                 events_logger = \"file\"\n"
                ),
            ),
            ("registries.conf", String::new()),
            ("config.json", "{}".to_owned()),
            (".config/containers/policy.json", anything.to_owned()),
        ] {
            let path = this.path(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        this
    }

    /// Returns a path in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Reads a file of the folder.
    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// Returns the name of a repository in the registry, for tools.
    pub(crate) fn reference(&self, repository: &str) -> String {
        format!("{}/{repository}", self.registry.address)
    }

    /// Writes the files of a build to a folder and returns it: the program, its word, links, an
    /// empty folder, a name of more than 100 bytes and a Dockerfile.
    pub(crate) fn context(&self, word: &str) -> PathBuf {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = self.path(&format!("context-{word}"));
        let long = dir.join("data").join("d".repeat(90)).join("n".repeat(120));
        std::fs::create_dir_all(long.parent().unwrap()).unwrap();
        std::fs::create_dir(dir.join("data/empty")).unwrap();
        std::fs::write(long, "long").unwrap();
        std::fs::write(dir.join("data/ümläut"), "name").unwrap();
        std::fs::write(dir.join("stay"), program()).unwrap();
        std::fs::set_permissions(dir.join("stay"), PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(dir.join("word"), word).unwrap();
        std::fs::hard_link(dir.join("word"), dir.join("data/hard")).unwrap();
        symlink("../word", dir.join("data/relative")).unwrap();
        symlink("/word", dir.join("data/absolute")).unwrap();
        std::fs::write(
            dir.join("Dockerfile"),
            "FROM scratch\nCOPY stay word /\nCOPY data /data\nENTRYPOINT [\"/stay\"]\n\
             USER 65532:65532\nLABEL Release=1 release=2\n",
        )
        .unwrap();
        dir
    }

    /// Runs a tool of the set; returns what it prints.
    pub(crate) fn tool(&self, name: &str, args: &[&str]) -> String {
        self.run(self.command(&sysroot().join("usr/bin").join(name), &sysroot()).args(args))
    }

    /// Runs Buildx with the engine.
    pub(crate) fn buildx(&self, args: &[&str]) -> String {
        let program = sysroot().join("usr/libexec/docker/cli-plugins/docker-buildx");
        self.run(self.command(&program, &sysroot()).args(args))
    }

    /// Runs Docker's client without BuildKit, with the engine or with the one without the
    /// containerd image store.
    pub(crate) fn docker(&self, graph: bool, args: &[&str]) -> String {
        let mut command = self.command(&sysroot().join("usr/bin/docker"), &sysroot());
        command.env("DOCKER_BUILDKIT", "0");
        if graph {
            command.env("DOCKER_HOST", format!("unix://{}", self.graph_engine.socket.display()));
        }
        self.run(command.args(args))
    }

    /// Runs crane, which needs a protocol and no library.
    pub(crate) fn crane(&self, args: &[&str]) -> String {
        self.run(self.command(&service("crane"), &sysroot()).args(args).arg("--insecure"))
    }

    /// Runs a program in Python.
    pub(crate) fn python(&self, script: &str, args: &[&str]) -> String {
        let mut command = self.command(&programs().join("usr/bin/python3"), &programs());
        self.run(command.env("PYTHONHOME", programs().join("usr")).args(["-c", script]).args(args))
    }

    /// Runs GNU tar.
    pub(crate) fn tar(&self, args: &[&str]) {
        self.run(self.command(Path::new("/usr/bin/tar"), Path::new("/")).args(args));
    }

    /// Archives a folder as `tar -C FOLDER -cf FILE .` does; returns the archive.
    pub(crate) fn tar_folder(&self, folder: &str) -> Vec<u8> {
        let (folder, file) = (self.path(folder), self.path("folder.tar"));
        self.tar(&["-C", text(&folder), "-cf", text(&file), "."]);
        std::fs::read(file).unwrap()
    }

    /// Returns the digest of what a repository's tag `latest` names.
    pub(crate) fn pushed_digest(&self, repository: &str) -> String {
        self.crane(&["digest", &self.reference(repository)]).trim().to_owned()
    }

    /// Returns a command with the environment of the tools.
    fn command(&self, program: &Path, libraries: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .stdin(Stdio::null())
            .current_dir(self.dir.path())
            .env("LD_LIBRARY_PATH", libraries.join("usr/lib/x86_64-linux-gnu"))
            .env("HOME", self.dir.path())
            .env("TMPDIR", self.dir.path())
            .env("DOCKER_HOST", format!("unix://{}", self.engine.socket.display()))
            .env("DOCKER_CONFIG", self.dir.path())
            .env("CONTAINERS_STORAGE_CONF", self.path("storage.conf"))
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", self.path("registries.conf"));
        command
    }

    /// Runs a command, which must succeed; returns its standard output.
    fn run(&self, command: &mut Command) -> String {
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{command:?}: {}\n{stdout}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        stdout
    }
}

/// Returns a path as text.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Returns the sysroot of the set `image-tools`.
fn sysroot() -> PathBuf {
    std::env::var_os("BASALT_IMAGE_TOOLS")
        .expect("BASALT_IMAGE_TOOLS is not set: cargo xtask test engine sets it")
        .into()
}
