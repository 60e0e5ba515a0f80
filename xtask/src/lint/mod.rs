//! Checks of the repository's own text that no compiler makes: imports of modules, and the truth of
//! the documentation.
//!
//! Two more checks of the documentation are unit tests of the crates that know the truth: the table
//! of audit events (`trustd/src/audit/event.rs`) and the command lines of `trustctl`
//! (`trustctl/src/cli/documented.rs`).

pub mod commands;
pub mod config_keys;
pub mod imports;
pub mod links;
mod markdown;
mod rust_source;

use std::path::Path;

use anyhow::{Result, bail, ensure};

use commands::ParseArguments;

/// Command lines of `cargo xtask` that the documentation has at least; fewer mean that they are not
/// found.
const MIN_COMMANDS: usize = 15;

/// Runs every check on the checkout in `repo`.
///
/// # Errors
///
/// Fails with the list of all problems if a check finds any, or if a file cannot be read.
pub fn run(repo: &Path, members: &[String], parse: ParseArguments) -> Result<()> {
    let mut problems = Vec::new();
    for member in members {
        problems.extend(imports::check_crate(&repo.join(member), member)?);
    }
    problems.extend(imports::check_layers(&repo.join("xtask"), &imports::XTASK_LAYERS)?);
    let documents = markdown::documents(repo)?;
    problems.extend(links::check(repo, &documents)?);
    ensure!(commands::count(&documents) >= MIN_COMMANDS, "the documentation is read wrongly");
    problems.extend(commands::check(&documents, parse));
    problems.extend(config_keys::check(repo)?);
    if problems.is_empty() {
        return Ok(());
    }
    bail!("{} problems in the repository:\n  {}", problems.len(), problems.join("\n  "))
}
