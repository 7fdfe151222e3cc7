//! Programs of `tests/programs`: in Python, with the distribution's own libraries, and in Go.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::Duration,
};

use super::listens;
use crate::{host::Host, process::Process, space::tool};

/// The distribution's Python, which has its libraries; another may come before it in `PATH`.
pub const PYTHON: &str = "/usr/bin/python3";

/// Returns the path of a file of `tests/programs`.
pub fn path(name: &str) -> String {
    format!("{}/programs/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Starts a program that serves, and returns when it listens at `port`.
#[track_caller]
pub fn serve(host: &Host, cgroup: &str, port: u16, words: &[&str]) -> Process {
    let mut server = host.spawn(cgroup, words);
    server.wait_ready(|| listens(host, port));
    server
}

/// Returns the binary of a Go program of `tests/programs`, which is built once for each version of its source.
///
/// # Panics
/// When Go is not installed, or does not build it.
#[track_caller]
pub fn go(name: &str) -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let binary = tool("keeper").with_file_name(format!("go-{name}"));
        let source = path(&format!("{name}.go"));
        let age = |path: &Path| path.metadata().and_then(|m| m.modified()).ok();
        if age(&binary) <= age(Path::new(&source)) {
            let mut build = Command::new("go");
            build.args(["build", "-o"]).arg(&binary).arg(&source);
            build.env("GOCACHE", binary.with_file_name("go-cache")).env("GOFLAGS", "-mod=mod");
            build.env("GOTOOLCHAIN", "local").env("GO111MODULE", "off").env("CGO_ENABLED", "0");
            crate::process::run(build, None, Duration::from_secs(600)).ok();
        }
        binary
    })
}
