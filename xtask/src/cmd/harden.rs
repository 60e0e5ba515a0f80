//! `cargo xtask harden`: the kernel's configuration and the root's programs before judges that
//! nobody here wrote.
//!
//! Invariant: what the judges find and what image/hardening.toml accepts are the same list; a
//! reason that has become superfluous is an error too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::class::root;
use crate::plan::{Plan, Step};
use crate::sandbox::Sandbox;
use crate::{config, elf, hash, layers, progress};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
}

/// What is accepted, each with its reason.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accepted {
    /// Symbols that kernel-hardening-checker would have otherwise.
    kernel: BTreeMap<String, String>,
    /// Symbols that moby's check-config misses and says are needed in general.
    moby: BTreeMap<String, String>,
    /// Programs of the root, and what they lack.
    programs: BTreeMap<String, Program>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    lacks: BTreeSet<String>,
    reason: String,
}

/// What the README promises.
const MOST_FAILURES: usize = 25;
const CHECK_CONFIG: &str = "/usr/share/docker.io/contrib/check-config.sh";

pub fn run(args: Args) -> Result<()> {
    let plan = args.image.plan()?;
    super::build_image::build(&plan)?;
    check(&plan)
}

/// What image/hardening.toml accepts.
pub fn accepted() -> Result<Accepted> {
    let accepted: Accepted = config::read(&layers::current().find("image/hardening.toml"))?;
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

pub fn check(plan: &Plan) -> Result<()> {
    let accepted = accepted()?;
    let found = kernel(plan)?;
    same("kernel-hardening-checker", &found, &accepted.kernel.into_keys().collect())?;
    ensure!(
        found.len() <= MOST_FAILURES,
        "kernel-hardening-checker: {} FAIL, at most {MOST_FAILURES} are promised",
        found.len()
    );
    println!(
        "kernel-hardening-checker: {} FAIL, each with its reason (at most {MOST_FAILURES})",
        found.len()
    );
    let missing = moby(plan)?;
    same("moby's check-config", &missing, &accepted.moby.into_keys().collect())?;
    println!("moby's check-config: {} of what is generally necessary is missing", missing.len());
    programs(plan, &accepted.programs)
}

/// Two lists that must be the same.
fn same(judge: &str, found: &BTreeSet<String>, accepted: &BTreeSet<String>) -> Result<()> {
    let mut problems: Vec<String> = found
        .difference(accepted)
        .map(|s| format!("{s}: found, and image/hardening.toml has no reason for it"))
        .collect();
    problems.extend(
        accepted
            .difference(found)
            .map(|s| format!("{s}: image/hardening.toml accepts it, and it is not found any more")),
    );
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{judge}:\n  {}", problems.join("\n  "))
}

/// A tree of packages with the kernel's configuration at /in.
fn judge(tree: &Path, config: &Path) -> Sandbox {
    Sandbox::new(tree).read(config, "/in")
}

fn kernel(plan: &Plan) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Verdict {
        option_name: String,
        check_result_bool: bool,
    }
    let (config, tree) =
        (plan.build(&plan.kernel())?.dir, plan.build(&Step::Tree("checker".into()))?.dir);
    let log = plan.store.log("harden");
    std::fs::write(&log, "")?;
    let printed = judge(&tree, &config).output(
        &log,
        ["python3", "/usr/bin/kernel-hardening-checker", "-m", "json", "-c", "/in/config"],
    )?;
    let verdicts: Vec<Verdict> = serde_json::from_slice(&printed)
        .context("kernel-hardening-checker printed something else than JSON")?;
    ensure!(
        verdicts.len() > 100,
        "kernel-hardening-checker judged {} symbols only",
        verdicts.len()
    );
    Ok(verdicts
        .into_iter()
        .filter(|v| !v.check_result_bool)
        .map(|v| v.option_name.trim_start_matches("CONFIG_").to_owned())
        .collect())
}

/// The section "Generally Necessary" of moby's script; the others are about features that a node
/// may do without.
fn moby(plan: &Plan) -> Result<BTreeSet<String>> {
    let config = plan.build(&plan.kernel())?.dir;
    let log = plan.store.log("harden");
    // It ends with an error when anything at all is missing.
    let script = format!("bash {CHECK_CONFIG} /in/config || true");
    let printed = judge(&plan.tools()?, &config).output(&log, ["sh", "-c", &script])?;
    let text = String::from_utf8_lossy(&printed).into_owned();
    let section = text
        .split_once("Generally Necessary:")
        .and_then(|(_, rest)| rest.split_once("Optional Features:"));
    let (section, _) =
        section.context("moby's check-config printed no list of what is necessary")?;
    let judged: Vec<&str> =
        section.lines().filter_map(|l| l.split_once("CONFIG_").map(|(_, rest)| rest)).collect();
    ensure!(judged.len() > 20, "moby's check-config judged {} symbols only", judged.len());
    let name =
        |line: &&str| line.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    Ok(judged.iter().filter(|line| line.contains("missing")).map(name).collect())
}

fn programs(plan: &Plan, accepted: &BTreeMap<String, Program>) -> Result<()> {
    let root = root::laid_out(plan)?;
    let (mut found, mut count) = (BTreeMap::new(), 0);
    for name in hash::walk(&root)? {
        let path = root.join(&name);
        if path.is_symlink() {
            continue;
        }
        if let Some(lacks) = elf::lacks(&path)? {
            count += 1;
            if !lacks.is_empty() {
                found.insert(name.display().to_string(), lacks);
            }
        }
    }
    let flat = |list: &BTreeMap<String, BTreeSet<String>>| {
        list.iter()
            .flat_map(|(n, l)| l.iter().map(move |what| format!("{n} lacks {what}")))
            .collect()
    };
    let accepted: BTreeMap<String, BTreeSet<String>> =
        accepted.iter().map(|(name, p)| (name.clone(), p.lacks.clone())).collect();
    same("programs and libraries of the root", &flat(&found), &flat(&accepted))?;
    progress::line(&format!(
        "{count} programs and libraries: PIE, RELRO and stack protector, but for {} with a reason",
        found.len()
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::same;

    #[test]
    fn what_is_new_and_what_is_gone_are_both_named() {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        same("judge", &set(&["A", "B"]), &set(&["B", "A"])).unwrap();
        let error = same("judge", &set(&["A", "B"]), &set(&["B", "C"])).unwrap_err().to_string();
        assert!(
            error.contains("A: found")
                && error.contains("C: image/hardening.toml accepts")
                && !error.contains("B:"),
            "{error}"
        );
    }
}
