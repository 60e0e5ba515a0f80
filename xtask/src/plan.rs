//! The steps of a build and what each needs.
//!
//! Invariant: a step's inputs are computed without building anything (a needed step counts by its
//! key), so an unchanged build touches nothing and `why` can answer at any time. A step that is in
//! the cache does not ask for what it needs.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::machine::{self, Machine};
use crate::sandbox::{ENVIRONMENT, Sandbox};
use crate::store::{Built, Inputs, Store};
use crate::{class, layers, lock, recipe, tree};

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    Tree(String),
    /// The crates of the checkout's workspace, or of one that a layer has in this folder.
    Vendor(Option<String>),
    Kernel(String),
    Program(String),
    Module(String),
    DeviceTree,
    Root,
    Packed,
    Disk,
    Download,
    Parts,
    Manifest,
    /// What `bench image` compares with; no part of an image.
    Baseline,
}

pub struct Plan {
    pub store: Store,
    pub machine_name: String,
    pub machine: Machine,
    pub variant: String,
    pub locked: bool,
    /// Steps that were dealt with in this run.
    done: std::cell::RefCell<Vec<String>>,
}

impl Plan {
    pub fn new(machine: &str, variant: &str, locked: bool) -> Result<Self> {
        let variants = layers::current().names("configs/variants")?;
        if !variants.iter().any(|v| v == variant) {
            bail!("there is no variant {variant:?}; configs/variants has: {}", variants.join(", "));
        }
        Ok(Self {
            machine: machine::load(machine)?,
            machine_name: machine.to_owned(),
            variant: variant.to_owned(),
            locked,
            store: Store::open()?,
            done: Default::default(),
        })
    }

    /// Every step of this image, in the order in which they are built.
    pub fn steps(&self) -> Result<Vec<Step>> {
        fn visit(plan: &Plan, step: Step, found: &mut Vec<Step>) -> Result<()> {
            for need in plan.needs(&step)? {
                visit(plan, need, found)?;
            }
            if !found.contains(&step) {
                found.push(step);
            }
            Ok(())
        }
        let mut found = Vec::new();
        visit(self, Step::Manifest, &mut found)?;
        Ok(found)
    }

    /// The step that makes this machine's kernel.
    pub fn kernel(&self) -> Step {
        Step::Kernel(self.machine.kernel_recipe.clone())
    }

    pub fn name(&self, step: &Step) -> String {
        match step {
            Step::Tree(set) => format!("tree-{set}"),
            Step::Vendor(None) => "crates".into(),
            Step::Vendor(Some(workspace)) => {
                format!("crates-{}", workspace.rsplit('/').next().unwrap_or(workspace))
            }
            Step::Kernel(recipe) => recipe.clone(),
            Step::Program(name) => name.clone(),
            Step::Module(name) => format!("module-{name}"),
            Step::DeviceTree => format!("dtb-{}", self.machine_name),
            Step::Root => "root".into(),
            Step::Packed => "root-packed".into(),
            Step::Disk => format!("disk-{}", self.machine_name),
            Step::Download => format!("download-{}", self.machine_name),
            Step::Parts => format!("parts-{}", self.machine_name),
            Step::Baseline => class::baseline::SET.into(),
            Step::Manifest => format!("manifest-{}", self.machine_name),
        }
    }

    fn needs(&self, step: &Step) -> Result<Vec<Step>> {
        let tools = || Step::Tree("tools".into());
        Ok(match step {
            Step::Tree(_) | Step::Vendor(_) => vec![],
            Step::Kernel(_) => vec![tools()],
            Step::Program(name) => vec![tools(), class::program::crates(name)?],
            Step::Module(name) => class::module::needs(name)?,
            Step::DeviceTree => class::dtb::needs(self, tools()),
            Step::Root => {
                let mut needs = vec![tools(), Step::Tree("device".into())];
                needs.extend(recipe::root()?.programs.into_values().map(Step::Program));
                needs.extend(class::module::names()?.into_iter().map(Step::Module));
                needs
            }
            Step::Packed => vec![tools(), Step::Root],
            Step::Disk => {
                let mut needs = vec![tools(), self.kernel(), Step::DeviceTree, Step::Root];
                if !self.machine.firmware.is_empty() {
                    needs.push(Step::Tree("firmware".into()));
                }
                needs
            }
            Step::Download => vec![tools(), Step::Packed, Step::Disk],
            Step::Parts => {
                let mut needs = vec![tools(), Step::Tree("device".into())];
                needs.extend(class::parts::crates_steps()?);
                if !self.machine.firmware.is_empty() {
                    needs.push(Step::Tree("firmware".into()));
                }
                needs
            }
            Step::Baseline => vec![tools(), self.kernel(), Step::Tree(class::baseline::SET.into())],
            Step::Manifest => vec![self.kernel(), Step::Disk, Step::Download, Step::Parts],
        })
    }

