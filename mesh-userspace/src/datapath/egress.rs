//! What `mesh-only` workloads may reach outside the mesh, as the kernel holds it: a trie of networks, in which only the
//! narrowest that has an address is found; so each entry holds what wider ones allow, too.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant, SystemTime},
};

use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, MapError, lpm_trie::Key},
};
use mesh_common::{
    addr::Addr,
    egress::{EGRESS_RANGES, EGRESS_SERVICE_BITS, EGRESS_V4_BITS, EgressRange, EgressRules, EgressSubject},
    map,
    policy::ServiceId,
};
use serde::{Deserialize, Serialize};

use super::tables::TableError;
use crate::{
    catalog::IpRange,
    config::{EgressRule, EgressTarget, merged_ports},
    identity::ServiceName,
};

/// A key of the trie: the prefix's length, and what it is of.
pub type Subject = (u32, EgressSubject);

/// How long an address that a name has is held at least and at most, whatever the answer says.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Addresses of names that one workload may have at a time.
const MOST_LEARNT: usize = 4096;
/// Names of one address. A name more is not needed to reach it.
const MOST_NAMES: usize = 64;

/// Addresses that the daemon's DNS told workloads, for names that their lists have.
#[derive(Debug, Default)]
pub struct Learnt {
    by_service: HashMap<ServiceName, BTreeMap<IpAddr, HashMap<String, Instant>>>,
    changed: bool,
}

/// One of them, as it is kept for the next daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    service: ServiceName,
    name: String,
    address: IpAddr,
    until: SystemTime,
}

impl Learnt {
    /// Returns all that is held, if that has changed since it was asked for last. `now` and `clock` are the same moment.
    pub fn changes(&mut self, now: Instant, clock: SystemTime) -> Option<Vec<Kept>> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut all = Vec::new();
        for (service, of) in &self.by_service {
            for (address, names) in of {
                all.extend(names.iter().filter(|(_, until)| **until > now).map(|(name, until)| Kept {
                    service: service.clone(),
                    name: name.clone(),
                    address: *address,
                    until: clock + (*until - now),
                }));
            }
        }
        Some(all)
    }

    /// Says that what [`changes`](Self::changes) returned last was not kept after all.
    pub fn not_kept(&mut self) {
        self.changed = true;
    }

    /// Takes over what an earlier daemon held, as far as it is still valid.
    pub fn restore(&mut self, kept: Vec<Kept>, now: Instant, clock: SystemTime) {
        for Kept { service, name, address, until } in kept {
            // Whatever became of the clock meanwhile, nothing is held for longer than an answer may say.
            let Ok(left) = until.duration_since(clock) else { continue };
            let of = self.by_service.entry(service).or_default();
            if of.len() < MOST_LEARNT {
                let names = of.entry(address).or_default();
                if names.len() < MOST_NAMES {
                    names.insert(name, now + left.min(LONGEST));
                }
            }
        }
    }

    /// Notes that `service` was told that `name` has `address`; false: it has no room for more.
    pub fn note(
        &mut self,
        service: &ServiceName,
        name: &str,
        address: IpAddr,
        ttl: Duration,
        now: Instant,
    ) -> bool {
        let of = self.by_service.entry(service.clone()).or_default();
        if of.len() >= MOST_LEARNT && !of.contains_key(&address) {
            return false;
        }
        let (names, name) = (of.entry(address).or_default(), name.to_ascii_lowercase());
        if names.len() >= MOST_NAMES && !names.contains_key(&name) {
            return false;
        }
        let until = names.entry(name).or_insert(now);
        *until = (*until).max(now + ttl.clamp(SHORTEST, LONGEST));
        self.changed = true;
        true
    }

    /// Forgets what is out of date at `now`.
    pub fn expire(&mut self, now: Instant) {
        for of in self.by_service.values_mut() {
            of.values_mut().for_each(|names| names.retain(|_, until| *until > now));
            of.retain(|_, names| !names.is_empty());
        }
        self.by_service.retain(|_, of| !of.is_empty());
    }

    /// Returns the entry of `address` for the workload `id`, which is `service`, if it was told it.
    pub fn entry(
        &self,
        id: ServiceId,
        service: &ServiceName,
        rules: &[EgressRule],
        address: IpAddr,
    ) -> Option<(Subject, EgressRules)> {
        let names = self.by_service.get(service)?.get(&address)?;
        Some(learnt_entry(id, rules, address, names))
    }

    fn of(&self, service: &ServiceName) -> impl Iterator<Item = (&IpAddr, &HashMap<String, Instant>)> {
        self.by_service.get(service).into_iter().flatten()
    }
}

