//! `test`: runs suites, sums their results, and ends with one line of them.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{
    artifacts, build_ebpf, process,
    setup::{self, Purpose},
    tally::{Expected, Tally},
    vm, workspace,
};

#[derive(clap::Args)]
pub struct Args {
    /// The suite (all of them by default)
    #[arg(value_enum)]
    pub suite: Option<Suite>,
    /// The transparency suite at the sizes that take minutes
    #[arg(long)]
    pub full: bool,
    /// Arguments of the test runner: a filter, --nocapture, …
    #[arg(last = true)]
    pub arguments: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// The crates' own tests, which need no root
    Unit,
    /// Hosts made of namespaces, real programs, the real daemon
    Integration,
    /// Of these, the comparison of the embedded server with a real Consul alone
    Conformance,
    /// Of these, the comparison of programs and test suites run plain and through the mesh alone
    Transparency,
    /// The datapath tests on other kernels
    Vm,
}

/// Runs the suites asked for and returns whether all is well.
pub fn run(args: &Args) -> Result<bool> {
    let suites = match args.suite {
        Some(suite) => vec![suite],
        None => vec![Suite::Unit, Suite::Integration, Suite::Vm],
    };
    prepare(&suites)?;
    let mut tally = Tally::default();
    for suite in suites {
        match suite {
            Suite::Unit => cargo_test(
                "unit",
                &["--workspace", "--exclude", "mesh-tests", "--exclude", "mesh-bench"],
                args,
                &mut tally,
            )?,
            Suite::Integration => {
                artifacts::meshnode()?;
                cargo_test(
                    "integration",
                    &["--package", "mesh-tests", "--package", "mesh-bench"],
                    args,
                    &mut tally,
                )?;
            }
            Suite::Conformance => one_of_integration("conformance", args, &mut tally)?,
            Suite::Transparency => one_of_integration("transparency", args, &mut tally)?,
            Suite::Vm => {
                artifacts::meshnode()?;
                vm::run(&vm::Args::default(), &mut tally)?;
            }
        }
    }
    Ok(tally.finish(&Expected::read(workspace::root()), is_ci()))
}

fn one_of_integration(target: &str, args: &Args, tally: &mut Tally) -> Result<()> {
    artifacts::meshnode()?;
    cargo_test("integration", &["--package", "mesh-tests", "--test", target], args, tally)
}

/// `vm-test`: the suite `vm` alone, with its own choices.
pub fn on_kernels(args: &vm::Args) -> Result<bool> {
    let mut tally = Tally::default();
    if args.exec.is_some() {
        setup::run(Purpose::Vm)?;
        vm::run(args, &mut tally)?;
        return Ok(!tally.has_failed());
    }
    prepare(&[Suite::Vm])?;
    artifacts::meshnode()?;
    vm::run(args, &mut tally)?;
    Ok(tally.finish(&Expected::read(workspace::root()), is_ci()))
}

fn prepare(suites: &[Suite]) -> Result<()> {
    setup::run(Purpose::Build)?;
    if suites.iter().any(|suite| *suite != Suite::Unit) {
        setup::run(Purpose::Test)?;
    }
    if suites.contains(&Suite::Vm) {
        setup::run(Purpose::Vm)?;
    }
    build_ebpf::run(&build_ebpf::Args::default())
}

/// Integration tests of one suite that run at once.
const INTEGRATION_THREADS: &str = "4";

fn cargo_test(run: &str, selection: &[&str], args: &Args, tally: &mut Tally) -> Result<()> {
    let mut cargo = process::command(workspace::cargo());
    cargo.args(["test", "--no-fail-fast"]).args(selection).arg("--").args(&args.arguments);
    if run == "integration" {
        // They wait for outages, expiries and elections more than they compute.
        if std::env::var_os("RUST_TEST_THREADS").is_none() {
            cargo.env("RUST_TEST_THREADS", INTEGRATION_THREADS);
        }
        if args.full {
            cargo.env("MESHNODE_FULL", "1");
        }
        artifacts::as_root(&mut cargo);
    }
    tally.begin(run);
    let succeeded = each_line(&mut cargo, |line| tally.line(line))?;
    tally.end(succeeded);
    Ok(())
}

/// Runs `command`, hands over each line of its output and its error output, and returns whether it succeeded.
fn each_line(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    let (output, writer) = std::io::pipe().context("cannot make a pipe")?;
    command.stdin(Stdio::null()).stderr(writer.try_clone()?).stdout(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", process::shown(command)))?;
    // The command holds our copies of the pipe's writing end, without which the loop below would not end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut output = BufReader::new(output);
    let mut bytes = Vec::new();
    while output.read_until(b'\n', &mut bytes)? > 0 {
        line(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    Ok(child.wait()?.success())
}

fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| value == "true")
}
