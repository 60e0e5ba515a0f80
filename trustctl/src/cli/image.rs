//! What somebody who got an image checks before it is flashed.

use std::path::{Path, PathBuf};

use anyhow::Result;
use trustctl::{image, keys};

use crate::cli::node::{DoesNotHold, print_json};

#[derive(clap::Args)]
pub(crate) struct VerifyImage {
    /// Folder with the image, its manifest and its signature
    dir: PathBuf,
    /// The builder's public key in hex; without it, your own builder.key
    #[arg(long)]
    builder: Option<String>,
}

pub(crate) fn verify_image(args: &VerifyImage, folder: &Path, as_json: bool) -> Result<()> {
    let builder = keys::builder(args.builder.as_deref(), folder)?;
    let manifest = image::verify(&args.dir, &builder).map_err(|e| DoesNotHold(format!("{e:#}")))?;
    if as_json {
        return print_json(&serde_json::to_value(&manifest)?);
    }
    println!("Basalt {} ({}) for {}", manifest.version, manifest.variant, manifest.machine);
    println!("signed by {}", measure::hex(builder.as_bytes()));
    // One form of the image may be missing.
    let there: Vec<_> =
        manifest.outputs.iter().filter(|(name, _)| args.dir.join(name).exists()).collect();
    for (name, hash) in &there {
        println!("{hash}  {name}");
    }
    println!(
        "The image holds: {} files as signed, made in {} steps.",
        there.len(),
        manifest.inputs.len()
    );
    Ok(())
}
