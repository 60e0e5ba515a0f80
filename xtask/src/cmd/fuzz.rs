//! `cargo xtask fuzz [TARGET]...`: runs the fuzz targets of fuzz/ with libFuzzer in the sandbox.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Session, check, dev};
use crate::engine::graph::BuildGraph;
use crate::engine::{paths, progress};

/// Compiler flags that instrument the code for coverage, as cargo-fuzz sets them.
///
/// The sanitizers are left out because the tools sysroot does not have their runtime.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Clink-dead-code";
/// Target triple of the host. With an explicit target, cargo does not instrument build scripts.
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Number of inputs for each target in the run of the tests, which takes a few seconds.
const TEST_INPUTS: u32 = 10_000;

/// Folders of fuzz/corpus/ that tests generate; the others are written by hand.
const GENERATED: [&str; 8] = [
    "archive",
    "archive-around",
    "archive-good",
    "layer",
    "members",
    "manifest",
    "statement",
    "checkpoint",
];

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    /// Names of the targets; without any, all targets are fuzzed
    targets: Vec<String>,
    /// Fuzz each target for this number of seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Fuzz each target with this number of inputs instead of for a time
    #[arg(long, conflicts_with = "seconds")]
    runs: Option<u64>,
    /// Regenerate fuzz/corpus/ with the tests of lib/oci and lib/ledger, and fuzz nothing
    #[arg(long)]
    corpus: bool,
}

/// Fuzzes the targets, or regenerates the corpus.
///
/// # Errors
///
/// Fails if there is no such target, a target cannot be built, or an input makes a target fail.
pub fn run(args: &Args) -> Result<()> {
    let graph = Session::open_test()?.graph;
    if args.corpus {
        return write_corpus(&graph);
    }
    let all = targets()?;
    for target in &args.targets {
        ensure!(
            all.contains(target),
            "there is no target {target}; the targets are: {}",
            all.join(", ")
        );
    }
    // The inputs are stored in the cache, so that the next run continues from them.
    let store = graph.cache.work("fuzz")?;
    let targets = if args.targets.is_empty() { &all } else { &args.targets };
    match args.runs {
        Some(runs) => fuzz(
            &graph,
            &store,
            targets,
            &format!("with {runs} inputs"),
            &[format!("-runs={runs}")],
        ),
        None => fuzz(
            &graph,
            &store,
            targets,
            &format!("for {} s", args.seconds),
            &[format!("-max_total_time={}", args.seconds)],
        ),
    }
}

/// Fuzzes every target with the same inputs on every machine: a fixed number of inputs, with a
/// fixed seed, from the corpus of the repository alone.
///
/// # Errors
///
/// Fails if a target cannot be built or an input makes a target fail.
pub fn test(graph: &BuildGraph) -> Result<()> {
    let store = dev::scratch(graph, "fuzz-short")?;
    fuzz(
        graph,
        &store,
        &targets()?,
        &format!("with {TEST_INPUTS} inputs"),
        &[format!("-runs={TEST_INPUTS}"), "-seed=1".into()],
    )
}

/// Returns the names of all targets, sorted.
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

/// Builds the targets and runs each; `store` receives new inputs, `extent` is printed.
fn fuzz(
    graph: &BuildGraph,
    store: &Path,
    targets: &[String],
    extent: &str,
    options: &[String],
) -> Result<()> {
    let sandbox = super::engine::with_image_tools(graph, dev::sandbox(graph)?)?
        .write(store, "/cache")
        .env("RUSTFLAGS", FLAGS)
        .env("TMPDIR", "/cache");
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
    // The tests have another target folder, because other flags would rebuild everything each time.
    check(
        &mut sandbox.command(build.iter().copied().chain(["--target-dir", "/work/fuzz"]))?,
        "building the fuzz targets",
    )?;
    for target in targets {
        std::fs::create_dir_all(store.join("corpus").join(target))?;
        std::fs::create_dir_all(store.join("found"))?;
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
        progress::line(&format!("fuzz {target} {extent}"));
        let output =
            sandbox.command(&argv)?.output().with_context(|| format!("cannot run {target}"))?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            let tail: Vec<&str> = text.lines().rev().take(30).collect();
            bail!(
                "an input makes the fuzz target {target} fail ({}); the input is in {}:\n{}",
                output.status,
                store.join("found").display(),
                tail.into_iter().rev().collect::<Vec<_>>().join("\n")
            );
        }
        let runs = text
            .lines()
            .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
            .map(str::trim)
            .unwrap_or("?");
        progress::line(&format!("fuzz {target}: {runs} inputs, no failure"));
    }
    Ok(())
}

/// Regenerates the generated folders of fuzz/corpus/.
fn write_corpus(graph: &BuildGraph) -> Result<()> {
    let corpus = paths::repo().join("fuzz/corpus");
    for kind in GENERATED {
        empty(&corpus.join(kind))?;
    }
    let sandbox = dev::sandbox(graph)?.write(&corpus, "/out").env("BASALT_CORPUS", "/out");
    let packages =
        ["cargo", "test", "--offline", "--package", "basalt-oci", "--package", "basalt-ledger"];
    // The tests that read the corpus would fail while it is being written, so they are skipped.
    check(
        &mut sandbox.command(packages.iter().copied().chain([
            "--",
            "--skip",
            "_of_the_corpus_",
        ]))?,
        "the generator of the corpus",
    )?;
    progress::line("fuzz/corpus is written; review the changes: git status fuzz/corpus");
    Ok(())
}

/// Creates a folder, or removes the files in it.
fn empty(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    for entry in std::fs::read_dir(dir)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(())
}
