//! Whether a list of what a `mesh-only` workload may reach has a port, and which sockets such a workload may have. No
//! maps, no context, no helpers.

use mesh_common::{addr::Port, egress::EgressRules};

use crate::verdict::Caller;

/// `SOCK_STREAM`, `SOCK_DGRAM`, and what connects by them.
pub const SOCK_STREAM: u32 = 1;
pub const SOCK_DGRAM: u32 = 2;
pub const IPPROTO_TCP: u32 = 6;
pub const IPPROTO_UDP: u32 = 17;

/// Whether `rules` have `port` of the protocol (an `EGRESS_*` bit).
#[inline(always)]
pub fn lets(rules: &EgressRules, port: Port, protocol: u16) -> bool {
    let port = port.get();
    for range in &rules.0 {
        if range.first == 0 {
            return false;
        }
        if range.first <= port && port <= range.last && range.protocols & protocol != 0 {
            return true;
        }
    }
    false
}

/// Whether hooks are run for what leaves such a socket. For all others (ICMP, raw, SCTP, DCCP, UDP-Lite) there is none
/// that could be asked, on one or another kernel.
#[inline(always)]
pub const fn is_judged(kind: u32, protocol: u32) -> bool {
    matches!((kind, protocol), (SOCK_STREAM, IPPROTO_TCP) | (SOCK_DGRAM, IPPROTO_UDP))
}

/// Whether the caller may have such a socket.
#[inline(always)]
pub fn may_have(caller: Caller, kind: u32, protocol: u32) -> bool {
    !matches!(caller, Caller::Workload { mesh_only: true, .. }) || is_judged(kind, protocol)
}

#[cfg(test)]
mod tests {
    use mesh_common::egress::{EGRESS_RANGES, EGRESS_TCP, EGRESS_UDP, EgressRange};

    use super::*;

    fn rules(ranges: &[(u16, u16, u16)]) -> EgressRules {
        let mut rules = EgressRules([EgressRange::default(); EGRESS_RANGES]);
        for (slot, (first, last, protocols)) in rules.0.iter_mut().zip(ranges) {
            *slot = EgressRange { first: *first, last: *last, protocols: *protocols, pad: 0 };
        }
        rules
    }

    #[test]
    fn a_port_is_listed_within_a_range_of_its_protocol_and_nowhere_else() {
        let rules =
            rules(&[(443, 443, EGRESS_TCP), (8000, 8100, EGRESS_TCP | EGRESS_UDP), (53, 53, EGRESS_UDP)]);
        for (port, protocol, expected) in [
            (443, EGRESS_TCP, true),
            (443, EGRESS_UDP, false),
            (442, EGRESS_TCP, false),
            (444, EGRESS_TCP, false),
            (8000, EGRESS_UDP, true),
            (8100, EGRESS_TCP, true),
            (8101, EGRESS_TCP, false),
            (53, EGRESS_UDP, true),
            (53, EGRESS_TCP, false),
            (0, EGRESS_TCP, false),
        ] {
            assert_eq!(lets(&rules, Port::new(port), protocol), expected, "{port} {protocol}");
        }
    }

    #[test]
    fn no_range_lets_nothing_and_a_full_list_is_read_to_its_end() {
        assert!(!lets(&rules(&[]), Port::new(80), EGRESS_TCP));
        let many: Vec<_> = (1..=EGRESS_RANGES as u16).map(|n| (n * 10, n * 10, EGRESS_TCP)).collect();
        let full = rules(&many);
        assert!(lets(&full, Port::new(10 * EGRESS_RANGES as u16), EGRESS_TCP));
        assert!(!lets(&full, Port::new(9), EGRESS_TCP) && !lets(&full, Port::new(65535), EGRESS_TCP));
        assert!(lets(&rules(&[(1, 65535, EGRESS_TCP)]), Port::new(65535), EGRESS_TCP));
    }

    #[test]
    fn only_mesh_only_workloads_are_kept_from_sockets_that_no_hook_judges() {
        const ICMP: u32 = 1;
        const SOCK_RAW: u32 = 3;
        let closed = Caller::Workload { service: 1, mesh_only: true };
        let open = Caller::Workload { service: 1, mesh_only: false };
        for (kind, protocol, expected) in [
            (SOCK_STREAM, IPPROTO_TCP, true),
            (SOCK_DGRAM, IPPROTO_UDP, true),
            (SOCK_DGRAM, ICMP, false),
            (SOCK_RAW, ICMP, false),
            (SOCK_RAW, IPPROTO_UDP, false),
            (SOCK_STREAM, 132, false),
            (SOCK_DGRAM, 136, false),
        ] {
            assert_eq!(may_have(closed, kind, protocol), expected, "{kind} {protocol}");
            assert!(may_have(open, kind, protocol) && may_have(Caller::Exempt, kind, protocol));
            assert!(may_have(Caller::Unmanaged, kind, protocol));
        }
    }
}
