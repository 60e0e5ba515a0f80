//! Sets of Debian packages and their locks.
//!
//! Invariant: a build reads only the lock. The mirror's package metadata is read only when a lock
//! is written; apt verifies its signature with the keys in `image/keys/`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::engine::{cache, hash, host, layers, mirror, paths, progress, toml_file};

/// The package sets of `image/sets.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sets {
    /// Suites of the sets that list none: `ARCHIVE/SUITE COMPONENT`.
    pub suites: Vec<String>,
    /// Package sets by name.
    pub set: std::collections::BTreeMap<String, Set>,
}

/// A package set as requested: the packages whose versions and dependencies its lock pins.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Set {
    /// Debian architecture of the set.
    pub architecture: String,
    /// Foreign architectures whose packages apt may install as well.
    #[serde(default)]
    pub foreign: Vec<String>,
    /// Names of the requested packages.
    pub packages: Vec<String>,
    /// Patterns of packages that the lock omits: `NAME` or `PREFIX*`, either with `:ARCHITECTURE`.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Whether the lock omits the dependencies of the packages.
    #[serde(default)]
    pub alone: bool,
    /// Suites of this set; empty to use those of all sets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suites: Vec<String>,
    /// Whether apt accepts signed package lists whose validity has expired, which mirrors of sid
    /// may serve.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_expired: bool,
}

impl Set {
    /// Returns the set's own suites, or those of all sets.
    fn suites<'a>(&'a self, sets: &'a Sets) -> &'a [String] {
        if self.suites.is_empty() { &sets.suites } else { &self.suites }
    }
}

/// The packages that a set was resolved to.
#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Hash of the request (suites and set) that was resolved, in hex.
    pub request: String,
    /// The packages, sorted by name and architecture.
    pub package: Vec<Package>,
}

/// A Debian package of an exact version.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name of the package.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// Debian architecture, or `all`.
    pub architecture: String,
    /// Size of the `.deb` file, in bytes.
    pub size: u64,
    /// SHA-256 of the `.deb` file, in hex.
    pub sha256: String,
    /// Archive that has the package: `debian` or `debian-security`.
    pub archive: String,
    /// Path of the `.deb` file below the archive's root.
    pub path: String,
}

impl Lock {
    /// Returns the hash over the names and hashes of all packages.
    pub fn hash(&self) -> String {
        let list: String =
            self.package.iter().map(|p| format!("{} {}\n", p.name, p.sha256)).collect();
        hash::bytes(list.as_bytes())
    }
}

/// File of the package sets.
const SETS: &str = "image/sets.toml";

/// Reads the package sets.
///
/// # Errors
///
/// Fails if `image/sets.toml` cannot be read or is invalid.
pub fn sets() -> Result<Sets> {
    toml_file::read(&layers::current().find(SETS))
}

/// Returns the names of all package sets.
///
/// # Errors
///
/// Fails if `image/sets.toml` cannot be read.
pub fn names() -> Result<Vec<String>> {
    Ok(sets()?.set.into_keys().collect())
}

/// Returns the name of a set's lock file, relative to the checkout or a layer.
fn lock_name(set: &str) -> String {
    format!("image/locks/{set}.toml")
}

/// Returns the hash of everything that the lock of a set is resolved from.
fn request(sets: &Sets, name: &str) -> Result<String> {
    let Some(set) = sets.set.get(name) else {
        let known: Vec<_> = sets.set.keys().map(String::as_str).collect();
        bail!("image/sets.toml has no package set {name:?}; expected one of: {}", known.join(", "));
    };
    Ok(hash::bytes(serde_json::to_string(&(set.suites(sets), set))?.as_bytes()))
}

/// Returns the lock of a set. Resolves the set if it has no lock, or if the lock was resolved from
/// another request.
///
/// # Errors
///
/// Fails if the set is unknown, if its lock is invalid, if it cannot be resolved, or if it must be
/// resolved and `locked` is set.
pub fn load(name: &str, locked: bool) -> Result<Lock> {
    let sets = sets()?;
    let request = request(&sets, name)?;
    let path = layers::current().find(&lock_name(name));
    let found: Option<Lock> = if path.exists() { Some(toml_file::read(&path)?) } else { None };
    match found {
        Some(lock) if lock.request == request => Ok(lock),
        _ if locked => bail!(
            "image/locks/{name}.toml does not match image/sets.toml, and --locked forbids changes \
             of locks;\nrun `cargo xtask lock {name}` and commit the result"
        ),
        _ => {
            progress::line(&format!(
                "image/locks/{name}.toml is missing or does not match image/sets.toml: resolving \
                 the set again"
            ));
            refresh(name)
        }
    }
}

/// Resolves a set with the mirror's package lists and writes its lock.
///
/// # Errors
///
/// Fails if the set is unknown, if apt cannot resolve it, or if the lock cannot be written.
pub fn refresh(name: &str) -> Result<Lock> {
    let sets = sets()?;
    let request = request(&sets, name)?;
    let task =
        progress::Task::begin(&format!("lock {name}"), "reading the package lists of the mirror");
    let package = resolve(&sets, &sets.set[name])?;
    ensure!(!package.is_empty(), "apt resolved the set {name:?} of image/sets.toml to no package");
    let lock = Lock { request, package };
    let text = format!(
        "# Written by `cargo xtask lock`: what image/sets.toml came to. Do not edit.\n{}",
        toml::to_string(&lock)?
    );
    cache::write_atomically(&layers::current().next_to(&lock_name(name), SETS), text.as_bytes())?;
    let bytes: u64 = lock.package.iter().map(|p| p.size).sum();
    task.done(&format!("{} packages, {}", lock.package.len(), progress::size(bytes)));
    Ok(lock)
}

