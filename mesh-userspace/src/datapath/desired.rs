//! What the maps should hold: a function of what the host knows, which leaves out what cannot have changed.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_common::{
    addr::{Addr, AddrRange, Endpoint, Port},
    egress::EgressRules,
    policy::{
        DESTINATION_HERE, DESTINATION_PERMISSIVE, Destination, HostAddrKey, Name, POLICY_ALLOW,
        PROTECTED_ELSEWHERE, PROTECTED_PERMISSIVE, PolicyKey, Protected, ProtectedKey, SETTINGS_MESH_ONLY,
        SETTINGS_SAME_HOST_MTLS, SETTINGS_SYNCED, ServiceId, Settings, VIRTUAL_LOCAL, VIRTUAL_SERVED,
        Virtual, Workload,
    },
};

use super::{
    classify::Classified,
    egress::{self, Learnt, Subject},
    elsewhere::Elsewhere,
    names::Names,
};
use crate::{
    catalog::{Catalog, InstanceHealth, IpRange, Placed, VirtualIps},
    config::EgressRule,
    identity::ServiceName,
    intention::Intentions,
    state::Mesh,
};

/// A service of this host, as far as the kernel cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalService {
    pub name: ServiceName,
    /// The port that its programs listen on, when it is protected.
    pub port: Option<u16>,
    /// The port that it is announced at, where its programs are in network namespaces of their own and nowhere else.
    pub announce_port: Option<u16>,
    /// Where its program is dialled, with that port.
    pub address: IpAddr,
    pub permissive: bool,
    pub mesh_only: bool,
    /// What it may reach outside the mesh all the same, if it is `mesh-only`.
    pub egress: Vec<EgressRule>,
    /// The service that its programs are known as: itself, unless an earlier one selects the same cgroups.
    pub known_as: ServiceName,
}

impl LocalService {
    /// The port of the host's addresses that means it.
    fn host_port(&self) -> Option<u16> {
        self.announce_port.or(self.port)
    }
}

/// Everything that the maps depend on.
pub struct View<'a> {
    pub node: &'a str,
    pub services: &'a [LocalService],
    pub workloads: &'a HashMap<u64, Classified>,
    pub classified_up_to: u64,
    pub addresses: &'a HashSet<IpAddr>,
    /// `None`: not looked yet.
    pub elsewhere: Option<&'a Elsewhere>,
    pub host_netns: u64,
    pub same_host_mtls: bool,
    pub learnt: &'a Learnt,
    /// `SETTINGS_DNS*`.
    pub resolving: u32,
    pub mesh: &'a Mesh,
}

/// The contents of the maps that the daemon writes.
#[derive(Debug, PartialEq, Eq)]
pub struct Desired {
    pub workloads: HashMap<u64, Workload>,
    /// `None`: the same as last time.
    pub destinations: Option<HashMap<Endpoint, Destination>>,
    /// `None`: the same as last time.
    pub virtuals: Option<HashMap<Addr, Virtual>>,
    pub protected: HashMap<ProtectedKey, Protected>,
    /// `None`: the same as last time.
    pub policy: Option<HashMap<PolicyKey, u32>>,
    pub host_addrs: HashMap<HostAddrKey, u32>,
    /// What the maps hold of other network namespaces than the host's stays as it is.
    pub keep_elsewhere: bool,
    pub egress: HashMap<Subject, EgressRules>,
    pub settings: Settings,
}

/// What [`Desired`] was made from last time.
#[derive(Debug, Default)]
pub struct Seen {
    catalog: Option<Arc<Catalog>>,
    intentions: Option<Arc<Intentions>>,
    virtual_ips: Option<Arc<VirtualIps>>,
    services: Vec<LocalService>,
    local: HashSet<ServiceName>,
    /// The control plane did not answer.
    out_of_date: bool,
    addresses: HashSet<IpAddr>,
    elsewhere: Option<Elsewhere>,
    /// Nothing was seen, or the maps do not hold all of it.
    stale: bool,
}

impl Seen {
    pub fn nothing() -> Self {
        Self { stale: true, ..Self::default() }
    }

    /// Has all of it made and written anew next time.
    pub fn forget(&mut self) {
        self.stale = true;
    }

