//! Records of the ring buffer `EVENTS`.

use crate::{addr::Endpoint, contract, flow::COMM_LEN, policy::ServiceId};

/// One event. What a kind does not use is zero.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// `EVENT_*`.
    pub kind: u32,
    /// `REASON_*` for a denial.
    pub reason: u32,
    pub source: ServiceId,
    pub destination: ServiceId,
    pub pid: u32,
    pub local: Endpoint,
    pub remote: Endpoint,
    pub comm: [u8; COMM_LEN],
    /// `IPPROTO_*`: of the connection, or of the socket that was refused.
    pub protocol: u32,
    pub netns: u64,
    /// Socket cookie.
    pub cookie: u64,
    /// Application bytes sent by, and received by, the connecting socket.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// How many events of this kind were left out on this processor since the last one.
    pub untold: u32,
    pub pad: u32,
}
contract!(Event, 120);

/// Value of `OPENED`, one for each processor: how many `EVENT_DIRECT_OPENED` were told of lately.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Opened {
    /// `CLOCK_MONOTONIC`, when counting began.
    pub since_ns: u64,
    pub told: u32,
    /// Left out since the last that was told of.
    pub untold: u32,
}
contract!(Opened, 16);

impl Opened {
    /// So many are told of in [`Self::PERIOD_NS`]. It has to be more in a second than the daemon writes lines.
    pub const MOST: u32 = 100;
    pub const PERIOD_NS: u64 = 250_000_000;

    /// Takes in that one more was opened. Returns how many were left out before it, or `None` to leave it out too.
    #[inline(always)]
    pub fn admit(&mut self, now_ns: u64) -> Option<u32> {
        if now_ns.wrapping_sub(self.since_ns) >= Self::PERIOD_NS {
            self.since_ns = now_ns;
            self.told = 0;
        }
        if self.told >= Self::MOST {
            self.untold = self.untold.wrapping_add(1);
            return None;
        }
        self.told += 1;
        let untold = self.untold;
        self.untold = 0;
        Some(untold)
    }
}

/// `connect()` or `bind()` was answered with `EPERM` (`connect()` with `ECONNREFUSED` for want of an instance), `socket()`
/// with `EPERM` or `EPROTONOSUPPORT`; `reason` says why.
pub const EVENT_DENIED: u32 = 1;
/// The same would have been denied, but the destination is permissive.
pub const EVENT_WOULD_DENY: u32 = 2;
/// The guard steered a connection from outside to the guard listener (or dropped it, when no daemon listens).
pub const EVENT_GUARDED: u32 = 3;
/// The guard let a connection from outside through because the service is permissive.
pub const EVENT_GUARD_PASSED: u32 = 4;
/// A direct flow was established. Where there are many in a second, some are left out (`Opened`); never one that no intention
/// allows any more.
pub const EVENT_DIRECT_OPENED: u32 = 5;
/// A direct flow ended; carries the final counters.
pub const EVENT_DIRECT_CLOSED: u32 = 6;
/// A captured connection was established, but there was no room to record it; the proxy will reset it.
pub const EVENT_FLOW_LOST: u32 = 7;
/// A workload made a socket in a network namespace that the daemon does not listen in.
pub const EVENT_NAMESPACE: u32 = 8;
/// A direct flow is about to send its SYN, but there was no room to list it; the daemon ends it, which would not find it when it
/// is to be cut. `remote` is the end that it connects to.
pub const EVENT_DIRECT_LOST: u32 = 9;

pub const REASON_NONE: u32 = 0;
/// No intention allows it.
pub const REASON_INTENTION: u32 = 1;
/// The caller belongs to no workload, and the port is protected.
pub const REASON_UNMANAGED: u32 = 2;
/// The caller's cgroup is younger than the last scan, and the destination is in the mesh.
pub const REASON_UNCLASSIFIED: u32 = 3;
/// Nothing was read from the control plane, nor from the disk cache, yet.
pub const REASON_NOT_SYNCED: u32 = 4;
/// The destination is not in the mesh, the workload is `mesh-only`, and its list does not have it.
pub const REASON_MESH_ONLY: u32 = 5;
/// A map was full.
pub const REASON_MAP_FULL: u32 = 6;
/// The daemon does not listen in the caller's network namespace.
pub const REASON_NO_LISTENER: u32 = 7;
/// `bind()` to a protected port by a process that is not the service.
pub const REASON_BIND: u32 = 8;
/// `socket()` for MPTCP, whose `connect()` runs no hook.
pub const REASON_MPTCP: u32 = 9;
/// The socket is bound to a source address that is not the host's: no way back from the listener.
pub const REASON_SOURCE: u32 = 13;
/// The socket is bound to a device, and the caller lacks the capability to have it freed.
pub const REASON_DEVICE: u32 = 14;
/// A query for names that the daemon could not take, with `dns.when_down = "refuse"`.
pub const REASON_NO_RESOLVER: u32 = 10;
/// No instance of the service that a virtual IP means can take it; `connect()` was answered with `ECONNREFUSED`.
pub const REASON_NO_INSTANCE: u32 = 11;
/// An address that virtual IPs are taken from, and that means no service known here.
pub const REASON_NO_SERVICE: u32 = 12;

/// `socket()` for a protocol that no hook judges, by a `mesh-only` workload.
pub const REASON_PROTOCOL: u32 = 15;

/// Returns the words for `reason`, as logs, metrics and `status` show them.
pub const fn reason_text(reason: u32) -> &'static str {
    match reason {
        REASON_INTENTION => "intention",
        REASON_UNMANAGED => "unmanaged",
        REASON_UNCLASSIFIED => "unclassified",
        REASON_NOT_SYNCED => "not-synced",
        REASON_MESH_ONLY => "mesh-only",
        REASON_MAP_FULL => "map-full",
        REASON_NO_LISTENER => "no-listener",
        REASON_BIND => "bind",
        REASON_MPTCP => "mptcp",
        REASON_SOURCE => "bound-source",
        REASON_DEVICE => "bound-device",
        REASON_PROTOCOL => "protocol",
        REASON_NO_RESOLVER => "no-resolver",
        REASON_NO_INSTANCE => "no-healthy-instance",
        REASON_NO_SERVICE => "no-service",
        _ => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_flows_some_are_told_of_and_the_others_counted() {
        let (mut opened, start) = (Opened { since_ns: 0, told: 0, untold: 0 }, 7 * Opened::PERIOD_NS);
        let told = (0..Opened::MOST + 3).filter_map(|_| opened.admit(start)).collect::<Vec<_>>();
        assert_eq!(told, [0; Opened::MOST as usize]);
        assert_eq!(opened.admit(start + Opened::PERIOD_NS), Some(3));
        assert_eq!(opened.admit(start + Opened::PERIOD_NS), Some(0));
    }
}
