//! `demo`: prepares this machine, builds, and starts the story, which the crate `mesh-tests` tells.

use anyhow::Result;

use crate::{
    artifacts, build_ebpf, process,
    setup::{self, Purpose},
    workspace,
};

#[derive(clap::Args)]
pub struct Args {
    /// Leave the two hosts up to play with
    #[arg(long)]
    pub keep: bool,
}

pub fn run(args: &Args) -> Result<()> {
    setup::run(Purpose::Build)?;
    setup::run(Purpose::Test)?;
    build_ebpf::run(&build_ebpf::Args::default())?;
    artifacts::meshnode()?;
    artifacts::demo()?;
    let mut cargo = process::command(workspace::cargo());
    cargo.args(["run", "--quiet", "--package", "mesh-tests", "--bin", "demo", "--"]);
    if args.keep {
        cargo.arg("--keep");
    }
    artifacts::as_root(&mut cargo);
    process::run(&mut cargo)
}
