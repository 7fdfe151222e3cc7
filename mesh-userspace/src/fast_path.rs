//! Fast paths: ways to carry a flow with less work. Which of them this host uses, and why not the others.
//!
//! What the kernel would have to do right is tried with connections of the daemon's own, once, before anybody believes
//! in it. Nothing here carries a program's byte.

mod bpf;
mod kernel_tls;
mod self_test;
mod sockmap;

use std::{
    fmt, io,
    sync::{Arc, OnceLock},
};

use serde::{Deserialize, Serialize};
pub use sockmap::Joined;

/// One fast path, and what became of it on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FastPath {
    pub name: String,
    pub on: bool,
    /// Why it is off; what it does where it is on.
    pub detail: String,
}

impl FastPath {
    pub fn on(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), on: true, detail: detail.into() }
    }

    pub fn off(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), on: false, detail: detail.into() }
    }
}

/// The kernel's means that were tried, and what came of it, once that is known.
#[derive(Clone, Default)]
pub struct Probed(Arc<OnceLock<Vec<FastPath>>>);

impl Probed {
    /// Tries them in the background.
    pub fn start() -> Self {
        let probed = Self::default();
        let found = Arc::clone(&probed.0);
        tokio::task::spawn_blocking(move || {
            let all = probe();
            for one in &all {
                tracing::info!(path = one.name, on = one.on, detail = one.detail, "fast path probed");
            }
            // Nobody else sets it.
            let _ = found.set(all);
        });
        probed
    }

    pub fn list(&self) -> Vec<FastPath> {
        self.0.get().cloned().unwrap_or_else(|| {
            [SOCKMAP, KERNEL_TLS].map(|name| FastPath::off(name, "not used; it is being tried")).to_vec()
        })
    }
}

const SOCKMAP: &str = "sockmap";
const KERNEL_TLS: &str = "kernel TLS";

/// Tries what the kernel has; takes some 50 ms, and a few seconds at most.
fn probe() -> Vec<FastPath> {
    verdicts().map(|(name, verdict)| FastPath::off(name, verdict)).to_vec()
}

/// Tries what the kernel has, and returns what that is, and what came of it.
pub fn verdicts() -> [(&'static str, String); 2] {
    [(SOCKMAP, sockmap_verdict(&sockmap::probe())), (KERNEL_TLS, kernel_tls())]
}

/// Why the local hop, between programs and the proxy, is loopback TCP.
fn sockmap_verdict(probed: &io::Result<Vec<self_test::Flaw>>) -> String {
    match probed {
        Err(error) => format!("loopback TCP is used: sockets cannot be joined here ({error})"),
        Ok(flaws) if flaws.is_empty() => {
            "loopback TCP is used: this kernel passes the self-test, which none did when it was decided"
                .to_owned()
        }
        Ok(flaws) => format!("loopback TCP is used, as this kernel fails the self-test: {}", listed(flaws)),
    }
}

/// Why records are made in user space.
fn kernel_tls() -> String {
    if !kernel_tls::is_there() {
        return "not there (no tls module): records are made in user space".to_owned();
    }
    kernel_tls_verdict(&kernel_tls::probe())
}

fn kernel_tls_verdict(flaws: &[self_test::Flaw]) -> String {
    if flaws.is_empty() {
        return "there, not used: it passes the self-test, but that it would be faster was not measured"
            .to_owned();
    }
    format!("there, not used, as it fails the self-test: {}", listed(flaws))
}

fn listed(flaws: &[impl fmt::Display]) -> String {
    flaws.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::{self_test::Flaw, *};

    #[test]
    fn a_verdict_names_each_flaw() {
        let said = sockmap_verdict(&Ok(vec![Flaw::Fionread { answer: 0, bytes: 5 }, Flaw::NotWoken]));
        assert!(said.contains("FIONREAD answers 0 where 5 bytes are there; a reader"), "{said}");
        let said = sockmap_verdict(&Err(io::ErrorKind::PermissionDenied.into()));
        assert!(said.contains("permission denied"), "{said}");
        let said = kernel_tls_verdict(&[Flaw::KeyUpdate]);
        assert!(said.contains("keys cannot be renewed"), "{said}");
    }

    #[test]
    fn probing_always_has_an_outcome_for_each() {
        let all = probe();
        assert_eq!(all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), [SOCKMAP, KERNEL_TLS]);
        assert!(all.iter().all(|one| !one.on && !one.detail.is_empty()), "{all:?}");
    }
}
