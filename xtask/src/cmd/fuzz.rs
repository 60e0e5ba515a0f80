//! `cargo xtask fuzz [TARGET]...`: the targets of fuzz/, with libFuzzer, inside the tools tree.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::{check, dev, tools_plan};
use crate::plan::Plan;
use crate::{paths, progress};

/// What cargo-fuzz sets too, but for the sanitizer, whose runtime the tools tree does not have:
/// coverage guides the fuzzer.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Clink-dead-code";
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// In each target, in the short run of the tests: some seconds, and the same inputs on every
/// machine.
const SHORT: u32 = 10_000;

/// Parts of fuzz/corpus/ that tests write; the others are made by hand.
const GENERATED: [&str; 7] =
    ["archive", "archive-around", "archive-good", "layer", "manifest", "statement", "checkpoint"];

#[derive(clap::Args)]
pub struct Args {
    /// What to fuzz; all when nothing is named
    targets: Vec<String>,
    /// How long each
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// So many inputs each, however long that takes
    #[arg(long, conflicts_with = "seconds")]
    runs: Option<u64>,
    /// Write fuzz/corpus/ anew from what the tests of lib/oci and lib/ledger make, and fuzz nothing
    #[arg(long)]
    corpus: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let plan = tools_plan()?;
    if args.corpus {
        return write_corpus(&plan);
    }
    let all = targets()?;
    for target in &args.targets {
        ensure!(all.contains(target), "there is no target {target}; there are: {}", all.join(", "));
    }
    // What is found stays, so that the next run goes on from there: beside the cache of builds, not
    // in the checkout.
    let found = plan.store.work("fuzz")?;
    let targets = if args.targets.is_empty() { &all } else { &args.targets };
    match args.runs {
        Some(runs) => {
            fuzz(&plan, &found, targets, &format!("with {runs} inputs"), &[format!("-runs={runs}")])
        }
        None => fuzz(
            &plan,
            &found,
            targets,
            &format!("for {} s", args.seconds),
            &[format!("-max_total_time={}", args.seconds)],
        ),
    }
}

/// All targets, each with so many inputs that come from the corpus of the repository alone: what
/// fails here fails everywhere.
pub fn short(plan: &Plan) -> Result<()> {
    let found = dev::scratch(plan, "fuzz-short")?;
    fuzz(
        plan,
        &found,
        &targets()?,
        &format!("with {SHORT} inputs"),
        &[format!("-runs={SHORT}"), "-seed=1".into()],
    )
}

fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(paths::repo().join("fuzz/fuzz_targets"))? {
        names.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.strip_suffix(".rs"))
                .map(str::to_owned),
        );
    }
    names.sort();
    Ok(names)
}

fn fuzz(
    plan: &Plan,
    found: &Path,
    targets: &[String],
    how: &str,
    options: &[String],
) -> Result<()> {
    let sandbox =
        dev::sandbox(plan)?.write(found, "/cache").env("RUSTFLAGS", FLAGS).env("TMPDIR", "/cache");
    let build = [
        "cargo",
        "build",
        "--offline",
        "--package",
        "basalt-fuzz",
        "--bins",
        "--profile",
        "fuzz",
        "--target",
        TARGET,
    ];
    // Another folder than that of the tests: other flags would make everything anew each time.
    check(
        &mut sandbox.command(build.iter().copied().chain(["--target-dir", "/work/fuzz"]))?,
        "building the fuzz targets",
    )?;
    for target in targets {
        std::fs::create_dir_all(found.join("corpus").join(target))?;
        std::fs::create_dir_all(found.join("found"))?;
        let program = format!("/work/fuzz/{TARGET}/fuzz/{target}");
        let mut argv = vec![program, format!("/cache/corpus/{target}")];
        for name in [target.clone(), format!("{target}-around"), format!("{target}-good")] {
            if paths::repo().join("fuzz/corpus").join(&name).exists() {
                argv.push(format!("/src/fuzz/corpus/{name}"));
            }
        }
        argv.extend_from_slice(options);
        argv.extend(
            ["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"]
                .map(str::to_owned),
        );
        argv.push(format!("-artifact_prefix=/cache/found/{target}-"));
        progress::line(&format!("fuzz {target} {how}"));
        let output =
            sandbox.command(&argv)?.output().with_context(|| format!("cannot run {target}"))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            let tail: Vec<&str> = text.lines().rev().take(30).collect();
            bail!(
                "{target} found something ({}); the input is in {}:\n{}",
                output.status,
                found.join("found").display(),
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        let runs = text
            .lines()
            .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
            .map(str::trim)
            .unwrap_or("?");
        progress::line(&format!("fuzz {target}: {runs} inputs, nothing found"));
    }
    Ok(())
}

fn write_corpus(plan: &Plan) -> Result<()> {
    let corpus = paths::repo().join("fuzz/corpus");
    for kind in GENERATED {
        empty(&corpus.join(kind))?;
    }
    let sandbox = dev::sandbox(plan)?.write(&corpus, "/out").env("BASALT_CORPUS", "/out");
    let packages =
        ["cargo", "test", "--offline", "--package", "basalt-oci", "--package", "basalt-ledger"];
    // Those that only look at what is there fail while it is being made.
    check(
        &mut sandbox.command(packages.iter().copied().chain([
            "--",
            "--skip",
            "nothing_of_the_corpus",
        ]))?,
        "the generator",
    )?;
    progress::line("written. Look at what changed: git status fuzz/corpus");
    Ok(())
}

fn empty(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for entry in std::fs::read_dir(dir)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(())
}
