//! The root partition: files laid out, packed as EROFS, followed by the dm-verity hash tree.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail};
use config::Boot;
use measure::{Digest, FileList};
use serde::{Deserialize, Serialize};

use crate::engine::cache::Inputs;
use crate::engine::graph::{BuildGraph, Revision, Rule, Step};
use crate::engine::sysroot::ca_bundle;
use crate::engine::{hash, layers, toml_file};
use crate::image::spec::ImageSpec;
use crate::image::{elf, keys, recipe};
use crate::rules::{module, program, sysroot};

/// File of the result that has the [`RootMetadata`].
pub const METADATA: &str = "root.json";

/// Facts about a root partition that the disk image and the prediction need.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootMetadata {
    /// Root of the hash tree, in hex.
    pub verity_root: String,
    /// Salt of the hash tree, in hex.
    pub salt: String,
    /// Length in blocks of 4096 bytes; the superblock of the hash tree follows directly.
    pub data_blocks: u64,
    /// SHA-256 of init, in hex.
    pub init: String,
    /// SHA-256 of trustd, in hex.
    pub trustd: String,
    /// Digest of the list of the engine's programs, in hex.
    pub engine: String,
    /// Digest of the list of files below /etc, in hex.
    pub configuration: String,
}

/// The root partition.
struct Root(Rc<ImageSpec>);

/// Returns the step that builds the root partition of an image.
pub fn step(image: &Rc<ImageSpec>) -> Step {
    Rc::new(Root(image.clone()))
}

impl Rule for Root {
    fn name(&self) -> String {
        "root".into()
    }

    fn needs(&self) -> Result<Vec<Step>> {
        let mut needs = vec![sysroot::tools_step(), sysroot::step("device")];
        needs.extend(recipe::root()?.programs.values().map(|name| program::step(name)));
        needs.extend(module::names()?.iter().map(|name| module::step(name)));
        Ok(needs)
    }

    fn inputs(&self, _graph: &BuildGraph, inputs: &mut Inputs) -> Result<()> {
        for path in [
            "xtask/src/image/elf.rs",
            "xtask/src/image/keys.rs",
            "image/recipes/root.toml",
            "image/root",
            "image/release.toml",
            "configs/modules",
        ] {
            inputs.path(path)?;
        }
        let settings = toml::to_string(&boot_settings(&self.0)?)?;
        inputs.add("boot.toml", hash::bytes(settings.as_bytes()));
        if layers::current().find("configs/ledger.jsonl").exists() {
            inputs.path("configs/ledger.jsonl")?;
        }
        inputs.add("own approver", keys::own_approver()?);
        // With the user's keys in it.
        let node = toml::to_string(&keys::node()?)?;
        inputs.add("configs/node.toml and keys", hash::bytes(node.as_bytes()));
        Ok(())
    }

    fn build(&self, graph: &BuildGraph, out: &Path) -> Result<()> {
        let recipe = recipe::root()?;
        let root = out.join("root");
        let device = graph.artifact(&sysroot::step("device"))?.dir;
        for dir in recipe.folders.keys() {
            std::fs::create_dir_all(root.join(dir))?;
        }
        for (link, target) in &recipe.links {
            create_parent(&root.join(link))?;
            symlink(target, root.join(link))?;
        }
        copy_files(&layers::current().files("image/root")?, &root)?;
        take(&recipe.take, &device, &root)?;
        for (place, program) in &recipe.programs {
            let package = recipe::program(program)?.package;
            let from = graph.artifact(&program::step(program))?.file(&package);
            install_program(&from, place, &device, &root)?;
        }
        std::fs::create_dir_all(root.join("etc/ssl/certs"))?;
        std::fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), ca_bundle(&device)?)?;
        configuration(graph, &self.0, &root)?;
        let engine = engine_list(&recipe.engine, &root)?;
        std::fs::create_dir_all(root.join("usr/share/basalt"))?;
        std::fs::write(root.join("usr/share/basalt/engine.list"), engine.text())?;
        set_modes(&root)?;

        let mut metadata = pack(graph, &recipe, &root, out)?;
        metadata.init = hash::file(&root.join("usr/sbin/init"))?;
        metadata.trustd = hash::file(&root.join("usr/bin/trustd"))?;
        metadata.engine = measure::hex(&engine.digest());
        metadata.configuration = measure::hex(&configuration_digest(&root)?);
        std::fs::write(out.join(METADATA), serde_json::to_string_pretty(&metadata)?)?;
        Ok(())
    }

    fn revision(&self) -> Revision {
        Revision::Source(file!())
    }
}

