//! Virtual IPs: for each service one address of each family, which means the service and no instance of it.
//!
//! An address follows from the service's name, so that hosts agree without talking; a second name with the same one
//! gets another, which depends on who came first. So what was given is kept: it is stored, and stays given when the
//! service leaves the catalog.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::range::IpRange;
use crate::identity::ServiceName;

/// Where addresses are taken from; `None`: services have none of that family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtualRanges {
    pub v4: Option<IpRange>,
    pub v6: Option<IpRange>,
}

impl VirtualRanges {
    pub fn iter(&self) -> impl Iterator<Item = &IpRange> {
        self.v4.iter().chain(&self.v6)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.iter().any(|range| range.contains(address))
    }
}

/// The addresses of one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualIp {
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
}

impl VirtualIp {
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// What the disk cache holds.
pub type Stored = BTreeMap<ServiceName, VirtualIp>;

/// Which address means which service.
#[derive(Clone, Debug, Default)]
pub struct VirtualIps {
    ranges: VirtualRanges,
    of: BTreeMap<ServiceName, VirtualIp>,
    at: HashMap<IpAddr, ServiceName>,
    /// Consul's own, by address.
    consul: HashMap<Ipv4Addr, ServiceName>,
}

/// How many addresses are tried for one name. Nine tenths of the range may be taken, and one in a thousand million
/// names still finds none.
const PROBES: u8 = 200;

/// Consul takes its virtual addresses from here (its documentation of `consul-virtual`, since 1.11).
const CONSUL_FIRST_OCTET: u8 = 240;

impl VirtualIps {
    /// Returns what `stored` gives, as far as it is in `ranges` and no address is given twice.
    pub fn restore(ranges: VirtualRanges, stored: Stored) -> Self {
        let mut new = Self { ranges, ..Self::default() };
        for (name, ip) in stored {
            let free = |ip: IpAddr, range: Option<IpRange>| {
                range.is_some_and(|range| range.contains(ip)) && !new.at.contains_key(&ip)
            };
            let kept = VirtualIp {
                v4: ip.v4.filter(|v4| free(IpAddr::V4(*v4), ranges.v4)),
                v6: ip.v6.filter(|v6| free(IpAddr::V6(*v6), ranges.v6)),
            };
            new.put(name, kept);
        }
        new
    }