    /// Takes in what is there now; returns what may be another than before.
    fn compare(&mut self, view: &View<'_>, local: &HashSet<&ServiceName>) -> Moved {
        let same = |a: Option<*const ()>, b: Option<*const ()>| a == b;
        let catalog = same(address(&self.catalog), address(&view.mesh.catalog));
        let intentions = same(address(&self.intentions), address(&view.mesh.intentions));
        let virtual_ips =
            self.virtual_ips.as_ref().is_some_and(|known| Arc::ptr_eq(known, &view.mesh.virtual_ips));
        let health = self.out_of_date == view.mesh.stale_since.is_some() && self.services == view.services;
        let locals = self.local.len() == local.len() && local.iter().all(|name| self.local.contains(*name));
        let addresses = self.addresses == *view.addresses;
        let here = self.services == view.services && self.elsewhere.as_ref() == view.elsewhere;
        let stale = std::mem::take(&mut self.stale);
        // Held, so that no later one gets the same address.
        self.catalog.clone_from(&view.mesh.catalog);
        self.intentions.clone_from(&view.mesh.intentions);
        self.virtual_ips = Some(Arc::clone(&view.mesh.virtual_ips));
        self.out_of_date = view.mesh.stale_since.is_some();
        if !health {
            self.services = view.services.to_vec();
        }
        if !locals {
            self.local = local.iter().copied().cloned().collect();
        }
        if !addresses {
            self.addresses.clone_from(view.addresses);
        }
        if !here {
            self.elsewhere = view.elsewhere.cloned();
        }
        Moved {
            destinations: stale || !catalog || !addresses || !here,
            virtuals: stale || !catalog || !virtual_ips || !health || !here,
            policy: stale || !catalog || !virtual_ips || !intentions || !locals,
        }
    }
}

/// Which maps may have to hold something else.
struct Moved {
    destinations: bool,
    virtuals: bool,
    policy: bool,
}

/// Returns the address of what is shared, to compare it by.
fn address<T>(shared: &Option<Arc<T>>) -> Option<*const ()> {
    shared.as_ref().map(|shared| Arc::as_ptr(shared).cast())
}

/// Returns what the maps should hold, and the entries of `NAMES` that are new.
pub fn desired(view: &View<'_>, names: &mut Names, seen: &mut Seen) -> (Desired, Vec<(ServiceId, Name)>) {
    let local: HashSet<&ServiceName> = view
        .services
        .iter()
        .map(|s| &s.name)
        .chain(view.workloads.values().filter_map(|w| w.service.as_ref()))
        .collect();
    let moved = seen.compare(view, &local);
    let catalog = view.mesh.catalog.as_deref();
    // Others have their numbers already, when neither moved.
    let instances = catalog.filter(|_| moved.destinations || moved.policy);
    let known: HashSet<&ServiceName> = local
        .iter()
        .copied()
        .chain(instances.into_iter().flat_map(|c| c.instances().map(|i| &i.service)))
        .chain(view.mesh.virtual_ips.iter().filter(|_| moved.virtuals || moved.policy).map(|(_, name)| name))
        .collect();
    let added = names.assign(known.iter().copied());
    let id = |name: &ServiceName| names.id(name).expect("every known name was assigned above");

    let desired = Desired {
        workloads: view
            .workloads
            .iter()
            .map(|(cgroup, c)| {
                (*cgroup, Workload { service: c.service.as_ref().map_or(0, id), flags: c.flags })
            })
            .collect(),
        destinations: moved.destinations.then(|| {
            catalog
                .into_iter()
                .flat_map(|c| c.instances())
                .filter(|i| !(i.node == view.node && is_own(i.address.ip(), view.addresses)))
                .map(|i| (Endpoint::from(i.address), Destination { service: id(&i.service), flags: 0 }))
                .chain(here(view, id))
                .collect()
        }),
        virtuals: moved.virtuals.then(|| virtuals(view, id)),
        protected: protected(view, id),
        policy: moved.policy.then(|| policy(view.mesh, &local, &known, id)),
        host_addrs: host_addrs(view),
        keep_elsewhere: view.elsewhere.is_none(),
        egress: view
            .services
            .iter()
            .filter(|s| s.mesh_only)
            .flat_map(|s| egress::entries(id(&s.name), &s.name, &s.egress, view.learnt))
            .collect(),
        settings: Settings {
            flags: if view.mesh.is_synced() { SETTINGS_SYNCED } else { 0 }
                | if view.same_host_mtls { SETTINGS_SAME_HOST_MTLS } else { 0 }
                | if view.services.iter().any(|s| s.mesh_only) { SETTINGS_MESH_ONLY } else { 0 }
                | view.resolving,
            pad: 0,
            classified_up_to: view.classified_up_to,
            host_netns: view.host_netns,
            virtual4: range(view.mesh.virtual_ips.ranges().v4),
            virtual6: range(view.mesh.virtual_ips.ranges().v6),
        },
    };
    (desired, added)
}

fn range(range: Option<IpRange>) -> AddrRange {
    range.map_or(AddrRange::NONE, |range| AddrRange::new(range.first(), range.prefix()))
}

