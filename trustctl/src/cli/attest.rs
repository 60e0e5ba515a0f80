//! What strangers and owners ask: what is this node?

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use measure::{hex, unhex};
use serde_json::{Value, json};
use trustctl::appraisal::{self, Expected, Verdict};
use trustctl::client::{Address, Refusal};
use trustctl::evidence::Failure;
use trustctl::peers::Group;

use crate::cli::node::{DoesNotHold, print_json};

#[derive(clap::Args)]
pub(crate) struct Wanted {
    /// The image's measurements.json: the first event that differs is named
    #[arg(long)]
    expect: Option<PathBuf>,
    /// The node.toml that was put on its boot partition, where there is one
    #[arg(long, requires = "expect")]
    settings: Option<PathBuf>,
    /// Folder with the certificates of manufacturers of TPMs: one of them must vouch for the node's
    #[arg(long, value_name = "DIR")]
    ek_ca: Option<PathBuf>,
    /// The name of its TPM, as an earlier verdict showed it
    #[arg(long, value_name = "NAME")]
    tpm: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct Attest {
    /// HOST:PORT or unix:PATH, in place of --node
    address: Option<Address>,
    #[command(flatten)]
    wanted: Wanted,
    /// Keep what the node said, for trustctl verify
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Verify {
    /// What attest --save kept, or what a module's quote or vrf/keys answered
    evidence: PathBuf,
    #[command(flatten)]
    wanted: Wanted,
    /// The nonce that was sent, hex, where the file does not have it
    #[arg(long)]
    nonce: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct Peers {
    /// TOML: quorum, and of each [[node]] address, expect, and if wished settings and tpm
    /// (docs/attestation.md)
    list: PathBuf,
}

impl Wanted {
    pub(crate) fn names_an_image(&self) -> bool {
        self.expect.is_some()
    }

    pub(crate) fn read(&self) -> Result<Expected> {
        let measurements = self
            .expect
            .as_ref()
            .map(|path| Expected::image(path, self.settings.as_deref()))
            .transpose()?;
        Ok(Expected { measurements, authorities: self.ek_ca.clone(), tpm: self.tpm.clone() })
    }
}

pub(crate) fn attest(args: &Attest, node: &Address, folder: &Path, as_json: bool) -> Result<()> {
    let address = args.address.as_ref().unwrap_or(node);
    let (kept, verdict) = appraisal::find_out(address, folder, &args.wanted.read()?)?;
    if let Some(file) = &args.save {
        std::fs::write(file, serde_json::to_string_pretty(&kept)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    say(verdict, &args.wanted, as_json)?;
    if let (Some(file), false) = (&args.save, as_json) {
        println!("Kept in {0}. Next: trustctl verify {0}", file.display());
    }
    Ok(())
}

pub(crate) fn verify(args: &Verify, as_json: bool) -> Result<()> {
    let text = std::fs::read_to_string(&args.evidence)
        .with_context(|| format!("cannot read {}", args.evidence.display()))?;
    let kept: Value = serde_json::from_str(&text)
        .with_context(|| format!("{} is not JSON", args.evidence.display()))?;
    let nonce = args
        .nonce
        .as_ref()
        .map(|hex| unhex(hex).context("--nonce: expected hex digits"))
        .transpose()?;
    say(appraisal::judge(&kept, nonce.as_deref(), &args.wanted.read()?), &args.wanted, as_json)
}

/// An error that is about the evidence is a verdict; any other is said as it is.
fn about_evidence(error: &anyhow::Error) -> bool {
    error.is::<Failure>()
}

fn say(verdict: Result<Verdict>, wanted: &Wanted, as_json: bool) -> Result<()> {
    match verdict {
        Ok(verdict) if as_json => print_json(&verdict.json()),
        Ok(verdict) => {
            show(&verdict, wanted);
            Ok(())
        }
        Err(error) if about_evidence(&error) => {
            if as_json {
                print_json(&appraisal::no(&error))?;
            }
            Err(DoesNotHold(format!("the evidence does not hold: {error:#}")).into())
        }
        Err(error) => Err(error),
    }
}

fn show(verdict: &Verdict, wanted: &Wanted) {
    let checked = &verdict.checked;
    for record in checked.platform.iter().chain(&checked.modules) {
        println!("PCR {}  {:20} {}", record.pcr, record.content.kind, record.content.data);
    }
    for (pcr, value) in &checked.pcrs {
        println!("PCR {pcr} = {}", hex(&value.0));
    }
    println!("statement  {}", checked.statement.text());
    println!("key        {}", hex(&checked.key.name()));
    match &verdict.endorsement {
        None => println!(
            "TPM        not said: evidence of a module's; ask its node with trustctl attest and compare the key"
        ),
        Some(endorsement) => {
            let vouched = match (&endorsement.certificate, verdict.vouched_for) {
                (_, true) => "its manufacturer vouches for it",
                (Some(_), false) => "it has a certificate, which --ek-ca DIR would check",
                (None, false) => "it has no certificate; --tpm pins it by its name",
            };
            let bound = if verdict.activated {
                "the key is in it"
            } else {
                "NOT shown that the key is in it"
            };
            println!("TPM        {}: {bound}; {vouched}", endorsement.name());
        }
    }
    match (&wanted.expect, &checked.board) {
        (Some(file), Some(board)) => {
            println!(
                "The evidence holds: this boot is the image of {} on the board {board}, event by event.",
                file.display()
            )
        }
        _ => println!("The evidence holds. --expect measurements.json compares it with an image."),
    }
}

pub(crate) fn peers(args: &Peers, folder: &Path, as_json: bool) -> Result<()> {
    let group = Group::read(&args.list)?;
    let asked = group.ask(&args.list, folder);
    let holds = asked.iter().filter(|one| one.verdict.is_ok()).count();
    if as_json {
        let one = |asked: &trustctl::peers::Asked| {
            let mut value = asked.verdict.as_ref().map_or_else(appraisal::no, Verdict::json);
            value["node"] = json!(asked.address);
            value
        };
        let nodes: Vec<Value> = asked.iter().map(one).collect();
        print_json(&json!({ "hold": holds, "nodes": nodes, "quorum": group.quorum() }))?;
    } else {
        for one in &asked {
            match &one.verdict {
                Ok(verdict) => println!(
                    "in   {}  {}",
                    one.address,
                    verdict.endorsement.as_ref().map(|e| e.name()).unwrap_or_default()
                ),
                Err(error) if error.is::<Refusal>() => println!("out  {}  {error}", one.address),
                Err(error) => println!("out  {}  {error:#}", one.address),
            }
        }
        println!("{holds} of {} hold, {} are needed", asked.len(), group.quorum());
    }
    if holds < group.quorum() {
        return Err(DoesNotHold(format!(
            "{holds} of {} nodes are what they should be; {} are needed",
            asked.len(),
            group.quorum()
        ))
        .into());
    }
    Ok(())
}
