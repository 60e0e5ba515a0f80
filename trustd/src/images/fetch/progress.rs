//! Progress of fetching an image.

use std::sync::{Arc, Mutex};

use api::owner::Progress;

use crate::util::lock::lock;

/// Progress that one task updates and others read.
#[derive(Debug, Clone, Default)]
pub struct ProgressCell(Arc<Mutex<Progress>>);

impl ProgressCell {
    /// Returns the current progress.
    pub fn get(&self) -> Progress {
        lock(&self.0).clone()
    }

    pub(super) fn set(&self, progress: Progress) {
        *lock(&self.0) = progress;
    }

    pub(super) fn set_received(&self, digest: &str, received: u64) {
        let mut progress = lock(&self.0);
        for layer in progress.layers.iter_mut().filter(|layer| layer.digest == digest) {
            layer.received = received;
        }
    }
}
