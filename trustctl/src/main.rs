//! `trustctl`: the command line of approvers, owners and verifiers.
//!
//! Parses the arguments, runs the command, and turns errors into exit statuses.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser as _};
use trustctl::client::{Client, Refusal};
use trustctl::keys;

use cli::command::{Cli, Command};
use cli::output::NegativeResult;

/// Exit status if a node answered with an error.
const EXIT_REFUSED: u8 = 3;
/// Exit status of a negative result.
const EXIT_NEGATIVE: u8 = 4;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<Refusal>() {
                ExitCode::from(EXIT_REFUSED)
            } else if error.is::<NegativeResult>() {
                ExitCode::from(EXIT_NEGATIVE)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let folder = cli.keys.map_or_else(keys::folder, Ok)?;
    let client = Client::new(cli.node.clone(), &folder);
    let json = cli.json;
    match cli.command {
        Command::Key { command } => cli::key::run(&command, &folder, json),
        Command::Approve(args) => cli::log::approve(&args, &folder, json),
        Command::Revoke(args) => cli::log::revoke(&args, &folder, json),
        Command::Approvers(args) => cli::log::approvers(&args, &folder, json),
        Command::Log { command } => cli::log::run(&command, &folder, &client, json),
        Command::Status { html: Some(file) } => cli::node::page(&client, &file, json),
        Command::Status { html: None } => cli::node::status(&client, json),
        Command::Metrics => {
            print!("{}", client.text("/metrics")?);
            Ok(())
        }
        Command::Modules => cli::module::list(&client, json),
        Command::Image { command } => cli::node::image(&client, &command, json),
        Command::Module { command } => cli::module::run(&client, &folder, &command, json),
        Command::Audit => cli::node::audit(&client, json),
        Command::Attest(args) => cli::attest::attest(&args, &cli.node, &folder, json),
        Command::Verify(args) => cli::attest::verify(&args, json),
        Command::Peers(args) => cli::attest::peers(&args, &folder, json),
        Command::Policy { command } => cli::policy::policy(&client, &command, &folder, json),
        Command::Recovery { command } => cli::policy::recovery(&client, &command, &folder, json),
        Command::Chain { command } => cli::chain::run(&command, &client, &folder, json),
        Command::Relay(args) => cli::relay::run(&args, json),
        Command::Vrf(args) => cli::vrf::run(&args, json),
        Command::VerifyImage(args) => cli::image::verify_image(&args, &folder, json),
        Command::Service { verb, name } => cli::node::service(&client, verb, &name, json),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "trustctl", &mut std::io::stdout());
            Ok(())
        }
        Command::Reboot => cli::node::machine(&client, "reboot", json),
        Command::Poweroff => cli::node::machine(&client, "poweroff", json),
    }
}
