//! `[address]`: what others call this host, and what virtual IPs are taken from.

use std::net::IpAddr;

use super::super::{AddressConfig, PortRange, document::Section, error::Located, rules, value};
use crate::catalog::{IpRange, VirtualRanges};

/// Nothing on the internet has an address of it, Linux routes it as any other, and Consul's own virtual IPs begin at the
/// other end of 240.0.0.0/4.
const VIRTUAL_IPV4: &str = "240.240.0.0/16";
/// A unique local prefix ("mesh" in ASCII), for which programs prefer a name's IPv4 address (RFC 6724).
const VIRTUAL_IPV6: &str = "fd6d:6573:6800::/64";
const VIRTUAL_IPV4_RULE: &str =
    "\"off\", or a prefix of 8 to 24 bits in 240.0.0.0/4, 198.18.0.0/15, 100.64.0.0/10, or a private range";
const VIRTUAL_IPV6_RULE: &str = "\"off\", or a prefix of 32 to 112 bits in fc00::/7";

pub(super) fn address(root: &Section<'_>) -> AddressConfig {
    let section = root.section("address");
    let advertise =
        section.texts("advertise", "an IP address that other hosts reach, neither 0.0.0.0 nor ::", |text| {
            match text.parse::<IpAddr>() {
                Ok(ip) if ip.is_unspecified() || ip.is_multicast() => Err("not an address of one host"),
                Ok(ip) => Ok(ip),
                Err(_) => Err(""),
            }
        });
    let mesh_ports =
        section.text("mesh_ports", "a range of ports such as \"21000-21255\"", str::parse::<PortRange>);
    let virtual_ranges = VirtualRanges {
        v4: virtual_range(&section, "virtual_ipv4", VIRTUAL_IPV4, &advertise),
        v6: virtual_range(&section, "virtual_ipv6", VIRTUAL_IPV6, &advertise),
    };
    section.finish();
    AddressConfig {
        virtual_ranges,
        advertise: advertise.into_iter().map(|ip| ip.value).collect(),
        mesh_ports: mesh_ports.map_or(PortRange { first: 21000, last: 21255 }, |range| range.value),
    }
}

/// Returns the range that virtual IPs of the default's family come from.
fn virtual_range(
    section: &Section<'_>,
    key: &'static str,
    default: &str,
    advertise: &[Located<IpAddr>],
) -> Option<IpRange> {
    let default: IpRange = default.parse().expect("invariant: the default is a range");
    let accepted = if default.first().is_ipv4() { VIRTUAL_IPV4_RULE } else { VIRTUAL_IPV6_RULE };
    let given = section.text(key, accepted, |text| value::virtual_range(text, default.first().is_ipv4()));
    let range = given.as_ref().map_or(Some(default), |given| given.value);
    for own in advertise.iter().filter(|own| range.is_some_and(|range| range.contains(own.value))) {
        rules::not_virtual(section.document, own, key);
    }
    range
}
