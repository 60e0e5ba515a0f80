//! Client of the engine's API.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use bollard::Docker;
use bollard::models::{
    ContainerInspectResponse, EndpointSettings, EventMessage, NetworkConnectRequest,
    NetworkCreateRequest, NetworkDisconnectRequest,
};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptions, ImportImageOptions, ListContainersOptionsBuilder,
    ListImagesOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveImageOptionsBuilder, StopContainerOptionsBuilder,
};
use futures_util::{Stream, StreamExt as _};

use super::config_digest::ConfigDigest;
use super::error::{EngineError, failed_to, is_not_found};
use super::template::{ContainerPlan, MODULE_LABEL};
use super::tickets::Tickets;
use super::types::{Container, EngineImage, Inspection};

/// Timeout of a request in seconds. It covers the load of a large image, during which the engine
/// sends nothing.
const REQUEST_TIMEOUT_S: u64 = 900;
const MIN_API_VERSION: &bollard::ClientVersion = bollard::API_DEFAULT_VERSION;
/// Retries of a list of images that failed because an image was removed meanwhile.
const MAX_LIST_RETRIES: usize = 3;
/// Longest part of a container's log that is returned.
const MAX_LOG_BYTES: usize = 1 << 20;

/// Connection to the engine. Each request carries a one-time ticket for the authorization plugin.
pub struct Engine(Docker);

