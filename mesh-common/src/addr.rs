//! Addresses as the maps hold them: one form for IPv4 and IPv6, byte order in the type.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::contract;

/// An IP address in network byte order; IPv4 is held as IPv4-mapped IPv6 (`::ffff:a.b.c.d`).
///
/// Four words, as the kernel's contexts hold them: their bytes in memory are the bytes on the wire. (Single bytes
/// make the BPF compiler take every word apart.)
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Addr([u32; 4]);
contract!(Addr, 16);

/// The third word of an IPv4-mapped address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Addr {
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// From an IPv4 address as the contexts hold it: network order in memory.
    #[inline(always)]
    pub const fn from_v4(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// From an IPv6 address as the contexts hold it: network order in memory.
    #[inline(always)]
    pub const fn from_v6(words: [u32; 4]) -> Self {
        Self(words)
    }

    /// The words, network order in memory.
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.0
    }

    /// Returns the IPv4 word (network order in memory) if this is an IPv4 or IPv4-mapped address.
    #[inline(always)]
    pub const fn v4(&self) -> Option<u32> {
        let [a, b, c, d] = self.0;
        if a == 0 && b == 0 && c == MAPPED { Some(d) } else { None }
    }

    /// Whether the address reaches its own network namespace only: 127/8, `::1`, and the unspecified addresses,
    /// which Linux connects to loopback.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        match self.v4() {
            Some(word) => word == 0 || word.to_ne_bytes()[0] == 127,
            None => {
                let [a, b, c, d] = self.0;
                a == 0 && b == 0 && c == 0 && (d == 0 || d == 1_u32.to_be())
            }
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::from_v4(u32::from_ne_bytes(v4.octets())),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h] = v6.segments();
                let word = |high: u16, low: u16| (u32::from(high) << 16 | u32::from(low)).to_be();
                Self::from_v6([word(a, b), word(c, d), word(e, f), word(g, h)])
            }
        }
    }
}

impl From<Addr> for IpAddr {
    /// IPv4-mapped addresses come back as IPv4.
    fn from(addr: Addr) -> Self {
        match addr.v4() {
            Some(v4) => IpAddr::V4(Ipv4Addr::from(v4.to_ne_bytes())),
            None => {
                let [a, b, c, d] = addr.0.map(|word| u128::from(u32::from_be(word)));
                IpAddr::V6(Ipv6Addr::from(a << 96 | b << 64 | c << 32 | d))
            }
        }
    }
}

/// The addresses whose bits under `mask` are those of `first`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddrRange {
    first: Addr,
    mask: Addr,
}
contract!(AddrRange, 32);

impl AddrRange {
    /// No address is in it.
    pub const NONE: Self = Self { first: Addr([u32::MAX; 4]), mask: Addr([0; 4]) };

    /// The addresses that share their first `prefix` bits with `first`; bits of an IPv4 address count from its own first.
    pub fn new(first: IpAddr, prefix: u8) -> Self {
        let prefix = if first.is_ipv4() { 96 + u32::from(prefix.min(32)) } else { prefix.min(128).into() };
        let mask = !u128::MAX.checked_shr(prefix).unwrap_or(0);
        let mask = Addr::from_v6([96, 64, 32, 0].map(|shift| ((mask >> shift) as u32).to_be()));
        let mut first = Addr::from(first);
        for (word, bits) in first.0.iter_mut().zip(mask.0) {
            *word &= bits;
        }
        Self { first, mask }
    }

    #[inline(always)]
    pub const fn contains(&self, addr: &Addr) -> bool {
        let ([a, b, c, d], [e, f, g, h], [k, l, m, n]) = (addr.0, self.first.0, self.mask.0);
        a & k == e && b & l == f && c & m == g && d & n == h
    }
}

/// A TCP port in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Port(u16);
contract!(Port, 2);

impl Port {
    #[inline(always)]
    pub const fn new(host_order: u16) -> Self {
        Self(host_order.to_be())
    }

    /// From a number whose bytes in memory are the port on the wire.
    #[inline(always)]
    pub const fn from_wire(raw: u16) -> Self {
        Self(raw)
    }

    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The number whose bytes in memory are the port on the wire.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }
}

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Endpoint {
    pub addr: Addr,
    pub port: Port,
    pad: u16,
}
contract!(Endpoint, 20);

impl Endpoint {
    pub const UNSPECIFIED: Self = Self::new(Addr::UNSPECIFIED, Port::new(0));

    #[inline(always)]
    pub const fn new(addr: Addr, port: Port) -> Self {
        Self { addr, port, pad: 0 }
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
    fn a_range_holds_what_shares_its_prefix() {
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let range = |first: &str, prefix| AddrRange::new(first.parse().unwrap(), prefix);
        let (v4, v6) = (range("240.240.0.0", 16), range("fd6d:6573:6800::", 64));
        for (text, in_v4, in_v6) in [
            ("240.240.0.0", true, false),
            ("240.240.255.255", true, false),
            ("240.241.0.0", false, false),
            ("::240.240.0.1", false, false),
            ("fd6d:6573:6800::1", false, true),
            ("fd6d:6573:6800:1::1", false, false),
            ("::1", false, false),
        ] {
            let addr = addr(text);
            assert_eq!((v4.contains(&addr), v6.contains(&addr)), (in_v4, in_v6), "{text}");
            assert!(!AddrRange::NONE.contains(&addr));
        }
        assert!(
            range("10.1.2.3", 0).contains(&addr("1.2.3.4"))
                && !range("10.1.2.3", 0).contains(&addr("fd00::1"))
        );
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
