//! `setup`: finds or installs what building and testing needs, and says in a line each what it found or did.

mod bpf;
mod envoy;
mod packages;
mod tools;

use anyhow::Result;
use clap::ValueEnum;

use crate::vm;

#[derive(clap::Args)]
pub struct Args {
    /// What to prepare for
    #[arg(long = "for", value_enum, default_value = "all")]
    pub purpose: Purpose,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Purpose {
    /// Build meshnode, its BPF programs included
    Build,
    /// Run the integration tests and the demo
    Test,
    /// Boot the test kernels
    Vm,
    /// Run `cargo xtask lint`
    Lint,
    All,
}

pub fn run(purpose: Purpose) -> Result<()> {
    let wants = |one: Purpose| purpose == one || purpose == Purpose::All;
    packages::install_missing(purpose)?;
    if wants(Purpose::Build) {
        bpf::toolchain()?;
        bpf::linker()?;
    }
    if wants(Purpose::Test) {
        tools::consul()?;
        tools::redis_suite()?;
        tools::resolved()?;
        envoy::envoy()?;
    }
    if wants(Purpose::Vm) {
        for release in vm::RELEASES {
            let kernel = vm::kernel::fetch(release)?;
            said("kernel", &format!("{release} is {}", kernel.version));
        }
    }
    if wants(Purpose::Lint) {
        tools::cargo_deny()?;
    }
    Ok(())
}

/// Says what became of `what`, in a line.
fn said(what: &str, result: &str) {
    println!("{what:<12} {result}");
}
