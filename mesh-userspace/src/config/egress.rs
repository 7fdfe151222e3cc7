//! `[[service.egress_allow]]`: what a `mesh-only` workload may reach outside the mesh all the same.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use mesh_common::egress::{EGRESS_RANGES, EGRESS_TCP, EGRESS_UDP, EgressRange};

use super::PortRange;
use crate::catalog::IpRange;

/// One entry of a workload's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EgressRule {
    pub to: EgressTarget,
    /// Never empty.
    pub ports: Vec<PortRange>,
    /// `EGRESS_*` bits of mesh-common.
    pub protocols: u16,
}

/// Where a rule lets a workload go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EgressTarget {
    Network(IpRange),
    /// The addresses that the daemon's DNS told that workload for such a name.
    Name(NamePattern),
}

/// A host name, or `*.` and the end of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePattern {
    /// In lower case, without the final dot.
    name: String,
    /// Names below it, and not itself.
    below: bool,
}

/// Every port.
pub const ALL_PORTS: PortRange = PortRange { first: 1, last: u16::MAX };

impl NamePattern {
    /// Whether it means `name`; upper and lower case are the same, and a final dot counts for nothing.
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        if !self.below {
            return name.eq_ignore_ascii_case(&self.name);
        }
        let (name, suffix) = (name.as_bytes(), self.name.as_bytes());
        name.len() > suffix.len() + 1
            && name[name.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
            && name[name.len() - suffix.len() - 1] == b'.'
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.below { "*." } else { "" })?;
        f.write_str(&self.name)
    }
}

impl FromStr for NamePattern {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (below, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
        let name = name.strip_suffix('.').unwrap_or(name);
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if name.parse::<IpAddr>().is_ok() {
            return Err("an address is written as cidr");
        }
        if name.is_empty() || name.len() > 253 || !name.split('.').all(label) {
            return Err("letters, digits, `-` and `_` between dots; `*.` at the beginning only");
        }
        Ok(Self { name: name.to_ascii_lowercase(), below })
    }
}

/// Returns the network in `text`: a prefix, or one address.
pub(super) fn network(text: &str) -> Result<IpRange, &'static str> {
    let range = match text.parse::<IpAddr>() {
        Ok(address) => IpRange::of(address, 128),
        Err(_) => text.parse::<IpRange>()?,
    };
    match range.first() {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Err("IPv4 is written as IPv4"),
        _ => Ok(range),
    }
}

/// Returns the ports in `text`: one, or the first and the last with a hyphen between.
pub(super) fn ports(text: &str) -> Result<PortRange, &'static str> {
    match text.parse::<u16>() {
        Ok(0) => Err("ports are 1 to 65535"),
        Ok(port) => Ok(PortRange { first: port, last: port }),
        Err(_) => text.parse(),
    }
}

impl EgressRule {
    /// Whether it is about `name`.
    pub fn is_for(&self, name: &str) -> bool {
        matches!(&self.to, EgressTarget::Name(pattern) if pattern.matches(name))
    }

    /// Whether it is about a network, and has datagrams to `at`.
    pub fn has_datagrams_to(&self, at: SocketAddr) -> bool {
        let here = |range: &IpRange| range.contains(at.ip().to_canonical());
        self.protocols & EGRESS_UDP != 0
            && matches!(&self.to, EgressTarget::Network(range) if here(range))
            && self.ports.iter().any(|range| range.contains(at.port()))
    }

    /// Returns its ports as the kernel's list has them.
    fn ranges(&self) -> impl Iterator<Item = EgressRange> + '_ {
        self.ports.iter().map(|ports| EgressRange {
            first: ports.first,
            last: ports.last,
            protocols: self.protocols,
            pad: 0,
        })
    }
}

impl fmt::Display for EgressRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            EgressTarget::Network(range) => range.fmt(f)?,
            EgressTarget::Name(name) => name.fmt(f)?,
        }
        let ports: Vec<String> = self
            .ports
            .iter()
            .map(|range| match range {
                all if *all == ALL_PORTS => "all ports".to_owned(),
                one if one.first == one.last => one.first.to_string(),
                range => range.to_string(),
            })
            .collect();
        write!(f, " {}", ports.join(","))?;
        match self.protocols {
            EGRESS_TCP => f.write_str(" tcp"),
            EGRESS_UDP => f.write_str(" udp"),
            _ => f.write_str(" tcp+udp"),
        }
    }
}

