//! Merges device-tree overlays of the repository with the sysroot's `dtc` and `fdtoverlay`.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::engine::layers;
use crate::engine::sandbox::Sandbox;

/// Folder of the overlays.
pub const OVERLAYS: &str = "image/device-tree";

/// Returns the path of the source of an overlay, in the topmost layer that has it.
pub fn overlay_path(overlay: &str) -> PathBuf {
    layers::current().find(&format!("{OVERLAYS}/{overlay}.dtso"))
}

/// Merges an overlay of the repository into the device tree `tree`, a file in the sandbox's working
/// folder.
///
/// # Errors
///
/// Fails if the overlay cannot be compiled or applied to the tree.
pub fn merge(sandbox: &Sandbox, log: &Path, overlay: &str, tree: &str) -> Result<()> {
    let file = overlay_path(overlay);
    let sandbox = sandbox.clone().read(file.parent().unwrap_or(&file), "/in");
    let source = format!("/in/{overlay}.dtso");
    let script = format!(
        "dtc -q -@ -I dts -O dtb -o /tmp/overlay {source} && \
         fdtoverlay -i {tree} -o /tmp/tree /tmp/overlay && cp /tmp/tree {tree}"
    );
    sandbox.run(log, ["sh", "-c", &script])
}