    /// Gives each of `names` the addresses that it lacks; none that is `taken` otherwise. Returns whether anything was
    /// given.
    pub fn allocate<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a ServiceName>,
        taken: impl Fn(IpAddr) -> bool,
    ) -> bool {
        let mut given = false;
        for name in names {
            let before = self.of.get(name).copied().unwrap_or_default();
            let find = |range: Option<IpRange>| {
                let free = |ip: &IpAddr| !self.at.contains_key(ip) && !taken(*ip);
                range.and_then(|range| candidates(range, name).find(free))
            };
            let v4 = before.v4.map(IpAddr::V4).or_else(|| find(self.ranges.v4));
            let v6 = before.v6.map(IpAddr::V6).or_else(|| find(self.ranges.v6));
            let now = VirtualIp {
                v4: v4.and_then(|ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None }),
                v6: v6.and_then(|ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None }),
            };
            given |= now != before;
            if now != before || self.are_wanted([name]) {
                self.put(name.clone(), now);
            }
        }
        given
    }

    fn put(&mut self, name: ServiceName, ip: VirtualIp) {
        for address in ip.iter() {
            self.at.insert(address, name.clone());
        }
        self.of.insert(name, ip);
    }

    /// Takes Consul's own virtual addresses; returns whether they are others than before. One that is in our range,
    /// or is none of Consul's kind, is left out.
    pub fn set_consul(&mut self, addresses: impl IntoIterator<Item = (Ipv4Addr, ServiceName)>) -> bool {
        let ours = |ip: &Ipv4Addr| self.ranges.contains(IpAddr::V4(*ip));
        let usable = |ip: &Ipv4Addr| ip.octets()[0] >= CONSUL_FIRST_OCTET && !ip.is_broadcast();
        let now = addresses.into_iter().filter(|(ip, _)| usable(ip) && !ours(ip)).collect();
        let changed = self.consul != now;
        self.consul = now;
        changed
    }

    pub fn ranges(&self) -> &VirtualRanges {
        &self.ranges
    }

    /// Whether one of `names` lacks an address that it could have.
    pub fn are_wanted<'a>(&self, names: impl IntoIterator<Item = &'a ServiceName>) -> bool {
        let lacks = |name| {
            let ip = self.of.get(name).copied().unwrap_or_default();
            self.ranges.v4.is_some() && ip.v4.is_none() || self.ranges.v6.is_some() && ip.v6.is_none()
        };
        names.into_iter().any(lacks)
    }

    /// Returns the addresses of `service`; `None` when it was given none.
    pub fn of(&self, service: &ServiceName) -> Option<VirtualIp> {
        self.of.get(service).copied().filter(|ip| ip.iter().next().is_some())
    }

    /// Returns the address that Consul itself gave `service`.
    pub fn consul_of(&self, service: &ServiceName) -> Option<Ipv4Addr> {
        self.consul.iter().filter(|(_, name)| *name == service).map(|(ip, _)| *ip).min()
    }

    /// Returns every service that was given an address, by name.
    pub fn services(&self) -> impl Iterator<Item = (&ServiceName, VirtualIp)> {
        self.of.iter().filter(|(_, ip)| ip.iter().next().is_some()).map(|(name, ip)| (name, *ip))
    }

    /// Returns the service that `address` means, whatever the port.
    pub fn service_at(&self, address: IpAddr) -> Option<&ServiceName> {
        let consul = |ip| if let IpAddr::V4(v4) = ip { self.consul.get(&v4) } else { None };
        self.at.get(&address).or_else(|| consul(address))
    }

    /// Returns every address with its service, Consul's included.
    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &ServiceName)> {
        let consul = self.consul.iter().map(|(ip, name)| (IpAddr::V4(*ip), name));
        self.at.iter().map(|(ip, name)| (*ip, name)).chain(consul)
    }

    /// Returns the services that lack an address of a family that has a range.
    pub fn lacking(&self) -> impl Iterator<Item = &ServiceName> {
        self.of.keys().filter(|name| self.are_wanted([*name]))
    }

    /// Returns what [`restore`](Self::restore) takes.
    pub fn stored(&self) -> Stored {
        self.of.clone()
    }
}

