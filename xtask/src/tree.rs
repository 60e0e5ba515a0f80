//! Trees of extracted Debian packages: nothing of a package is run, its files are laid out and a
//! few links are set.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::lock::{Lock, Package};
use crate::store::{Built, Inputs, Store};
use crate::{fetch, lock, progress};

/// Raise when the layout that is made from the same packages changes.
const LAYOUT: &str = "1";

/// Mount points that steps and tests use; the tree is read-only when they run.
const MOUNT_POINTS: [&str; 12] =
    ["src", "vendor", "work", "out", "in", "cache", "proc", "sys", "dev", "tmp", "run", "old"];

pub fn inputs(lock: &Lock, inputs: &mut Inputs) {
    inputs.add("lock", lock.hash()).add("layout", LAYOUT);
}

/// Extracts the packages of a lock, which are in the download cache.
pub fn make(store: &Store, set: &str, lock: &Lock) -> Result<Built> {
    let mut list = Inputs::default();
    inputs(lock, &mut list);
    store.step(
        &format!("tree-{set}"),
        &format!("extracting {} packages", lock.package.len()),
        &list,
        |out| extract(&lock.package, out),
    )
}

/// The lock of a set with all its packages in the download cache.
pub fn available(set: &str, locked: bool) -> Result<Lock> {
    let lock = lock::load(set, locked)?;
    let gone = fetch::packages(&lock, set)?;
    let Some(first) = gone.first() else { return Ok(lock) };
    if locked {
        bail!(
            "the mirror does not have {} {} ({}) any more ({} such packages), and --locked forbids to take newer ones.\n\
             Run `cargo xtask lock {set}`, or name a mirror that still has it: BASALT_MIRROR=URL",
            first.name,
            first.version,
            first.architecture,
            gone.len()
        );
    }
    progress::line(&format!(
        "NOTICE: {} locked packages are gone from the mirror (first: {} {}).",
        gone.len(),
        first.name,
        first.version
    ));
    progress::line(&format!(
        "NOTICE: resolving the set {set} anew: image/locks/{set}.toml changes, and so do the measurements. Commit it."
    ));
    let fresh = lock::refresh(set)?;
    let gone = fetch::packages(&fresh, set)?;
    if let Some(first) = gone.first() {
        bail!(
            "the mirror lists {} {} and does not have it; it is probably being updated: try again in a few minutes",
            first.name,
            first.version
        );
    }
    Ok(fresh)
}

fn extract(packages: &[Package], out: &Path) -> Result<()> {
    // The merged /usr comes first: some packages still carry files below the old names.
    for name in ["bin", "sbin", "lib", "lib64"] {
        std::fs::create_dir_all(out.join("usr").join(name))?;
        symlink(format!("usr/{name}"), out.join(name))?;
    }
    let (next, failed) = (AtomicUsize::new(0), std::sync::Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(package) = packages.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = extract_one(package, out) {
                        let error = error.context(format!(
                            "cannot extract {} {}",
                            package.name, package.version
                        ));
                        *failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) =
                            Some(error);
                        return;
                    }
                }
            });
        }
    });
    if let Some(error) = failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    finish(out)
}

fn extract_one(package: &Package, out: &Path) -> Result<()> {
    with_data(package, |archive| {
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(false);
        archive.set_overwrite(true);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            if entry.header().entry_type().is_dir() {
                // Folders that others share: only made, never re-moded, so that threads do not get
                // into each other's way.
                let dir = out.join(path.strip_prefix("./").unwrap_or(&path));
                std::fs::create_dir_all(&dir)
                    .with_context(|| format!("cannot make {}", dir.display()))?;
                continue;
            }
            entry.unpack_in(out).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    })
}

