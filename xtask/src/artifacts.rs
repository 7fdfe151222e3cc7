//! What cargo builds, and where it put it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{process, workspace};

/// A test binary and the folder that cargo would run it in.
pub struct TestBinary {
    pub executable: PathBuf,
    pub folder: PathBuf,
}

/// Builds one test target of `package` ("lib" is its library's own tests) and returns the binary.
pub fn test_binary(package: &str, target: &str) -> Result<TestBinary> {
    let mut cargo = process::command(workspace::cargo());
    cargo.args(["test", "--no-run", "--quiet", "--message-format=json", "--package", package]);
    match target {
        "lib" => cargo.arg("--lib"),
        name => cargo.args(["--test", name]),
    };
    let messages = process::output(&mut cargo)?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact" && message["profile"]["test"] == true)
        .find_map(|message| {
            let manifest = Path::new(message["manifest_path"].as_str()?);
            let executable = PathBuf::from(message["executable"].as_str()?);
            Some(TestBinary { executable, folder: manifest.parent()?.to_owned() })
        })
        .with_context(|| format!("cargo built no test binary of {package} {target}"))
}

/// Builds the `meshnode` binary, which integration tests and the demo start.
pub fn meshnode() -> Result<()> {
    let mut cargo = process::command(workspace::cargo());
    cargo.args(["build", "--package", "mesh-userspace", "--bin", "meshnode"]);
    process::run(&mut cargo)
}

/// Builds the demo with the programs that it starts beside itself.
pub fn demo() -> Result<()> {
    let mut cargo = process::command(workspace::cargo());
    cargo.args(["build", "--package", "mesh-tests", "--bins"]);
    process::run(&mut cargo)
}

/// Builds the binaries of `packages` as users have them.
pub fn release(packages: &[&str]) -> Result<()> {
    let mut cargo = process::command(workspace::cargo());
    cargo.args(["build", "--release", "--bins"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    process::run(&mut cargo)
}

/// Has the programs that this cargo builds and starts run by root: as they are for root itself, else through sudo.
pub fn as_root(cargo: &mut std::process::Command) {
    if !crate::apt::is_root() {
        let runner =
            format!("CARGO_TARGET_{}_UNKNOWN_LINUX_GNU_RUNNER", std::env::consts::ARCH.to_uppercase());
        cargo.env(runner, "sudo -E");
    }
}
