//! The Docker Engine, as trustd uses it: a few verbs, each with its result checked.
//!
//! Invariants: an image is loaded only as the archive that `oci` wrote from verified blobs; a
//! container is created only by the full digest of its manifest and from one template; what the
//! engine says it will run is compared before it runs.

pub mod inventory;
mod load;
mod template;
mod tickets;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bollard::Docker;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, EndpointSettings, EventMessage,
    HealthStatusEnum, NetworkConnectRequest, NetworkCreateRequest, NetworkDisconnectRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptions, ListContainersOptionsBuilder,
    ListImagesOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveImageOptionsBuilder, StopContainerOptionsBuilder,
};
use futures_util::{Stream, StreamExt as _};

pub use load::{Known, Loading, Turn};
use template::shape;
pub use template::{LABEL, Plan, Shape, link_network, own_network, volume};
pub use tickets::{Tickets, serve};

/// Also for the load of a large image, of which the engine says nothing before it is done.
const TIMEOUT_S: u64 = 900;
const OLDEST_API: &bollard::ClientVersion = bollard::API_DEFAULT_VERSION;
/// So often a listing is asked for once more.
const LISTINGS: usize = 3;
/// The most that is kept of a container's log for an answer.
const LONGEST_LOG: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("the engine refused to {what}: {source}")]
    Refused { what: &'static str, source: bollard::errors::Error },
    #[error("{0}")]
    Image(#[from] oci::OciError),
    #[error("cannot access {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("the engine would run something else: {what} should be {expected}, found {found}")]
    Other { what: &'static str, expected: String, found: String },
}

fn refused(what: &'static str) -> impl FnOnce(bollard::errors::Error) -> EngineError {
    move |source| EngineError::Refused { what, source }
}

/// Whether the engine says that there is no such thing.
fn absent(error: &bollard::errors::Error) -> bool {
    matches!(error, bollard::errors::Error::DockerResponseServerError { status_code: 404, .. })
}

pub struct Engine(Docker);

/// A container as the engine lists it.
#[derive(Debug, Clone)]
pub struct Container {
    pub id: String,
    pub name: String,
    pub image: String,
    pub running: bool,
}

/// An image as the engine lists it.
#[derive(Debug, Clone)]
pub struct Listed {
    pub digest: String,
    pub tags: Vec<String>,
}

/// What a running container is like now.
#[derive(Debug)]
pub struct Look {
    pub shape: Shape,
    pub running: bool,
    /// It was made and never started.
    pub new: bool,
    /// By the engine's own check.
    pub health: Option<HealthStatusEnum>,
    /// Somebody runs something in it.
    pub execs: bool,
    pub address: Option<std::net::IpAddr>,
    pub exit_code: Option<i64>,
}

/// The name under which the engine has an image; one for each digest.
pub fn tag(digest: &str) -> String {
    format!("basalt.local/image:{}", digest.trim_start_matches("sha256:"))
}

impl Engine {
    pub async fn connect(socket: &Path, tickets: Arc<Tickets>) -> Result<Self, EngineError> {
        let docker = Docker::connect_with_unix(&socket.to_string_lossy(), TIMEOUT_S, OLDEST_API)
            .map_err(refused("connect"))?
            .with_request_modifier(move |request| tickets.stamp(request));
        Ok(Self(docker.negotiate_version().await.map_err(refused("say its version"))?))
    }

    /// Every container there is, running or not.
    pub async fn containers(&self) -> Result<Vec<Container>, EngineError> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let list =
            self.0.list_containers(Some(options)).await.map_err(refused("list containers"))?;
        Ok(list
            .into_iter()
            .map(|c| Container {
                id: c.id.unwrap_or_default(),
                name: c
                    .names
                    .unwrap_or_default()
                    .first()
                    .map(|n| n.trim_start_matches('/').to_owned())
                    .unwrap_or_default(),
                image: c.image_id.unwrap_or_default(),
                running: c.state.is_some_and(|s| s.to_string() == "running"),
            })
            .collect())
    }

    /// Every image there is.
    pub async fn images(&self) -> Result<Vec<Listed>, EngineError> {
        let options = ListImagesOptionsBuilder::default().all(true).build();
        let mut list = self.0.list_images(Some(options.clone())).await;
        for _ in 0..LISTINGS {
            match &list {
                // It stumbles over an image that goes away meanwhile.
                Err(error) if absent(error) => {
                    list = self.0.list_images(Some(options.clone())).await
                }
                _ => break,
            }
        }
        let list = list.map_err(refused("list images"))?;
        Ok(list.into_iter().map(|i| Listed { digest: i.id, tags: i.repo_tags }).collect())
    }

    /// Removes an image, or one of its names.
    pub async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveImageOptionsBuilder::default().force(true).build();
        match self.0.remove_image(name, Some(options), None).await {
            Err(error) if !absent(&error) => Err(refused("remove an image")(error)),
            _ => Ok(()),
        }
    }

    pub async fn has(&self, digest: &str) -> bool {
        self.0.inspect_image(digest).await.is_ok_and(|image| image.id.as_deref() == Some(digest))
    }

    /// Makes sure that a network is there. One between modules reaches nothing else.
    pub async fn network(&self, name: &str, internal: bool) -> Result<(), EngineError> {
        match self.0.inspect_network(name, None).await {
            Ok(found) => {
                let found = format!(
                    "{} {}",
                    found.driver.unwrap_or_default(),
                    found.internal.unwrap_or_default()
                );
                let expected = format!("bridge {internal}");
                return if found == expected {
                    Ok(())
                } else {
                    Err(EngineError::Other { what: "a network", expected, found })
                };
            }
            Err(error) if absent(&error) => {}
            Err(error) => return Err(refused("show a network")(error)),
        }
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".into()),
            internal: Some(internal),
            labels: Some(HashMap::from([(LABEL.to_owned(), String::new())])),
            ..NetworkCreateRequest::default()
        };
        self.0.create_network(request).await.map_err(refused("make a network")).map(drop)
    }

    /// Takes a network away that nobody is on any more; one that is in use stays.
    pub async fn remove_network(&self, name: &str) {
        let _ = self.0.remove_network(name).await;
    }

    /// Gives a container the module's name on the networks that it shares with others.
    pub async fn introduce(&self, id: &str, plan: &Plan) -> Result<(), EngineError> {
        for network in plan.networks().into_iter().skip(1) {
            let off = NetworkDisconnectRequest { container: id.to_owned(), force: Some(true) };
            self.0
                .disconnect_network(&network, off)
                .await
                .map_err(refused("take a container off a network"))?;
            let named = EndpointSettings {
                aliases: Some(vec![plan.module.clone()]),
                ..EndpointSettings::default()
            };
            let on =
                NetworkConnectRequest { container: id.to_owned(), endpoint_config: Some(named) };
            self.0
                .connect_network(&network, on)
                .await
                .map_err(refused("put a container on a network"))?;
        }
        Ok(())
    }

    /// Creates a container and compares what the engine made of it. Returns its full ID and its
    /// shape; it does not run yet.
    pub async fn create(&self, plan: &Plan) -> Result<(String, Shape), EngineError> {
        let options = CreateContainerOptionsBuilder::default().name(&plan.name).build();
        let id = self
            .0
            .create_container(Some(options), plan.body()?)
            .await
            .map_err(refused("create the container"))?
            .id;
        match self.judge(&id, plan).await {
            Ok(shape) => Ok((id, shape)),
            Err(error) => {
                self.remove(&id).await?;
                Err(error)
            }
        }
    }

    /// Compares a container with what it was made from. Returns its shape.
    pub async fn judge(&self, id: &str, plan: &Plan) -> Result<Shape, EngineError> {
        plan.judge(&self.inspect(id).await?)
    }

    pub async fn start(&self, id: &str) -> Result<(), EngineError> {
        self.0.start_container(id, None).await.map_err(refused("start the container"))
    }

    async fn inspect(&self, id: &str) -> Result<ContainerInspectResponse, EngineError> {
        self.0.inspect_container(id, None).await.map_err(refused("show the container"))
    }

    /// What a container is like now; none if there is no such container.
    pub async fn look(&self, id: &str) -> Result<Option<Look>, EngineError> {
        let found = match self.inspect(id).await {
            Err(EngineError::Refused { source, .. }) if absent(&source) => return Ok(None),
            other => other?,
        };
        let shape = shape(&found);
        let state = found.state.unwrap_or_default();
        let networks = found.network_settings.and_then(|n| n.networks).unwrap_or_default();
        let address = networks.values().find_map(|n| n.ip_address.as_deref()?.parse().ok());
        Ok(Some(Look {
            shape,
            running: state.running.unwrap_or_default(),
            new: state.status == Some(ContainerStateStatusEnum::CREATED),
            health: state.health.and_then(|h| h.status),
            execs: found.exec_ids.is_some_and(|ids| !ids.is_empty()),
            address,
            exit_code: state.exit_code,
        }))
    }

    /// Ends a container, gently first.
    pub async fn halt(&self, id: &str, within_s: u32) -> Result<(), EngineError> {
        let options = StopContainerOptionsBuilder::default()
            .t(i32::try_from(within_s).unwrap_or(i32::MAX))
            .build();
        match self.0.stop_container(id, Some(options)).await {
            // 304: it has ended already.
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 304, .. })
            | Ok(()) => Ok(()),
            Err(error) => Err(refused("stop a container")(error)),
        }
    }

    /// Ends a container, gently first, and removes it.
    pub async fn stop(&self, id: &str, within_s: u32) -> Result<(), EngineError> {
        // Whatever comes of the gentle way, removing it is what counts.
        let _ = self.halt(id, within_s).await;
        self.remove(id).await
    }

    /// Kills and removes a container.
    pub async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.0.remove_container(id, Some(options)).await {
            Err(error) if !absent(&error) => Err(refused("remove a container")(error)),
            _ => Ok(()),
        }
    }

    /// The last lines that a container wrote.
    pub async fn logs(&self, id: &str, lines: u32) -> Result<String, EngineError> {
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .tail(&lines.to_string())
            .build();
        let mut stream = self.0.logs(id, Some(options));
        let mut text = String::new();
        while let Some(part) = stream.next().await {
            text.push_str(&part.map_err(refused("show a container's log"))?.to_string());
            if text.len() > LONGEST_LOG {
                text.push_str("\n… more than 1 MiB; ask for fewer lines\n");
                break;
            }
        }
        Ok(text)
    }

    /// What happens, as it happens. It ends when the engine does.
    pub fn events(
        &self,
    ) -> impl Stream<Item = Result<EventMessage, bollard::errors::Error>> + use<> {
        self.0.events(None)
    }

    /// What happened after one moment and up to another (seconds since 1970, with a fraction).
    pub async fn events_between(
        &self,
        since: &str,
        until: &str,
    ) -> Result<Vec<EventMessage>, EngineError> {
        let options = EventsOptions {
            since: Some(since.to_owned()),
            until: Some(until.to_owned()),
            filters: None,
        };
        let mut stream = Box::pin(self.0.events(Some(options)));
        let mut events = Vec::new();
        while let Some(event) = stream.next().await {
            events.push(event.map_err(refused("list its events"))?);
        }
        Ok(events)
    }
}
