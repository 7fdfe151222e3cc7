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

pub fn run(bench: &Bench) -> Result<()> {
    setup::run(Purpose::Build)?;
    setup::run(Purpose::Test)?;
    build_ebpf::run(&build_ebpf::Args::default())?;
    artifacts::release(&["mesh-userspace", "mesh-tests", "mesh-bench"])?;
    let folder = workspace::target().join("bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let Bench::ControlPlane(args) = bench;
    let name = if args.consul { "control-plane-consul.json" } else { "control-plane.json" };
    let mut cargo = process::command(workspace::cargo());
    cargo.args([
        "run",
        "--release",
        "--quiet",
        "--package",
        "mesh-bench",
        "--bin",
        "bench-control-plane",
        "--",
    ]);
    cargo.arg("--out").arg(folder.join(name));
    cargo.args(args.quick.then_some("--quick")).args(args.consul.then_some("--consul"));
    artifacts::as_root(&mut cargo);
    process::run(&mut cargo)
}
