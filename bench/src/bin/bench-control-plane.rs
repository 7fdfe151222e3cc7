//! Runs the control plane's benchmark and prints its figures; `cargo xtask bench control-plane` builds and starts it.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use mesh_bench::control_plane;

#[derive(Parser)]
struct Cli {
    /// A small mesh: seconds instead of minutes
    #[arg(long)]
    quick: bool,
    /// On a real Consul instead of the embedded server
    #[arg(long)]
    consul: bool,
    /// Where the figures go, as JSON
    #[arg(long)]
    out: PathBuf,
}

#[expect(clippy::print_stdout, reason = "figures are what it is for")]
fn main() -> Result<()> {
    let cli = Cli::parse();
    ensure!(nix::unistd::geteuid().is_root(), "it makes network namespaces: run it as root");
    if cli.consul && mesh_tests::program::consul::binary().is_none() {
        anyhow::bail!("no consul: `cargo xtask setup` installs it");
    }
    let report = control_plane::run(control_plane::plan(cli.quick, cli.consul))?;
    std::fs::write(&cli.out, serde_json::to_string_pretty(&report)?)
        .with_context(|| format!("write {}", cli.out.display()))?;
    print!("{}", control_plane::table(&report));
    println!("\nwritten to {}", cli.out.display());
    Ok(())
}
