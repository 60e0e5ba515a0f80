//! The root partition as an xz stream: most of the download, and most of the time to make it.

use std::path::Path;
use std::rc::Rc;

use anyhow::Result;

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::image::spec::ImageSpec;
use crate::rules::{root, sysroot};

/// The compressed root partition.
struct RootXz(Rc<ImageSpec>);

/// Returns the step that compresses the root partition of an image.
pub fn step(image: &Rc<ImageSpec>) -> Step {
    Rc::new(RootXz(image.clone()))
}

impl Rule for RootXz {
    fn name(&self) -> String {
        "root-xz".into()
    }

    fn needs(&self) -> Result<Vec<Step>> {
        Ok(vec![sysroot::tools_step(), root::step(&self.0)])
    }

    fn inputs(&self, _graph: &BuildGraph, _inputs: &mut Inputs) -> Result<()> {
        Ok(())
    }

    fn label(&self) -> String {
        "compressing the root for the download, about 2 minutes".into()
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let image = out.join("root");
        std::fs::copy(graph.artifact(&root::step(&self.0))?.file("root.img"), &image)?;
        // The partition has a whole number of MiB.
        let length = image.metadata()?.len().next_multiple_of(1 << 20);
        std::fs::File::options().write(true).open(&image)?.set_len(length)?;
        let (sandbox, log) = sysroot::sandbox(graph, "root-xz")?;
        // One block with a dictionary that covers all of it finds what programs have in common even
        // if they are far apart. Two processors could share the work only in blocks, which costs a
        // fifth of the size (docs/performance.md). Decompression needs as much memory as the
        // dictionary has. lc, lp and pb are those that xz's manual recommends for ARM64 code.
        let lzma2 = "--lzma2=preset=9e,dict=160MiB,lc=2,lp=2,pb=2";
        sandbox.write(out, "/out").run(&log, ["xz", "--threads=1", "--arm64", lzma2, "/out/root"])
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}
