//! Extracts Debian packages into a sysroot. No maintainer script runs; this module creates the
//! links and files that a build needs of them.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::engine::lock::Package;
use crate::engine::{fetch, hash};

/// Mount points that steps and tests use; the sysroot is read-only while they run.
const MOUNT_POINTS: [&str; 14] = [
    "src", "vendor", "work", "out", "in", "cache", "proc", "sys", "dev", "tmp", "run", "old",
    "engine", "images",
];

/// Extracts packages, all of which are in the download cache, into the folder `out`.
///
/// # Errors
///
/// Fails if a package cannot be read or a file cannot be written.
pub fn extract(packages: &[Package], out: &Path) -> Result<()> {
    // The links of the merged /usr come first, because some packages still have files below the
    // old names.
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

/// Extracts the files of one package.
fn extract_one(package: &Package, out: &Path) -> Result<()> {
    with_data(package, |archive| {
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(false);
        archive.set_overwrite(true);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.into_owned();
            if entry.header().entry_type().is_dir() {
                // Packages share folders. The mode of an existing folder is not changed, so that
                // the threads do not interfere.
                let dir = out.join(path.strip_prefix("./").unwrap_or(&path));
                std::fs::create_dir_all(&dir)
                    .with_context(|| format!("cannot create {}", dir.display()))?;
                continue;
            }
            entry.unpack_in(out).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    })
}

/// Opens the `data.tar` of a package, compressed or not, and passes it to `read_archive`.
fn with_data<T>(
    package: &Package,
    mut read_archive: impl FnMut(&mut tar::Archive<Box<dyn Read>>) -> Result<T>,
) -> Result<T> {
    let mut deb = ar::Archive::new(BufReader::with_capacity(
        1 << 18,
        File::open(fetch::blob(&package.sha256)?)?,
    ));
    while let Some(member) = deb.next_entry() {
        let member = member?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        // The reader cannot outlive the member, so the compressed bytes are read into memory (at
        // most about 150 MB).
        let read = |mut member: ar::Entry<'_, _>| -> Result<std::io::Cursor<Vec<u8>>> {
            let mut data = Vec::new();
            member.read_to_end(&mut data)?;
            Ok(std::io::Cursor::new(data))
        };
        let reader: Box<dyn Read> = match name.as_str() {
            "data.tar.xz" => Box::new(liblzma::read::XzDecoder::new_multi_decoder(read(member)?)),
            "data.tar.zst" => Box::new(ruzstd::decoding::StreamingDecoder::new(read(member)?)?),
            "data.tar.gz" => Box::new(flate2::read::GzDecoder::new(read(member)?)),
            "data.tar" => Box::new(read(member)?),
            _ => continue,
        };
        return read_archive(&mut tar::Archive::new(reader));
    }
    bail!("the package contains no data.tar")
}

/// Creates the files that maintainer scripts would have created and a build needs: alternatives,
/// users, the CA bundle and mount points.
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
    // /var/run must be a link, because the paths of the engine and of containerd assume it.
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

/// Returns all certificates of the package ca-certificates as one PEM file, sorted by file name.
///
/// # Errors
///
/// Fails if a certificate cannot be read.
pub fn ca_bundle(sysroot: &Path) -> Result<Vec<u8>> {
    let mut bundle = Vec::new();
    let dir = sysroot.join("usr/share/ca-certificates");
    if !dir.exists() {
        return Ok(bundle);
    }
    for name in hash::walk(&dir)? {
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
