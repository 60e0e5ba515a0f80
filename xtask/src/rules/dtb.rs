//! The device trees of a machine's boards: from the kernel's build with overlays merged in, or
//! dumped from the same QEMU that will boot them.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::engine::hash;
use crate::engine::sandbox::Sandbox;
use crate::image::device_tree::{OVERLAYS, merge, overlay_path};
use crate::image::machine::{DeviceTree, PropertyCheck};
use crate::image::spec::ImageSpec;
use crate::rules::{kernel, sysroot};

/// The device trees of one machine.
struct DeviceTrees(Rc<ImageSpec>);

/// Returns the step that makes the device trees of an image's machine.
pub fn step(image: &Rc<ImageSpec>) -> Step {
    Rc::new(DeviceTrees(image.clone()))
}

/// Returns the name of the step, which is also that of its log.
fn name(image: &ImageSpec) -> String {
    format!("dtb-{}", image.machine_name)
}

impl Rule for DeviceTrees {
    fn name(&self) -> String {
        name(&self.0)
    }

    fn needs(&self) -> Result<Vec<Step>> {
        Ok(match self.0.machine.device_tree {
            DeviceTree::Qemu => vec![sysroot::tools_step()],
            DeviceTree::Kernel { .. } => vec![sysroot::tools_step(), kernel::step(&self.0)],
        })
    }

    fn inputs(&self, _graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        let machine = &self.0.machine;
        let boards = serde_json::to_string(&(&machine.boards, &machine.device_tree))?;
        inputs.add("boards", hash::bytes(boards.as_bytes()));
        match &machine.device_tree {
            DeviceTree::Qemu => {
                let qemu = serde_json::to_string(&machine.qemu)?;
                inputs.add("qemu", hash::bytes(qemu.as_bytes()));
            }
            DeviceTree::Kernel { overlays, .. } => {
                // All of them: one may include another.
                inputs.path(OVERLAYS)?.path("xtask/src/image/device_tree.rs")?;
                for overlay in overlays {
                    ensure!(
                        overlay_path(overlay).is_file(),
                        "the machine's file names the overlay {overlay}, and there is no \
                         {OVERLAYS}/{overlay}.dtso"
                    );
                }
            }
        }
        Ok(())
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let machine = &self.0.machine;
        let DeviceTree::Kernel { overlays, expect } = &machine.device_tree else {
            return dump(graph, &self.0, out);
        };
        let (sandbox, log) = sysroot::sandbox(graph, &self.name())?;
        let sandbox = sandbox.write(out, "/out").cwd("/out");
        for board in &machine.boards {
            let from = graph.artifact(&kernel::step(&self.0))?.file("dtbs").join(&board.dtb);
            std::fs::copy(&from, out.join(&board.dtb)).with_context(|| {
                format!(
                    "the kernel has no device tree {}, which {} needs (dtbs of its recipe)",
                    board.dtb, board.name
                )
            })?;
            for overlay in overlays {
                merge(&sandbox, &log, overlay, &board.dtb)?;
            }
            check(&sandbox, &log, &board.dtb, expect)?;
        }
        Ok(())
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}

/// Checks the nodes and properties that the machine's file expects in the final tree. Starting it
/// in QEMU would not show the hardware that only the real board has.
fn check(sandbox: &Sandbox, log: &Path, tree: &str, expect: &[PropertyCheck]) -> Result<()> {
    let mut problems = Vec::new();
    for PropertyCheck { node, property, value } in expect {
        let found = sandbox.output(log, ["fdtget", tree, node, property]).unwrap_or_default();
        let found = String::from_utf8_lossy(&found).trim().to_owned();
        if !matches(value, &found) {
            problems
                .push(format!("{tree}: {node} {property}: expected {value:?}, found {found:?}"));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!(
        "a device tree differs from what the machine's file expects:\n  {}",
        problems.join("\n  ")
    )
}

/// Compares word by word; `*` matches a number that differs from kernel to kernel, such as a node's
/// phandle.
fn matches(expected: &str, found: &str) -> bool {
    let (expected, found): (Vec<&str>, Vec<&str>) =
        (expected.split_whitespace().collect(), found.split_whitespace().collect());
    expected.len() == found.len() && expected.iter().zip(&found).all(|(e, f)| *e == "*" || e == f)
}

/// Dumps the tree that QEMU makes for its own board.
///
/// `dtc` packs it again: QEMU leaves 1 MiB free and doubles that when it loads the file, and the
/// kernel rejects more than 2 MiB. QEMU describes the TPM only if there is one, so a software TPM
/// runs while it writes the tree.
fn dump(graph: &BuildGraph, image: &ImageSpec, out: &Path) -> Result<()> {
    let q = image
        .machine
        .qemu
        .as_ref()
        .context("the device tree comes from QEMU, and the machine has no [qemu]")?;
    let target = &image.machine.first_board()?.dtb;
    let script = format!(
        "mkdir /tmp/tpm && swtpm socket --tpm2 --tpmstate dir=/tmp/tpm \
         --ctrl type=unixio,path=/tmp/tpm.sock --daemon --terminate && \
         qemu-system-aarch64 -machine {},dumpdtb=/tmp/raw.dtb {} -display none -nic none \
         -chardev socket,id=chrtpm,path=/tmp/tpm.sock \
         -tpmdev emulator,id=tpm0,chardev=chrtpm -device {} && \
         dtc -q -I dtb -O dtb -o /out/{target} /tmp/raw.dtb",
        q.machine,
        q.options.join(" "),
        q.tpm_device
    );
    let (sandbox, log) = sysroot::sandbox(graph, &name(image))?;
    sandbox.write(out, "/out").run(&log, ["sh", "-c", &script])
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_matches_one_word() {
        assert!(matches("* 8 1 * 7 1", "12 8 1 12 7 1"));
        assert!(!matches("* 8 1 * 7 1", "12 8 1 12 6 1"));
        assert!(!matches("okay", ""), "a missing property");
        assert!(!matches("*", ""));
    }
}
