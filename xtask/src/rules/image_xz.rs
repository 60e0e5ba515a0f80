//! The image as `.img.xz`: three xz streams in a row, which every xz reads as one.
//!
//! The stream of the root is a step of its own: it takes most of the time, and it stays the same
//! until the root changes.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use anyhow::Result;

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::image::partition::partition_start;
use crate::image::spec::ImageSpec;
use crate::rules::{disk, root_xz, sysroot};

/// The compressed disk image.
struct ImageXz(Rc<ImageSpec>);

/// Returns the step that compresses the disk image.
pub fn step(image: &Rc<ImageSpec>) -> Step {
    Rc::new(ImageXz(image.clone()))
}

impl Rule for ImageXz {
    fn name(&self) -> String {
        format!("image-xz-{}", self.0.machine_name)
    }

    fn needs(&self) -> Result<Vec<Step>> {
        Ok(vec![sysroot::tools_step(), root_xz::step(&self.0), disk::step(&self.0)])
    }

    fn inputs(&self, _graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        inputs.path("xtask/src/image/partition.rs")?.path("xtask/src/image/spec.rs")?;
        Ok(())
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let name = self.0.file_name();
        let image = graph.artifact(&disk::step(&self.0))?.file(&name);
        let (root, data) = (partition_start(&image, 2)?, partition_start(&image, 3)?);
        let end = image.metadata()?.len();
        let work = tempfile::tempdir_in(graph.cache.scratch())?;
        let (sandbox, log) = sysroot::sandbox(graph, &self.name())?;
        let sandbox = sandbox.write(work.path(), "/work").cwd("/work");
        let mut source = File::open(image)?;
        let mut target = File::create(out.join(format!("{name}.xz")))?;
        for (from, to, stream) in [(0, root, "head"), (root, data, "root"), (data, end, "data")] {
            let compressed = if stream == "root" {
                graph.artifact(&root_xz::step(&self.0))?.file("root.xz")
            } else {
                source.seek(SeekFrom::Start(from))?;
                let mut part = File::create(work.path().join(stream))?;
                std::io::copy(&mut (&source).take(to - from), &mut part)?;
                // Kernel and firmware are compressed already, and the rest is empty.
                sandbox.run(&log, ["xz", "-0", "--threads=1", stream])?;
                work.path().join(format!("{stream}.xz"))
            };
            std::io::copy(&mut File::open(compressed)?, &mut target)?;
        }
        Ok(())
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}
