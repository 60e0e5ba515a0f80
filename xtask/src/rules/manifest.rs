//! The manifest: hashes of everything that went into an image and came out of its build, signed
//! with the builder's key.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use anyhow::Result;
use trustctl::image::{FORMAT, MANIFEST, Manifest, SIGNATURE, sign};

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::engine::{hash, lock};
use crate::image::spec::ImageSpec;
use crate::image::{keys, recipe};
use crate::rules::{disk, image_xz, kernel, sbom};

/// The signed manifest of one image.
struct SignedManifest(Rc<ImageSpec>);

/// Returns the step that makes the manifest of an image.
pub fn step(image: &Rc<ImageSpec>) -> Step {
    Rc::new(SignedManifest(image.clone()))
}

impl Rule for SignedManifest {
    fn name(&self) -> String {
        format!("manifest-{}", self.0.machine_name)
    }

    fn needs(&self) -> Result<Vec<Step>> {
        let image = &self.0;
        Ok(vec![kernel::step(image), disk::step(image), image_xz::step(image), sbom::step(image)])
    }

    fn inputs(&self, _graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        inputs.path("trustctl/src/image.rs")?;
        inputs.add("builder", trustctl::keys::public_hex(&keys::builder()?));
        Ok(())
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let image = &self.0;
        let mut outputs = BTreeMap::new();
        for step in [disk::step(image), image_xz::step(image), sbom::step(image)] {
            let artifact = graph.artifact(&step)?;
            for name in hash::walk(&artifact.dir)? {
                let hash = hash::file(&artifact.dir.join(&name))?;
                outputs.insert(name.display().to_string(), hash);
            }
        }
        let config = graph.artifact(&kernel::step(image))?.file("config");
        outputs.insert("kernel.config".into(), hash::file(&config)?);
        let (own, mut inputs) = (self.name(), BTreeMap::new());
        for step in graph.closure(&step(image))? {
            if step.name() != own {
                inputs.insert(step.name(), graph.inputs(&step)?.0);
            }
        }
        let tools = lock::load("tools", true)?
            .package
            .into_iter()
            .map(|p| (format!("{}:{}", p.name, p.architecture), p.version))
            .collect();
        let manifest = Manifest {
            format: FORMAT.into(),
            machine: image.machine_name.clone(),
            variant: image.variant.clone(),
            version: recipe::release()?.version,
            inputs,
            outputs,
            tools,
        };
        let text = serde_json::to_string_pretty(&manifest)? + "\n";
        std::fs::write(out.join(SIGNATURE), sign(text.as_bytes(), &keys::builder()?))?;
        Ok(std::fs::write(out.join(MANIFEST), text)?)
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}
