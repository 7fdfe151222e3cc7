//! Which queries for names go to the daemon, and to which of its addresses. No maps, no context, no helpers.

use mesh_common::{
    addr::{Addr, Endpoint, Port},
    dns::{DNS_PORT, DNS_SLOTS, alias4},
    event,
    policy::ServiceId,
};

use crate::verdict::{Caller, Target};

/// What the daemon told the kernel about names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resolving {
    pub enabled: bool,
    /// Deny what the daemon cannot take.
    pub refuse: bool,
}

/// Whose query the daemon is to answer: a workload's, for port 53, unless a service of the mesh is there.
#[inline(always)]
pub fn diverted(caller: Caller, remote: Endpoint, target: Target, mode: Resolving) -> Option<ServiceId> {
    match (caller, target) {
        (Caller::Workload { service, .. }, Target::Outside)
            if mode.enabled && remote.port.wire() == DNS_PORT.wire() =>
        {
            Some(service)
        }
        _ => None,
    }
}

/// What becomes of a query that was to be diverted, and could not be: `Err` is a `REASON_*`.
#[inline(always)]
pub const fn undivertable(mode: Resolving) -> Result<(), u32> {
    if mode.refuse { Err(event::REASON_NO_RESOLVER) } else { Ok(()) }
}

/// Whether a daemon that is elsewhere than the program can ask `server` as the program would: the interface that goes
/// with a link-local address (fe80::/10) is not told to hooks.
#[inline(always)]
pub const fn can_be_asked(server: &Addr) -> bool {
    let [a, b, ..] = server.words()[0].to_ne_bytes();
    !(a == 0xfe && b & 0xc0 == 0x80)
}

/// Where the search for the alias of `server`, asked by `service`, starts.
#[inline(always)]
pub const fn first_try(server: Endpoint, service: ServiceId) -> u32 {
    let [a, b, c, d] = server.addr.words();
    let mut hash = 0x9e37_79b9_u32;
    hash = (hash ^ a).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 15 ^ b).wrapping_mul(0xc2b2_ae35);
    hash = (hash ^ hash >> 13 ^ c).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 15 ^ d).wrapping_mul(0xc2b2_ae35);
    hash = (hash ^ hash >> 13 ^ service).wrapping_mul(0x85eb_ca6b);
    hash ^ hash >> 16
}

/// How many aliases are tried: as many as there are for an IPv6 server.
pub const TRIES: u32 = DNS_SLOTS as u32;

/// Returns an IPv4 alias that `server` may have; `port` is the daemon's.
#[inline(always)]
pub const fn try4(first: u32, attempt: u32, port: Port) -> Endpoint {
    alias4(first.wrapping_add(attempt) as u16, port)
}

/// Returns an IPv6 alias that `server` may have; `port` is the first of the daemon's.
#[inline(always)]
pub const fn try6(first: u32, attempt: u32, port: Port) -> Endpoint {
    let slot = (first.wrapping_add(attempt) % TRIES) as u16;
    Endpoint::new(Addr::from_v6([0, 0, 0, 1_u32.to_be()]), Port::new(port.get().wrapping_add(slot)))
}

#[cfg(test)]
mod tests {
    use core::net::{IpAddr, SocketAddr};
    use std::collections::HashSet;

    use mesh_common::dns::may_be_alias;

    use super::*;

    const ON: Resolving = Resolving { enabled: true, refuse: false };
    const WEB: Caller = Caller::Workload { service: 7, mesh_only: false };

    fn at(text: &str) -> Endpoint {
        Endpoint::from(text.parse::<SocketAddr>().unwrap())
    }

    #[test]
    fn only_workloads_queries_to_what_is_no_service_are_diverted() {
        let server = at("10.0.0.53:53");
        assert_eq!(diverted(WEB, server, Target::Outside, ON), Some(7));
        for caller in [Caller::Exempt, Caller::Unmanaged, Caller::Unclassified] {
            assert_eq!(diverted(caller, server, Target::Outside, ON), None);
        }
        assert_eq!(diverted(WEB, at("10.0.0.53:5353"), Target::Outside, ON), None);
        assert_eq!(diverted(WEB, server, Target::Remote { service: 1 }, ON), None);
        let off = Resolving { enabled: false, refuse: true };
        assert_eq!(diverted(WEB, server, Target::Outside, off), None);
    }

    #[test]
    fn what_cannot_be_diverted_passes_unless_told_otherwise() {
        assert_eq!(undivertable(ON), Ok(()));
        assert_eq!(undivertable(Resolving { enabled: true, refuse: true }), Err(event::REASON_NO_RESOLVER));
    }

    #[test]
    fn link_local_servers_cannot_be_asked_by_the_daemon() {
        for (text, expected) in
            [("fe80::1", false), ("febf::1", false), ("fec0::1", true), ("10.0.0.1", true), ("::1", true)]
        {
            assert_eq!(can_be_asked(&Addr::from(text.parse::<IpAddr>().unwrap())), expected, "{text}");
        }
    }

    #[test]
    fn tries_are_aliases_and_differ() {
        let port = Port::new(40_000);
        for first in [0, 7, u32::MAX - 3, first_try(at("10.0.0.53:53"), 7)] {
            let four: HashSet<_> = (0..TRIES).map(|n| try4(first, n, port)).collect();
            let six: HashSet<_> = (0..TRIES).map(|n| try6(first, n, port)).collect();
            assert_eq!((four.len(), six.len()), (8, 8));
            assert!(four.iter().chain(&six).all(|alias| may_be_alias(&alias.addr)));
        }
    }

    #[test]
    fn servers_and_workloads_are_spread() {
        let mut firsts = HashSet::new();
        for n in 0..64_u32 {
            firsts.insert(first_try(at(&format!("10.0.0.{n}:53")), 1) as u16);
            firsts.insert(first_try(at("10.0.0.200:53"), 100 + n) as u16);
            firsts.insert(first_try(at(&format!("[fd77::{n:x}]:53")), 1) as u16);
        }
        assert!(firsts.len() > 180, "{}", firsts.len());
    }
}
