//! `trustctl attest`, `verify` and `peers`: the verifier's commands.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use measure::{hex, unhex};
use serde_json::{Value, json};
use trustctl::appraisal::{self, AttestationResult, ReferenceValues, SavedEvidence};
use trustctl::client::Address;
use trustctl::evidence::EvidenceError;
use trustctl::image::read_measurements;
use trustctl::peers::{Group, PeerResult};

use crate::cli::output::{NegativeResult, print_json};

/// Reference values that evidence is compared with.
#[derive(clap::Args)]
pub(crate) struct ReferenceArgs {
    /// Compare with the image's measurements.json, and name the first event that differs
    #[arg(long, value_name = "FILE")]
    expect: Option<PathBuf>,
    /// node.toml of the node's boot partition, if it has one
    #[arg(long, value_name = "FILE", requires = "expect")]
    settings: Option<PathBuf>,
    /// Require a certificate of the TPM that leads to one of its manufacturer's in this folder
    #[arg(long, value_name = "DIR")]
    ek_ca: Option<PathBuf>,
    /// Require the TPM with this name, as an earlier attestation printed it
    #[arg(long, value_name = "NAME")]
    tpm: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct Attest {
    /// Address of the node, instead of --node: HOST:PORT or unix:PATH
    address: Option<Address>,
    #[command(flatten)]
    reference: ReferenceArgs,
    /// Save the evidence, for trustctl verify
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
}

#[derive(clap::Args)]
pub(crate) struct Verify {
    /// Evidence that attest --save wrote, or the answer to a module's quote or vrf/keys
    evidence: PathBuf,
    #[command(flatten)]
    reference: ReferenceArgs,
    /// Nonce that was sent, hex; needed if the file does not have it
    #[arg(long, value_name = "HEX")]
    nonce: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct Peers {
    /// List of nodes (TOML, docs/attestation.md): a quorum, and for each [[node]] address, expect,
    /// and optionally settings and tpm
    list: PathBuf,
}

impl ReferenceArgs {
    pub(crate) fn names_an_image(&self) -> bool {
        self.expect.is_some()
    }

    pub(crate) fn read(&self) -> Result<ReferenceValues> {
        let settings = self.settings.as_deref();
        let measurements =
            self.expect.as_ref().map(|path| read_measurements(path, settings)).transpose()?;
        Ok(ReferenceValues { measurements, authorities: self.ek_ca.clone(), tpm: self.tpm.clone() })
    }
}

pub(crate) fn attest(args: &Attest, node: &Address, folder: &Path, as_json: bool) -> Result<()> {
    let address = args.address.as_ref().unwrap_or(node);
    let reference = args.reference.read()?;
    let (evidence, result) = match appraisal::attest_anonymously_first(address, folder, &reference)
    {
        Ok(answer) => answer,
        Err(error) => return report(Err(error), &args.reference, as_json),
    };
    if let Some(file) = &args.save {
        std::fs::write(file, serde_json::to_string_pretty(&evidence)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    report(result, &args.reference, as_json)?;
    if let (Some(file), false) = (&args.save, as_json) {
        println!("Saved in {0}. Next: trustctl verify {0}", file.display());
    }
    Ok(())
}

pub(crate) fn verify(args: &Verify, as_json: bool) -> Result<()> {
    let text = std::fs::read_to_string(&args.evidence)
        .with_context(|| format!("cannot read {}", args.evidence.display()))?;
    let nonce = args
        .nonce
        .as_ref()
        .map(|hex| unhex(hex).context("--nonce: expected hex digits"))
        .transpose()?;
    let reference = args.reference.read()?;
    let result = SavedEvidence::parse(&text)
        .with_context(|| format!("cannot parse {}", args.evidence.display()))
        .and_then(|evidence| appraisal::appraise(&evidence, nonce.as_deref(), &reference));
    report(result, &args.reference, as_json)
}

/// Prints a result. An [`EvidenceError`] is a negative result; any other error is returned as it
/// is.
fn report(
    result: Result<AttestationResult>,
    reference: &ReferenceArgs,
    as_json: bool,
) -> Result<()> {
    match result {
        Ok(result) if as_json => print_json(&result.json()),
        Ok(result) => {
            print_text(&result, reference);
            Ok(())
        }
        Err(error) if error.is::<EvidenceError>() => {
            if as_json {
                print_json(&appraisal::rejection_json(&error))?;
            }
            Err(NegativeResult(format!("the evidence is invalid: {error:#}")).into())
        }
        Err(error) => Err(error),
    }
}

fn print_text(result: &AttestationResult, reference: &ReferenceArgs) {
    let evidence = &result.evidence;
    for record in evidence.platform.iter().chain(&evidence.modules) {
        println!("PCR {}  {:20} {}", record.pcr, record.content.kind, record.content.data);
    }
    for (pcr, value) in &evidence.pcrs {
        println!("PCR {pcr} = {}", hex(&value.0));
    }
    println!("statement  {}", evidence.statement.text());
    println!("key        {}", hex(&evidence.key.name()));
    println!("TPM        {}", tpm_text(result));
    match (&reference.expect, &evidence.board) {
        (Some(file), Some(board)) => println!(
            "The evidence is valid: this boot is the image of {} on the board {board}.",
            file.display()
        ),
        _ => {
            println!("The evidence is valid. Compare it with an image: --expect measurements.json")
        }
    }
}

/// Returns what is known of the TPM.
fn tpm_text(result: &AttestationResult) -> String {
    let Some(endorsement) = &result.endorsement else {
        return "unknown: this is evidence of a module; attest its node with trustctl attest, and \
                compare the key"
            .into();
    };
    let key = if result.activated {
        "the key is in this TPM"
    } else {
        "NO PROOF that the key is in this TPM"
    };
    let certificate = match (&endorsement.certificate, result.certificate_verified) {
        (_, true) => "its certificate leads to its manufacturer",
        (Some(_), false) => "it has a certificate, which --ek-ca DIR verifies",
        (None, false) => "it has no certificate; --tpm NAME requires this TPM",
    };
    format!("{}: {key}; {certificate}", endorsement.name())
}

pub(crate) fn peers(args: &Peers, folder: &Path, as_json: bool) -> Result<()> {
    let group = Group::read(&args.list)?;
    let results = group.attest(&args.list, folder);
    let (valid, quorum) =
        (results.iter().filter(|peer| peer.result.is_ok()).count(), group.quorum());
    if as_json {
        let nodes: Vec<Value> = results.iter().map(peer_json).collect();
        print_json(&json!({ "nodes": nodes, "quorum": quorum, "valid_nodes": valid }))?;
    } else {
        results.iter().for_each(print_peer);
    }
    let summary =
        format!("{valid} of {} nodes are as expected, {quorum} are needed", results.len());
    if valid < quorum {
        return Err(NegativeResult(summary).into());
    }
    if !as_json {
        println!("{summary}");
    }
    Ok(())
}

fn peer_json(peer: &PeerResult) -> Value {
    let result = peer.result.as_ref();
    let mut value = result.map_or_else(appraisal::rejection_json, AttestationResult::json);
    value["node"] = json!(peer.address);
    value
}

fn print_peer(peer: &PeerResult) {
    match &peer.result {
        Ok(result) => {
            let tpm = result.endorsement.as_ref().map(|e| e.name()).unwrap_or_default();
            println!("valid    {}  {tpm}", peer.address);
        }
        Err(error) => println!("invalid  {}  {error:#}", peer.address),
    }
}