/// Returns the entries of the workload `id`, which is `service`, with the list `rules`.
pub fn entries(
    id: ServiceId,
    service: &ServiceName,
    rules: &[EgressRule],
    learnt: &Learnt,
) -> Vec<(Subject, EgressRules)> {
    let mut networks: Vec<IpRange> = rules
        .iter()
        .filter_map(|rule| match rule.to {
            EgressTarget::Network(network) => Some(network),
            EgressTarget::Name(_) => None,
        })
        .collect();
    let mapped = IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped());
    if networks.iter().any(|network| network.contains(mapped)) {
        // IPv4 is held in the midst of IPv6: what is said of all of the latter is not said of it.
        networks.push(IpRange::of(Ipv4Addr::UNSPECIFIED.into(), 0));
    }
    let mut all: HashMap<Subject, EgressRules> = HashMap::new();
    for network in networks {
        let here = rules.iter().filter(|rule| has_network(rule, network));
        all.insert(subject(id, network), value(here));
    }
    for (address, names) in learnt.of(service) {
        let (subject, rules) = learnt_entry(id, rules, *address, names);
        all.insert(subject, rules);
    }
    all.into_iter().collect()
}

/// Returns the entry of an address that the workload `id` was told for `names`.
fn learnt_entry(
    id: ServiceId,
    rules: &[EgressRule],
    address: IpAddr,
    names: &HashMap<String, Instant>,
) -> (Subject, EgressRules) {
    let network = IpRange::of(address, 128);
    let named = |rule: &&EgressRule| match &rule.to {
        EgressTarget::Network(_) => has_network(rule, network),
        EgressTarget::Name(pattern) => names.keys().any(|name| pattern.matches(name)),
    };
    (subject(id, network), value(rules.iter().filter(named)))
}

/// Whether `rule` is about a network that has all of `network`.
fn has_network(rule: &EgressRule, network: IpRange) -> bool {
    matches!(rule.to, EgressTarget::Network(wide) if wide.prefix() <= network.prefix() && wide.contains(network.first()))
}

fn subject(service: ServiceId, network: IpRange) -> Subject {
    let before = if network.first().is_ipv4() { EGRESS_V4_BITS } else { EGRESS_SERVICE_BITS };
    (before + u32::from(network.prefix()), EgressSubject { service, addr: Addr::from(network.first()) })
}

/// What the ports of `rules` are in the kernel. The configuration sees to it that there is room.
fn value<'r>(rules: impl Iterator<Item = &'r EgressRule> + Clone) -> EgressRules {
    let mut value = EgressRules([EgressRange::default(); EGRESS_RANGES]);
    for (slot, range) in value.0.iter_mut().zip(merged_ports(rules)) {
        *slot = range;
    }
    value
}

/// The kernel's map with a copy of what it holds.
pub struct EgressTable {
    map: LpmTrie<MapData, EgressSubject, EgressRules>,
    /// `None`: written by an earlier daemon.
    held: HashMap<Subject, Option<EgressRules>>,
}

impl EgressTable {
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, TableError> {
        let failed = |source| TableError::Map { name: map::EGRESS, source };
        let taken = ebpf.take_map(map::EGRESS).ok_or(TableError::Missing(map::EGRESS))?;
        let map = LpmTrie::try_from(taken).map_err(failed)?;
        let mut held = HashMap::new();
        for key in map.keys() {
            let key: Key<EgressSubject> = key.map_err(failed)?;
            held.insert((key.prefix_len(), key.data()), None);
        }
        Ok(Self { map, held })
    }

