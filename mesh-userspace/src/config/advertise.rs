//! The address that other hosts use for this one, where the configuration names none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Returns, for IPv4 and for IPv6, the source address of the default route, or else the host's first global address.
/// Sends nothing.
pub fn discover() -> Vec<IpAddr> {
    let targets = [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    targets.into_iter().filter_map(|target| source_towards(target).or_else(|| first_global(target))).collect()
}

/// The kernel picks the source when a datagram socket is connected; no packet is sent by that.
fn source_towards(target: IpAddr) -> Option<IpAddr> {
    let any = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).ok()?;
    socket.connect(SocketAddr::new(target, 9)).ok()?;
    socket.local_addr().ok().map(|local| local.ip()).filter(|ip| is_global(*ip))
}

/// The first address of the family of `like`.
fn first_global(like: IpAddr) -> Option<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().ok()?;
    let mut found = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|sa| IpAddr::V4(sa.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|sa| IpAddr::V6(sa.ip())))
        })
        .filter(|ip| ip.is_ipv6() == like.is_ipv6() && is_global(*ip));
    found.next()
}

/// Whether another host may reach it: neither loopback, nor unspecified, nor link-local, nor multicast.
fn is_global(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || link_local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_discovered_is_reachable_from_elsewhere() {
        // A host may have no address but loopback; then there is nothing to discover.
        for ip in discover() {
            assert!(is_global(ip), "{ip}");
        }
        for text in ["127.0.0.1", "::1", "0.0.0.0", "169.254.1.1", "fe80::1", "ff02::1", "224.0.0.1"] {
            assert!(!is_global(text.parse().unwrap()), "{text}");
        }
    }
}
