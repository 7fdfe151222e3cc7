//! The integration tests' harness: hosts made of namespaces, unmodified programs, the real `meshnode` binary.
//!
//! A *test host* is its own network, mount, cgroup, UTS and IPC namespace over a cgroup v2 subtree of its own, so that
//! several hosts live on one kernel and the daemon runs in each of them unchanged. Everything that a test makes hangs
//! on one [`space::Space`] and goes away with it: on drop, on panic, and when the test process is killed.
//!
//! The harness panics where it cannot do what it was asked: a test that cannot build its hosts has failed.

pub mod bpf;
pub mod capture;
pub mod cgroup;
pub mod cluster;
pub mod config;
pub mod conformance;
pub mod container;
pub mod fixture;
pub mod foreign;
pub mod host;
pub mod janitor;
pub mod load;
pub mod meshnode;
pub mod namespaces;
pub mod net;
pub mod pki;
pub mod process;
pub mod program;
pub mod space;
pub mod status;
pub mod transparency;
pub mod wait;

use std::io::Write as _;

/// Returns whether tests that need root can run; otherwise says so past the test runner's output capture.
///
/// Also removes, once per process, what killed test runs left behind.
pub fn can_run(test: &str) -> bool {
    static SWEPT: std::sync::Once = std::sync::Once::new();
    if !nix::unistd::geteuid().is_root() {
        // `io::stderr` is not captured by the test runner, other than `eprintln!`.
        writeln!(std::io::stderr(), "SKIP: {test}: needs root (namespaces, cgroups, BPF)")
            .expect("stderr takes a line");
        return false;
    }
    SWEPT.call_once(janitor::sweep);
    true
}

/// Leaves the test, visibly, where the machine cannot run it.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::can_run(module_path!()) {
            return;
        }
    };
}
