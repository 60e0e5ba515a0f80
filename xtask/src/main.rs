use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{cmd, sandbox};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, runs and tests Basalt images",
    after_help = "Start with: cargo xtask build-image"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the image of a machine into target/image/MACHINE/
    BuildImage(cmd::build_image::Args),
    /// Write an image to a card, read it back and compare
    Flash(cmd::flash::Args),
    /// Boot the image in QEMU with a software TPM, its console in this terminal
    Run(cmd::run::Args),
    /// Run all checks and tests, or those of one group
    Test(cmd::test::Args),
    /// Build one step
    Build(cmd::build::Args),
    /// Run cargo for the host inside the tools tree
    Cargo(cmd::dev::Args),
    /// Resolve package sets anew and write image/locks/
    Lock(cmd::lock::Args),
    /// Say why a step would be built anew
    Why(cmd::why::Args),
    /// Print the sizes that are promised in the README
    Size(cmd::size::Args),
    /// Put kernel configuration and programs before judges that nobody here wrote
    Harden(cmd::harden::Args),
    /// Measure the times that are promised in the README
    Bench(cmd::bench::Args),
    /// Feed what strangers can send to the parsers, with libFuzzer
    Fuzz(cmd::fuzz::Args),
    /// Build twice in different surroundings and compare every byte
    Repro(cmd::repro::Args),
    /// Empty the cache of downloads and results
    Clean(cmd::clean::Args),
    #[command(hide = true)]
    Enter { spec: String },
    #[command(hide = true)]
    EnterSecond { spec: String },
    #[command(hide = true, trailing_var_arg = true)]
    AsUser {
        #[arg(allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::BuildImage(args) => cmd::build_image::run(args),
        Command::Flash(args) => cmd::flash::run(args),
        Command::Run(args) => cmd::run::run(args),
        Command::Test(args) => cmd::test::run(args),
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
