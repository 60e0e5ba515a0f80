//! The build graph: the steps of a build, their dependencies and the keys of their results.
//!
//! Invariants:
//! - The inputs of a step are computed without building any step, because a needed step is
//!   represented by its key. An unchanged build therefore writes nothing, and `why` works at any
//!   time.
//! - If the result of a step is cached, the steps that it needs are not built.
//! - The graph is independent of the rules: a step is any value that implements [`Rule`].

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;

use anyhow::Result;

use crate::engine::cache::{Artifact, Cache, Inputs};
use crate::engine::sandbox::ENVIRONMENT;

/// A step of a build: a rule and the values that it applies to.
pub type Step = Rc<dyn Rule>;

/// Identification of a rule's own code, which is part of the key of its results.
pub enum Revision {
    /// Path of the source file that implements the rule: `file!()`.
    Source(&'static str),
    /// A number that the author of the rule raises when its output changes. The steps that all
    /// others depend on use it, so that a changed comment does not rebuild the kernel.
    Number(u32),
}

/// A kind of step: its dependencies, its inputs and the code that builds it.
pub trait Rule {
    /// Returns the name of the step, which names the folder of its results and is used on the
    /// command line.
    fn name(&self) -> String;

    /// Returns the steps whose results this step reads.
    ///
    /// # Errors
    ///
    /// Fails if the description of the step cannot be read.
    fn needs(&self) -> Result<Vec<Step>>;

    /// Adds all inputs of the step, except for the needed steps and the rule's revision, which the
    /// graph adds.
    ///
    /// # Errors
    ///
    /// Fails if an input cannot be read.
    fn inputs(&self, graph: &BuildGraph, inputs: &mut Inputs) -> Result<()>;

    /// Returns a description of the work for the progress output; empty if the work is short.
    fn label(&self) -> String {
        String::new()
    }

    /// Runs before the build of a result that is not cached. Downloads belong here, because they
    /// can renew a lock and thereby change the key.
    ///
    /// # Errors
    ///
    /// Fails if a download fails.
    fn prepare(&self, _graph: &BuildGraph) -> Result<()> {
        Ok(())
    }

    /// Builds the result in the empty folder `out`.
    ///
    /// # Errors
    ///
    /// Fails if the result cannot be built.
    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()>;

    /// Returns the identification of the rule's own code.
    fn revision(&self) -> Revision;

    /// Returns whether the step runs programs in the sandbox. The sandbox's environment is then an
    /// input.
    fn sandboxed(&self) -> bool {
        true
    }
}

/// A cache and the steps that this run has built or found in it.
pub struct BuildGraph {
    /// Results, downloads and work folders.
    pub cache: Cache,
    /// Whether changes of `image/locks/` are forbidden.
    pub locked: bool,
    /// Names of the steps that this run has built or found in the cache.
    handled: RefCell<BTreeSet<String>>,
}

impl BuildGraph {
    /// Returns a graph that stores its results in an open cache.
    pub fn new(cache: Cache, locked: bool) -> Self {
        Self { cache, locked, handled: RefCell::default() }
    }

    /// Returns a step and all its direct and indirect dependencies, in build order.
    ///
    /// # Errors
    ///
    /// Fails if the description of a step cannot be read.
    pub fn closure(&self, step: &Step) -> Result<Vec<Step>> {
        fn visit(step: Step, names: &mut BTreeSet<String>, steps: &mut Vec<Step>) -> Result<()> {
            for need in step.needs()? {
                visit(need, names, steps)?;
            }
            if names.insert(step.name()) {
                steps.push(step);
            }
            Ok(())
        }
        let mut steps = Vec::new();
        visit(step.clone(), &mut BTreeSet::new(), &mut steps)?;
        Ok(steps)
    }

    /// Returns the inputs of a step.
    ///
    /// # Errors
    ///
    /// Fails if an input cannot be read.
    pub fn inputs(&self, step: &Step) -> Result<Inputs> {
        let mut inputs = Inputs::default();
        for need in step.needs()? {
            inputs.step(&self.artifact(&need)?);
        }
        if step.sandboxed() {
            for (name, value) in ENVIRONMENT {
                inputs.add(format!("environment {name}"), value);
            }
        }
        match step.revision() {
            Revision::Source(path) => inputs.path(path)?,
            Revision::Number(number) => inputs.add("revision", number.to_string()),
        };
        step.inputs(self, &mut inputs)?;
        Ok(inputs)
    }

    /// Returns the key and folder of the result of a step, without building it.
    ///
    /// # Errors
    ///
    /// Fails if an input cannot be read.
    pub fn artifact(&self, step: &Step) -> Result<Artifact> {
        Ok(self.cache.artifact(&step.name(), &self.inputs(step)?))
    }

