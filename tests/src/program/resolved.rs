//! systemd-resolved, as it runs on many hosts: at 127.0.0.53, with a cache, and without a bus here.

use std::{io::Write as _, path::PathBuf};

use super::listens;
use crate::{host::Host, process::Process};

/// Where it serves programs that ask by DNS.
pub const STUB: &str = "127.0.0.53";
/// As whom it runs.
const USER: &str = "systemd-resolve:x:64997:64997::/:/usr/sbin/nologin\n";
const GROUP: &str = "systemd-resolve:x:64997:\n";

/// A running systemd-resolved.
#[derive(Debug)]
pub struct Resolved {
    pub server: Process,
}

fn folder() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/resolved").into()
}

/// Whether `cargo xtask setup` found it; says loudly where it did not that the test is skipped.
///
/// # Panics
/// Under CI, where no test is skipped for want of it.
pub fn is_here() -> bool {
    let found = folder().join("daemon/lib/systemd/systemd-resolved").is_file();
    if !found {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs no test without systemd-resolved: `cargo xtask setup` unpacks it"
        );
        // `io::stderr` is not captured by the test runner, other than `eprintln!`.
        writeln!(std::io::stderr(), "SKIP: no systemd-resolved; `cargo xtask setup` unpacks it")
            .expect("stderr takes a line");
    }
    found
}

impl Resolved {
    /// Starts it in `cgroup`; it asks `upstream`.
    #[track_caller]
    pub fn start(host: &Host, cgroup: &str, upstream: &str) -> Self {
        for (file, line) in [("/etc/passwd", USER), ("/etc/group", GROUP)] {
            let machines = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("read {file}: {e}"));
            // There it is a link to the machine's.
            let _ = std::fs::remove_file(host.space().path(file));
            host.write(file, &format!("{machines}{line}"));
        }
        host.write(
            "/run/systemd/resolved.conf.d/test.conf",
            &format!("[Resolve]\nDNS={upstream}\nFallbackDNS=\nDNSSEC=no\nLLMNR=no\nMulticastDNS=no\n"),
        );
        host.run(
            "",
            &["sh", "-c", "mkdir -p /run/systemd/resolve && chown 64997:64997 /run/systemd/resolve"],
        )
        .ok();
        let libraries = folder().join("library/usr/lib");
        let library = std::fs::read_dir(&libraries).ok().and_then(|all| {
            all.flatten().map(|entry| entry.path().join("systemd")).find(|path| path.is_dir())
        });
        let library = library.unwrap_or_else(|| panic!("no library below {}", libraries.display()));
        let library = format!("LD_LIBRARY_PATH={}", library.display());
        let daemon = folder().join("daemon/lib/systemd/systemd-resolved");
        let words = ["env", &library, "SYSTEMD_LOG_TARGET=console", daemon.to_str().expect("UTF-8")];
        let mut server = host.spawn(cgroup, &words);
        server.wait_ready(|| listens(host, 53));
        Self { server }
    }
}
