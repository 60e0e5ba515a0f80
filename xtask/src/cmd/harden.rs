//! `cargo xtask harden`: checks the kernel configuration with third-party hardening checkers, and
//! the programs of the root for PIE, RELRO and stack protector.
//!
//! Invariant: the findings of the checkers equal the list in image/hardening.toml. An accepted
//! finding that no longer occurs is an error too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::Session;
use crate::engine::sandbox::Sandbox;
use crate::engine::{hash, layers, progress, toml_file};
use crate::image::elf;
use crate::rules::{kernel, root, sysroot};

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
}

/// File image/hardening.toml: the accepted findings, each with its reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AcceptedFindings {
    /// Kernel options that kernel-hardening-checker reports as FAIL.
    kernel: BTreeMap<String, String>,
    /// Kernel options that moby's check-config reports as generally necessary and missing.
    moby: BTreeMap<String, String>,
    /// Programs and libraries of the root that lack a protection, by path.
    programs: BTreeMap<String, Program>,
}

/// Protections that a program lacks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    lacks: BTreeSet<String>,
    reason: String,
}

/// Failures of kernel-hardening-checker that the README allows.
const MAX_FAILURES: usize = 25;
/// Path of moby's script in the sandbox, which has the set `engine` at /engine.
const CHECK_CONFIG: &str = "/engine/usr/share/docker.io/contrib/check-config.sh";

/// Builds the image, checks it and prints the findings.
///
/// # Errors
///
/// Fails if a step cannot be built or the findings differ from image/hardening.toml.
pub fn run(args: Args) -> Result<()> {
    let session = args.image.open()?;
    super::build_image::build(&session)?;
    check(&session)
}

/// Reads image/hardening.toml.
///
/// # Errors
///
/// Fails if the file is invalid or an entry has no reason.
pub fn load_accepted() -> Result<AcceptedFindings> {
    let accepted: AcceptedFindings =
        toml_file::read(&layers::current().find("image/hardening.toml"))?;
    for (name, reason) in accepted
        .kernel
        .iter()
        .chain(&accepted.moby)
        .chain(accepted.programs.iter().map(|(n, p)| (n, &p.reason)))
    {
        ensure!(!reason.trim().is_empty(), "image/hardening.toml gives no reason for {name}");
    }
    Ok(accepted)
}

/// Checks a built image and prints the findings.
///
/// # Errors
///
/// Fails if the findings differ from image/hardening.toml, or are more than the README allows.
pub fn check(session: &Session) -> Result<()> {
    let accepted = load_accepted()?;
    let found = kernel_failures(session)?;
    require_equal("kernel-hardening-checker", &found, &accepted.kernel.into_keys().collect())?;
    ensure!(
        found.len() <= MAX_FAILURES,
        "kernel-hardening-checker: {} FAIL, the README allows at most {MAX_FAILURES}",
        found.len()
    );
    println!(
        "kernel-hardening-checker: {} FAIL, all accepted with a reason (at most {MAX_FAILURES})",
        found.len()
    );
    let missing = moby_missing(session)?;
    require_equal("moby's check-config", &missing, &accepted.moby.into_keys().collect())?;
    println!("moby's check-config: {} generally necessary options are missing", missing.len());
    check_programs(session, &accepted.programs)
}

/// Requires that a checker found exactly the accepted findings.
fn require_equal(
    checker: &str,
    found: &BTreeSet<String>,
    accepted: &BTreeSet<String>,
) -> Result<()> {
    let mut problems: Vec<String> = found
        .difference(accepted)
        .map(|s| format!("{s}: found, but not accepted by image/hardening.toml"))
        .collect();
    problems.extend(accepted.difference(found).map(|s| {
        format!("{s}: accepted by image/hardening.toml, but no longer found; remove the entry")
    }));
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{checker}:\n  {}", problems.join("\n  "))
}

/// Returns a sandbox in a sysroot, with the folder of the kernel configuration at /in.
fn sandbox(sysroot: &Path, config: &Path) -> Sandbox {
    Sandbox::new(sysroot).read(config, "/in")
}

/// Returns the folder of the built kernel, which contains its configuration.
fn kernel_config(session: &Session) -> Result<PathBuf> {
    Ok(session.graph.build(&kernel::step(&session.image))?.dir)
}

