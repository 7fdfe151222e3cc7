//! iperf3's server; the client needs nothing but its arguments.

use super::listens;
use crate::{host::Host, process::Process};

/// A running server.
#[derive(Debug)]
pub struct Iperf {
    pub server: Process,
    pub port: u16,
}

impl Iperf {
    #[track_caller]
    pub fn start(host: &Host, cgroup: &str, port: u16) -> Self {
        let mut server = host.spawn(cgroup, &["iperf3", "--server", "--port", &port.to_string()]);
        server.wait_ready(|| listens(host, port));
        Self { server, port }
    }
}