    /// Brings the map to `wanted`, what is denied first; returns whether it took all.
    pub fn apply(&mut self, wanted: &HashMap<Subject, EgressRules>) -> bool {
        let gone: Vec<Subject> = self.held.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for (prefix, subject) in gone {
            match self.map.remove(&Key::new(prefix, subject)) {
                Ok(()) | Err(MapError::KeyNotFound) => drop(self.held.remove(&(prefix, subject))),
                Err(error) => tracing::error!(map = map::EGRESS, %error, "cannot remove an entry"),
            }
        }
        let mut complete = true;
        for (subject, rules) in wanted {
            complete &= self.write(*subject, *rules);
        }
        complete
    }

    /// Writes one entry; returns whether the map took it.
    pub fn write(&mut self, (prefix, subject): Subject, rules: EgressRules) -> bool {
        if self.held.get(&(prefix, subject)) == Some(&Some(rules)) {
            return true;
        }
        match self.map.insert(&Key::new(prefix, subject), rules, 0) {
            Ok(()) => {
                self.held.insert((prefix, subject), Some(rules));
                true
            }
            Err(error) => {
                tracing::error!(map = map::EGRESS, %error, "the map takes no more: what it lacks is denied");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::egress::{EGRESS_TCP, EGRESS_UDP};

    use super::*;
    use crate::config::PortRange;

    fn network(text: &str, port: u16) -> EgressRule {
        rule(EgressTarget::Network(text.parse().unwrap()), port)
    }

    fn rule(to: EgressTarget, port: u16) -> EgressRule {
        EgressRule {
            to,
            ports: vec![PortRange { first: port, last: port }],
            protocols: EGRESS_TCP | EGRESS_UDP,
        }
    }

    fn web() -> ServiceName {
        "web".parse().unwrap()
    }

    /// The ports that the narrowest entry with `address` has, as the trie finds it.
    fn at(entries: &[(Subject, EgressRules)], address: &str) -> Vec<u16> {
        let addr = Addr::from(address.parse::<IpAddr>().unwrap());
        let bits = |addr: Addr| {
            addr.words().iter().fold(0_u128, |sum, word| sum << 32 | u128::from(u32::from_be(*word)))
        };
        let covers = |(prefix, subject): &Subject| {
            let len = prefix - EGRESS_SERVICE_BITS;
            len == 0 || (bits(subject.addr) ^ bits(addr)) >> (128 - len) == 0
        };
        let found = entries.iter().filter(|(key, _)| covers(key)).max_by_key(|((prefix, _), _)| *prefix);
        let ports = found.map(|(_, rules)| rules.0.iter().map(|r| r.first).take_while(|p| *p > 0).collect());
        let mut ports: Vec<u16> = ports.unwrap_or_default();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn the_narrowest_entry_has_what_wider_ones_allow() {
        let rules = [network("10.0.0.0/8", 443), network("10.1.0.0/16", 80), network("10.1.2.3/32", 22)];
        let all = entries(7, &web(), &rules, &Learnt::default());
        assert!(all.iter().all(|((_, subject), _)| subject.service == 7));
        assert_eq!(at(&all, "10.9.0.1"), [443]);
        assert_eq!(at(&all, "10.1.0.1"), [80, 443]);
        assert_eq!(at(&all, "10.1.2.3"), [22, 80, 443]);
        assert!(at(&all, "11.0.0.1").is_empty());
        assert!(at(&all, "fd00::1").is_empty());
    }

    #[test]
    fn all_of_ipv6_is_not_ipv4() {
        let all = entries(7, &web(), &[network("::/0", 443)], &Learnt::default());
        assert_eq!(at(&all, "2001:db8::1"), [443]);
        assert!(at(&all, "10.0.0.1").is_empty());
        let all = entries(7, &web(), &[network("::/0", 443), network("0.0.0.0/0", 80)], &Learnt::default());
        assert_eq!((at(&all, "::1"), at(&all, "10.0.0.1")), (vec![443], vec![80]));
    }

    #[test]
    fn addresses_of_names_are_let_until_they_are_out_of_date_and_for_that_workload_only() {
        let rules =
            [rule(EgressTarget::Name("*.example.com".parse().unwrap()), 443), network("10.0.0.0/8", 80)];
        let (mut learnt, start) = (Learnt::default(), Instant::now());
        let minute = Duration::from_secs(60);
        assert!(learnt.note(&web(), "api.example.com", "10.5.5.5".parse().unwrap(), 2 * minute, start));
        assert!(learnt.note(&web(), "other.org", "10.6.6.6".parse().unwrap(), 2 * minute, start));
        let all = entries(7, &web(), &rules, &learnt);
        assert_eq!(at(&all, "10.5.5.5"), [80, 443]);
        assert_eq!(at(&all, "10.6.6.6"), [80]);
        assert_eq!(at(&entries(8, &"cron".parse().unwrap(), &rules, &learnt), "10.5.5.5"), [80]);
        learnt.expire(start + minute);
        assert_eq!(at(&entries(7, &web(), &rules, &learnt), "10.5.5.5"), [80, 443]);
        learnt.expire(start + 2 * minute);
        assert_eq!(at(&entries(7, &web(), &rules, &learnt), "10.5.5.5"), [80]);
    }

    #[test]
    fn the_next_daemon_holds_what_is_still_valid_and_no_longer_than_that() {
        let rules = [rule(EgressTarget::Name("*.example.com".parse().unwrap()), 443)];
        let (mut before, start, clock) = (Learnt::default(), Instant::now(), SystemTime::now());
        let minute = Duration::from_secs(60);
        assert_eq!(before.changes(start, clock), None);
        before.note(&web(), "a.example.com", "10.5.5.5".parse().unwrap(), 3 * minute, start);
        before.note(&web(), "b.example.com", "10.6.6.6".parse().unwrap(), minute, start);
        let kept = before.changes(start, clock).unwrap();
        assert_eq!(before.changes(start, clock), None, "nothing new");
        before.not_kept();
        assert_eq!(before.changes(start, clock).map(|all| all.len()), Some(2), "the disk was full");

        let mut after = Learnt::default();
        let later = Instant::now();
        after.restore(kept.clone(), later, clock + 2 * minute);
        let all = |learnt: &Learnt| entries(7, &web(), &rules, learnt);
        assert_eq!(at(&all(&after), "10.5.5.5"), [443]);
        assert!(at(&all(&after), "10.6.6.6").is_empty(), "it was valid for a minute");
        after.expire(later + minute);
        assert!(at(&all(&after), "10.5.5.5").is_empty(), "its time did not begin anew");

        // The clock was set back by years; and the list decides, not what is kept.
        let mut odd = Learnt::default();
        odd.restore(kept, later, SystemTime::UNIX_EPOCH);
        assert!(entries(7, &web(), &[], &odd).iter().all(|(_, rules)| rules.0[0].first == 0));
        odd.expire(later + LONGEST);
        assert!(all(&odd).is_empty());
    }

    #[test]
    fn an_answer_without_a_lifetime_is_held_for_a_minute_and_there_is_a_bound() {
        let (mut learnt, start) = (Learnt::default(), Instant::now());
        let rules = [rule(EgressTarget::Name("a.test".parse().unwrap()), 443)];
        learnt.note(&web(), "a.test", "10.5.5.5".parse().unwrap(), Duration::ZERO, start);
        learnt.expire(start + SHORTEST / 2);
        assert_eq!(at(&entries(7, &web(), &rules, &learnt), "10.5.5.5"), [443]);
        for n in 1..MOST_LEARNT as u32 {
            assert!(learnt.note(&web(), "a.test", Ipv4Addr::from(n).into(), LONGEST, start));
        }
        assert!(!learnt.note(&web(), "a.test", "::1".parse().unwrap(), LONGEST, start));
        assert!(learnt.note(&web(), "a.test", "10.5.5.5".parse().unwrap(), LONGEST, start));
    }
}
