//! Sets of Debian packages and their locks.
//!
//! Invariant: a build reads only the lock. Package metadata of the mirror is asked, and its
//! signature checked by apt against image/keys/, only when a lock is made.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{config, hash, layers, mirror, paths, progress};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sets {
    pub suites: Vec<String>,
    pub set: std::collections::BTreeMap<String, Set>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Set {
    pub architecture: String,
    #[serde(default)]
    pub foreign: Vec<String>,
    pub packages: Vec<String>,
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Take the packages without what they depend on.
    #[serde(default)]
    pub alone: bool,
    /// Where this set's packages are taken from, if not from where all are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suites: Vec<String>,
    /// Take package lists that are signed and past the date until which they are valid, as mirrors
    /// of sid may have them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_expired: bool,
}

impl Set {
    fn suites<'a>(&'a self, sets: &'a Sets) -> &'a [String] {
        if self.suites.is_empty() { &sets.suites } else { &self.suites }
    }
}

#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Hash of the request (suites and set) that this lock answers.
    pub request: String,
    pub package: Vec<Package>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
    pub size: u64,
    pub sha256: String,
    /// `debian` or `debian-security`.
    pub archive: String,
    /// Below the archive's root.
    pub path: String,
}

impl Lock {
    pub fn hash(&self) -> String {
        let list: String =
            self.package.iter().map(|p| format!("{} {}\n", p.name, p.sha256)).collect();
        hash::bytes(list.as_bytes())
    }
}

const SETS: &str = "image/sets.toml";

pub fn sets() -> Result<Sets> {
    config::read(&layers::current().find(SETS))
}

fn lock_name(set: &str) -> String {
    format!("image/locks/{set}.toml")
}

fn request(sets: &Sets, name: &str) -> Result<String> {
    let Some(set) = sets.set.get(name) else {
        let known: Vec<_> = sets.set.keys().map(String::as_str).collect();
        bail!(
            "there is no package set {name:?} in image/sets.toml; there are: {}",
            known.join(", ")
        );
    };
    Ok(hash::bytes(serde_json::to_string(&(set.suites(sets), set))?.as_bytes()))
}

/// The lock of a set; made or made anew where it does not answer the request, unless `locked`.
pub fn load(name: &str, locked: bool) -> Result<Lock> {
    let sets = sets()?;
    let request = request(&sets, name)?;
    let path = layers::current().find(&lock_name(name));
    let found: Option<Lock> = if path.exists() { Some(config::read(&path)?) } else { None };
    match found {
        Some(lock) if lock.request == request => Ok(lock),
        _ if locked => bail!(
            "image/locks/{name}.toml does not answer image/sets.toml any more, and --locked forbids to change it.\n\
             Run `cargo xtask lock {name}` and commit the result."
        ),
        _ => {
            progress::line(&format!(
                "image/locks/{name}.toml is missing or older than image/sets.toml: resolving it anew"
            ));
            refresh(name)
        }
    }
}

/// Resolves a set against the mirror and writes its lock.
pub fn refresh(name: &str) -> Result<Lock> {
    let sets = sets()?;
    let request = request(&sets, name)?;
    let task = progress::Task::begin(&format!("lock {name}"), "asking the mirror");
    let package = resolve(&sets, &sets.set[name])?;
    ensure!(!package.is_empty(), "apt found no package for the set {name:?}");
    let lock = Lock { request, package };
    let text = format!(
        "# Written by `cargo xtask lock`: what image/sets.toml came to. Do not edit.\n{}",
        toml::to_string(&lock)?
    );
    crate::store::write_atomically(
        &layers::current().beside(&lock_name(name), SETS),
        text.as_bytes(),
    )?;
    let bytes: u64 = lock.package.iter().map(|p| p.size).sum();
    task.done(&format!("{} packages, {}", lock.package.len(), progress::size(bytes)));
    Ok(lock)
}

fn resolve(sets: &Sets, set: &Set) -> Result<Vec<Package>> {
    let dir = tempfile::tempdir()?;
    let apt = Apt::new(dir.path(), sets, set)?;
    apt.run("apt-get", &["update", "-qq"]).context(
        "apt could not read the mirror's package lists; is there a network? \
         Another mirror can be named with BASALT_MIRROR=URL (ending in /debian)",
    )?;
    let printed = if set.alone {
        let mut args = vec!["download", "--print-uris"];
        args.extend(set.packages.iter().map(String::as_str));
        apt.run("apt-get", &args)?
    } else {
        let mut args = vec!["install", "--print-uris", "-y"];
        args.extend(set.packages.iter().map(String::as_str));
        apt.run("apt-get", &args)?
    };
    let mut packages = Vec::new();
    for line in printed.lines().filter(|l| l.starts_with('\'')) {
        let package =
            parse_uri(line).with_context(|| format!("cannot understand apt's line {line:?}"))?;
        if !set.exclude.iter().any(|pattern| excluded(pattern, &package)) {
            packages.push(package);
        }
    }
    packages.sort_by(|a, b| (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture)));
    Ok(packages)
}

