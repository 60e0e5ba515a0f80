//! The manifest: hashes of all that went into an image and came out of its build, signed with the
//! builder's key.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use trustctl::image::{FORMAT, MANIFEST, Manifest, SIGNATURE, sign};

use crate::plan::{Plan, Step};
use crate::store::Inputs;
use crate::{hash, keys, lock, recipe};

pub fn inputs(inputs: &mut Inputs) -> Result<()> {
    // The rule itself counts.
    inputs.path("xtask/src/class/manifest.rs")?.path("trustctl/src/image.rs")?;
    inputs.add("builder", trustctl::keys::public_hex(&keys::builder()?));
    Ok(())
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    let mut outputs = BTreeMap::new();
    for step in [Step::Disk, Step::Download, Step::Parts] {
        let built = plan.planned(&step)?;
        for name in hash::walk(&built.dir)? {
            outputs.insert(name.display().to_string(), hash::file(&built.dir.join(&name))?);
        }
    }
    outputs
        .insert("kernel.config".into(), hash::file(&plan.planned(&plan.kernel())?.file("config"))?);
    let mut inputs = BTreeMap::new();
    for step in plan.steps()?.into_iter().filter(|step| *step != Step::Manifest) {
        inputs.insert(plan.name(&step), plan.inputs(&step)?.0);
    }
    let tools = lock::load("tools", true)?
        .package
        .into_iter()
        .map(|p| (format!("{}:{}", p.name, p.architecture), p.version))
        .collect();
    let manifest = Manifest {
        format: FORMAT.into(),
        machine: plan.machine_name.clone(),
        variant: plan.variant.clone(),
        version: recipe::release()?.version,
        inputs,
        outputs,
        tools,
    };
    let text = serde_json::to_string_pretty(&manifest)? + "\n";
    std::fs::write(out.join(SIGNATURE), sign(text.as_bytes(), &keys::builder()?))?;
    Ok(std::fs::write(out.join(MANIFEST), text)?)
}
