//! The maps that the daemon writes, and how they get from what they hold to what they should hold.
//!
//! Order matters while a change is under way: what is denied goes first, what is allowed last, so that no moment
//! lets through more than the state before and the state after both do.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap as BpfHashMap, Map, MapData, MapError},
};
use mesh_common::{
    addr::{Addr, Endpoint, Port},
    map,
    policy::{
        DESTINATION_HERE, Destination, HostAddrKey, Name, PROTECTED_PERMISSIVE, PolicyKey, Protected,
        ProtectedKey, SETTINGS_INCOMPLETE, ServiceId, Settings, Virtual, Workload,
    },
};

use super::{desired::Desired, egress::EgressTable};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    #[error("the BPF object has no map {0}: it was built from other sources, run `cargo xtask build-ebpf`")]
    Missing(&'static str),
    #[error("map {name}: {source}")]
    Map { name: &'static str, source: MapError },
}

/// How long an instance that left the catalog is still no outside destination: its clients must not fall back to
/// cleartext because a host drains or an agent restarts.
const LINGER: Duration = Duration::from_secs(600);
/// The same of a container's own address, which the next container may get.
const LINGER_HERE: Duration = Duration::from_secs(30);

/// A hash map in the kernel with a copy of what it holds.
struct Table<K: Pod, V: Pod> {
    name: &'static str,
    map: BpfHashMap<MapData, K, V>,
    held: HashMap<K, V>,
    /// The kernel refused a change of it last time.
    refused: bool,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Table<K, V> {
    fn open(ebpf: &mut Ebpf, name: &'static str) -> Result<Self, TableError> {
        let map = BpfHashMap::<MapData, K, V>::try_from(take(ebpf, name)?)
            .map_err(|source| TableError::Map { name, source })?;
        let held = map.iter().collect::<Result<_, _>>().map_err(|source| TableError::Map { name, source })?;
        Ok(Self { name, map, held, refused: false })
    }

    /// Removes what is not wanted; returns whether there was any.
    fn shrink(&mut self, wanted: impl Fn(&K) -> bool) -> bool {
        self.refused = false;
        let gone: Vec<K> = self.held.keys().filter(|key| !wanted(key)).copied().collect();
        gone.iter().for_each(|key| self.remove(key));
        !gone.is_empty()
    }

    fn remove(&mut self, key: &K) {
        match self.map.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => drop(self.held.remove(key)),
            Err(error) => {
                self.refused = true;
                tracing::error!(map = self.name, %error, "cannot remove an entry");
            }
        }
    }

    /// Writes what is wanted; returns the keys that the map did not take.
    fn grow(&mut self, wanted: &HashMap<K, V>) -> Vec<K> {
        let mut refused = Vec::new();
        for (key, value) in wanted {
            if self.held.get(key) == Some(value) {
                continue;
            }
            match self.map.insert(key, value, 0) {
                Ok(()) => drop(self.held.insert(*key, *value)),
                Err(error) => {
                    if refused.is_empty() {
                        tracing::error!(map = self.name, %error, "the map takes no more: what it lacks is denied (raise [limits])");
                    }
                    refused.push(*key);
                }
            }
        }
        refused
    }
}

/// Every map that the daemon writes.
pub struct Tables {
    workloads: Table<u64, Workload>,
    destinations: Table<Endpoint, Destination>,
    virtuals: Table<Addr, Virtual>,
    protected: Table<ProtectedKey, Protected>,
    policy: Table<PolicyKey, u32>,
    host_addrs: Table<HostAddrKey, u32>,
    host_netns: u64,
    pub(super) egress: EgressTable,
    names: Table<ServiceId, Name>,
    settings: Array<MapData, Settings>,
    current: Option<Settings>,
    /// Destinations that left, and when.
    retired: HashMap<Endpoint, Instant>,
    /// Entries that `NAMES` has not taken yet.
    unwritten: HashMap<ServiceId, Name>,
    /// The last change took an allowed pair away.
    shrunk: bool,
    /// An earlier daemon had filled the maps.
    filled: bool,
    incomplete: Vec<&'static str>,
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, TableError> {
    ebpf.take_map(name).ok_or(TableError::Missing(name))
}

impl Tables {
    pub fn open(ebpf: &mut Ebpf) -> Result<Self, TableError> {
        let failed = |source| TableError::Map { name: map::SETTINGS, source };
        let settings = Array::<_, Settings>::try_from(take(ebpf, map::SETTINGS)?).map_err(failed)?;
        let before = settings.get(&0, 0).map_err(failed)?;
        Ok(Self {
            workloads: Table::open(ebpf, map::WORKLOADS)?,
            destinations: Table::open(ebpf, map::DESTINATIONS)?,
            virtuals: Table::open(ebpf, map::VIRTUALS)?,
            protected: Table::open(ebpf, map::PROTECTED)?,
            policy: Table::open(ebpf, map::POLICY)?,
            host_addrs: Table::open(ebpf, map::HOST_ADDRS)?,
            egress: EgressTable::open(ebpf)?,
            names: Table::open(ebpf, map::NAMES)?,
            host_netns: before.host_netns,
            settings,
            current: None,
            retired: HashMap::new(),
            unwritten: HashMap::new(),
            shrunk: false,
            filled: before.host_netns != 0,
            incomplete: Vec::new(),
        })
    }

    /// Returns the entries of `NAMES`.
    pub fn names(&self) -> impl Iterator<Item = (ServiceId, Name)> + '_ {
        self.names.held.iter().map(|(id, name)| (*id, *name))
    }

    /// Whether an earlier daemon had filled the maps when this one took them over.
    pub fn were_filled(&self) -> bool {
        self.filled
    }

    /// Whether the kernel's map has a workload for the cgroup `id`.
    pub fn has_workload(&self, id: u64) -> bool {
        self.workloads.held.contains_key(&id)
    }

    /// Returns the maps that could not take all they should hold.
    pub fn incomplete(&self) -> &[&'static str] {
        &self.incomplete
    }

    /// Whether the last change took an allowed pair away: a `connect()` under way may have read it before.
    pub fn shrunk(&self) -> bool {
        self.shrunk
    }

    /// The service of the remote instance at `endpoint`.
    pub fn destination(&self, endpoint: Endpoint) -> Option<ServiceId> {
        self.destinations.held.get(&endpoint).map(|destination| destination.service)
    }

    /// The service that a strictly guarded port belongs to, in the network namespace with the cookie `netns` (`None`: the
    /// host's).
    pub fn guarded(&self, netns: Option<u64>, port: Port) -> Option<ServiceId> {
        let protected =
            self.protected.held.get(&ProtectedKey::new(netns.unwrap_or(self.host_netns), port))?;
        (protected.flags & PROTECTED_PERMISSIVE == 0).then_some(protected.service)
    }

    /// Whether an address, other than a loopback one, is that namespace's.
    pub fn is_own(&self, netns: Option<u64>, addr: Addr) -> bool {
        self.host_addrs.held.contains_key(&HostAddrKey { netns: netns.unwrap_or(self.host_netns), addr })
    }

    pub fn allows(&self, key: PolicyKey) -> bool {
        self.policy.held.contains_key(&key)
    }

    /// Whether the maps hold all that they should; what they do not is tried again.
    pub fn is_settled(&self) -> bool {
        self.incomplete.is_empty()
            && !self.policy.refused
            && !self.destinations.refused
            && !self.virtuals.refused
    }

    /// Brings the maps to `desired`; `names` are entries of `NAMES` that are new.
    pub fn apply(
        &mut self,
        mut desired: Desired,
        names: Vec<(ServiceId, Name)>,
        now: Instant,
    ) -> Result<(), TableError> {
        self.incomplete.clear();
        self.host_netns = desired.settings.host_netns;
        self.unwritten.extend(names);
        self.shrunk = desired.policy.as_ref().is_some_and(|p| self.policy.shrink(|key| p.contains_key(key)));
        let refused = self.names.grow(&self.unwritten);
        self.unwritten.retain(|id, _| refused.contains(id));
        for (name, full) in [
            (map::NAMES, !refused.is_empty()),
            (map::HOST_ADDRS, !self.host_addrs.grow(&desired.host_addrs).is_empty()),
            (map::PROTECTED, !self.protected.grow(&desired.protected).is_empty()),
            (map::VIRTUALS, desired.virtuals.as_ref().is_some_and(|v| !self.virtuals.grow(v).is_empty())),
            (
                map::DESTINATIONS,
                desired.destinations.as_ref().is_some_and(|d| !self.destinations.grow(d).is_empty()),
            ),
        ] {
            if full {
                self.incomplete.push(name);
            }
        }
        if !self.incomplete.is_empty() {
            desired.settings.flags |= SETTINGS_INCOMPLETE;
        }
        if !self.egress.apply(&desired.egress) {
            self.incomplete.push(map::EGRESS);
        }
        self.workloads.shrink(|key| desired.workloads.contains_key(key));
        // A cgroup that found no room stays unclassified: the mesh is denied to it, and to all younger ones.
        if let Some(oldest) = self.workloads.grow(&desired.workloads).into_iter().min() {
            self.incomplete.push(map::WORKLOADS);
            desired.settings.classified_up_to = desired.settings.classified_up_to.min(oldest - 1);
        }
        if desired.policy.as_ref().is_some_and(|policy| !self.policy.grow(policy).is_empty()) {
            self.incomplete.push(map::POLICY);
        }
        if self.current != Some(desired.settings) {
            self.settings
                .set(0, desired.settings, 0)
                .map_err(|source| TableError::Map { name: map::SETTINGS, source })?;
            self.current = Some(desired.settings);
        }
        self.retire(&desired, now);
        if let Some(virtuals) = &desired.virtuals {
            self.virtuals.shrink(|key| virtuals.contains_key(key));
        }
        let kept = |netns| desired.keep_elsewhere && netns != self.host_netns;
        self.protected.shrink(|key| desired.protected.contains_key(key) || kept(key.netns));
        self.host_addrs.shrink(|key| desired.host_addrs.contains_key(key) || kept(key.netns));
        Ok(())
    }

    /// Removes destinations that left long ago, or have become this host's own; those that just left stay.
    fn retire(&mut self, desired: &Desired, now: Instant) {
        if let Some(wanted) = &desired.destinations {
            for endpoint in self.destinations.held.keys().filter(|endpoint| !wanted.contains_key(endpoint)) {
                self.retired.entry(*endpoint).or_insert(now);
            }
            self.retired.retain(|endpoint, _| !wanted.contains_key(endpoint));
            self.destinations.refused = false;
        }
        let over: Vec<Endpoint> = self
            .retired
            .iter()
            .filter(|(endpoint, since)| {
                let own = HostAddrKey { netns: desired.settings.host_netns, addr: endpoint.addr };
                let here =
                    self.destinations.held.get(endpoint).is_some_and(|d| d.flags & DESTINATION_HERE != 0);
                desired.host_addrs.contains_key(&own)
                    || now.saturating_duration_since(**since) >= if here { LINGER_HERE } else { LINGER }
            })
            .map(|(endpoint, _)| *endpoint)
            .collect();
        for endpoint in over {
            self.retired.remove(&endpoint);
            self.destinations.remove(&endpoint);
        }
    }
}
