//! Addresses as the maps hold them: one form for IPv4 and IPv6, byte order in the type.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::contract;

/// An IP address in network byte order; IPv4 is held as IPv4-mapped IPv6 (`::ffff:a.b.c.d`).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Addr([u8; 16]);
contract!(Addr, 16);

impl Addr {
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// From the four bytes of an IPv4 address as they are in memory on the wire.
    #[inline(always)]
    pub const fn from_v4(bytes: [u8; 4]) -> Self {
        let [a, b, c, d] = bytes;
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d])
    }

    /// From the sixteen bytes of an IPv6 address as they are on the wire.
    #[inline(always)]
    pub const fn from_v6(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        self.0
    }

    /// Returns the IPv4 bytes if this is an IPv4 or IPv4-mapped address.
    #[inline(always)]
    pub const fn v4(&self) -> Option<[u8; 4]> {
        match self.0 {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Some([a, b, c, d]),
            _ => None,
        }
    }

    /// Whether the address reaches its own network namespace only: 127/8, `::1`, and the unspecified addresses,
    /// which Linux connects to loopback.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        match self.v4() {
            Some([127, ..]) | Some([0, 0, 0, 0]) => true,
            Some(_) => false,
            None => matches!(self.0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 | 1]),
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(v4.octets()),
            IpAddr::V6(v6) => Self::from_v6(v6.octets()),
        }
    }
}

impl From<Addr> for IpAddr {
    /// IPv4-mapped addresses come back as IPv4.
    fn from(addr: Addr) -> Self {
        match addr.v4() {
            Some(v4) => IpAddr::V4(Ipv4Addr::from(v4)),
            None => IpAddr::V6(Ipv6Addr::from(addr.0)),
        }
    }
}

/// A TCP port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Port([u8; 2]);
contract!(Port, 2);

impl Port {
    #[inline(always)]
    pub const fn new(host_order: u16) -> Self {
        Self(host_order.to_be_bytes())
    }

    /// From the two bytes as they are in memory on the wire.
    #[inline(always)]
    pub const fn from_wire(bytes: [u8; 2]) -> Self {
        Self(bytes)
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }

    #[inline(always)]
    pub const fn wire(self) -> [u8; 2] {
        self.0
    }
}

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    pub addr: Addr,
    pub port: Port,
    pad: [u8; 2],
}
contract!(Endpoint, 20);

impl Endpoint {
    pub const UNSPECIFIED: Self = Self::new(Addr::UNSPECIFIED, Port::new(0));

    #[inline(always)]
    pub const fn new(addr: Addr, port: Port) -> Self {
        Self { addr, port, pad: [0; 2] }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(sa: SocketAddr) -> Self {
        Self::new(sa.ip().into(), Port::new(sa.port()))
    }
}

impl From<Endpoint> for SocketAddr {
    fn from(e: Endpoint) -> Self {
        SocketAddr::new(e.addr.into(), e.port.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoint_round_trips_v4_and_v6() {
        for text in ["10.0.0.2:5432", "[fd00::2]:5432", "127.0.0.1:1"] {
            let sa: SocketAddr = text.parse().unwrap();
            assert_eq!(SocketAddr::from(Endpoint::from(sa)), sa);
        }
    }

    #[test]
    fn v4_mapped_v6_is_the_same_endpoint_as_v4() {
        let mapped: SocketAddr = "[::ffff:10.0.0.2]:80".parse().unwrap();
        let plain: SocketAddr = "10.0.0.2:80".parse().unwrap();
        assert_eq!(Endpoint::from(mapped), Endpoint::from(plain));
    }

    #[test]
    fn loopback_is_127_slash_8_and_one_and_unspecified() {
        for (text, expected) in [
            ("127.0.0.1", true),
            ("127.9.9.9", true),
            ("0.0.0.0", true),
            ("::", true),
            ("::1", true),
            ("::2", false),
            ("10.0.0.1", false),
            ("::ffff:127.0.0.1", true),
            ("fe80::1", false),
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(Addr::from(ip).is_loopback(), expected, "{text}");
        }
    }
}
