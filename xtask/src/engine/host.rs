//! Runs programs of the host, such as cargo, npm and git, with `xshell`.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use xshell::{Cmd, Shell};

use crate::engine::paths;
use crate::engine::progress::Task;

/// Returns a shell whose working folder is the checkout.
///
/// # Errors
///
/// Fails if the current folder does not exist.
pub fn shell() -> Result<Shell> {
    let shell = Shell::new()?;
    shell.change_dir(paths::repo());
    Ok(shell)
}

/// Returns a command that runs the host's cargo with these first arguments. Unlike the sandbox's
/// cargo, it has access to the network.
pub fn cargo<'a>(shell: &'a Shell, args: &[&str]) -> Cmd<'a> {
    shell.cmd(cargo_path()).args(args).quiet()
}

/// Returns the path of the cargo that runs this program; `cargo` if it is unknown.
pub fn cargo_path() -> OsString {
    std::env::var_os("CARGO").unwrap_or("cargo".into())
}

/// Returns the number of jobs that a build tool may run concurrently: `BASALT_JOBS`, or the number
/// of processors.
pub fn jobs() -> usize {
    let requested = std::env::var("BASALT_JOBS").ok().and_then(|n| n.parse().ok());
    requested.unwrap_or_else(|| std::thread::available_parallelism().map_or(2, usize::from))
}

/// Compiles `trustctl` with the host's cargo, unless it is up to date, and returns its path.
///
/// # Errors
///
/// Fails if it does not compile.
pub fn build_trustctl() -> Result<PathBuf> {
    build_program("trustctl", "compiling, about 2 minutes on two cores the first time")
}

/// Compiles a program of the checkout with the host's cargo, and returns the path of the program.
///
/// # Errors
///
/// Fails if it does not compile.
fn build_program(package: &str, label: &str) -> Result<PathBuf> {
    /// A message of cargo (`--message-format`), reduced to the members that are read.
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
    }
    let task = Task::begin(package, label);
    let shell = shell()?;
    let args = ["build", "--package", package, "--quiet", "--message-format"];
    let output = cargo(&shell, &args).arg("json-render-diagnostics").ignore_status().output()?;
    ensure!(
        output.status.success(),
        "cargo cannot compile {package}:\n{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let program = String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok()?.executable)
        .next_back()
        .with_context(|| format!("cargo built no executable of the package {package}"))?;
    task.done("");
    Ok(program)
}