/// `NAME`, `PREFIX*`, and either with `:ARCHITECTURE`.
fn excluded(pattern: &str, package: &Package) -> bool {
    let (name, architecture) = pattern.split_once(':').unwrap_or((pattern, &package.architecture));
    let matches = match name.strip_suffix('*') {
        Some(prefix) => package.name.starts_with(prefix),
        None => package.name == name,
    };
    matches && architecture == package.architecture
}

/// `'URL' NAME_VERSION_ARCH.deb SIZE SHA256:HEX`
fn parse_uri(line: &str) -> Result<Package> {
    let mut words = line.split_whitespace();
    let url = words.next().context("no URL")?.trim_matches('\'');
    let file = words.next().context("no file name")?;
    let size = words.next().context("no size")?.parse()?;
    let sha256 =
        words.next().and_then(|w| w.strip_prefix("SHA256:")).context("no SHA256")?.to_owned();
    let mut parts = file.strip_suffix(".deb").context("not a .deb")?.splitn(3, '_');
    let mut part = || parts.next().context("no NAME_VERSION_ARCH");
    let (name, version, architecture) =
        (part()?.to_owned(), part()?.replace("%3a", ":"), part()?.to_owned());
    let (root, path) = url.split_once("/pool/").context("no /pool/ in the URL")?;
    let archive = root.rsplit('/').next().context("no archive")?.to_owned();
    Ok(Package { name, version, architecture, size, sha256, archive, path: format!("pool/{path}") })
}

/// apt with folders of its own, so that neither the host's settings nor its state matter.
struct Apt {
    config: PathBuf,
}

impl Apt {
    fn new(dir: &Path, sets: &Sets, set: &Set) -> Result<Self> {
        for sub in [
            "etc/apt.conf.d",
            "etc/sources.list.d",
            "etc/preferences.d",
            "etc/trusted.gpg.d",
            "state/lists/partial",
            "cache/archives/partial",
            "log",
        ] {
            std::fs::create_dir_all(dir.join(sub))?;
        }
        std::fs::write(dir.join("status"), "")?;
        let keys = paths::repo().join("image/keys/debian-trixie.gpg");
        let mut sources = String::new();
        for suite in set.suites(sets) {
            let (archive, rest) = suite.split_once('/').with_context(|| {
                format!("suite {suite:?} in image/sets.toml is not ARCHIVE/SUITE COMPONENT")
            })?;
            if let Some(base) = mirror::bases(archive)?.first() {
                sources.push_str(&format!("deb [signed-by={}] {base} {rest}\n", keys.display()));
            }
        }
        std::fs::write(dir.join("etc/sources.list"), sources)?;
        let architectures: String = std::iter::once(&set.architecture)
            .chain(&set.foreign)
            .map(|a| format!("\"{a}\"; "))
            .collect();
        let d = dir.display();
        let text = format!(
            "Dir \"{d}\";\nDir::State \"{d}/state\";\nDir::State::status \"{d}/status\";\nDir::Cache \"{d}/cache\";\nDir::Etc \"{d}/etc\";\n\
             Dir::Etc::main \"{d}/none\";\nDir::Etc::parts \"{d}/etc/apt.conf.d\";\nDir::Log \"{d}/log\";\n\
             APT::Architecture \"{}\";\nAPT::Architectures {{ {architectures}}};\nAPT::Install-Recommends \"false\";\nAPT::Install-Suggests \"false\";\n\
             Acquire::Languages \"none\";\nAcquire::ForceHash \"SHA256\";\nAPT::Sandbox::User \"\";\nAcquire::Check-Valid-Until \"{}\";\n",
            set.architecture, !set.allow_expired
        );
        let config = dir.join("apt.conf");
        std::fs::write(&config, text)?;
        Ok(Self { config })
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = Command::new(program)
            .args(args)
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C")
            .output()
            .with_context(|| format!("cannot run {program}; making a lock needs a Debian or Ubuntu host (a build does not)"))?;
        ensure!(
            output.status.success(),
            "{program} {} failed:\n{}",
            args[0],
            String::from_utf8_lossy(&output.stderr).trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_apt_becomes_a_package() {
        let line = "'http://mirror.example/debian/pool/main/d/docker.io/docker.io_26.1%2bdfsg_arm64.deb' docker.io_26.1+dfsg_arm64.deb 10 SHA256:ab";
        let p = parse_uri(line).unwrap();
        assert_eq!((p.name.as_str(), p.archive.as_str(), p.size), ("docker.io", "debian", 10));
        assert_eq!(p.path, "pool/main/d/docker.io/docker.io_26.1%2bdfsg_arm64.deb");
        assert!(
            parse_uri("'http://mirror.example/debian/pool/x.deb' x_1_all.deb 10 MD5:ab").is_err()
        );
    }

    #[test]
    fn exclusion_by_prefix_and_architecture() {
        let p = parse_uri("'http://m/debian/pool/l' libllvm19_1_arm64.deb 1 SHA256:00").unwrap();
        assert!(excluded("libllvm*:arm64", &p));
        assert!(!excluded("libllvm*:amd64", &p));
        assert!(!excluded("libllvm", &p));
    }
}
