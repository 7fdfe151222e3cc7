//! `lint`: what must be clean before a commit. Every check runs, whatever the ones before it found.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{build_ebpf, process, tidy, workspace};

type Check = fn() -> Result<()>;

/// Runs all checks; fails with the names of those that found something.
pub fn run() -> Result<()> {
    crate::setup::run(crate::setup::Purpose::Lint)?;
    build_ebpf::run(&build_ebpf::Args::default())?;
    let checks: [(&str, Check); 6] = [
        ("tidy", tidy::run),
        ("fmt", fmt),
        ("clippy", clippy),
        ("clippy for BPF", clippy_bpf),
        ("deny", deny),
        ("advisories", advisories),
    ];
    let mut found = Vec::new();
    for (name, check) in checks {
        println!("lint: {name}");
        if let Err(error) = check() {
            eprintln!("lint: {name}: {error:#}");
            found.push(name);
        }
    }
    if !found.is_empty() {
        bail!("lint is not clean: {}", found.join(", "));
    }
    Ok(())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = process::command(workspace::cargo());
    cargo.args(arguments);
    cargo
}

fn fmt() -> Result<()> {
    process::run(&mut cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    let scope = ["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"];
    process::run(&mut cargo(&scope))
}

/// The programs as this toolchain's clippy sees them, compiled for this machine: the toolchain that has the library's
/// source for BPF may have no clippy, and the lints are the same.
fn clippy_bpf() -> Result<()> {
    let scope = ["clippy", "--package", "mesh-ebpf", "--bin", "mesh-ebpf", "--features", "bpf", "--quiet"];
    let panic = ["--config", "profile.dev.panic=\"abort\"", "--", "--deny", "warnings"];
    process::run(cargo(&scope).args(panic))
}

fn deny() -> Result<()> {
    // It reads what every dependency says of itself, also of those of other platforms, which no build here fetches.
    process::run(&mut cargo(&["fetch", "--locked", "--quiet"]))?;
    process::run(&mut cargo(&[
        "deny",
        "--offline",
        "--log-level",
        "error",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
}

/// The advisory database is a git repository on the internet: where that is out of reach, this says so and passes.
fn advisories() -> Result<()> {
    match process::output(&mut cargo(&["deny", "fetch", "db"])) {
        Ok(_) => process::run(&mut cargo(&["deny", "--log-level", "error", "check", "advisories"])),
        Err(error) => {
            println!("lint: ADVISORIES WERE NOT CHECKED: their database can't be fetched from here");
            println!("lint: {}", format!("{error:#}").lines().last().unwrap_or_default().trim());
            Ok(())
        }
    }
}
