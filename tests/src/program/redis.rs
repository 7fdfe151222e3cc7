//! redis-server; `redis-cli` and `redis-benchmark` need nothing but their arguments.

use super::listens;
use crate::{host::Host, process::Process};

/// A running server without persistence.
#[derive(Debug)]
pub struct Redis {
    pub server: Process,
    pub port: u16,
}

impl Redis {
    #[track_caller]
    pub fn start(host: &Host, cgroup: &str, port: u16) -> Self {
        let (dir, port_text) = (host.space().scratch().display().to_string(), port.to_string());
        let mut server = host.spawn(
            cgroup,
            &[
                "redis-server",
                "--port",
                &port_text,
                "--bind",
                "0.0.0.0 -::*",
                "--protected-mode",
                "no",
                "--save",
                "",
                "--appendonly",
                "no",
                "--dir",
                &dir,
            ],
        );
        server.wait_ready(|| listens(host, port));
        Self { server, port }
    }
}
