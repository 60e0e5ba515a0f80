//! Removal of images, tags and processes that trustd does not know, and of images that no module
//! needs.

use std::collections::BTreeSet;

use serde_json::json;

use super::cgroups::{container_of, find_foreign};
use super::controller::Modules;
use super::error::ReconcileError;
use crate::audit::EventKind;
use crate::engine::{Container, Engine, EngineImage, image_tag};
use crate::util::init_client;
use crate::util::lock::lock;

/// Last problem of a series of steps that do not depend on each other.
#[derive(Default)]
struct LastProblem(Option<ReconcileError>);

impl LastProblem {
    fn add<T>(&mut self, result: Result<T, impl Into<ReconcileError>>) {
        if let Err(error) = result {
            self.0 = Some(error.into());
        }
    }

    fn into_result(self) -> Result<(), ReconcileError> {
        self.0.map_or(Ok(()), Err)
    }
}

impl Modules {
    /// Removes images and tags that trustd did not load, and images that no module needs.
    pub(super) async fn clean_images(&self, engine: &Engine) -> Result<(), ReconcileError> {
        // The engine's list is read before the inventory, which has every image before the engine
        // gets it.
        let images = engine.images().await?;
        let recorded = self.inventory.images()?;
        let mut problem = LastProblem::default();
        for image in &images {
            self.clean_image(engine, image, recorded.contains(&image.digest), &mut problem).await;
        }
        // An image that is being loaded is not needed by a container yet.
        let Ok(_guard) = self.load_lock.try_lock() else { return problem.into_result() };
        let running: BTreeSet<String> =
            self.inventory.all()?.into_values().map(|record| record.digest).collect();
        let needed: BTreeSet<String> = lock(&self.states)
            .values()
            .flat_map(|state| state.loaded.values().cloned())
            .chain(running)
            .collect();
        for digest in self.inventory.images()?.difference(&needed) {
            match engine.remove_image(digest).await {
                Ok(()) => self.inventory.remove_image(digest)?,
                Err(error) => problem.add(Err::<(), _>(error)),
            }
        }
        problem.into_result()
    }

    /// Removes an image that trustd did not load, or the tags of a known image that trustd did not
    /// set.
    async fn clean_image(
        &self,
        engine: &Engine,
        image: &EngineImage,
        known: bool,
        problem: &mut LastProblem,
    ) {
        let (digest, own_tag) = (&image.digest, image_tag(&image.digest));
        let (kind, event, names) = if known {
            let tags: Vec<&String> = image.tags.iter().filter(|tag| **tag != own_tag).collect();
            if tags.is_empty() {
                return;
            }
            let event = json!({ "image": digest, "tags": tags });
            (EventKind::UnknownTagRemoved, event, tags)
        } else {
            let event = json!({ "image": digest, "tags": image.tags });
            (EventKind::UnknownImageRemoved, event, vec![digest])
        };
        // The image is removed even if the event cannot be recorded.
        problem.add(self.deps.audit.record(kind, &event).await);
        for name in names {
            problem.add(engine.remove_image(name).await);
        }
    }

    /// Has init kill the processes in control groups that belong neither to a service nor to a
    /// known container.
    pub(super) async fn clean_cgroups(
        &self,
        containers: &[Container],
    ) -> Result<(), ReconcileError> {
        let settings = &self.deps.settings;
        let Some(root) = &settings.cgroup_root else { return Ok(()) };
        let foreign =
            find_foreign(root, &settings.service_cgroups).map_err(ReconcileError::Cgroups)?;
        // The inventory is read after the search, because it has a container before the container
        // has processes.
        let records = self.inventory.all()?;
        let is_known = |group: &str| {
            container_of(group)
                .is_some_and(|id| records.contains_key(id) || containers.iter().any(|c| c.id == id))
        };
        let mut problem = LastProblem::default();
        for group in foreign.into_iter().filter(|group| !is_known(group)) {
            let event = json!({ "group": group });
            // The processes are killed even if the event cannot be recorded.
            problem.add(self.deps.audit.record(EventKind::UnknownCgroupKilled, &event).await);
            let request = format!("kill-group {group}");
            let sent = init_client::send(&settings.init_socket, &request);
            problem.add(sent.map_err(ReconcileError::Init));
        }
        problem.into_result()
    }
}