impl Engine {
    /// Connects to the engine and negotiates the version of its API.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine does not answer.
    pub async fn connect(socket: &Path, tickets: Arc<Tickets>) -> Result<Self, EngineError> {
        let path = socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&path, REQUEST_TIMEOUT_S, MIN_API_VERSION)
            .map_err(failed_to("accept a connection"))?
            .with_request_modifier(move |request| tickets.stamp(request));
        Ok(Self(docker.negotiate_version().await.map_err(failed_to("report its version"))?))
    }

    /// Lists all containers, running or not.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to list them.
    pub async fn containers(&self) -> Result<Vec<Container>, EngineError> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let list =
            self.0.list_containers(Some(options)).await.map_err(failed_to("list containers"))?;
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

    /// Lists all images.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to list them.
    pub async fn images(&self) -> Result<Vec<EngineImage>, EngineError> {
        let options = ListImagesOptionsBuilder::default().all(true).build();
        let mut list = self.0.list_images(Some(options.clone())).await;
        for _ in 0..MAX_LIST_RETRIES {
            match &list {
                // The engine fails with 404 if an image is removed while it makes the list.
                Err(error) if is_not_found(error) => {
                    list = self.0.list_images(Some(options.clone())).await;
                }
                _ => break,
            }
        }
        let list = list.map_err(failed_to("list images"))?;
        Ok(list.into_iter().map(|i| EngineImage { digest: i.id, tags: i.repo_tags }).collect())
    }

    /// Removes an image by digest, or one tag of an image. It succeeds if there is no such image.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to remove it.
    pub async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveImageOptionsBuilder::default().force(true).build();
        match self.0.remove_image(name, Some(options), None).await {
            Err(error) if !is_not_found(&error) => Err(failed_to("remove an image")(error)),
            _ => Ok(()),
        }
    }

    /// Reports whether the engine has the image with this manifest digest.
    pub async fn has_image(&self, digest: &str) -> bool {
        self.0.inspect_image(digest).await.is_ok_and(|image| image.id.as_deref() == Some(digest))
    }

    /// Sends an image archive to the engine and waits until the engine has unpacked it.
    pub(super) async fn import_image(
        &self,
        archive: impl Stream<Item = io::Result<bytes::Bytes>> + Send + 'static,
    ) -> Result<(), EngineError> {
        let options = ImportImageOptions { quiet: true, ..Default::default() };
        let mut messages = Box::pin(self.0.import_image_stream(options, archive, None));
        while let Some(message) = messages.next().await {
            // An error can follow messages of success.
            message.map_err(failed_to("load the image"))?;
        }
        Ok(())
    }

    /// Creates a bridge network if there is none of this name. An internal network has no access
    /// to other networks.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Mismatch`] if the existing network has other settings, and
    /// [`EngineError::Request`] if the engine fails to inspect or create it.
    pub async fn ensure_network(&self, name: &str, internal: bool) -> Result<(), EngineError> {
        match self.0.inspect_network(name, None).await {
            Ok(network) => {
                let found = format!(
                    "{} {}",
                    network.driver.unwrap_or_default(),
                    network.internal.unwrap_or_default()
                );
                let expected = format!("bridge {internal}");
                return if found == expected {
                    Ok(())
                } else {
                    Err(EngineError::Mismatch {
                        what: "network (driver, internal)",
                        expected,
                        found,
                    })
                };
            }
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(failed_to("inspect a network")(error)),
        }
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".into()),
            internal: Some(internal),
            labels: Some(HashMap::from([(MODULE_LABEL.to_owned(), String::new())])),
            ..NetworkCreateRequest::default()
        };
        self.0.create_network(request).await.map_err(failed_to("create a network")).map(drop)
    }

    /// Removes a network. The engine keeps a network that a container is attached to.
    pub async fn remove_network(&self, name: &str) {
        let _ = self.0.remove_network(name).await;
    }

    /// Gives a container the module's name on the networks that it shares with peers.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to attach it.
    pub async fn join_peer_networks(
        &self,
        id: &str,
        plan: &ContainerPlan,
    ) -> Result<(), EngineError> {
        for network in plan.networks().into_iter().skip(1) {
            let detach = NetworkDisconnectRequest { container: id.to_owned(), force: Some(true) };
            self.0
                .disconnect_network(&network, detach)
                .await
                .map_err(failed_to("detach a container from a network"))?;
            let endpoint = EndpointSettings {
                aliases: Some(vec![plan.module.clone()]),
                ..EndpointSettings::default()
            };
            let attach =
                NetworkConnectRequest { container: id.to_owned(), endpoint_config: Some(endpoint) };
            self.0
                .connect_network(&network, attach)
                .await
                .map_err(failed_to("attach a container to a network"))?;
        }
        Ok(())
    }

    /// Creates a container and verifies it. Returns its full ID and the digest of its
    /// configuration. The container does not run yet.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Mismatch`] if the engine created something else, after the container
    /// was removed, and [`EngineError::Request`] if the engine fails to create it.
    pub async fn create(
        &self,
        plan: &ContainerPlan,
    ) -> Result<(String, ConfigDigest), EngineError> {
        let options = CreateContainerOptionsBuilder::default().name(&plan.name).build();
        let id = self
            .0
            .create_container(Some(options), plan.create_request()?)
            .await
            .map_err(failed_to("create the container"))?
            .id;
        match self.verify(&id, plan).await {
            Ok(config_digest) => Ok((id, config_digest)),
            Err(error) => {
                self.remove(&id).await?;
                Err(error)
            }
        }
    }

    /// Verifies that a container has the planned configuration. Returns the configuration's digest.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Mismatch`] for the first difference, and [`EngineError::Request`] if
    /// the engine fails to inspect the container.
    pub async fn verify(
        &self,
        id: &str,
        plan: &ContainerPlan,
    ) -> Result<ConfigDigest, EngineError> {
        plan.verify(&self.inspect_raw(id).await?)
    }

    /// Starts a created or stopped container.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to start it.
    pub async fn start(&self, id: &str) -> Result<(), EngineError> {
        self.0.start_container(id, None).await.map_err(failed_to("start the container"))
    }

    async fn inspect_raw(&self, id: &str) -> Result<ContainerInspectResponse, EngineError> {
        self.0.inspect_container(id, None).await.map_err(failed_to("inspect the container"))
    }

    /// Inspects a container. Returns `None` if there is no such container.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to inspect it.
    pub async fn inspect(&self, id: &str) -> Result<Option<Inspection>, EngineError> {
        match self.inspect_raw(id).await {
            Err(EngineError::Request { source, .. }) if is_not_found(&source) => Ok(None),
            other => Ok(Some(other?.into())),
        }
    }

    /// Stops a container: asks it to terminate and kills it after `timeout_s` seconds.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to stop it.
    pub async fn stop(&self, id: &str, timeout_s: u32) -> Result<(), EngineError> {
        let options = StopContainerOptionsBuilder::default()
            .t(i32::try_from(timeout_s).unwrap_or(i32::MAX))
            .build();
        match self.0.stop_container(id, Some(options)).await {
            // 304 Not Modified: it does not run.
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 304, .. })
            | Ok(()) => Ok(()),
            Err(error) => Err(failed_to("stop a container")(error)),
        }
    }

    /// Stops a container as [`Engine::stop`] does and removes it.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to remove it.
    pub async fn stop_and_remove(&self, id: &str, timeout_s: u32) -> Result<(), EngineError> {
        // The removal kills the container if it could not be stopped.
        let _ = self.stop(id, timeout_s).await;
        self.remove(id).await
    }

    /// Kills and removes a container. It succeeds if there is no such container.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to remove it.
    pub async fn remove(&self, id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.0.remove_container(id, Some(options)).await {
            Err(error) if !is_not_found(&error) => Err(failed_to("remove a container")(error)),
            _ => Ok(()),
        }
    }

    /// Returns the last lines of a container's output, cut off at 1 MiB.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to read the log.
    pub async fn logs(&self, id: &str, lines: u32) -> Result<String, EngineError> {
        let options = LogsOptionsBuilder::default()
            .stdout(true)
            .stderr(true)
            .tail(&lines.to_string())
            .build();
        let mut stream = self.0.logs(id, Some(options));
        let mut text = String::new();
        while let Some(part) = stream.next().await {
            text.push_str(&part.map_err(failed_to("read a container's log"))?.to_string());
            if text.len() > MAX_LOG_BYTES {
                text.push_str("\n… more than 1 MiB; ask for fewer lines\n");
                break;
            }
        }
        Ok(text)
    }

    /// Streams events as they occur. The stream ends when the engine stops.
    pub fn events(
        &self,
    ) -> impl Stream<Item = Result<EventMessage, bollard::errors::Error>> + use<> {
        self.0.events(None)
    }

    /// Lists the events after `since` and up to `until`, in seconds since 1970 with a fraction.
    ///
    /// # Errors
    ///
    /// Returns [`EngineError::Request`] if the engine fails to list them.
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
            events.push(event.map_err(failed_to("list its events"))?);
        }
        Ok(events)
    }
}
