//! `cargo xtask`: every developer command of meshnode. This file owns the command line only.

mod bpf_toolchain;
mod build_ebpf;
mod process;
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
    /// Build the BPF programs into target/bpf/mesh-ebpf.o, where the user-space build embeds them
    BuildEbpf(build_ebpf::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::BuildEbpf(args) => build_ebpf::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
