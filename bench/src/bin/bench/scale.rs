//! The command line of the benchmark of curves.

use anyhow::Result;
use mesh_bench::{figures::Found, scale::run as measure};

use super::{Figures, datapath::Pace};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pace: Pace,
    /// So many levels, from the lowest
    #[arg(long, default_value_t = 5)]
    levels: usize,
}

pub fn run(quick: bool, args: &Args) -> Result<Figures> {
    let scale = measure(args.pace.plan(quick), args.levels)?;
    Ok(Figures::new("scale", Found { json: scale.json(), table: scale.tables() }))
}