/// The addresses that `name` may have, the preferred one first; neither the range's first nor its last, which are a
/// network's own.
fn candidates(range: IpRange, name: &ServiceName) -> impl Iterator<Item = IpAddr> {
    let last = range.nth(u128::MAX);
    (0..PROBES)
        .map(move |attempt| {
            let digest = Sha256::new().chain_update(name.as_str()).chain_update([0, attempt]).finalize();
            let number = digest.iter().take(16).fold(0, |number: u128, byte| number << 8 | u128::from(*byte));
            range.nth(number)
        })
        .filter(move |ip| *ip != range.first() && *ip != last)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    fn ranges(v4: &str, v6: &str) -> VirtualRanges {
        VirtualRanges { v4: v4.parse().ok(), v6: v6.parse().ok() }
    }

    fn usual() -> VirtualRanges {
        ranges("240.240.0.0/16", "fd6d:6573:6800::/64")
    }

    #[test]
    fn a_name_has_the_same_addresses_on_every_host() {
        let (mut a, mut b) =
            (VirtualIps::restore(usual(), Stored::new()), VirtualIps::restore(usual(), Stored::new()));
        a.allocate([&name("db"), &name("web")], |_| false);
        b.allocate([&name("web")], |_| false);
        b.allocate([&name("db")], |_| false);
        assert_eq!(a.of(&name("db")), b.of(&name("db")));
        let db = a.of(&name("db")).unwrap();
        assert_eq!(a.service_at(db.v4.unwrap().into()), Some(&name("db")));
        assert_eq!(a.service_at(db.v6.unwrap().into()), Some(&name("db")));
        assert_eq!(a.service_at("240.240.0.0".parse().unwrap()), None);
        // Written down: a change of how they are made would move every service of every mesh.
        assert_eq!(db.v4.unwrap().to_string(), "240.240.47.255");
        assert_eq!(db.v6.unwrap().to_string(), "fd6d:6573:6800:0:c74b:7774:125:2fff");
    }

    #[test]
    fn what_was_given_stays_given_whoever_comes_first_after_a_restart() {
        // Sixteen names in fourteen addresses: some of them collide, two find no room.
        let tight = ranges("240.240.0.0/28", "");
        let names: Vec<_> = (0..16).map(|n| name(&format!("s{n}"))).collect();
        let mut first = VirtualIps::restore(tight, Stored::new());
        assert!(first.allocate(&names, |_| false));
        assert_eq!((first.of.len() - first.lacking().count(), first.lacking().count()), (14, 2));
        let mut again = VirtualIps::restore(tight, first.stored());
        again.allocate(names.iter().rev(), |_| false);
        assert_eq!(again.of, first.of);
    }

    #[test]
    fn an_address_that_something_else_has_is_not_given() {
        let mut all = VirtualIps::restore(usual(), Stored::new());
        all.allocate([&name("db")], |_| false);
        let preferred = all.of(&name("db")).unwrap().v4.unwrap();
        let mut other = VirtualIps::restore(usual(), Stored::new());
        other.allocate([&name("db")], |ip| ip == IpAddr::V4(preferred));
        let given = other.of(&name("db")).unwrap().v4;
        assert!(given.is_some() && given != Some(preferred));
    }

    #[test]
    fn another_range_moves_a_service_and_none_takes_its_address_away() {
        let mut all = VirtualIps::restore(usual(), Stored::new());
        all.allocate([&name("db")], |_| false);
        let mut moved = VirtualIps::restore(ranges("10.9.0.0/16", ""), all.stored());
        assert_eq!(moved.of(&name("db")), None);
        assert!(moved.allocate([&name("db")], |_| false));
        let ip = moved.of(&name("db")).unwrap();
        assert!("10.9.0.0/16".parse::<IpRange>().unwrap().contains(ip.v4.unwrap().into()));
        assert_eq!(ip.v6, None);
    }

    #[test]
    fn an_address_that_a_damaged_store_gives_twice_is_the_first_ones() {
        let ip = VirtualIp { v4: Some("240.240.1.1".parse().unwrap()), v6: None };
        let all = VirtualIps::restore(usual(), Stored::from([(name("a"), ip), (name("b"), ip)]));
        assert_eq!(all.service_at("240.240.1.1".parse().unwrap()), Some(&name("a")));
        assert_eq!(all.of(&name("b")), None);
    }

    #[test]
    fn consuls_own_address_means_the_service_too_unless_it_is_one_of_ours() {
        let mut all = VirtualIps::restore(usual(), Stored::new());
        let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
        assert!(all.set_consul([(address("240.0.0.1"), name("db"))]));
        assert!(!all.set_consul([(address("240.0.0.1"), name("db"))]));
        assert_eq!(all.service_at("240.0.0.1".parse().unwrap()), Some(&name("db")));
        assert_eq!(all.consul_of(&name("db")), Some(address("240.0.0.1")));
        for refused in ["240.240.3.3", "10.0.0.1", "255.255.255.255"] {
            all.set_consul([(address(refused), name("db"))]);
            assert_eq!(all.service_at(refused.parse().unwrap()), None, "{refused}");
        }
    }

    proptest! {
        #[test]
        fn no_two_services_share_an_address_and_all_are_in_the_ranges(
            names in prop::collection::hash_set("[a-z]{1,8}", 1..60),
            prefix in 26_u8..=30,
        ) {
            let ranges = VirtualRanges {
                v4: Some(IpRange::of("240.240.0.0".parse().unwrap(), prefix)),
                v6: Some(IpRange::of("fd6d::".parse().unwrap(), 64)),
            };
            let names: Vec<_> = names.iter().map(|n| name(n)).collect();
            let mut all = VirtualIps::restore(ranges, Stored::new());
            all.allocate(&names, |_| false);
            let mut seen = HashSet::new();
            for service in &names {
                for ip in all.of(service).iter().flat_map(VirtualIp::iter) {
                    prop_assert!(ranges.contains(ip) && seen.insert(ip));
                    prop_assert_eq!(all.service_at(ip), Some(service));
                }
            }
            prop_assert!(!all.allocate(&names, |_| false));
        }
    }
}