/// Copies a program to its place in the root, with the libraries that it is linked against.
fn install_program(from: &Path, place: &str, device: &Path, root: &Path) -> Result<()> {
    create_parent(&root.join(place))?;
    std::fs::copy(from, root.join(place))?;
    let libraries: Vec<String> =
        elf::needed(from)?.iter().map(|library| format!("lib:{library}")).collect();
    take(&libraries, device, root)?;
    set_mode(&root.join(place), 0o755)
}

/// Writes the files that come from configs/, which differ from user to user.
fn configuration(graph: &BuildGraph, image: &ImageSpec, root: &Path) -> Result<()> {
    let node = keys::node()?;
    let etc = root.join("etc/basalt");
    std::fs::create_dir_all(etc.join("modules"))?;
    std::fs::write(etc.join("boot.toml"), toml::to_string(&boot_settings(image)?)?)?;
    std::fs::write(etc.join("node.toml"), toml::to_string(&node)?)?;
    let mut shipped = Vec::new();
    std::fs::create_dir_all(root.join("usr/share/basalt/modules"))?;
    for name in layers::current().names("configs/modules")? {
        let mut module = module::load(&name)?;
        if matches!(module.image, config::Image::Build(_)) {
            let (installed, digest) = module::installed(graph, &name)?;
            let archive = graph.artifact(&module::step(&name))?.file("image.tar");
            std::fs::copy(archive, root.join(format!("usr/share/basalt/modules/{name}.tar")))?;
            shipped.push((name.clone(), digest));
            module = installed;
        }
        std::fs::write(
            etc.join("modules").join(format!("{name}.toml")),
            toml::to_string(&module)?,
        )?;
    }
    std::fs::write(etc.join("ledger.jsonl"), keys::shipped_log(&node, &shipped)?)?;
    Ok(())
}

/// Returns what init needs to know about variant and release.
fn boot_settings(image: &ImageSpec) -> Result<Boot> {
    let release = recipe::release()?;
    let variant: Variant = toml_file::read(
        &layers::current().find(&format!("configs/variants/{}.toml", image.variant)),
    )?;
    Ok(Boot {
        variant: image.variant.clone(),
        version: release.version,
        built: release.source_date_epoch,
        tpm: variant.tpm,
        signer: keys::policy_signer()?.public().hex(),
    })
}

/// A file of configs/variants/.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    tpm: config::Tpm,
}

/// Copies files of the device sysroot with every link on the way and every library that they need.
fn take(names: &[String], device: &Path, root: &Path) -> Result<()> {
    let mut todo: Vec<String> = names.to_vec();
    let mut seen = BTreeSet::new();
    while let Some(name) = todo.pop() {
        let name = match name.strip_prefix("lib:") {
            Some(library) => find_library(device, library)?,
            None => name,
        };
        let name = elf::normalise(&name);
        if !seen.insert(name.clone()) || root.join(&name).symlink_metadata().is_ok() {
            continue;
        }
        let from = device.join(&name);
        let meta = from.symlink_metadata().with_context(|| {
            format!("image/recipes/root.toml takes {name}, which no package of the set device has")
        })?;
        create_parent(&root.join(&name))?;
        if meta.is_symlink() {
            let target = std::fs::read_link(&from)?;
            symlink(&target, root.join(&name))?;
            let base = Path::new(&name).parent().unwrap_or(Path::new(""));
            todo.push(base.join(target).to_string_lossy().into_owned());
            continue;
        }
        std::fs::copy(&from, root.join(&name))?;
        // The loader is the only library that must be executable.
        let library = name.contains(".so") && !name.contains("/ld-linux");
        set_mode(
            &root.join(&name),
            if library || meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 },
        )?;
        todo.extend(elf::needed(&from)?.into_iter().map(|library| format!("lib:{library}")));
    }
    Ok(())
}

/// Returns the path of a library in the device sysroot.
fn find_library(device: &Path, name: &str) -> Result<String> {
    if name.starts_with('/') {
        // The loader is named by its full path.
        return Ok(format!("usr{name}").replace("usr/usr", "usr"));
    }
    for dir in ["usr/lib/aarch64-linux-gnu", "usr/lib", "usr/lib/aarch64-linux-gnu/systemd"] {
        let path = format!("{dir}/{name}");
        if device.join(&path).symlink_metadata().is_ok() {
            return Ok(path);
        }
    }
    bail!("no package of the set device has the library {name}")
}

