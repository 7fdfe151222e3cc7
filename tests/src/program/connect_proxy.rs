//! Consul's built-in proxy: `consul connect proxy`, on a host without meshnode.

use super::listens;
use crate::{foreign::Pair, process::Process};

/// A running proxy.
#[derive(Debug)]
pub struct ConnectProxy {
    pub process: Process,
}

impl ConnectProxy {
    /// Starts the sidecar of the registered service `id` of host B, and waits for its listeners.
    #[track_caller]
    pub fn sidecar(pair: &Pair, id: &str, listeners: &[u16]) -> Self {
        Self::start(pair, &["-sidecar-for", id], listeners)
    }

    /// Starts one that is not registered: it only lets B's programs dial `upstreams` (service, local port) as `source`.
    #[track_caller]
    pub fn upstreams(pair: &Pair, source: &str, upstreams: &[(&str, u16)]) -> Self {
        let named: Vec<String> = upstreams.iter().map(|(name, port)| format!("{name}:{port}")).collect();
        let mut words = vec!["-service", source];
        for upstream in &named {
            words.extend(["-upstream", upstream]);
        }
        let ports: Vec<u16> = upstreams.iter().map(|(_, port)| *port).collect();
        Self::start(pair, &words, &ports)
    }

    #[track_caller]
    fn start(pair: &Pair, words: &[&str], listeners: &[u16]) -> Self {
        let command = pair.consul_command(&[&["connect", "proxy", "-log-level", "debug"], words].concat());
        let mut process = Process::spawn(command, &pair.b.log_file("connect-proxy"));
        process.wait_ready(|| listeners.iter().try_for_each(|port| listens(&pair.b, *port)));
        Self { process }
    }
}
