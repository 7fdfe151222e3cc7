//! What BPF programs are built with: a Rust toolchain with library source, and bpf-linker.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::said;
use crate::{apt, bpf_toolchain, process};

const LINKER: &str = "0.13.0";
/// The LLVM versions that this bpf-linker can be built with, as its features name them.
const LINKER_LLVMS: [u32; 3] = [21, 22, 23];

/// Debian's own Rust with its library source, as its browsers are built with it: newer than the release's `rustc`.
const DEBIAN_RUST: [&str; 5] =
    ["rustc-web", "cargo-web", "libstd-rust-web-dev", "rust-web-src", "rust-web-llvm"];

const NO_TOOLCHAIN: &str = "no Rust toolchain with library source: `rustup toolchain install nightly --component \
    rust-src`, or Debian's packages rustc-web cargo-web libstd-rust-web-dev rust-web-src rust-web-llvm";

/// Finds a toolchain with library source, or installs one: Debian's for root, rustup's nightly for everybody else.
pub fn toolchain() -> Result<()> {
    if let Some(found) = bpf_toolchain::find() {
        said("bpf rust", &format!("{} ({})", found.version, found.rustc.display()));
        return Ok(());
    }
    let by_apt = apt::is_here() && apt::is_root() && apt::could_install(&DEBIAN_RUST);
    if by_apt {
        said("bpf rust", &format!("installing {}", DEBIAN_RUST.join(" ")));
        apt::install(&DEBIAN_RUST)?;
    } else if process::find_in_path("rustup").is_some() {
        said("bpf rust", "installing rustup's nightly with rust-src");
        let mut rustup = process::command("rustup");
        rustup.args(["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"]);
        process::run(&mut rustup).context(NO_TOOLCHAIN)?;
    }
    let found = bpf_toolchain::find().context(NO_TOOLCHAIN)?;
    said("bpf rust", &format!("installed {}", found.version));
    Ok(())
}

/// Finds bpf-linker, or builds it against an LLVM that is no older than the toolchain's.
pub fn linker() -> Result<()> {
    if let Some(found) = bpf_toolchain::find_linker() {
        let version = process::output(process::command(&found).arg("--version"))?;
        said("bpf-linker", &format!("{version} ({})", found.display()));
        return Ok(());
    }
    let rust = bpf_toolchain::find().context(NO_TOOLCHAIN)?;
    let (llvm, prefix) = llvm(rust.llvm)?;
    said("bpf-linker", &format!("building {LINKER} with LLVM {llvm}"));
    let mut cargo = process::command(crate::workspace::cargo());
    cargo
        .args(["install", "bpf-linker", "--version", LINKER, "--locked", "--quiet", "--no-default-features"])
        .args(["--features", &format!("llvm-{llvm}")])
        .env("LLVM_PREFIX", &prefix)
        .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix);
    process::run(&mut cargo)?;
    let found =
        bpf_toolchain::find_linker().context("bpf-linker was installed where neither PATH nor cargo is")?;
    said("bpf-linker", &format!("installed {}", found.display()));
    Ok(())
}

/// Returns an LLVM with its development files: one that is there, or else one that apt has.
fn llvm(oldest: u32) -> Result<(u32, PathBuf)> {
    let fitting: Vec<u32> = LINKER_LLVMS.into_iter().filter(|llvm| *llvm >= oldest).collect();
    let prefix = |llvm: u32| PathBuf::from(format!("/usr/lib/llvm-{llvm}"));
    if apt::is_here() {
        for llvm in &fitting {
            let package = format!("llvm-{llvm}-dev");
            let packages = [package.as_str(), "zlib1g-dev", "libzstd-dev"];
            let missing = apt::missing(&packages)?;
            if !missing.is_empty() && apt::could_install(&missing) {
                said("bpf-linker", &format!("installing {}", missing.join(" ")));
                apt::install(&missing)?;
            }
            if has_headers(&prefix(*llvm)) {
                return Ok((*llvm, prefix(*llvm)));
            }
        }
    }
    match fitting.iter().find(|llvm| has_headers(&prefix(**llvm))) {
        Some(llvm) => Ok((*llvm, prefix(*llvm))),
        None => {
            bail!("bpf-linker needs the development files of LLVM {oldest} or newer (of {LINKER_LLVMS:?})")
        }
    }
}

fn has_headers(prefix: &Path) -> bool {
    process::is_executable(&prefix.join("bin/llvm-config"))
}