    /// Returns the result of a step; builds it if it is not in the cache.
    ///
    /// # Errors
    ///
    /// Fails if the step, or one that it needs, cannot be built.
    pub fn build(&self, step: &Step) -> Result<Artifact> {
        let name = step.name();
        let artifact = self.artifact(step)?;
        let cached = artifact.exists();
        if !self.handled.borrow_mut().insert(name.clone()) && cached {
            return Ok(artifact);
        }
        if !cached {
            for need in step.needs()? {
                self.build(&need)?;
            }
            step.prepare(self)?;
        }
        // A download can have renewed a lock, so the inputs are computed again.
        let inputs = self.inputs(step)?;
        self.cache.get_or_build(&name, &step.label(), &inputs, |out| step.build(self, out))
    }

    /// Returns the result of a step like [`Self::build`], but prints no line if it is cached.
    ///
    /// # Errors
    ///
    /// Fails if the step, or one that it needs, cannot be built.
    pub fn build_quietly(&self, step: &Step) -> Result<Artifact> {
        let artifact = self.artifact(step)?;
        if artifact.exists() { Ok(artifact) } else { self.build(step) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A rule that writes its value, and the values of the steps that it needs, into `out/value`.
    struct Concat {
        name: &'static str,
        value: &'static str,
        needs: Vec<Step>,
        builds: Rc<RefCell<Vec<&'static str>>>,
    }

    impl Rule for Concat {
        fn name(&self) -> String {
            self.name.into()
        }

        fn needs(&self) -> Result<Vec<Step>> {
            Ok(self.needs.clone())
        }

        fn inputs(&self, _: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
            inputs.add("value", self.value);
            Ok(())
        }

        fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
            self.builds.borrow_mut().push(self.name);
            let mut text = self.value.to_owned();
            for need in &self.needs {
                text += &std::fs::read_to_string(graph.artifact(need)?.file("value"))?;
            }
            Ok(std::fs::write(out.join("value"), text)?)
        }

        fn revision(&self) -> Revision {
            Revision::Number(1)
        }
    }

    #[test]
    fn needed_steps_are_built_first_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let graph = BuildGraph::new(Cache::open_at(dir.path()).unwrap(), false);
        let builds = Rc::new(RefCell::new(Vec::new()));
        let step = |name, value, needs: &[&Step]| -> Step {
            let needs = needs.iter().map(|step| (*step).clone()).collect();
            Rc::new(Concat { name, value, needs, builds: builds.clone() })
        };
        let base = step("base", "b", &[]);
        let (left, right) = (step("left", "l", &[&base]), step("right", "r", &[&base]));
        let top = step("top", "t", &[&left, &right]);
        let names: Vec<String> = graph.closure(&top).unwrap().iter().map(|s| s.name()).collect();
        assert_eq!(names, ["base", "left", "right", "top"]);
        let artifact = graph.build(&top).unwrap();
        assert_eq!(std::fs::read_to_string(artifact.file("value")).unwrap(), "tlbrb");
        graph.build(&top).unwrap();
        assert_eq!(
            *builds.borrow(),
            ["base", "left", "right", "top"],
            "each step must be built exactly once"
        );
    }

    #[test]
    fn changed_inputs_change_the_keys_of_all_dependent_steps() {
        let dir = tempfile::tempdir().unwrap();
        let graph = BuildGraph::new(Cache::open_at(dir.path()).unwrap(), false);
        let top = |value| -> Step {
            let builds = Rc::new(RefCell::new(Vec::new()));
            let base: Step =
                Rc::new(Concat { name: "base", value, needs: vec![], builds: builds.clone() });
            Rc::new(Concat { name: "top", value: "t", needs: vec![base], builds })
        };
        let key = |value| graph.artifact(&top(value)).unwrap().key;
        assert_eq!(key("1"), key("1"));
        assert_ne!(key("1"), key("2"));
    }

    #[test]
    fn cached_results_do_not_build_needed_steps() {
        let dir = tempfile::tempdir().unwrap();
        let graph = BuildGraph::new(Cache::open_at(dir.path()).unwrap(), false);
        let builds = Rc::new(RefCell::new(Vec::new()));
        let base: Step =
            Rc::new(Concat { name: "base", value: "b", needs: vec![], builds: builds.clone() });
        let top: Step = Rc::new(Concat {
            name: "top",
            value: "t",
            needs: vec![base.clone()],
            builds: builds.clone(),
        });
        graph.build(&top).unwrap();
        std::fs::remove_dir_all(&graph.artifact(&base).unwrap().dir).unwrap();
        builds.borrow_mut().clear();
        graph.build(&top).unwrap();
        assert_eq!(*builds.borrow(), [""; 0]);
    }
}
