//! A Docker Engine with folders of its own.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::node::{WAIT_TIMEOUT, wait};

/// Text in dockerd's log when a call of the authorization plugin failed and is made again, a second
/// or more later.
const RETRY: &str = "retrying in";

/// Processes of containerd and dockerd. They are killed on drop.
///
/// The drop also verifies that dockerd made no call of the authorization plugin twice: an answer
/// that breaks the connection costs a second for each call.
pub(crate) struct RealEngine {
    children: Vec<Child>,
    pub(crate) socket: PathBuf,
    dockerd_log: File,
    /// Set by a test that ends the process behind the plugin while the engine runs.
    pub(crate) is_plugin_interrupted: bool,
}

impl Drop for RealEngine {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if !std::thread::panicking() && !self.is_plugin_interrupted {
            let log = read_log(&self.dockerd_log);
            let retries: Vec<&str> = log.lines().filter(|line| line.contains(RETRY)).collect();
            assert!(retries.is_empty(), "expected no retry, found:\n{}", retries.join("\n"));
        }
    }
}

fn read_log(mut file: &File) -> String {
    let mut log = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut log).unwrap();
    log
}

impl RealEngine {
    /// Starts an engine. With the authorization plugin, a process must answer on the plugin's
    /// socket.
    pub(crate) fn start(dir: &Path, name: &str, with_plugin: bool) -> Self {
        let plugins: &[&str] = if with_plugin { &["basalt"] } else { &[] };
        Self::start_with(dir, name, &serde_json::json!({ "authorization-plugins": plugins }))
    }

    /// Starts an engine with further settings of its `daemon.json`, which replace others.
    pub(crate) fn start_with(dir: &Path, name: &str, more: &serde_json::Value) -> Self {
        let state = Path::new("/var/lib/docker").join(name);
        std::fs::create_dir_all(&state).unwrap();
        let log = |what: &str| {
            let path = dir.join(format!("{what}.log"));
            File::options().create(true).append(true).read(true).open(path).unwrap()
        };
        let containerd = dir.join("containerd.sock");
        let config = dir.join("containerd.toml");
        let text = format!(
            "version = 2\nroot = \"/var/lib/containerd/{name}\"\nstate = \"{}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{}\"\n",
            dir.join("containerd").display(),
            containerd.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut engine = Self {
            children: Vec::new(),
            socket: dir.join("docker.sock"),
            dockerd_log: log("dockerd"),
            is_plugin_interrupted: false,
        };
        let out = log("containerd");
        engine.children.push(
            Command::new("containerd")
                .arg("--config")
                .arg(&config)
                .stdout(out.try_clone().unwrap())
                .stderr(out)
                .spawn()
                .unwrap(),
        );
        wait("containerd", || containerd.exists());
        let daemon = dir.join("daemon.json");
        let mut settings = serde_json::json!({
            "data-root": state,
            "exec-root": dir.join("exec"),
            "pidfile": dir.join("docker.pid"),
            "containerd": containerd,
            "hosts": [format!("unix://{}", engine.socket.display())],
            "features": { "containerd-snapshotter": true },
            "bridge": "none",
            "ip6tables": false,
            "userland-proxy": false,
            "cgroup-parent": "/basalt-test",
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            settings[key] = value.clone();
        }
        std::fs::write(&daemon, settings.to_string()).unwrap();
        let out = engine.dockerd_log.try_clone().unwrap();
        engine.children.push(
            Command::new("dockerd")
                .arg("--config-file")
                .arg(&daemon)
                .stdin(Stdio::null())
                .stdout(out.try_clone().unwrap())
                .stderr(out)
                .spawn()
                .unwrap(),
        );
        engine
    }

    /// Returns the IDs of the processes.
    pub(crate) fn processes(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    /// Waits until dockerd listens.
    pub(crate) async fn ready(&self) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while std::os::unix::net::UnixStream::connect(&self.socket).is_err() {
            assert!(Instant::now() < deadline, "dockerd does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until dockerd answers. It listens before it has set up its networks, and may still end.
    /// An engine with the authorization plugin would deny the request.
    pub(crate) async fn answers(&self) {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while self.ping().await.is_err() {
            assert!(Instant::now() < deadline, "dockerd does not answer");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn ping(&self) -> std::io::Result<()> {
        let mut stream = tokio::net::UnixStream::connect(&self.socket).await?;
        stream.write_all(b"GET /_ping HTTP/1.0\r\n\r\n").await?;
        stream.read_u8().await.map(drop)
    }
}
