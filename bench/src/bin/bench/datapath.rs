//! The command line of the data path's benchmark.

use std::time::Duration;

use anyhow::Result;
use mesh_bench::{
    datapath::{Plan, chart, run as measure},
    figures::Found,
};

use super::Figures;

// How often and how long; a doc comment here would become the description of each command that has it.
#[derive(clap::Args)]
pub struct Pace {
    /// How often each contestant is measured
    #[arg(long)]
    rounds: Option<usize>,
    /// The measured time of one measurement, in milliseconds
    #[arg(long)]
    time: Option<u64>,
}

impl Pace {
    /// Returns the plan for everybody and everything at this pace.
    pub fn plan(&self, quick: bool) -> Plan {
        let mut plan = Plan::new(quick);
        plan.rounds = self.rounds.unwrap_or(plan.rounds).max(1);
        plan.pace.time = self.time.map_or(plan.pace.time, Duration::from_millis);
        plan
    }
}

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pace: Pace,
    /// How many connections are held idle
    #[arg(long)]
    idle: Option<usize>,
    /// These contestants, and those that they are compared with
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// These measures
    #[arg(long, value_delimiter = ',')]
    measures: Vec<String>,
}

pub fn run(quick: bool, args: &Args) -> Result<Figures> {
    let mut plan = args.pace.plan(quick);
    if !args.only.is_empty() {
        plan.only(&args.only)?;
    }
    if !args.measures.is_empty() {
        plan.measures(&args.measures)?;
    }
    plan.pace.idle = args.idle.unwrap_or(plan.pace.idle);
    let report = measure(&plan)?;
    let svg = Some(chart::svg(&report));
    let found = Found { json: report.json(), table: report.tables() };
    Ok(Figures { svg, ..Figures::new("datapath", found) })
}