/// Returns the port ranges of `rules`, as few as there can be.
pub fn merged<'r>(rules: impl Iterator<Item = &'r EgressRule> + Clone) -> Vec<EgressRange> {
    let of = |protocol: u16| {
        let ranges = rules.clone().flat_map(EgressRule::ranges).filter(move |r| r.protocols & protocol != 0);
        joined(ranges.map(|range| (range.first, range.last)).collect())
    };
    let (tcp, udp) = (of(EGRESS_TCP), of(EGRESS_UDP));
    let range = |protocols: u16| {
        move |(first, last): &(u16, u16)| EgressRange { first: *first, last: *last, protocols, pad: 0 }
    };
    let both = tcp.iter().filter(|r| udp.contains(r)).map(range(EGRESS_TCP | EGRESS_UDP));
    let only_tcp = tcp.iter().filter(|r| !udp.contains(r)).map(range(EGRESS_TCP));
    let only_udp = udp.iter().filter(|r| !tcp.contains(r)).map(range(EGRESS_UDP));
    both.chain(only_tcp).chain(only_udp).collect()
}

/// Joins ranges that overlap or touch.
fn joined(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// Whether the kernel's list of a network has room for the ports of all `rules` together.
pub(super) fn fits(rules: &[EgressRule]) -> bool {
    merged(rules.iter()).len() <= EGRESS_RANGES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(ports: &[(u16, u16)], protocols: u16) -> EgressRule {
        let ports = ports.iter().map(|(first, last)| PortRange { first: *first, last: *last }).collect();
        EgressRule { to: EgressTarget::Network("10.0.0.0/8".parse().unwrap()), ports, protocols }
    }

    #[test]
    fn patterns_mean_a_name_or_what_is_below_it() {
        let exact: NamePattern = "API.example.com.".parse().unwrap();
        assert_eq!(exact.to_string(), "api.example.com");
        assert!(exact.matches("api.example.com") && exact.matches("Api.Example.Com."));
        assert!(!exact.matches("x.api.example.com") && !exact.matches("api.example.com.evil.org"));
        let below: NamePattern = "*.example.com".parse().unwrap();
        assert!(below.matches("a.example.com") && below.matches("a.b.EXAMPLE.com."));
        for name in ["example.com", "badexample.com", ".example.com.evil.org", "example.com.", ""] {
            assert!(!below.matches(name), "{name}");
        }
        for text in ["", "*", "*.", "a.*.com", "a..b", "10.0.0.1", "::1", "a b", "*.*.com"] {
            assert!(text.parse::<NamePattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn networks_and_ports_are_read_as_people_write_them() {
        assert_eq!(network("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(network("2001:db8::/32").unwrap().to_string(), "2001:db8::/32");
        for text in ["10.1.2.3/8", "::ffff:10.0.0.0/104", "::ffff:10.0.0.1", "example.com", ""] {
            assert!(network(text).is_err(), "{text}");
        }
        assert_eq!(ports("443"), Ok(PortRange { first: 443, last: 443 }));
        assert_eq!(ports("8000-8100"), Ok(PortRange { first: 8000, last: 8100 }));
        for text in ["0", "", "x", "2-1", "65536", "1-"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }

    #[test]
    fn port_ranges_are_joined_by_protocol() {
        let range = |first, last, protocols| EgressRange { first, last, protocols, pad: 0 };
        let both = EGRESS_TCP | EGRESS_UDP;
        let rules = [rule(&[(443, 443), (80, 90)], both), rule(&[(91, 100), (443, 443)], EGRESS_TCP)];
        assert_eq!(
            merged(rules.iter()),
            [range(443, 443, both), range(80, 100, EGRESS_TCP), range(80, 90, EGRESS_UDP)]
        );
        assert_eq!(merged([rule(&[(1, 65535), (5, 6)], EGRESS_UDP)].iter()), [range(1, 65535, EGRESS_UDP)]);
        let many: Vec<_> = (1..=EGRESS_RANGES as u16 + 1).map(|n| (n * 2, n * 2)).collect();
        assert!(fits(&[rule(&many[1..], EGRESS_TCP)]) && !fits(&[rule(&many, EGRESS_TCP)]));
    }
}