/// Returns the kernel options that kernel-hardening-checker reports as FAIL.
fn kernel_failures(session: &Session) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct CheckResult {
        option_name: String,
        check_result_bool: bool,
    }
    let (config, sysroot) =
        (kernel_config(session)?, session.graph.build(&sysroot::step("checker"))?.dir);
    let log = session.graph.cache.log("harden");
    std::fs::write(&log, "")?;
    let printed = sandbox(&sysroot, &config).output(
        &log,
        ["python3", "/usr/bin/kernel-hardening-checker", "-m", "json", "-c", "/in/config"],
    )?;
    let results: Vec<CheckResult> = serde_json::from_slice(&printed)
        .context("kernel-hardening-checker printed no valid JSON")?;
    ensure!(
        results.len() > 100,
        "kernel-hardening-checker checked only {} options, expected more than 100",
        results.len()
    );
    Ok(results
        .into_iter()
        .filter(|r| !r.check_result_bool)
        .map(|r| r.option_name.trim_start_matches("CONFIG_").to_owned())
        .collect())
}

/// Returns the missing options of the section "Generally Necessary" of moby's script. The other
/// sections are about optional features.
fn moby_missing(session: &Session) -> Result<BTreeSet<String>> {
    let config = kernel_config(session)?;
    let log = session.graph.cache.log("harden");
    // The script exits with an error if an option of any section is missing.
    let script = format!("bash {CHECK_CONFIG} /in/config || true");
    let engine = session.graph.build(&sysroot::step("engine"))?.dir;
    let printed = sandbox(&sysroot::tools(&session.graph)?, &config)
        .read(&engine, "/engine")
        .output(&log, ["sh", "-c", &script])?;
    let text = String::from_utf8_lossy(&printed).into_owned();
    let section = text
        .split_once("Generally Necessary:")
        .and_then(|(_, rest)| rest.split_once("Optional Features:"));
    let (section, _) =
        section.context("moby's check-config printed no section \"Generally Necessary\"")?;
    let checked: Vec<&str> =
        section.lines().filter_map(|l| l.split_once("CONFIG_").map(|(_, rest)| rest)).collect();
    ensure!(
        checked.len() > 20,
        "moby's check-config checked only {} options, expected more than 20",
        checked.len()
    );
    let name =
        |line: &&str| line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    Ok(checked.iter().filter(|line| line.contains("missing")).map(name).collect())
}

/// Compares the protections that programs and libraries of the root lack with the accepted list.
fn check_programs(session: &Session, accepted: &BTreeMap<String, Program>) -> Result<()> {
    let root = root::tree(&session.graph, &session.image)?;
    let (mut found, mut count) = (BTreeMap::new(), 0);
    for name in hash::walk(&root)? {
        let path = root.join(&name);
        if path.is_symlink() {
            continue;
        }
        if let Some(lacks) = elf::missing_hardening(&path)? {
            count += 1;
            if !lacks.is_empty() {
                found.insert(name.display().to_string(), lacks);
            }
        }
    }
    let flat = |list: &BTreeMap<String, BTreeSet<String>>| {
        list.iter()
            .flat_map(|(n, l)| l.iter().map(move |lack| format!("{n} lacks {lack}")))
            .collect()
    };
    let accepted: BTreeMap<String, BTreeSet<String>> =
        accepted.iter().map(|(name, p)| (name.clone(), p.lacks.clone())).collect();
    require_equal("programs and libraries of the root", &flat(&found), &flat(&accepted))?;
    progress::line(&format!(
        "{count} programs and libraries have PIE, RELRO and stack protector, except for {} with \
         an accepted reason",
        found.len()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::require_equal;

    #[test]
    fn new_and_obsolete_findings_are_reported() {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        require_equal("checker", &set(&["A", "B"]), &set(&["B", "A"])).unwrap();
        let error =
            require_equal("checker", &set(&["A", "B"]), &set(&["B", "C"])).unwrap_err().to_string();
        assert!(
            error.contains("A: found") && error.contains("C: accepted") && !error.contains("B:"),
            "{error}"
        );
    }
}
