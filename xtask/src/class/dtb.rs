//! The device trees of a machine's boards: from the kernel's build with overlays merged in, or
//! dumped from the very QEMU that will boot them.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::machine::{DeviceTree, Expect};
use crate::plan::{Plan, Step};
use crate::sandbox::Sandbox;
use crate::store::Inputs;
use crate::{hash, layers};

pub const OVERLAYS: &str = "image/device-tree";

pub fn needs(plan: &Plan, tools: Step) -> Vec<Step> {
    match plan.machine.device_tree {
        DeviceTree::Qemu => vec![tools],
        DeviceTree::Kernel { .. } => vec![tools, plan.kernel()],
    }
}

pub fn inputs(plan: &Plan, inputs: &mut Inputs) -> Result<()> {
    // The rule itself counts.
    inputs.path("xtask/src/class/dtb.rs")?;
    inputs.add(
        "boards",
        hash::bytes(
            serde_json::to_string(&(&plan.machine.boards, &plan.machine.device_tree))?.as_bytes(),
        ),
    );
    match &plan.machine.device_tree {
        DeviceTree::Qemu => {
            inputs.add("qemu", hash::bytes(serde_json::to_string(&plan.machine.qemu)?.as_bytes()));
        }
        DeviceTree::Kernel { overlays, .. } => {
            // All of them: one may include another.
            inputs.path(OVERLAYS)?;
            for overlay in overlays {
                let name = format!("{OVERLAYS}/{overlay}.dtso");
                ensure!(
                    layers::current().find(&name).is_file(),
                    "the machine's file names the overlay {overlay}, and there is no {name}"
                );
            }
        }
    }
    Ok(())
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    match &plan.machine.device_tree {
        DeviceTree::Qemu => dump(plan, out),
        DeviceTree::Kernel { overlays, expect } => {
            let (sandbox, log) = plan.sandbox("dtb")?;
            let sandbox = sandbox.write(out, "/out").cwd("/out");
            for board in &plan.machine.boards {
                let from = plan.planned(&plan.kernel())?.file("dtbs").join(&board.dtb);
                let copied = std::fs::copy(&from, out.join(&board.dtb));
                copied.with_context(|| {
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
    }
}

/// Merges an overlay of the repository into a tree in the sandbox's working folder.
pub fn merge(sandbox: &Sandbox, log: &Path, overlay: &str, tree: &str) -> Result<()> {
    let file = layers::current().find(&format!("{OVERLAYS}/{overlay}.dtso"));
    let sandbox = sandbox.clone().read(file.parent().unwrap_or(&file), "/in");
    let source = format!("/in/{overlay}.dtso");
    let script = format!(
        "dtc -q -@ -I dts -O dtb -o /tmp/overlay {source} && fdtoverlay -i {tree} -o /tmp/tree /tmp/overlay && cp /tmp/tree {tree}"
    );
    sandbox.run(log, ["sh", "-c", &script])
}

/// Looks into the final tree: what is on a real board only cannot be seen by starting it in QEMU.
fn check(sandbox: &Sandbox, log: &Path, tree: &str, expect: &[Expect]) -> Result<()> {
    let mut problems = Vec::new();
    for Expect { node, property, value } in expect {
        let found = sandbox.output(log, ["fdtget", tree, node, property]).unwrap_or_default();
        let found = String::from_utf8_lossy(&found).trim().to_owned();
        if !agrees(value, &found) {
            problems
                .push(format!("{tree}: {node} {property}: expected {value:?}, found {found:?}"));
        }
    }
    if problems.is_empty() {
        return Ok(());
    }
    bail!(
        "a device tree is not what the machine's file expects of it:\n  {}",
        problems.join("\n  ")
    )
}

/// Word by word; `*` stands for a number that differs from kernel to kernel, as a node's handle
/// does.
fn agrees(expected: &str, found: &str) -> bool {
    let (expected, found): (Vec<&str>, Vec<&str>) =
        (expected.split_whitespace().collect(), found.split_whitespace().collect());
    expected.len() == found.len() && expected.iter().zip(&found).all(|(e, f)| *e == "*" || e == f)
}

/// QEMU describes its own board.
///
/// Packed anew: QEMU leaves 1 MiB, doubles that when it loads the file, and the kernel refuses more
/// than 2 MiB. QEMU describes the TPM only if there is one, so a software TPM answers while it
/// writes the tree down.
fn dump(plan: &Plan, out: &Path) -> Result<()> {
    let q = plan
        .machine
        .qemu
        .as_ref()
        .context("the device tree comes from QEMU, and the machine has no [qemu]")?;
    let target = &plan.machine.first_board()?.dtb;
    let script = format!(
        "mkdir /tmp/tpm && swtpm socket --tpm2 --tpmstate dir=/tmp/tpm --ctrl type=unixio,path=/tmp/tpm.sock --daemon --terminate && \
         qemu-system-aarch64 -machine {},dumpdtb=/tmp/raw.dtb {} -display none -nic none \
         -chardev socket,id=chrtpm,path=/tmp/tpm.sock -tpmdev emulator,id=tpm0,chardev=chrtpm -device {} && \
         dtc -q -I dtb -O dtb -o /out/{target} /tmp/raw.dtb",
        q.machine,
        q.options.join(" "),
        q.tpm_device
    );
    let (sandbox, log) = plan.sandbox("dtb")?;
    sandbox.write(out, "/out").run(&log, ["sh", "-c", &script])
}

#[cfg(test)]
mod tests {
    use super::agrees;

    #[test]
    fn a_star_stands_for_one_word() {
        assert!(agrees("* 8 1 * 7 1", "12 8 1 12 7 1"));
        assert!(!agrees("* 8 1 * 7 1", "12 8 1 12 6 1"));
        assert!(!agrees("okay", ""), "a property that is not there");
        assert!(!agrees("*", ""));
    }
}