/// Returns the packages that apt resolves a set to, sorted by name and architecture.
fn resolve(sets: &Sets, set: &Set) -> Result<Vec<Package>> {
    let dir = tempfile::tempdir()?;
    let apt = Apt::new(dir.path(), sets, set)?;
    apt.run("apt-get", &["update", "-qq"]).context(
        "apt cannot read the mirror's package lists; check the network, or set another mirror with \
         BASALT_MIRROR=URL (ending in /debian)",
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
            parse_uri(line).with_context(|| format!("cannot parse apt's output line {line:?}"))?;
        if !set.exclude.iter().any(|pattern| is_excluded(pattern, &package)) {
            packages.push(package);
        }
    }
    packages.sort_by(|a, b| (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture)));
    Ok(packages)
}

/// Returns whether a pattern of [`Set::exclude`] matches a package.
fn is_excluded(pattern: &str, package: &Package) -> bool {
    let (name, architecture) = pattern.split_once(':').unwrap_or((pattern, &package.architecture));
    let matches = match name.strip_suffix('*') {
        Some(prefix) => package.name.starts_with(prefix),
        None => package.name == name,
    };
    matches && architecture == package.architecture
}

/// Parses one package of apt's `--print-uris`: `'URL' NAME_VERSION_ARCH.deb SIZE SHA256:HEX`.
fn parse_uri(line: &str) -> Result<Package> {
    let mut words = line.split_whitespace();
    let url = words.next().context("no URL")?.trim_matches('\'');
    let file = words.next().context("no file name")?;
    let size = words.next().context("no size")?.parse()?;
    let sha256 =
        words.next().and_then(|w| w.strip_prefix("SHA256:")).context("no SHA256")?.to_owned();
    let mut parts =
        file.strip_suffix(".deb").context("the file name does not end in .deb")?.splitn(3, '_');
    let mut part = || parts.next().context("the file name is not NAME_VERSION_ARCH.deb");
    let (name, version, architecture) =
        (part()?.to_owned(), part()?.replace("%3a", ":"), part()?.to_owned());
    let (root, path) = url.split_once("/pool/").context("no /pool/ in the URL")?;
    let archive = root.rsplit('/').next().context("no archive in the URL")?.to_owned();
    Ok(Package { name, version, architecture, size, sha256, archive, path: format!("pool/{path}") })
}

/// An apt with its own folders, so that the host's settings and state have no effect.
struct Apt {
    /// Path of its configuration file.
    config: PathBuf,
}

impl Apt {
    /// Writes the configuration, the sources and the empty state of apt below `dir`.
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
                format!("image/sets.toml: suite {suite:?}: expected ARCHIVE/SUITE COMPONENT")
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
            "Dir \"{d}\";\nDir::State \"{d}/state\";\nDir::State::status \"{d}/status\";\n\
             Dir::Cache \"{d}/cache\";\nDir::Etc \"{d}/etc\";\nDir::Etc::main \"{d}/none\";\n\
             Dir::Etc::parts \"{d}/etc/apt.conf.d\";\nDir::Log \"{d}/log\";\n\
             APT::Architecture \"{}\";\nAPT::Architectures {{ {architectures}}};\n\
             APT::Install-Recommends \"false\";\nAPT::Install-Suggests \"false\";\n\
             Acquire::Languages \"none\";\nAcquire::ForceHash \"SHA256\";\n\
             APT::Sandbox::User \"\";\nAcquire::Check-Valid-Until \"{}\";\n",
            set.architecture, !set.allow_expired
        );
        let config = dir.join("apt.conf");
        std::fs::write(&config, text)?;
        Ok(Self { config })
    }

    /// Runs a program of apt with this configuration and returns its standard output.
    fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let shell = host::shell()?;
        let apt = shell.cmd(program).args(args).env("APT_CONFIG", &self.config).env("LC_ALL", "C");
        let output = apt.quiet().ignore_status().output().with_context(|| {
            format!(
                "cannot run {program}; resolving a lock requires a Debian or Ubuntu host (a build \
                 does not)"
            )
        })?;
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
    fn a_line_of_apt_parses_as_a_package() {
        let line = "'http://mirror.example/debian/pool/main/d/docker.io/docker.io_26.1%2bdfsg_arm64\
                    .deb' docker.io_26.1+dfsg_arm64.deb 10 SHA256:ab";
        let p = parse_uri(line).unwrap();
        assert_eq!((p.name.as_str(), p.archive.as_str(), p.size), ("docker.io", "debian", 10));
        assert_eq!(p.path, "pool/main/d/docker.io/docker.io_26.1%2bdfsg_arm64.deb");
        assert!(
            parse_uri("'http://mirror.example/debian/pool/x.deb' x_1_all.deb 10 MD5:ab").is_err()
        );
    }

    #[test]
    fn patterns_exclude_by_prefix_and_architecture() {
        let p = parse_uri("'http://m/debian/pool/l' libllvm19_1_arm64.deb 1 SHA256:00").unwrap();
        assert!(is_excluded("libllvm*:arm64", &p));
        assert!(!is_excluded("libllvm*:amd64", &p));
        assert!(!is_excluded("libllvm", &p));
    }
}
