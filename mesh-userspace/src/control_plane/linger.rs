//! Instances that left the catalog are served for a while longer. Pure.
//!
//! A Consul agent that is restarted in order leaves the cluster, and one that lost its data comes back without services:
//! either takes every instance of its node out of the catalog, though the programs and their daemon still run. An
//! outage of the control plane must stop nobody from reaching them, and nobody may fall back to dialling them in clear.
//! What has really gone answers no more, which its callers see at once.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::catalog::{Instance, InstanceHealth};

/// How long. The datapath keeps a destination that left as long (`datapath::tables`).
pub const LINGER: Duration = Duration::from_secs(600);

/// What was in the catalog last, and what left it, by the address that programs dial.
#[derive(Debug, Default)]
pub struct Lingering {
    present: HashMap<SocketAddr, Instance>,
    /// With the time until which each is served.
    gone: HashMap<SocketAddr, (Instance, Instant)>,
}

impl Lingering {
    /// Begins with what was in the catalog when the disk cache was written.
    pub fn since(cached: &[Instance]) -> Self {
        let present = cached.iter().map(|i| (i.address, i.clone())).collect();
        Self { present, gone: HashMap::new() }
    }

    /// Returns `found` and the instances that left less than `linger` ago, in the order of a catalog. An address
    /// that another instance claims is that one's, and this host (`own_node`) knows its own services.
    pub fn with(
        &mut self,
        mut found: Vec<Instance>,
        own_node: &str,
        linger: Duration,
        now: Instant,
    ) -> Vec<Instance> {
        let claimed: HashSet<SocketAddr> = found.iter().map(|i| i.address).collect();
        let left = self.present.drain().filter(|(_, instance)| instance.node != own_node);
        for (address, instance) in left {
            let instance = Instance { health: instance.health.max(InstanceHealth::Gone), ..instance };
            self.gone.entry(address).or_insert((instance, now + linger));
        }
        self.gone.retain(|address, (_, until)| !claimed.contains(address) && now < *until);
        self.present = found.iter().map(|i| (i.address, i.clone())).collect();
        found.extend(self.gone.values().map(|(instance, _)| instance.clone()));
        found.sort_by(|a, b| (&a.service, &a.node, &a.id).cmp(&(&b.service, &b.node, &b.id)));
        found
    }

    /// When the first of those that left must be given up.
    pub fn until(&self) -> Option<Instant> {
        self.gone.values().map(|(_, until)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(instance: &Instance) -> [Instance; 1] {
        [Instance { health: InstanceHealth::Gone, ..instance.clone() }]
    }

    #[test]
    fn instance_that_left_is_served_for_ten_minutes() {
        let (mut all, start) = (Lingering::default(), Instant::now());
        let db = Instance::testing("db", "b", "10.0.0.2:5432");
        assert_eq!(all.with(vec![db.clone()], "a", LINGER, start).len(), 1);
        assert_eq!(all.until(), None);
        let soon = start + Duration::from_secs(1);
        assert_eq!(all.with(vec![], "a", LINGER, soon), gone(&db));
        assert_eq!(all.with(vec![], "a", LINGER, soon + LINGER / 2), gone(&db));
        assert_eq!(all.until(), Some(soon + LINGER));
        assert_eq!(all.with(vec![], "a", LINGER, soon + LINGER), []);
        assert_eq!(all.until(), None);
    }

    #[test]
    fn instance_that_comes_back_starts_anew() {
        let (mut all, start) = (Lingering::default(), Instant::now());
        let db = Instance::testing("db", "b", "10.0.0.2:5432");
        all.with(vec![db.clone()], "a", LINGER, start);
        all.with(vec![], "a", LINGER, start);
        assert_eq!(all.with(vec![db.clone()], "a", LINGER, start + LINGER / 2), std::slice::from_ref(&db));
        assert_eq!(all.with(vec![], "a", LINGER, start + LINGER), gone(&db));
    }

    #[test]
    fn address_that_another_instance_claims_is_that_ones() {
        let (mut all, now) = (Lingering::default(), Instant::now());
        all.with(vec![Instance::testing("db", "b", "10.0.0.2:5432")], "a", LINGER, now);
        let other = Instance::testing("cache", "c", "10.0.0.2:5432");
        assert_eq!(all.with(vec![other.clone()], "a", LINGER, now), [other]);
    }

    #[test]
    fn services_of_this_host_do_not_linger() {
        let (mut all, now) = (Lingering::default(), Instant::now());
        all.with(vec![Instance::testing("db", "a", "10.0.0.1:5432")], "a", LINGER, now);
        assert_eq!(all.with(vec![], "a", LINGER, now), []);
    }
}
