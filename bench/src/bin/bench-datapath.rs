//! Runs the data path's benchmark and prints its figures; `cargo xtask bench datapath` builds and starts it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use mesh_bench::datapath::{Plan, chart, run};

#[derive(Parser)]
struct Cli {
    /// Two rounds of short measurements
    #[arg(long)]
    quick: bool,
    /// How often each contestant is measured
    #[arg(long)]
    rounds: Option<usize>,
    /// The measured time of one measurement, in milliseconds
    #[arg(long)]
    time: Option<u64>,
    /// These contestants, and those that they are compared with
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// These measures
    #[arg(long, value_delimiter = ',')]
    measures: Vec<String>,
    /// The folder for datapath.json and datapath.svg
    #[arg(long)]
    out: PathBuf,
}

#[expect(clippy::print_stdout, reason = "figures are what it is for")]
fn main() -> Result<()> {
    let cli = Cli::parse();
    ensure!(nix::unistd::geteuid().is_root(), "it makes network namespaces: run it as root");
    let mut plan = Plan::new(cli.quick);
    if !cli.only.is_empty() {
        plan.only(&cli.only)?;
    }
    if !cli.measures.is_empty() {
        plan.measures(&cli.measures)?;
    }
    plan.rounds = cli.rounds.unwrap_or(plan.rounds).max(1);
    plan.pace.time = cli.time.map_or(plan.pace.time, Duration::from_millis);
    let report = run(&plan)?;
    let figures = serde_json::to_string_pretty(&report.json())?;
    for (name, text) in [("datapath.json", figures), ("datapath.svg", chart::svg(&report))] {
        let path = cli.out.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    println!("{}written to {}", report.tables(), cli.out.display());
    Ok(())
}
