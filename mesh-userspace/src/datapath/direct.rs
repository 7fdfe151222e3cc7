//! Direct flows: connections that the kernel made between two processes of this host.

use std::{net::SocketAddr, time::Duration};

use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::{
    flow::{DIRECT_ALLOWED, DirectFlow, STILLBORN_NS},
    policy::PolicyKey,
};

use super::{events::Recent, flows::comm_text, names::NameReader, sock_diag};
use crate::{identity::ServiceName, telemetry::AUDIT};

/// A direct flow as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    pub cookie: u64,
    pub source: ServiceName,
    pub destination: ServiceName,
    pub pid: u32,
    pub program: String,
    pub original_dst: SocketAddr,
    pub local: SocketAddr,
    /// Where it leads; another than what was dialled, for a virtual IP.
    pub remote: SocketAddr,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub age: Duration,
}

/// The map `DIRECT`.
pub struct DirectMap {
    map: BpfHashMap<MapData, u64, DirectFlow>,
    names: NameReader,
    recent: Recent,
}

impl DirectMap {
    pub fn new(map: BpfHashMap<MapData, u64, DirectFlow>, names: NameReader, recent: Recent) -> Self {
        Self { map, names, recent }
    }

    /// Returns the live flows with their counters of now.
    pub fn list(&self) -> Vec<Direct> {
        let now = monotonic();
        self.entries()
            .filter_map(|(cookie, flow)| {
                let bytes = sock_diag::bytes(flow.local, flow.remote, cookie).unwrap_or_default();
                Some(Direct {
                    cookie,
                    source: self.names.name(flow.origin.source)?,
                    destination: self.names.name(flow.origin.destination)?,
                    pid: flow.origin.pid,
                    program: comm_text(&flow.origin.comm),
                    original_dst: flow.origin.original_dst.into(),
                    local: flow.local.into(),
                    remote: flow.remote.into(),
                    bytes_sent: bytes.sent,
                    bytes_received: bytes.received,
                    age: now.saturating_sub(Duration::from_nanos(flow.origin.opened_ns)),
                })
            })
            .collect()
    }

    /// Whether the connection with the socket cookie is one of them.
    pub fn contains(&self, cookie: u64) -> bool {
        self.map.get(&cookie, 0).is_ok()
    }

    /// Destroys the sockets of flows that are not allowed any more. Returns whether it has to be called again soon:
    /// a `connect()` that passed the hook before the change has no socket to destroy yet, or its entry was being written.
    pub fn cut(&self, allowed: impl Fn(PolicyKey) -> bool) -> bool {
        let mut again = false;
        for (cookie, flow) in self.entries() {
            let key = PolicyKey { source: flow.origin.source, destination: flow.origin.destination };
            if allowed(key) {
                continue;
            }
            if flow.state == DIRECT_ALLOWED {
                again = true;
                continue;
            }
            self.recent.revoking(cookie);
            match sock_diag::destroy(flow.local, flow.remote, cookie) {
                Ok(()) => {
                    let (from, to) = (SocketAddr::from(flow.local), SocketAddr::from(flow.remote));
                    tracing::info!(target: AUDIT, decision = "cut", how = "direct", program = comm_text(&flow.origin.comm), pid = flow.origin.pid, %from, %to, "flow cut: no intention allows it any more");
                }
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                    self.recent.not_revoked(cookie);
                    // A closed socket has no entry: it leaves `DIRECT` before it leaves the kernel's table. One that has was read
                    // while `sock_ops` wrote its ends.
                    again |= self.contains(cookie);
                }
                Err(error) => {
                    self.recent.not_revoked(cookie);
                    tracing::error!(%error, "cannot destroy the socket of a revoked flow");
                }
            }
        }
        again
    }

    /// Removes entries of sockets that are gone without having told: `connect()` failed before the SYN.
    pub fn sweep(&mut self) {
        let now = monotonic();
        let dead: Vec<u64> = self
            .entries()
            .filter(|(_, flow)| {
                flow.state == DIRECT_ALLOWED
                    && now.saturating_sub(Duration::from_nanos(flow.origin.opened_ns))
                        > Duration::from_nanos(STILLBORN_NS)
            })
            .map(|(cookie, _)| cookie)
            .collect();
        for cookie in dead {
            let _ = self.map.remove(&cookie);
        }
    }

    fn entries(&self) -> impl Iterator<Item = (u64, DirectFlow)> + '_ {
        self.map.iter().filter_map(Result::ok)
    }
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub fn monotonic() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("every Linux has CLOCK_MONOTONIC");
    Duration::from(now)
}
