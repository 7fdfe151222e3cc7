//! Puts the BPF object, which `cargo xtask build-ebpf` made, where the library embeds it from:
//! `include_bytes!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"))`. It builds nothing itself.

use std::{
    env, fs,
    path::{Path, PathBuf},
    time::SystemTime,
};

const MISSING: &str =
    "meshnode's BPF object is missing: run `cargo xtask build-ebpf` (first time: `cargo xtask setup`)";

fn main() {
    println!("cargo::rerun-if-env-changed=MESHNODE_BPF_OBJECT");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    // Read at run time: a target directory that was copied holds a script compiled elsewhere.
    let own =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo tells every build script its crate"));
    let workspace = own.parent().expect("the crate is a folder of the workspace");
    let given = env::var_os("MESHNODE_BPF_OBJECT").map(PathBuf::from);
    let object = given.clone().unwrap_or_else(|| {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
        workspace.join(target).join("bpf/mesh-ebpf.o")
    });
    println!("cargo::rerun-if-changed={}", object.display());

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo gives every build script an OUT_DIR"));
    if !object.is_file() {
        // Cargo fails the build for it, and with exit status 0 shows this line alone.
        println!("cargo::error={MISSING}");
    } else if let Err(error) = fs::copy(&object, out.join("mesh-ebpf.o")) {
        println!("cargo::error=cannot copy the BPF object {}: {error}", object.display());
    } else if given.is_none() {
        warn_if_older_than_sources(workspace, &object.with_extension("stamp"));
    }
}

/// Warns when a source of the object was changed since `stamp`, which `build-ebpf` writes: the time of the newest one.
fn warn_if_older_than_sources(workspace: &Path, stamp: &Path) {
    let folders = ["mesh-ebpf/src", "mesh-common/src"].map(|folder| workspace.join(folder));
    for watched in folders.iter().map(PathBuf::as_path).chain([stamp]) {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    let newest = folders.iter().filter_map(|folder| newest_in(folder)).max();
    let nanos =
        newest.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok()).map(|age| age.as_nanos());
    if fs::read_to_string(stamp).ok() != nanos.map(|nanos| nanos.to_string()) {
        println!(
            "cargo::warning=the embedded BPF object is not of these sources: run `cargo xtask build-ebpf`"
        );
    }
}

fn newest_in(folder: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(folder).ok()?;
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            if path.is_dir() { newest_in(&path) } else { path.metadata().ok()?.modified().ok() }
        })
        .max()
}
