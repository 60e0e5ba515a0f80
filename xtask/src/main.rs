//! The command line of `cargo xtask`: parses the arguments and calls the command.

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};
use xtask::cmd;
use xtask::engine::sandbox;
use xtask::lint::commands::ArgumentError;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Build, run and test Basalt images",
    after_help = "Start with: cargo xtask build-image"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the image of a machine and write it to target/image/MACHINE/
    BuildImage(cmd::build_image::Args),
    /// Write an image to a memory card, then read the card back and compare
    Flash(cmd::flash::Args),
    /// Boot the image in QEMU with a software TPM and show the console in this terminal
    Run(cmd::run::Args),
    /// Run all checks and tests, or only those of the named groups
    Test(cmd::test::Args),
    /// Build one step of an image and print the folder of its result
    Build(cmd::build::Args),
    /// Run cargo in the sandbox, offline and with the locked toolchain
    Cargo(cmd::dev::Args),
    /// Resolve package sets against the mirror again and write image/locks/
    Lock(cmd::lock::Args),
    /// Explain why a step would be rebuilt
    Why(cmd::why::Args),
    /// Print the sizes that the README promises and fail if one is exceeded
    Size(cmd::size::Args),
    /// Check the kernel configuration and the binaries with third-party hardening checkers
    Harden(cmd::harden::Args),
    /// Measure performance and fail if a time is longer than the README promises
    Bench(cmd::bench::Args),
    /// Fuzz the parsers of untrusted input with libFuzzer
    Fuzz(cmd::fuzz::Args),
    /// Build the image again in a different environment and compare every byte
    Repro(cmd::repro::Args),
    /// Remove downloads and build results from the cache
    Clean(cmd::clean::Args),
    /// Set up the namespaces of a sandbox (internal)
    #[command(hide = true)]
    Enter { spec: String },
    /// Run the program of a sandbox inside its namespaces (internal)
    #[command(hide = true)]
    EnterSecond { spec: String },
    /// Run a program as an unprivileged user (internal)
    #[command(hide = true, trailing_var_arg = true)]
    AsUser {
        #[arg(allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

/// Parses arguments without running the command, for the check of the documentation.
fn parse(arguments: &[String]) -> Result<(), ArgumentError> {
    let program = std::iter::once("cargo xtask".to_owned());
    let Err(error) = Cli::try_parse_from(program.chain(arguments.iter().cloned())) else {
        return Ok(());
    };
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Ok(()),
        kind => Err(ArgumentError {
            incomplete: matches!(
                kind,
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::MissingSubcommand
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            ),
            message: error.to_string(),
        }),
    }
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::BuildImage(args) => cmd::build_image::run(args),
        Command::Flash(args) => cmd::flash::run(args),
        Command::Run(args) => cmd::run::run(args),
        Command::Test(args) => cmd::test::run(args, parse),
        Command::Build(args) => cmd::build::run(args),
        Command::Cargo(args) => cmd::dev::run(args),
        Command::Lock(args) => cmd::lock::run(args),
        Command::Why(args) => cmd::why::run(args),
        Command::Size(args) => cmd::size::run(args),
        Command::Harden(args) => cmd::harden::run(args),
        Command::Bench(args) => cmd::bench::run(args),
        Command::Fuzz(args) => cmd::fuzz::run(&args),
        Command::Repro(args) => cmd::repro::run(args),
        Command::Clean(args) => cmd::clean::run(args),
        Command::Enter { spec } => sandbox::enter(&spec),
        Command::EnterSecond { spec } => sandbox::enter_second(&spec),
        Command::AsUser { command } => sandbox::as_user(&command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn the_repository_passes_its_own_checks() {
        let members = xtask::image::recipe::members().unwrap();
        xtask::lint::run(xtask::engine::paths::repo(), &members, parse).unwrap();
    }
}
