//! An identified caller.

use std::sync::Arc;

use config::Access;

use super::gate::Gate;
use crate::keys::derive::{Binding, ModuleKeys, RootKey};

/// Container of a module, with the module's keys and permissions.
pub struct Caller {
    /// Name of the module.
    pub(super) module: String,
    /// ID of the container.
    pub(super) container: String,
    /// Digest of the manifest that the container runs.
    pub(super) image: String,
    /// Calls that the module may make, and its quota.
    pub(super) access: Access,
    /// Binding of the module's keys.
    pub(super) binding: Binding,
    /// The module's keys.
    pub(super) keys: Arc<ModuleKeys>,
    /// Gate of the container.
    pub(super) gate: Arc<Gate>,
}

impl Caller {
    /// Creates a caller and derives the module's keys.
    pub fn new(
        root: &RootKey,
        module: &str,
        container: &str,
        image: &str,
        access: Access,
        binding: Binding,
    ) -> Self {
        let keys = Arc::new(root.derive_module_keys(module, &binding));
        Self {
            module: module.to_owned(),
            container: container.to_owned(),
            image: image.to_owned(),
            access,
            binding,
            keys,
            gate: Arc::default(),
        }
    }

    /// Returns what the module's keys are bound to, as statements and answers name it.
    pub(super) fn bound_to(&self) -> String {
        match &self.binding {
            Binding::Approvers(ledger) => format!("approvers:{}", measure::hex(ledger)),
            Binding::Image(digest) => format!("image:{digest}"),
        }
    }
}
