//! Direct flows: connections that the kernel made between two processes of this host.

use std::{io, net::SocketAddr, os::fd::AsFd as _, time::Duration};

use aya::maps::{HashMap as BpfHashMap, IterableMap as _, MapData, MapError};
use aya_obj::generated::BPF_NOEXIST;
use mesh_common::{
    addr::Endpoint,
    event::Event,
    flow::{DIRECT_ALLOWED, DirectFlow, STILLBORN_NS},
    policy::PolicyKey,
};

pub use super::sock_diag::Bytes;
use super::{
    events::{Kind, Recent},
    flows::comm_text,
    names::NameReader,
    sock_diag, sys,
};
use crate::{identity::ServiceName, telemetry::AUDIT};

/// A direct flow as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    pub cookie: u64,
    /// The cookie of its network namespace.
    pub netns: u64,
    pub source: ServiceName,
    pub destination: ServiceName,
    pub pid: u32,
    pub program: String,
    pub original_dst: SocketAddr,
    pub local: SocketAddr,
    /// Where it leads; another than what was dialled, for a virtual IP.
    pub remote: SocketAddr,
    /// 0 for one in another network namespace than the host's, until somebody has counted there.
    pub bytes: Bytes,
    pub age: Duration,
}

impl Direct {
    /// Returns its counters of now; 0 for one that has ended. Call it in its network namespace.
    pub fn count(&self) -> Bytes {
        sock_diag::bytes(self.local.into(), self.remote.into(), self.cookie).unwrap_or_default()
    }
}

/// A flow that must end.
pub struct Doomed {
    cookie: u64,
    netns: u64,
    local: Endpoint,
    remote: Endpoint,
    pid: u32,
    program: String,
    /// What its end is then: [`Kind::DirectRevoked`] or [`Kind::DirectLost`].
    end: Kind,
    recent: Recent,
}

impl Doomed {
    fn revoked(cookie: u64, flow: &DirectFlow, recent: Recent) -> Self {
        let DirectFlow { origin, netns, local, remote, .. } = *flow;
        let (pid, program) = (origin.pid, comm_text(&origin.comm));
        Self { cookie, netns, local, remote, pid, program, end: Kind::DirectRevoked, recent }
    }

    /// Returns the flow that an `EVENT_DIRECT_LOST` tells of.
    pub(super) fn unlisted(event: &Event, recent: Recent) -> Self {
        let Event { cookie, netns, local, remote, pid, .. } = *event;
        let program = comm_text(&event.comm);
        Self { cookie, netns, local, remote, pid, program, end: Kind::DirectLost, recent }
    }

    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The cookie of its network namespace.
    pub fn netns(&self) -> u64 {
        self.netns
    }

    /// Destroys its socket; call it in its network namespace. Returns whether there was one, or it cannot be destroyed.
    pub fn cut(&self) -> bool {
        let Self { cookie, local, remote, pid, program, end, recent, .. } = self;
        recent.ending(*cookie, *end);
        match sock_diag::destroy(*local, *remote, *cookie) {
            Ok(()) => {
                // Of one that there was no room for, the warning is enough: a program may make as many as it likes.
                if *end == Kind::DirectRevoked {
                    let (from, to) = (SocketAddr::from(*local), SocketAddr::from(*remote));
                    tracing::info!(target: AUDIT, decision = "cut", how = "direct", program, pid, %from, %to, "flow cut: no intention allows it any more");
                }
                true
            }
            Err(error) => {
                recent.not_ending(*cookie);
                // ESTALE: another socket has these ends.
                let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE));
                if !gone {
                    tracing::error!(%error, "cannot destroy the socket of a flow that must end");
                }
                !gone
            }
        }
    }
}

/// What cutting has left to do.
#[derive(Default)]
pub struct Left {
    /// Flows are to be cut again soon: a `connect()` that passed the hook before the change has no socket to destroy yet, or
    /// one was not found though it is still listed.
    pub again: bool,
    /// Flows of other network namespaces than the host's, which are to be [cut](Doomed::cut) there.
    pub elsewhere: Vec<Doomed>,
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