/// Returns what each virtual IP means. While the control plane does not answer, health may be that of long ago: then a
/// service is served if it has any instance, and the proxy finds out.
fn virtuals(view: &View<'_>, id: impl Fn(&ServiceName) -> ServiceId) -> HashMap<Addr, Virtual> {
    let trusted = view.mesh.stale_since.is_none();
    let serves = |placed: &&Placed| !trusted || placed.instance.health != InstanceHealth::Critical;
    let of = |(ip, name): (IpAddr, &ServiceName)| {
        let instances = view.mesh.catalog.as_deref().map_or(&[][..], |catalog| catalog.instances_of(name));
        let own = instances.iter().filter(serves).any(|placed| placed.own);
        let program = view.services.iter().filter(|s| own && s.name == *name && !is_away(view, s));
        let program = program
            .filter_map(|s| Some(SocketAddr::new(s.address, s.port?)))
            .find(|to| to.is_ipv4() == ip.is_ipv4());
        let served = if instances.iter().any(|placed| serves(&placed)) { VIRTUAL_SERVED } else { 0 };
        let value = Virtual {
            service: id(name),
            flags: served | if program.is_some() { VIRTUAL_LOCAL } else { 0 },
            local: program.map_or(Endpoint::UNSPECIFIED, Endpoint::from),
        };
        (Addr::from(ip), value)
    };
    view.mesh.virtual_ips.iter().map(of).collect()
}

fn is_own(ip: IpAddr, addresses: &HashSet<IpAddr>) -> bool {
    addresses.contains(&ip) || Addr::from(ip).is_loopback()
}

/// Returns the protected ports of the host's network namespace and of those that services have of their own.
fn protected(view: &View<'_>, id: impl Fn(&ServiceName) -> ServiceId) -> HashMap<ProtectedKey, Protected> {
    let entry = |netns, port, service: &LocalService, away: bool| {
        let flags = if service.permissive { PROTECTED_PERMISSIVE } else { 0 }
            | if away { PROTECTED_ELSEWHERE } else { 0 };
        let (owner, listener) = (id(&service.name), id(&service.known_as));
        (ProtectedKey::new(netns, Port::new(port)), Protected { service: owner, listener, flags })
    };
    let at_home = view
        .services
        .iter()
        .filter_map(|s| Some(entry(view.host_netns, s.host_port()?, s, is_away(view, s))));
    let elsewhere = listening_elsewhere(view).map(|(netns, _, s, port)| entry(netns, port, s, false));
    at_home.chain(elsewhere).collect()
}

/// Whether the service's programs are in network namespaces of their own.
fn is_away(view: &View<'_>, service: &LocalService) -> bool {
    service.announce_port.is_some() || view.elsewhere.is_some_and(|all| all.is_away(&service.known_as))
}

/// Returns, for each network namespace of a service's own, the cookie, its addresses, the service and its port there.
fn listening_elsewhere<'v>(
    view: &View<'v>,
) -> impl Iterator<Item = (u64, &'v HashSet<IpAddr>, &'v LocalService, u16)> {
    let services = view.services;
    let namespaces = view.elsewhere.into_iter().flat_map(|all| &all.namespaces);
    namespaces.flat_map(move |(netns, inhabited)| {
        let there = services.iter().filter(|s| inhabited.services.contains(&s.known_as));
        there.filter_map(|s| Some((*netns, &inhabited.addresses, s, s.port?)))
    })
}

/// Returns what a dial from another network namespace means: this host's services at the host's addresses, and those in
/// namespaces of their own at the addresses of these.
fn here(view: &View<'_>, id: impl Fn(&ServiceName) -> ServiceId) -> Vec<(Endpoint, Destination)> {
    let destination = |service: &LocalService| Destination {
        service: id(&service.name),
        flags: DESTINATION_HERE | if service.permissive { DESTINATION_PERMISSIVE } else { 0 },
    };
    let at = |ip: &IpAddr, port| Endpoint::from(SocketAddr::new(*ip, port));
    let elsewhere = listening_elsewhere(view).flat_map(|(_, addresses, service, port)| {
        addresses.iter().map(move |ip| (at(ip, port), destination(service)))
    });
    let by_host = view
        .services
        .iter()
        .filter_map(|s| Some((s, s.host_port()?)))
        .flat_map(|(s, port)| view.addresses.iter().map(move |ip| (at(ip, port), destination(s))));
    elsewhere.chain(by_host).collect()
}

fn host_addrs(view: &View<'_>) -> HashMap<HostAddrKey, u32> {
    let key = |netns, ip: &IpAddr| (HostAddrKey { netns, addr: Addr::from(*ip) }, 1);
    let elsewhere = listening_elsewhere(view)
        .flat_map(|(netns, addresses, ..)| addresses.iter().map(move |ip| key(netns, ip)));
    view.addresses.iter().map(|ip| key(view.host_netns, ip)).chain(elsewhere).collect()
}

fn policy(
    mesh: &Mesh,
    local: &HashSet<&ServiceName>,
    known: &HashSet<&ServiceName>,
    id: impl Fn(&ServiceName) -> ServiceId,
) -> HashMap<PolicyKey, u32> {
    let Some(intentions) = mesh.intentions.as_deref() else { return HashMap::new() };
    let mut pairs = HashMap::new();
    for source in local {
        for destination in known.iter().filter(|destination| intentions.allows(source, destination)) {
            pairs.insert(PolicyKey { source: id(source), destination: id(destination) }, POLICY_ALLOW);
        }
    }
    pairs
}

#[cfg(test)]
mod tests;
