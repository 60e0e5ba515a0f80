//! `cargo xtask bench`

mod boot;
mod image;

use anyhow::Result;

#[derive(clap::Args)]
pub struct Args {
    #[arg(value_enum, default_value = "boot")]
    what: What,
    /// How many boots; the medians are printed
    #[arg(long, default_value_t = 3)]
    boots: usize,
}

#[derive(clap::ValueEnum, Clone, Copy)]
enum What {
    /// The times that the README promises
    Boot,
    /// Side by side with a Debian that has systemd, its generic kernel and the same engine
    Image,
    /// What goes through trustd's gate, side by side with the bare engine
    Gate,
    /// What modules get, side by side with other implementations; what one that floods its socket
    /// does to others
    Crypto,
    /// What following a chain costs
    Ledger,
}

pub fn run(args: Args) -> Result<()> {
    let boots = args.boots.max(1);
    match args.what {
        What::Boot => boot::run(boots),
        What::Image => image::run(boots),
        What::Gate => super::engine::bench_gate(),
        What::Crypto => super::engine::bench_crypto(),
        What::Ledger => super::chain::bench(),
    }
}

/// The middle one; sorts them.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
