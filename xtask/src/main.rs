//! `cargo xtask`: every developer command of meshnode. This file owns the command line only.

mod apt;
mod artifacts;
mod bench;
mod bpf_toolchain;
mod build_ebpf;
mod ci;
mod demo;
mod lint;
mod process;
mod setup;
mod tally;
mod test;
mod tidy;
mod vm;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Every developer command of meshnode")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building and testing needs
    Setup(setup::Args),
    /// Build the BPF programs into target/bpf/mesh-ebpf.o, where the user-space build embeds them
    BuildEbpf(build_ebpf::Args),
    /// Show the mesh at work between two hosts made of namespaces
    Demo(demo::Args),
    /// Run tests, all or one suite, and sum their results
    Test(test::Args),
    /// Measure, and write the figures below target/bench
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Run the datapath tests on other kernels in QEMU
    VmTest(vm::Args),
    /// Check formatting, lints, dependencies and the files themselves
    Lint,
    /// Run all that a change must pass: setup, lint, test
    Ci,
}

fn main() -> ExitCode {
    let well = match Cli::parse().command {
        Command::Setup(args) => setup::run(args.purpose).map(|()| true),
        Command::BuildEbpf(args) => build_ebpf::run(&args).map(|()| true),
        Command::Demo(args) => demo::run(&args).map(|()| true),
        Command::Test(args) => test::run(&args),
        Command::VmTest(args) => test::on_kernels(&args),
        Command::Bench(bench) => bench::run(&bench).map(|()| true),
        Command::Lint => lint::run().map(|()| true),
        Command::Ci => ci::run(),
    };
    match well {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
