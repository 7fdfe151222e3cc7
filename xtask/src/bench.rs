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
    ControlPlane {
        /// On a real Consul instead of the embedded server
        #[arg(long)]
        consul: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Throughput, latency, connections, CPU and memory, beside other proxies and plain TCP
    Datapath(Common),
    /// 50,000 idle connections at once, and the memory of one
    Held(Common),
    /// What meshnode's programs in the kernel add to connect(2), of programs that it captures and of all others
    Hooks(Common),
    /// How long one decision takes the proxy, among up to 50,000 intentions
    Policy(Common),
    /// What a connection and a message cost with up to 10,000 others, and with up to 50,000 intentions
    Scale(Common),
}

#[derive(clap::Args)]
pub struct Common {
    /// A size that takes a minute or two
    #[arg(long)]
    quick: bool,
    /// The benchmark's own arguments; `-- --help` lists them
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
    let (name, common) = match bench {
        Bench::ControlPlane { common, .. } => ("control-plane", common),
        Bench::Datapath(common) => ("datapath", common),
        Bench::Held(common) => ("held", common),
        Bench::Hooks(common) => ("hooks", common),
        Bench::Policy(common) => ("policy", common),
        Bench::Scale(common) => ("scale", common),
    };
    let consul = matches!(bench, Bench::ControlPlane { consul: true, .. });
    let mut cargo = process::command(workspace::cargo());
    cargo.args(["run", "--release", "--quiet", "--package", "mesh-bench", "--bin", "bench", "--"]);
    cargo.arg("--out").arg(&folder).args(common.quick.then_some("--quick")).arg(name);
    cargo.args(consul.then_some("--consul")).args(&common.arguments);
    artifacts::as_root(&mut cargo);
    process::run(&mut cargo)
}
