//! Puts the BPF object, which `cargo xtask build-ebpf` made, where the library embeds it from:
//! `include_bytes!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"))`. It builds nothing itself.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::exit,
    time::SystemTime,
};

const MISSING: &str =
    "meshnode's BPF object is missing: run `cargo xtask build-ebpf` (first time: `cargo xtask setup`)";

fn main() {
    println!("cargo::rerun-if-env-changed=MESHNODE_BPF_OBJECT");
    println!("cargo::rerun-if-env-changed=CARGO_TARGET_DIR");
    let workspace =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is a folder of the workspace");
    let given = env::var_os("MESHNODE_BPF_OBJECT").map(PathBuf::from);
    let object = given.clone().unwrap_or_else(|| {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
        workspace.join(target).join("bpf/mesh-ebpf.o")
    });
    println!("cargo::rerun-if-changed={}", object.display());

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo gives every build script an OUT_DIR"));
    if !object.is_file() {
        fail(MISSING);
    }
    if let Err(error) = fs::copy(&object, out.join("mesh-ebpf.o")) {
        fail(&format!("cannot copy the BPF object {}: {error}", object.display()));
    }
    if given.is_none() {
        warn_if_older_than_sources(workspace, &object.with_extension("stamp"));
    }
}

fn fail(reason: &str) -> ! {
    println!("cargo::error={reason}");
    exit(1);
}

/// Warns when a source of the object is newer than `stamp`, which `build-ebpf` writes each time it succeeds.
fn warn_if_older_than_sources(workspace: &Path, stamp: &Path) {
    let built = modified(stamp);
    let mut newest = None;
    for folder in ["mesh-ebpf/src", "mesh-common/src"] {
        let folder = workspace.join(folder);
        println!("cargo::rerun-if-changed={}", folder.display());
        newest = newest.max(newest_in(&folder));
    }
    if newest > built {
        println!(
            "cargo::warning=the embedded BPF object is older than its sources: run `cargo xtask build-ebpf`"
        );
    }
}

fn newest_in(folder: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(folder).ok()?;
    entries
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            if path.is_dir() { newest_in(&path) } else { modified(&path) }
        })
        .max()
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}
