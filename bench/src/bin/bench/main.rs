//! Runs one of the benchmarks, prints its figures and writes them; `cargo xtask bench` builds and starts it.

mod datapath;
mod hooks;
mod scale;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::{Parser, Subcommand};
use mesh_bench::{control_plane, figures::Found, held, policy};

#[derive(Parser)]
struct Cli {
    /// The folder for the figures
    #[arg(long)]
    out: PathBuf,
    /// A size that takes a minute or two
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    ControlPlane {
        /// On a real Consul instead of the embedded server
        #[arg(long)]
        consul: bool,
    },
    Datapath(datapath::Args),
    Held {
        /// How many
        #[arg(long)]
        connections: Option<usize>,
    },
    Hooks(hooks::Args),
    Policy,
    Scale(scale::Args),
}

/// Where figures go.
struct Figures {
    /// The files' name, without an ending.
    name: &'static str,
    found: Found,
    /// A chart of them.
    svg: Option<String>,
}

impl Figures {
    fn new(name: &'static str, found: Found) -> Self {
        Self { name, found, svg: None }
    }
}

#[expect(clippy::print_stdout, reason = "figures are what it is for")]
fn main() -> Result<()> {
    let Cli { out, quick, bench } = Cli::parse();
    ensure!(nix::unistd::geteuid().is_root(), "it makes network namespaces: run it as root");
    // Now, and not when all is measured.
    std::fs::create_dir_all(&out).with_context(|| format!("cannot make the folder {}", out.display()))?;
    let Figures { name, found: Found { json, table }, svg } = match bench {
        Bench::ControlPlane { consul } => of_control_plane(quick, consul),
        Bench::Datapath(args) => datapath::run(quick, &args),
        Bench::Held { connections } => {
            let count = connections.unwrap_or(if quick { 2_000 } else { 50_000 });
            held::run(count).map(|found| Figures::new("held", found))
        }
        Bench::Hooks(args) => hooks::run(quick, &args),
        Bench::Policy => policy::run(quick).map(|found| Figures::new("policy", found)),
        Bench::Scale(args) => scale::run(quick, &args),
    }?;
    let json = ("json", serde_json::to_string_pretty(&json)?);
    for (ending, text) in [json].into_iter().chain(svg.map(|svg| ("svg", svg))) {
        let path = out.join(name).with_extension(ending);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    println!("{table}\nwritten to {}", out.join(name).with_extension("json").display());
    Ok(())
}

fn of_control_plane(quick: bool, consul: bool) -> Result<Figures> {
    if consul && mesh_tests::program::consul::binary().is_none() {
        anyhow::bail!("no consul: `cargo xtask setup` installs it");
    }
    let report = control_plane::run(control_plane::plan(quick, consul))?;
    let table = control_plane::table(&report);
    let name = if consul { "control-plane-consul" } else { "control-plane" };
    Ok(Figures::new(name, Found { json: report, table }))
}