/// Opens the `data.tar` of a package.
pub fn with_data<T>(
    package: &Package,
    mut use_it: impl FnMut(&mut tar::Archive<Box<dyn Read>>) -> Result<T>,
) -> Result<T> {
    let mut deb = ar::Archive::new(BufReader::with_capacity(
        1 << 18,
        File::open(fetch::blob(&package.sha256)?)?,
    ));
    while let Some(member) = deb.next_entry() {
        let member = member?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        // The reader may not outlive the member, so the compressed bytes are read whole (at most
        // some 150 MB).
        let read = |mut member: ar::Entry<'_, _>| -> Result<std::io::Cursor<Vec<u8>>> {
            let mut data = Vec::new();
            member.read_to_end(&mut data)?;
            Ok(std::io::Cursor::new(data))
        };
        let reader: Box<dyn Read> = match name.as_str() {
            "data.tar.xz" => Box::new(liblzma::read::XzDecoder::new(read(member)?)),
            "data.tar.zst" => Box::new(zstd::Decoder::new(read(member)?)?),
            "data.tar.gz" => Box::new(flate2::read::GzDecoder::new(read(member)?)),
            "data.tar" => Box::new(read(member)?),
            _ => continue,
        };
        return use_it(&mut tar::Archive::new(reader));
    }
    bail!("the package holds no data.tar")
}

/// What maintainer scripts would have done and a build needs: the alternatives, users, CA bundle,
/// mount points.
fn finish(out: &Path) -> Result<()> {
    let alternatives = [
        ("usr/bin/sh", "dash"),
        ("usr/bin/awk", "mawk"),
        ("usr/bin/cc", "gcc"),
        ("usr/bin/c++", "g++"),
        ("usr/bin/which", "which.debianutils"),
        ("usr/bin/yacc", "bison.yacc"),
        ("usr/bin/pkg-config", "pkgconf"),
        ("usr/sbin/iptables", "xtables-nft-multi"),
        ("usr/sbin/ip6tables", "xtables-nft-multi"),
    ];
    for (link, target) in alternatives {
        let path = out.join(link);
        if path.parent().is_some_and(|dir| dir.join(target).exists())
            && !path.is_symlink()
            && !path.exists()
        {
            symlink(target, path)?;
        }
    }
    for dir in MOUNT_POINTS {
        std::fs::create_dir_all(out.join(dir))?;
    }
    std::fs::create_dir_all(out.join("etc/ssl/certs"))?;
    for (name, master) in [("passwd", "passwd.master"), ("group", "group.master")] {
        let master = out.join("usr/share/base-passwd").join(master);
        if master.exists() {
            std::fs::copy(master, out.join("etc").join(name))?;
        }
    }
    let bundle = ca_bundle(out)?;
    std::fs::write(out.join("etc/ssl/certs/ca-certificates.crt"), bundle)?;
    // /var/run must be a link: the engine's and containerd's paths assume it.
    let _ = std::fs::remove_dir(out.join("var/run"));
    std::fs::create_dir_all(out.join("var/lib/docker"))?;
    std::fs::create_dir_all(out.join("var/lib/containerd"))?;
    if !out.join("var/run").exists() {
        let _ = symlink("/run", out.join("var/run"));
    }
    for name in [
        "usr/bin/mount",
        "usr/bin/su",
        "usr/bin/umount",
        "usr/bin/passwd",
        "usr/bin/newgrp",
        "usr/bin/chsh",
        "usr/bin/chfn",
        "usr/bin/gpasswd",
        "usr/sbin/unix_chkpwd",
    ] {
        let path = out.join(name);
        if path.is_file() {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        }
    }
    Ok(())
}

/// All certificates of the package ca-certificates in one file, in sorted order.
pub fn ca_bundle(tree: &Path) -> Result<Vec<u8>> {
    let mut bundle = Vec::new();
    let dir = tree.join("usr/share/ca-certificates");
    if !dir.exists() {
        return Ok(bundle);
    }
    for name in crate::hash::walk(&dir)? {
        if name.extension().is_some_and(|e| e == "crt") {
            let pem = std::fs::read(dir.join(name))?;
            bundle.extend_from_slice(&pem);
            if pem.last() != Some(&b'\n') {
                bundle.push(b'\n');
            }
        }
    }
    Ok(bundle)
}

/// Lists the sets that exist, for messages and for `cargo xtask lock` without a name.
pub fn names() -> Result<Vec<String>> {
    let sets = lock::sets()?;
    Ok(sets.set.into_keys().collect())
}
