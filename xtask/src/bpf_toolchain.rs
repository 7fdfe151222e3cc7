//! Finds what builds for BPF: a Rust toolchain that has the library's source, and bpf-linker. Installs nothing.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{process, workspace};

/// The oldest Rust that builds the workspace (`rust-version` in Cargo.toml).
const OLDEST: (u32, u32) = (1, 95);

/// A Rust toolchain whose sysroot holds the source of `core`, so that `-Z build-std` works.
pub struct Toolchain {
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    /// As rustc says it.
    pub version: String,
    /// The major version of its LLVM: bpf-linker reads the bitcode of no newer one than its own.
    pub llvm: u32,
}

impl Toolchain {
    /// Returns a cargo command of this toolchain, free of what the toolchain that runs xtask left in the environment.
    pub fn cargo(&self) -> Command {
        let mut command = process::command(&self.cargo);
        command
            .env("RUSTC", &self.rustc)
            // A stable compiler refuses -Z build-std without it; a nightly one doesn't mind.
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTUP_TOOLCHAIN")
            .env_remove("LD_LIBRARY_PATH")
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER")
            .env_remove("RUSTFLAGS");
        command
    }

    fn at(prefix: &Path) -> Option<Self> {
        let core = prefix.join("lib/rustlib/src/rust/library/core/Cargo.toml");
        let (cargo, rustc) = (prefix.join("bin/cargo"), prefix.join("bin/rustc"));
        if !core.is_file() || !process::is_executable(&cargo) {
            return None;
        }
        let said = process::output(Command::new(&rustc).arg("-vV").env_remove("LD_LIBRARY_PATH")).ok()?;
        let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name));
        if major_minor(field("release: ")?)? < OLDEST {
            return None;
        }
        let (llvm, _) = major_minor(field("LLVM version: ")?)?;
        let version = said.lines().next()?.to_owned();
        Some(Self { cargo, rustc, version, llvm })
    }
}

/// Returns the first toolchain with library source: rustup's nightly, any other of rustup's, then the
/// distribution's own in /usr.
pub fn find() -> Option<Toolchain> {
    let mut prefixes = rustup_toolchains();
    prefixes.push(PathBuf::from("/usr"));
    prefixes.iter().find_map(|prefix| Toolchain::at(prefix))
}

/// Returns the path of bpf-linker: the one of this work tree, or the one in PATH or cargo's bin folder.
pub fn find_linker() -> Option<PathBuf> {
    let own = workspace::tools().join("bin/bpf-linker");
    if process::is_executable(&own) {
        return Some(own);
    }
    process::find_in_path("bpf-linker").or_else(|| {
        let installed = home("CARGO_HOME", ".cargo")?.join("bin/bpf-linker");
        process::is_executable(&installed).then_some(installed)
    })
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn rustup_toolchains() -> Vec<PathBuf> {
    let Some(folder) = home("RUSTUP_HOME", ".rustup").map(|home| home.join("toolchains")) else {
        return Vec::new();
    };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.sort_by_key(|path| {
        let name = path.file_name().map(OsString::from).unwrap_or_default();
        (!name.to_string_lossy().starts_with("nightly"), name)
    });
    found
}

fn home(variable: &str, default: &str) -> Option<PathBuf> {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(default)))
}
