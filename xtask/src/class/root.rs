//! The root partition: files laid out, packed as EROFS, followed by the dm-verity hash tree.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use config::Boot;
use measure::{Digest, FileList};
use serde::{Deserialize, Serialize};

use crate::plan::{Plan, Step};
use crate::store::Inputs;
use crate::{class, elf, hash, keys, layers, recipe, tree};

/// What the next step and the predictor need to know of a root partition.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    pub verity_root: String,
    pub salt: String,
    /// In blocks of 4096 bytes; the hash tree's superblock follows at once.
    pub data_blocks: u64,
    pub init: String,
    pub trustd: String,
    pub engine: String,
    pub configuration: String,
}

pub fn inputs(plan: &Plan, inputs: &mut Inputs) -> Result<()> {
    // The rule itself counts.
    inputs.path("xtask/src/class/root.rs")?.path("xtask/src/elf.rs")?.path("xtask/src/keys.rs")?;
    inputs
        .path("image/recipes/root.toml")?
        .path("image/root")?
        .path("image/release.toml")?
        .path("configs/modules")?;
    inputs.add("boot.toml", hash::bytes(toml::to_string(&boot_settings(plan)?)?.as_bytes()));
    if layers::current().find("configs/ledger.jsonl").exists() {
        inputs.path("configs/ledger.jsonl")?;
    }
    inputs.add("own approver", keys::own_approver()?);
    // With the user's keys in it.
    inputs.add(
        "configs/node.toml and keys",
        hash::bytes(toml::to_string(&keys::node()?)?.as_bytes()),
    );
    Ok(())
}

pub fn build(plan: &Plan, out: &Path) -> Result<()> {
    let recipe = recipe::root()?;
    let root = out.join("root");
    let device = plan.planned(&Step::Tree("device".into()))?.dir;
    for dir in recipe.folders.keys() {
        std::fs::create_dir_all(root.join(dir))?;
    }
    for (link, target) in &recipe.links {
        parent(&root.join(link))?;
        symlink(target, root.join(link))?;
    }
    copy_files(&layers::current().files("image/root")?, &root)?;
    take(&recipe.take, &device, &root)?;
    for (place, program) in &recipe.programs {
        let package = recipe::program(program)?.package;
        let from = plan.planned(&Step::Program(program.clone()))?.file(&package);
        parent(&root.join(place))?;
        std::fs::copy(&from, root.join(place))?;
        // What it is linked against comes along.
        take(
            &elf::needed(&from)?.iter().map(|lib| format!("lib:{lib}")).collect::<Vec<_>>(),
            &device,
            &root,
        )?;
        set_mode(&root.join(place), 0o755)?;
    }
    std::fs::create_dir_all(root.join("etc/ssl/certs"))?;
    std::fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), tree::ca_bundle(&device)?)?;
    configuration(plan, &root)?;
    let engine = engine_list(&recipe.engine, &root)?;
    std::fs::create_dir_all(root.join("usr/share/basalt"))?;
    std::fs::write(root.join("usr/share/basalt/engine.list"), engine.text())?;
    modes(&root)?;

    let mut facts = pack(plan, &recipe, &root, out)?;
    facts.init = hash::file(&root.join("usr/sbin/init"))?;
    facts.trustd = hash::file(&root.join("usr/bin/trustd"))?;
    facts.engine = measure::hex(&engine.digest());
    facts.configuration = measure::hex(&configuration_digest(&root)?);
    std::fs::write(out.join("facts.json"), serde_json::to_string_pretty(&facts)?)?;
    Ok(())
}

/// Everything that is written from configs/: what differs from user to user.
fn configuration(plan: &Plan, root: &Path) -> Result<()> {
    let node = keys::node()?;
    let etc = root.join("etc/basalt");
    std::fs::create_dir_all(etc.join("modules"))?;
    std::fs::write(etc.join("boot.toml"), toml::to_string(&boot_settings(plan)?)?)?;
    std::fs::write(etc.join("node.toml"), toml::to_string(&node)?)?;
    let mut shipped = Vec::new();
    std::fs::create_dir_all(root.join("usr/share/basalt/modules"))?;
    for name in layers::current().names("configs/modules")? {
        let module = class::module::load(&name)?;
        let module = if matches!(module.image, config::Image::Ship(_)) {
            let (module, digest) = class::module::installed(plan, &name)?;
            let archive = plan.planned(&Step::Module(name.clone()))?.file("image.tar");
            std::fs::copy(archive, root.join(format!("usr/share/basalt/modules/{name}.tar")))?;
            shipped.push((name.clone(), digest));
            module
        } else {
            module
        };
        std::fs::write(
            etc.join("modules").join(format!("{name}.toml")),
            toml::to_string(&module)?,
        )?;
    }
    std::fs::write(etc.join("ledger.jsonl"), keys::shipped_log(&node, &shipped)?)?;
    Ok(())
}

/// What init needs to know of variant and release.
fn boot_settings(plan: &Plan) -> Result<Boot> {
    let release = recipe::release()?;
    let variant: Variant = crate::config::read(
        &layers::current().find(&format!("configs/variants/{}.toml", plan.variant)),
    )?;
    Ok(Boot {
        variant: plan.variant.clone(),
        version: release.version,
        built: release.source_date_epoch,
        tpm: variant.tpm,
        signer: keys::policy_signer()?.public().hex(),
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variant {
    tpm: config::Tpm,
}

/// Copies files of the device tree with every link on the way and every library that they need.
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
        parent(&root.join(&name))?;
        if meta.is_symlink() {
            let target = std::fs::read_link(&from)?;
            symlink(&target, root.join(&name))?;
            let base = Path::new(&name).parent().unwrap_or(Path::new(""));
            todo.push(base.join(target).to_string_lossy().into_owned());
            continue;
        }
        std::fs::copy(&from, root.join(&name))?;
        // Libraries are not programs: only the loader must be executable.
        let library = name.contains(".so") && !name.contains("/ld-linux");
        set_mode(
            &root.join(&name),
            if library || meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 },
        )?;
        todo.extend(elf::needed(&from)?.into_iter().map(|library| format!("lib:{library}")));
    }
    Ok(())
}

fn find_library(device: &Path, name: &str) -> Result<String> {
    if name.starts_with('/') {
        // The loader, by its full path.
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
        parent(&to.join(name))?;
        if from.symlink_metadata()?.is_symlink() {
            symlink(std::fs::read_link(from)?, to.join(name))?;
        } else {
            std::fs::copy(from, to.join(name))?;
        }
    }
    Ok(())
}

/// Modes do not depend on the umask of whoever builds.
fn modes(root: &Path) -> Result<()> {
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

/// The same list that init makes of /etc.
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

fn pack(plan: &Plan, recipe: &recipe::Root, root: &Path, out: &Path) -> Result<Facts> {
    let epoch = recipe::release()?.source_date_epoch;
    let (sandbox, log) = plan.sandbox("root")?;
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
    // A fixed salt: it only has to differ from image to image where hashes must not be compared,
    // which is no aim here.
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
    let none = String::new;
    Ok(Facts {
        verity_root,
        salt,
        data_blocks: blocks,
        init: none(),
        trustd: none(),
        engine: none(),
        configuration: none(),
    })
}

fn parent(path: &Path) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", path.display()))
}

/// Where the laid-out root of a build lies, for `cargo xtask size`.
pub fn laid_out(plan: &Plan) -> Result<PathBuf> {
    Ok(plan.planned(&Step::Root)?.file("root"))
}