fn copy_files(files: &BTreeMap<PathBuf, PathBuf>, to: &Path) -> Result<()> {
    for (name, from) in files {
        create_parent(&to.join(name))?;
        if from.symlink_metadata()?.is_symlink() {
            symlink(std::fs::read_link(from)?, to.join(name))?;
        } else {
            std::fs::copy(from, to.join(name))?;
        }
    }
    Ok(())
}

/// Sets all modes, so that they do not depend on the umask of the build.
fn set_modes(root: &Path) -> Result<()> {
    fn visit(dir: &Path) -> Result<()> {
        set_mode(dir, 0o755)?;
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                visit(&entry.path())?;
            } else if kind.is_file() {
                let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
                set_mode(&entry.path(), if executable { 0o755 } else { 0o644 })?;
            }
        }
        Ok(())
    }
    visit(root)
}

/// Returns the list of the engine's programs, which the event `engine` measures.
fn engine_list(names: &[String], root: &Path) -> Result<FileList> {
    let mut list = FileList::default();
    for name in names {
        let path = root.join(name);
        let data = std::fs::read(&path).with_context(|| {
            format!(
                "image/recipes/root.toml lists {name} under engine, which the root does not have"
            )
        })?;
        list.add(&format!("/{name}"), &data)?;
    }
    Ok(list)
}

/// Returns the digest of the same list that init makes of /etc.
fn configuration_digest(root: &Path) -> Result<Digest> {
    let mut list = FileList::default();
    for name in hash::walk(&root.join("etc"))? {
        let path = root.join("etc").join(&name);
        if path.symlink_metadata()?.is_file() {
            list.add(&format!("/etc/{}", name.display()), &std::fs::read(path)?)?;
        }
    }
    Ok(list.digest())
}

/// Packs the root as EROFS and appends the hash tree.
fn pack(
    graph: &BuildGraph,
    recipe: &recipe::Root,
    root: &Path,
    out: &Path,
) -> Result<RootMetadata> {
    let epoch = recipe::release()?.source_date_epoch;
    let (sandbox, log) = sysroot::sandbox(graph, "root")?;
    let sandbox = sandbox.write(out, "/out").read(root, "/in");
    let mut make = vec![
        "mkfs.erofs".to_owned(),
        "--quiet".into(),
        format!("-T{epoch}"),
        "-U".into(),
        recipe.uuid.clone(),
        "--all-root".into(),
    ];
    make.extend(recipe.erofs.iter().cloned());
    make.extend(["/out/root.img".into(), "/in".into()]);
    sandbox.run(&log, make)?;
    let image = out.join("root.img");
    let blocks = image.metadata()?.len().div_ceil(4096);
    std::fs::File::options().write(true).open(&image)?.set_len(blocks * 4096)?;
    // The salt is fixed: it would have to differ only if the hashes of two images must not be
    // comparable, which is not a goal here.
    let salt = hash::bytes(recipe.uuid.as_bytes());
    let printed = sandbox.output(
        &log,
        [
            "veritysetup",
            "format",
            "--hash=sha256",
            "--data-block-size=4096",
            "--hash-block-size=4096",
            &format!("--uuid={}", recipe.uuid),
            &format!("--salt={salt}"),
            &format!("--data-blocks={blocks}"),
            &format!("--hash-offset={}", blocks * 4096),
            "/out/root.img",
            "/out/root.img",
        ],
    )?;
    let printed = String::from_utf8(printed)?;
    let verity_root = printed
        .lines()
        .find_map(|l| l.strip_prefix("Root hash:"))
        .context("veritysetup printed no root hash")?
        .trim()
        .to_owned();
    let unset = String::new;
    Ok(RootMetadata {
        verity_root,
        salt,
        data_blocks: blocks,
        init: unset(),
        trustd: unset(),
        engine: unset(),
        configuration: unset(),
    })
}

fn create_parent(path: &Path) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Returns the folder of the laid-out root of a build, before it is packed.
///
/// # Errors
///
/// Fails if an input cannot be read.
pub fn tree(graph: &BuildGraph, image: &Rc<ImageSpec>) -> Result<PathBuf> {
    Ok(graph.artifact(&step(image))?.file("root"))
}
