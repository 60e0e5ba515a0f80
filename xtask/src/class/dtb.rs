//! The device tree of a machine: from the kernel's build, or dumped from the very QEMU that will boot it.

use std::path::Path;

use anyhow::Result;

use crate::machine::DeviceTree;
use crate::plan::{Plan, Step};
use crate::store::Inputs;

pub fn needs(plan: &Plan, tools: Step) -> Vec<Step> {
    match plan.machine.device_tree {
        DeviceTree::Qemu => vec![tools],
        DeviceTree::Kernel { .. } => vec![Step::Kernel],
    }
}

pub fn inputs(plan: &Plan, inputs: &mut Inputs) -> Result<()> {
    inputs.path(&format!("configs/machines/{}.toml", plan.machine_name))?.path("xtask/src/class/dtb.rs")?;
    Ok(())
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    let target = out.join("machine.dtb");
    match &plan.machine.device_tree {
        DeviceTree::Kernel { file } => {
            std::fs::copy(plan.planned(&Step::Kernel)?.file("dtbs").join(file), target)?;
        }
        DeviceTree::Qemu => {
            let q = &plan.machine.qemu;
            // Packed anew: QEMU leaves 1 MiB, doubles that when it loads the file, and the kernel refuses more than 2 MiB.
            // QEMU describes the TPM only if there is one, so a software TPM answers while it writes the tree down.
            let script = format!(
                "mkdir /tmp/tpm && swtpm socket --tpm2 --tpmstate dir=/tmp/tpm --ctrl type=unixio,path=/tmp/tpm.sock --daemon --terminate && \
                 qemu-system-aarch64 -machine {},dumpdtb=/tmp/raw.dtb -cpu {} -smp {} -m {} -display none -nic none \
                 -chardev socket,id=chrtpm,path=/tmp/tpm.sock -tpmdev emulator,id=tpm0,chardev=chrtpm -device {} && \
                 dtc -q -I dtb -O dtb -o /out/machine.dtb /tmp/raw.dtb",
                q.machine, q.cpu, q.cpus, q.memory_mib, q.tpm_device
            );
            let (sandbox, log) = plan.sandbox("dtb")?;
            sandbox.write(out, "/out").run(&log, ["sh", "-c", &script])?;
        }
    }
    Ok(())
}
