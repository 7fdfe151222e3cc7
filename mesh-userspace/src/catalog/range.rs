//! Ranges of addresses that virtual IPs are taken from.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// A prefix of addresses of one family, written as `240.240.0.0/16`; what follows the prefix is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpRange {
    first: IpAddr,
    prefix: u8,
}

impl IpRange {
    /// Returns the range that `address` is in, by its first `prefix` bits (at most 32, or 128).
    pub fn of(address: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(width(address));
        let first = match address {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) & mask(prefix, 32) as u32).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) & mask(prefix, 128)).into(),
        };
        Self { first, prefix }
    }

    pub fn first(&self) -> IpAddr {
        self.first
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Returns how many bits of an address tell the range's addresses apart.
    pub fn host_bits(&self) -> u8 {
        width(self.first) - self.prefix
    }

    /// Returns the address whose last bits are those of `number`; further bits of it don't count.
    pub fn nth(&self, number: u128) -> IpAddr {
        let host = |width| number & !mask(self.prefix, width);
        match self.first {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) | host(32) as u32).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) | host(128)).into(),
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && Self::of(address, self.prefix).first == self.first
    }

    /// Whether the two have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The `prefix` highest of `width` bits.
fn mask(prefix: u8, width: u8) -> u128 {
    let all = if width == 128 { u128::MAX } else { (1 << width) - 1 };
    all & !all.checked_shr(prefix.into()).unwrap_or(0)
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for IpRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = text.split_once('/').ok_or("an address, a slash and the prefix's length")?;
        let address: IpAddr = address.parse().map_err(|_| "what precedes the slash is no IP address")?;
        let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix = prefix.parse().ok().filter(|p| digits && *p <= width(address));
        let prefix = prefix.ok_or("what follows the slash is no length of a prefix")?;
        let range = Self::of(address, prefix);
        if range.first == address { Ok(range) } else { Err("bits after the prefix are not zero") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_is_a_prefix_and_nothing_after_it() {
        for text in ["240.240.0.0/16", "10.0.0.0/8", "fd6d:6573:6800::/64", "0.0.0.0/0", "1.2.3.4/32"] {
            assert_eq!(text.parse::<IpRange>().unwrap().to_string(), text);
        }
        for text in ["", "10.0.0.0", "10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/+8", "fd::1/64", "x/8", "::/129"]
        {
            assert!(text.parse::<IpRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_overlap_when_one_is_in_the_other() {
        let range = |text: &str| text.parse::<IpRange>().unwrap();
        for (a, b, expected) in [
            ("10.0.0.0/8", "10.5.0.0/16", true),
            ("10.5.0.0/16", "10.0.0.0/8", true),
            ("10.5.0.0/16", "10.6.0.0/16", false),
            ("0.0.0.0/0", "::/0", false),
        ] {
            assert_eq!(range(a).overlaps(&range(b)), expected, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn every_number_is_an_address_of_the_range(bits in any::<u128>(), four in any::<bool>(), prefix in 0_u8..=128, n in any::<u128>()) {
            let address = if four { IpAddr::V4(Ipv4Addr::from(bits as u32)) } else { IpAddr::V6(Ipv6Addr::from(bits)) };
            let range = IpRange::of(address, prefix);
            prop_assert!(range.contains(range.nth(n)));
            prop_assert_eq!(range.to_string().parse::<IpRange>(), Ok(range));
        }

        #[test]
        fn any_text_is_a_range_or_refused(text in "\\PC{0,40}|[0-9a-f:./]{0,20}") {
            let _ = text.parse::<IpRange>();
        }
    }
}