    /// Returns the live flows; with their counters of now, those in the calling thread's network namespace, `here`.
    pub fn list(&self, here: u64) -> Vec<Direct> {
        let now = monotonic();
        self.entries()
            .filter_map(|(cookie, flow)| {
                let mut direct = Direct {
                    cookie,
                    netns: flow.netns,
                    source: self.names.name(flow.origin.source)?,
                    destination: self.names.name(flow.origin.destination)?,
                    pid: flow.origin.pid,
                    program: comm_text(&flow.origin.comm),
                    original_dst: flow.origin.original_dst.into(),
                    local: flow.local.into(),
                    remote: flow.remote.into(),
                    bytes: Bytes::default(),
                    age: now.saturating_sub(Duration::from_nanos(flow.origin.opened_ns)),
                };
                if flow.netns == here {
                    direct.bytes = direct.count();
                }
                Some(direct)
            })
            .collect()
    }

    /// Whether the connection with the socket cookie is one of them.
    pub fn contains(&self, cookie: u64) -> bool {
        self.map.get(&cookie, 0).is_ok()
    }

    /// Destroys the sockets of flows that are not allowed any more, as far as they are in the calling thread's network
    /// namespace, `here`.
    pub fn cut(&self, here: u64, allowed: impl Fn(PolicyKey) -> bool) -> Left {
        let mut left = Left::default();
        for (cookie, flow) in self.entries() {
            let key = PolicyKey { source: flow.origin.source, destination: flow.origin.destination };
            if allowed(key) {
                continue;
            }
            let revoked = Doomed::revoked(cookie, &flow, self.recent.clone());
            if flow.state == DIRECT_ALLOWED {
                left.again = true;
            } else if flow.netns != here {
                left.elsewhere.push(revoked);
            } else if !revoked.cut() {
                // A closed socket has no entry: it leaves `DIRECT` before it leaves the kernel's table. One that has was read
                // while its entry was replaced, whose memory may have become another's meanwhile.
                left.again |= self.contains(cookie);
            }
        }
        left
    }

    /// Removes entries of sockets that are gone without having told: `connect()` failed before the SYN. Returns flows that there is
    /// no room for any more.
    #[must_use]
    pub fn sweep(&mut self) -> Vec<Doomed> {
        let mut unlisted = Vec::new();
        let now = monotonic();
        let dead: Vec<u64> =
            self.entries().filter(|(_, flow)| is_dead(flow, now)).map(|(cookie, _)| cookie).collect();
        for cookie in dead {
            // Its socket may have connected since it was looked at: then it is a flow that is to be found when it is to be cut.
            if let Ok(Some(flow)) = sys::take::<u64, DirectFlow>(self.map.map().fd().as_fd(), &cookie)
                && !is_dead(&flow, now)
                && let Err(error) = self.map.insert(cookie, flow, BPF_NOEXIST.into())
                && !matches!(&error, MapError::SyscallError(e) if e.io_error.kind() == io::ErrorKind::AlreadyExists)
            {
                let end = Kind::DirectLost;
                unlisted.push(Doomed { end, ..Doomed::revoked(cookie, &flow, self.recent.clone()) });
            }
        }
        if !unlisted.is_empty() {
            tracing::warn!(
                flows = unlisted.len(),
                "direct flows cannot be listed any more: they will be reset"
            );
        }
        unlisted
    }

    fn entries(&self) -> impl Iterator<Item = (u64, DirectFlow)> + '_ {
        self.map.iter().filter_map(Result::ok)
    }
}

/// Whether its socket has no SYN to send any more.
fn is_dead(flow: &DirectFlow, now: Duration) -> bool {
    let age = now.saturating_sub(Duration::from_nanos(flow.origin.opened_ns));
    flow.state == DIRECT_ALLOWED && age > Duration::from_nanos(STILLBORN_NS)
}

/// `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`.
pub fn monotonic() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .expect("every Linux has CLOCK_MONOTONIC");
    Duration::from(now)
}
