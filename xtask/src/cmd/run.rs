//! `cargo xtask run`

use std::net::TcpListener;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};

use crate::qemu::Boot;
use crate::{paths, progress};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    image: super::ImageArgs,
    /// Forget what the last run left on the data partition and in the TPM
    #[arg(long)]
    fresh: bool,
    /// Port on this host that leads to the node's API
    #[arg(long, default_value_t = 7443)]
    port: u16,
}

/// Size of the card that the node sees, in MiB.
const CARD_MIB: u64 = 2048;

pub fn run(args: Args) -> Result<()> {
    let plan = args.image.plan()?;
    let image = super::build_image::build(&plan)?;
    TcpListener::bind(("127.0.0.1", args.port))
        .with_context(|| format!("port {} is taken; name another with --port", args.port))?;
    let dir = paths::repo().join("target/run").join(&plan.machine_name);
    let same = std::fs::read_to_string(dir.join("of")).is_ok_and(|of| {
        std::fs::read_to_string(image.with_file_name("image.sha256")).is_ok_and(|is| is == of)
    });
    if args.fresh || !same {
        // Another image has other measurements; the card is flashed, the TPM stays unless --fresh
        // is given.
        std::fs::create_dir_all(&dir)?;
        if args.fresh {
            crate::store::remove(&dir)?;
            std::fs::create_dir_all(&dir)?;
        }
        super::build_image::sparse_copy(&image, &dir.join("disk.img"))?;
        std::fs::File::options().write(true).open(dir.join("disk.img"))?.set_len(CARD_MIB << 20)?;
        std::fs::copy(image.with_file_name("image.sha256"), dir.join("of"))?;
    }
    let (tools, machine) = (plan.tools()?, plan.machine.clone());
    // The cache is not needed while the node runs; others may build.
    drop(plan);
    let boot = Boot {
        tools: &tools,
        machine: &machine,
        dir: &dir,
        port: args.port,
        tpm: true,
        outside: true,
    };
    boot.unpack()?;
    if machine.device_tree.is_of_a_real_board() {
        boot.sign_policies(&serde_json::from_slice(&std::fs::read(
            image.with_file_name("measurements.json"),
        )?)?)?;
    }
    let mut tpm = crate::console::start_tpm(&boot)?;
    progress::line(&format!(
        "\nThe node's console follows; Ctrl-A X ends it. From another terminal:\n  cargo run -qp trustctl -- --node 127.0.0.1:{} status\n",
        args.port
    ));
    let status = boot.qemu("mon:stdio")?.stdin(Stdio::inherit()).status()?;
    let _ = tpm.kill();
    let _ = tpm.wait();
    if !status.success() {
        bail!("QEMU ended with {status}");
    }
    Ok(())
}
