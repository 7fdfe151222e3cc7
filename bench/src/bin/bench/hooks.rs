//! The command line of the benchmark of connect(2).

use anyhow::Result;
use mesh_bench::hooks::{Plan, run as measure};

use super::Figures;

#[derive(clap::Args)]
pub struct Args {
    /// How often each kind of program is measured
    #[arg(long)]
    rounds: Option<usize>,
    /// How many connections it opens each time
    #[arg(long)]
    connections: Option<usize>,
}

pub fn run(quick: bool, args: &Args) -> Result<Figures> {
    let plan = Plan::new(quick);
    let plan = Plan {
        rounds: args.rounds.unwrap_or(plan.rounds).max(1),
        connections: args.connections.unwrap_or(plan.connections).max(1),
    };
    Ok(Figures::new("hooks", measure(plan)?))
}
