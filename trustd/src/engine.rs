//! The Docker Engine, as trustd uses it: a few verbs, each with its result checked.
//!
//! Invariants: an image is loaded only from an archive that `oci` verified and wrote anew; a container is created only by
//! the full digest of its manifest and from one template; what the engine says it will run is compared before it runs.

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ImportImageOptions, ListContainersOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    StopContainerOptionsBuilder,
};
use config::{Module, Network};
use futures_util::StreamExt as _;

/// A container of ours has this label; its value is the module's name.
pub const LABEL: &str = "basalt.module";
const STOP_WITHIN_S: i32 = 10;
/// Also for the load of a large image, of which the engine says nothing before it is done.
const TIMEOUT_S: u64 = 900;
const OLDEST_API: &bollard::ClientVersion = bollard::API_DEFAULT_VERSION;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the engine refused to {what}: {source}")]
    Refused { what: &'static str, source: bollard::errors::Error },
    #[error("{0}")]
    Archive(#[from] oci::OciError),
    #[error("cannot access {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the engine would run something else: {what} should be {expected}, found {found}")]
    Other { what: &'static str, expected: String, found: String },
}

fn refused(what: &'static str) -> impl FnOnce(bollard::errors::Error) -> EngineError {
    move |source| EngineError::Refused { what, source }
}

pub struct Engine(Docker);

/// A container as the engine lists it.
#[derive(Debug, Clone)]
pub struct Container {
    pub id: String,
    pub image: String,
    pub module: Option<String>,
    pub running: bool,
}

impl Engine {
    pub async fn connect(socket: &Path) -> Result<Self, EngineError> {
        let docker = Docker::connect_with_unix(&socket.to_string_lossy(), TIMEOUT_S, OLDEST_API).map_err(refused("connect"))?;
        Ok(Self(docker.negotiate_version().await.map_err(refused("say its version"))?))
    }

    /// Every container there is, running or not.
    pub async fn containers(&self) -> Result<Vec<Container>, EngineError> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let list = self.0.list_containers(Some(options)).await.map_err(refused("list containers"))?;
        Ok(list
            .into_iter()
            .map(|c| Container {
                id: c.id.unwrap_or_default(),
                image: c.image_id.unwrap_or_default(),
                module: c.labels.and_then(|mut labels: HashMap<String, String>| labels.remove(LABEL)),
                running: c.state.is_some_and(|s| s.to_string() == "running"),
            })
            .collect())
    }

    /// Loads a verified image and makes sure that the engine has it under its digest.
    pub async fn load(&self, archive: &Path, image: oci::Verified, name: &str) -> Result<(), EngineError> {
        let digest = image.digest.clone();
        if self.has(&digest).await {
            return Ok(());
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(8);
        let (path, name) = (archive.to_owned(), name.to_owned());
        // Verified bytes only; if they change on the way, the stream ends in an error and the engine gets no whole archive.
        let emitting = tokio::task::spawn_blocking(move || -> Result<(), EngineError> {
            let result = (|| {
                let mut source = std::fs::File::open(&path).map_err(|source| EngineError::Io { path, source })?;
                oci::emit(&mut source, &image, &name, std::io::BufWriter::with_capacity(1 << 17, Pipe(sender.clone())))?
                    .flush()
                    .map_err(oci::OciError::Io)?;
                Ok(())
            })();
            if result.is_err() {
                let _ = sender.blocking_send(Err(std::io::Error::other("the archive is not what was verified")));
            }
            result
        });
        let body = futures_util::stream::unfold(receiver, |mut r| async { r.recv().await.map(|item| (item, r)) });
        let mut answers = Box::pin(self.0.import_image_stream(ImportImageOptions { quiet: true, ..Default::default() }, body, None));
        let mut refusal = None;
        while let Some(answer) = answers.next().await {
            if let Err(error) = answer {
                refusal = Some(error);
                break;
            }
        }
        drop(answers);
        // What is wrong with the archive says more than that the engine did not like its end.
        emitting.await.map_err(|e| EngineError::Io { path: archive.to_owned(), source: std::io::Error::other(e) })??;
        if let Some(error) = refusal {
            return Err(refused("load the image")(error));
        }
        if !self.has(&digest).await {
            return Err(EngineError::Other { what: "the loaded image", expected: digest, found: "no such image".into() });
        }
        Ok(())
    }

    async fn has(&self, digest: &str) -> bool {
        self.0.inspect_image(digest).await.is_ok_and(|image| image.id.as_deref() == Some(digest))
    }

    /// Creates a container, compares what the engine made of it, and starts it. Returns its full ID.
    pub async fn start(&self, module: &str, digest: &str, settings: &Module, socket_dir: &Path) -> Result<String, EngineError> {
        let options = CreateContainerOptionsBuilder::default().name(module).build();
        let body = template(module, digest, settings, socket_dir);
        let id = self.0.create_container(Some(options), body).await.map_err(refused("create the container"))?.id;
        let started = async {
            self.inspect(&id, digest, socket_dir).await?;
            self.0.start_container(&id, None).await.map_err(refused("start the container"))
        };
        match started.await {
            Ok(()) => Ok(id),
            Err(error) => {
                self.remove(&id).await?;
                Err(error)
            }
        }
    }

    async fn inspect(&self, id: &str, digest: &str, socket_dir: &Path) -> Result<(), EngineError> {
        let found = self.0.inspect_container(id, None).await.map_err(refused("show the container"))?;
        let host = found.host_config.unwrap_or_default();
        let mounts: Vec<String> = found
            .mounts
            .unwrap_or_default()
            .into_iter()
            .filter(|m| m.destination.as_deref() != Some("/tmp"))
            .map(|m| format!("{} at {} writable {}", m.source.unwrap_or_default(), m.destination.unwrap_or_default(), m.rw.unwrap_or(true)))
            .collect();
        let checks = [
            ("its image", digest.to_owned(), found.image.unwrap_or_default()),
            ("privileged", "false".into(), host.privileged.unwrap_or_default().to_string()),
            ("added capabilities", "[]".into(), format!("{:?}", host.cap_add.unwrap_or_default())),
            ("devices", "0".into(), host.devices.unwrap_or_default().len().to_string()),
            ("read-only root", "true".into(), host.readonly_rootfs.unwrap_or_default().to_string()),
            ("what is mounted", format!("[\"{} at /run/basalt writable false\"]", socket_dir.display()), format!("{mounts:?}")),
            ("dropped capabilities", "[\"ALL\"]".into(), format!("{:?}", host.cap_drop.unwrap_or_default())),
            ("host process ids", String::new(), host.pid_mode.unwrap_or_default()),
        ];
        match checks.into_iter().find(|(_, expected, found)| expected != found) {
            Some((what, expected, found)) => Err(EngineError::Other { what, expected, found }),
            None => Ok(()),
        }
    }

    /// Ends a container, gently first, and removes it.
    pub async fn stop(&self, id: &str) -> Result<(), EngineError> {
        let options = StopContainerOptionsBuilder::default().t(STOP_WITHIN_S).build();
        // A container that has ended already is no error here; removing it is what counts.
        let _ = self.0.stop_container(id, Some(options)).await;
        self.remove(id).await
    }

    /// Kills and removes a container.
    pub async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        self.0.remove_container(id, Some(options)).await.map_err(refused("remove a container"))
    }

    /// The last lines that a container wrote.
    pub async fn logs(&self, id: &str) -> Result<String, EngineError> {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("200").build();
        let mut stream = self.0.logs(id, Some(options));
        let mut text = String::new();
        while let Some(part) = stream.next().await {
            text.push_str(&part.map_err(refused("show a container's log"))?.to_string());
        }
        Ok(text)
    }
}

/// Sends what is written as the parts of a stream.
struct Pipe(tokio::sync::mpsc::Sender<std::io::Result<bytes::Bytes>>);

impl std::io::Write for Pipe {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(bytes::Bytes::copy_from_slice(data)));
        sent.map(|()| data.len()).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The one way in which containers are made. What a module cannot say is fixed here.
fn template(module: &str, digest: &str, settings: &Module, socket_dir: &Path) -> ContainerCreateBody {
    let megabytes = |n: u64| i64::try_from(n << 20).unwrap_or(i64::MAX);
    ContainerCreateBody {
        image: Some(digest.to_owned()),
        hostname: Some(module.to_owned()),
        cmd: (!settings.command.is_empty()).then(|| settings.command.clone()),
        env: (!settings.environment.is_empty()).then(|| settings.environment.clone()),
        labels: Some(HashMap::from([(LABEL.to_owned(), module.to_owned())])),
        host_config: Some(HostConfig {
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".into()]),
            security_opt: Some(vec!["no-new-privileges".into()]),
            network_mode: Some(match settings.network {
                Network::None => "none".into(),
                Network::Bridge => "bridge".into(),
            }),
            memory: Some(megabytes(settings.memory_mib)),
            memory_swap: Some(megabytes(settings.memory_mib)),
            pids_limit: Some(settings.pids.into()),
            mounts: Some(vec![Mount {
                target: Some("/run/basalt".into()),
                source: Some(socket_dir.to_string_lossy().into_owned()),
                typ: Some(MountType::BIND),
                read_only: Some(true),
                ..Mount::default()
            }]),
            tmpfs: Some(HashMap::from([("/tmp".into(), "rw,noexec,nosuid,size=16m".into())])),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}
