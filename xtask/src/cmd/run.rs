//! `cargo xtask run`: boots an image in QEMU.

use std::net::TcpListener;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use super::build_image;
use crate::engine::{cache, host, paths, progress};
use crate::image::sparse;
use crate::qemu::boot::Boot;
use crate::qemu::console;
use crate::rules::sysroot;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
    /// Start with an empty data partition and a new TPM instead of those of the last run
    #[arg(long)]
    fresh: bool,
    /// Forward this port of the host's loopback address to the node's API
    #[arg(long, default_value_t = 7443)]
    port: u16,
}

/// Size of the emulated memory card, in MiB.
const CARD_MIB: u64 = 2048;

/// Boots the image and waits until QEMU ends.
///
/// # Errors
///
/// Fails if the image cannot be built, the port is in use, or QEMU fails.
pub fn run(args: Args) -> Result<()> {
    let session = args.image.open()?;
    let image = build_image::build(&session)?;
    let trustctl = build_image::shown(&host::build_trustctl()?);
    TcpListener::bind(("127.0.0.1", args.port))
        .with_context(|| format!("port {} is in use; select another one with --port", args.port))?;
    let dir = paths::repo().join("target/run").join(&session.image.machine_name);
    let flashed = dir.join("image.sha256");
    let unchanged = std::fs::read_to_string(&flashed).is_ok_and(|flashed| {
        std::fs::read_to_string(image.with_file_name("image.sha256"))
            .is_ok_and(|built| built == flashed)
    });
    if args.fresh || !unchanged {
        // A new image is written to the card. The TPM stays the same unless --fresh is given.
        std::fs::create_dir_all(&dir)?;
        if args.fresh {
            cache::remove(&dir)?;
            std::fs::create_dir_all(&dir)?;
        }
        sparse::copy(&image, &dir.join("disk.img"))?;
        std::fs::File::options().write(true).open(dir.join("disk.img"))?.set_len(CARD_MIB << 20)?;
        std::fs::copy(image.with_file_name("image.sha256"), &flashed)?;
        // The node on the new card generates another certificate.
        let address = format!("127.0.0.1:{}", args.port);
        trustctl::known_nodes::forget(&trustctl::keys::folder()?, &address)?;
    }
    let (tools, machine) = (sysroot::tools(&session.graph)?, session.image.machine.clone());
    // The lock of the cache is released, so that other commands can build while the node runs.
    drop(session);
    let boot = Boot {
        tools: &tools,
        machine: &machine,
        dir: &dir,
        port: args.port,
        tpm: true,
        external_network: true,
    };
    boot.unpack()?;
    if machine.device_tree.is_for_physical_board() {
        boot.sign_policies(&serde_json::from_slice(&std::fs::read(
            image.with_file_name("measurements.json"),
        )?)?)?;
    }
    let mut tpm = console::start_tpm(&boot)?;
    progress::line(&format!(
        "\nThe node's console follows; Ctrl-A X ends it. From another terminal:\n  \
         {trustctl} --node 127.0.0.1:{} status\n",
        args.port
    ));
    let status = boot.qemu("mon:stdio")?.stdin(Stdio::inherit()).status()?;
    let _ = tpm.kill();
    let _ = tpm.wait();
    if !status.success() {
        bail!("QEMU failed ({status})");
    }
    Ok(())
}