    pub fn inputs(&self, step: &Step) -> Result<Inputs> {
        let mut inputs = Inputs::default();
        for need in self.needs(step)? {
            inputs.step(&self.planned(&need)?);
        }
        // Trees and crates are fetched by the host; all else is made inside.
        if !matches!(step, Step::Tree(_) | Step::Vendor(_)) {
            for (name, value) in ENVIRONMENT {
                inputs.add(format!("environment {name}"), value);
            }
        }
        match step {
            Step::Tree(set) => tree::inputs(&lock::load(set, self.locked)?, &mut inputs),
            Step::Vendor(workspace) => {
                class::program::vendor_inputs(workspace.as_deref(), &mut inputs)?
            }
            Step::Kernel(recipe) => class::kernel::inputs(self, recipe, &mut inputs)?,
            Step::Program(name) => class::program::inputs(name, &mut inputs)?,
            Step::Module(name) => class::module::inputs(name, &mut inputs)?,
            Step::DeviceTree => class::dtb::inputs(self, &mut inputs)?,
            Step::Root => class::root::inputs(self, &mut inputs)?,
            Step::Packed => class::packed::inputs(&mut inputs)?,
            Step::Disk => class::disk::inputs(self, &mut inputs)?,
            Step::Download => class::download::inputs(&mut inputs)?,
            Step::Parts => class::parts::inputs(self, &mut inputs)?,
            Step::Baseline => class::baseline::inputs(self, &mut inputs)?,
            Step::Manifest => class::manifest::inputs(&mut inputs)?,
        }
        Ok(inputs)
    }

    /// Where the result of a step is or will be.
    pub fn planned(&self, step: &Step) -> Result<Built> {
        Ok(self.store.planned(&self.name(step), &self.inputs(step)?))
    }

    /// The result of a step, made now if it is not in the cache.
    pub fn build(&self, step: &Step) -> Result<Built> {
        if let Step::Tree(set) = step {
            // The lock may change here, and the inputs with it.
            let name = self.name(step);
            if self.store.lookup(&name, &self.inputs(step)?).is_none() {
                let lock = tree::available(set, self.locked)?;
                return tree::make(&self.store, set, &lock);
            }
        }
        let (name, inputs) = (self.name(step), self.inputs(step)?);
        let found = self.store.lookup(&name, &inputs);
        if let Some(built) = found.as_ref().filter(|_| self.done.borrow().contains(&name)) {
            return Ok(built.clone());
        }
        self.done.borrow_mut().push(name.clone());
        if found.is_none() {
            for need in self.needs(step)? {
                self.build(&need)?;
            }
        }
        if let Step::Kernel(name) = step
            && found.is_none()
        {
            // Here and not while building: a renewed lock is another key.
            tree::available(&recipe::kernel(name)?.set, self.locked)?;
        }
        // Building a tree can have renewed a lock.
        let inputs = self.inputs(step)?;
        let doing = match step {
            Step::Kernel(_) => "configuring and compiling, some 12 minutes on two cores",
            Step::Program(_) => "compiling for the device",
            Step::Vendor(_) => "fetching crates",
            Step::Packed => "compressing the root for the download, some 2 minutes",
            Step::Baseline => {
                "letting Debian's packages configure themselves in QEMU, some 15 minutes"
            }
            Step::Disk => "assembling the image",
            _ => "",
        };
        self.store.step(&name, doing, &inputs, |out| match step {
            Step::Tree(_) => bail!("a tree is made by its own rule"),
            Step::Vendor(workspace) => class::program::vendor(self, workspace.as_deref(), out),
            Step::Kernel(recipe) => class::kernel::build(self, recipe, out),
            Step::Program(name) => class::program::build(self, name, out),
            Step::Module(name) => class::module::build(self, name, out),
            Step::DeviceTree => class::dtb::build(self, out),
            Step::Root => class::root::build(self, out),
            Step::Packed => class::packed::build(self, out),
            Step::Disk => class::disk::build(self, out),
            Step::Download => class::download::build(self, out),
            Step::Parts => class::parts::build(self, out),
            Step::Baseline => class::baseline::build(self, out),
            Step::Manifest => class::manifest::build(self, out),
        })
    }

    pub fn tools(&self) -> Result<PathBuf> {
        Ok(self.build_quietly(&Step::Tree("tools".into()))?.dir)
    }

    fn build_quietly(&self, step: &Step) -> Result<Built> {
        let planned = self.planned(step)?;
        if planned.dir.is_dir() { Ok(planned) } else { self.build(step) }
    }

    /// A sandbox in the tools tree with an empty log for this step.
    pub fn sandbox(&self, step: &str) -> Result<(Sandbox, PathBuf)> {
        let log = self.store.log(step);
        std::fs::write(&log, "")?;
        let epoch = recipe::release()?.source_date_epoch;
        Ok((Sandbox::new(&self.tools()?).env("SOURCE_DATE_EPOCH", epoch.to_string()), log))
    }

    pub fn jobs() -> usize {
        let asked = std::env::var("BASALT_JOBS").ok().and_then(|n| n.parse().ok());
        asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from))
    }
}
