use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{cmd, sandbox};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, runs and tests Basalt images", after_help = "Start with: cargo xtask build-image")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build one step
    Build(cmd::build::Args),
    /// Resolve package sets anew and write image/locks/
    Lock(cmd::lock::Args),
    #[command(hide = true)]
    Enter { spec: String },
    #[command(hide = true)]
    EnterSecond { spec: String },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Build(args) => cmd::build::run(args),
        Command::Lock(args) => cmd::lock::run(args),
        Command::Enter { spec } => sandbox::enter(&spec),
        Command::EnterSecond { spec } => sandbox::enter_second(&spec),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
