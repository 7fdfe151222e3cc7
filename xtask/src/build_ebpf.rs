//! `build-ebpf`: builds the BPF programs into one object, at the place where the user-space build embeds it from.

use std::{
    fs,
    path::Path,
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context, Result};

use crate::{bpf_toolchain, process, workspace};

const TARGET: &str = "bpfel-unknown-none";

/// What rustc is told besides the profile: BTF needs full debug info, and the linker to keep it.
const RUSTC_FLAGS: [&str; 4] = ["-C", "debuginfo=2", "-C", "link-arg=--btf"];

/// What mesh-userspace/build.rs, too, compares with the stamp beside the object.
const SOURCES: [&str; 2] = ["mesh-ebpf/src", "mesh-common/src"];

#[derive(clap::Args, Default)]
pub struct Args {
    /// Compile aya-log into the programs (never for a release: it costs instructions on every hook)
    #[arg(long)]
    pub debug: bool,
}

/// Builds the BPF object; rewrites target/bpf/mesh-ebpf.o only when its bytes changed, so that user space is not
/// built again for nothing.
pub fn run(args: &Args) -> Result<()> {
    let toolchain = bpf_toolchain::find().context(
        "no Rust toolchain with library source (rust-src) was found, and BPF needs one: run `cargo xtask setup`",
    )?;
    let linker = bpf_toolchain::find_linker().context("bpf-linker was not found: run `cargo xtask setup`")?;
    let target_dir = workspace::target().join("bpf-build");

    let mut flags: Vec<String> = RUSTC_FLAGS.map(str::to_owned).into();
    flags.extend(["-C".to_owned(), format!("linker={}", linker.display())]);
    let mut cargo = toolchain.cargo();
    cargo
        .args(["build", "--quiet", "--package", "mesh-ebpf", "--bin", "mesh-ebpf", "--release"])
        .args(["--target", TARGET, "-Z", "build-std=core"])
        .args(["--features", if args.debug { "log" } else { "bpf" }])
        // One codegen unit and no ThinLTO: bpf-linker optimises the whole program itself.
        .args(["--config", "profile.release.lto=false", "--config", "profile.release.codegen-units=1"])
        .args(["--config", "profile.release.overflow-checks=false", "--config", "profile.release.debug=2"])
        // As somebody who measures may have set it for user space: what is not inlined then, the verifier refuses.
        .args(["--config", "profile.release.incremental=false"])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let newest_source = SOURCES.iter().filter_map(|folder| newest_in(&workspace::root().join(folder))).max();
    process::run(&mut cargo)?;

    let built = target_dir.join(TARGET).join("release/mesh-ebpf");
    let place = workspace::target().join("bpf/mesh-ebpf.o");
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let changed = write_if_changed(&place, &bytes)?;
    if let Some(newest) = newest_source {
        write_if_changed(&place.with_extension("stamp"), newest.as_nanos().to_string().as_bytes())?;
    }
    let state = if changed { "written" } else { "unchanged" };
    println!("{} {state} ({}, {})", place.display(), toolchain.version, linker.display());
    Ok(())
}

fn write_if_changed(place: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(place).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let folder = place.parent().expect("the object is in a folder");
    fs::create_dir_all(folder)?;
    // By rename, so that a build that reads it now sees the old or the new object, never half of one.
    let half = place.with_extension("tmp");
    fs::write(&half, bytes)?;
    fs::rename(&half, place).with_context(|| format!("cannot write {}", place.display()))?;
    Ok(true)
}

/// Returns the time of the newest file below `folder`, since the epoch.
fn newest_in(folder: &Path) -> Option<Duration> {
    let entries = fs::read_dir(folder).ok()?;
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            if path.is_dir() {
                return newest_in(&path);
            }
            path.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()
        })
        .max()
}
