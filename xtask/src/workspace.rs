//! Where things are in the work tree. Nothing here reads or writes a file.

use std::path::{Path, PathBuf};

/// Returns the root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate xtask is a folder of the workspace")
}

/// Returns cargo's target folder, `CARGO_TARGET_DIR` or `target`.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Returns the folder of tools that `setup` installed for this work tree alone.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// Returns the cargo that runs this xtask: its version is what rust-toolchain.toml names.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}
