//! `bench`: builds what is measured as users have it, and runs the benchmarks of the crate `mesh-bench`.

use std::fs;

use anyhow::{Context, Result};
use clap::Subcommand;

use crate::{
    artifacts, build_ebpf, process,
    setup::{self, Purpose},
    workspace,
};

#[derive(Subcommand)]
pub enum Bench {
    /// A server with 5,000 services and 50,000 intentions, 1,000 watching nodes, and how fast a change is enforced
    ControlPlane(ControlPlane),
    /// Throughput, latency, connections, CPU and memory, beside other proxies and plain TCP
    Datapath(Datapath),
}

#[derive(clap::Args)]
pub struct ControlPlane {
    /// A small mesh: seconds instead of minutes
    #[arg(long)]
    quick: bool,
    /// On a real Consul instead of the embedded server
    #[arg(long)]
    consul: bool,
}

#[derive(clap::Args)]
pub struct Datapath {
    /// Two rounds of short measurements: two minutes instead of twenty
    #[arg(long)]
    quick: bool,
    /// --rounds N, --time MS, --only NAMES, --measures NAMES
    #[arg(last = true)]
    arguments: Vec<String>,
}

pub fn run(bench: &Bench) -> Result<()> {
    setup::run(Purpose::Build)?;
    setup::run(Purpose::Test)?;
    build_ebpf::run(&build_ebpf::Args::default())?;
    artifacts::release(&["mesh-userspace", "mesh-tests", "mesh-bench"])?;
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    match bench {
        Bench::ControlPlane(args) => {
            let name = if args.consul { "control-plane-consul.json" } else { "control-plane.json" };
            let switches = [args.quick.then_some("--quick"), args.consul.then_some("--consul")];
            start("bench-control-plane", &folder.join(name), |cargo| cargo.args(switches.iter().flatten()))
        }
        Bench::Datapath(args) => {
            let quick = args.quick.then_some("--quick");
            start("bench-datapath", &folder, |cargo| cargo.args(quick).args(&args.arguments))
        }
    }
}

fn start(
    binary: &str,
    out: &std::path::Path,
    arguments: impl FnOnce(&mut std::process::Command) -> &mut std::process::Command,
) -> Result<()> {
    let mut cargo = process::command(workspace::cargo());
    cargo.args(["run", "--release", "--quiet", "--package", "mesh-bench", "--bin", binary, "--"]);
    arguments(cargo.arg("--out").arg(out));
    artifacts::as_root(&mut cargo);
    process::run(&mut cargo)
}
