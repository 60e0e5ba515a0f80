//! `trustctl verify-image`: verifies a built image before it is flashed.

use std::path::{Path, PathBuf};

use anyhow::Result;
use trustctl::{image, keys};

use crate::cli::output::{NegativeResult, print_json};

#[derive(clap::Args)]
pub(crate) struct VerifyImage {
    /// Folder with the image, its manifest and the manifest's signature
    dir: PathBuf,
    /// Public key of the builder, hex [default: that of your own builder.key]
    #[arg(long, value_name = "KEY")]
    builder: Option<String>,
}

pub(crate) fn verify_image(args: &VerifyImage, folder: &Path, as_json: bool) -> Result<()> {
    let builder = keys::builder(args.builder.as_deref(), folder)?;
    let manifest = image::verify(&args.dir, &builder)
        .map_err(|error| NegativeResult(format!("the image is invalid: {error:#}")))?;
    if as_json {
        return print_json(&manifest);
    }
    println!("Basalt {} ({}) for {}", manifest.version, manifest.variant, manifest.machine);
    println!("signed by {}", measure::hex(builder.as_bytes()));
    // One form of the image can be absent.
    let present: Vec<_> =
        manifest.outputs.iter().filter(|(name, _)| args.dir.join(name).exists()).collect();
    for (name, hash) in &present {
        println!("{hash}  {name}");
    }
    println!(
        "The image is valid: {} files as signed, built in {} steps.",
        present.len(),
        manifest.inputs.len()
    );
    Ok(())
}
