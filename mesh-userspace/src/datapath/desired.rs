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
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::datapath::elsewhere::Inhabited;
    use crate::{
        catalog::{Catalog, Instance, InstanceHealth},
        intention::{Action, Intention, Intentions},
    };

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    fn instance(service: &str, node: &str, address: &str) -> Instance {
        Instance {
            service: name(service),
            id: service.into(),
            node: node.into(),
            datacenter: "dc1".into(),
            namespace: "default".into(),
            address: address.parse().unwrap(),
            mesh: "10.0.0.2:21000".parse().unwrap(),
            health: InstanceHealth::Passing,
            weight: 1,
            meshnode: true,
            tags: Vec::new(),
            node_address: None,
        }
    }

    fn build(mesh: &Mesh, names: &mut Names) -> Desired {
        build_after(mesh, names, &mut Seen::nothing())
    }

    fn build_after(mesh: &Mesh, names: &mut Names, seen: &mut Seen) -> Desired {
        build_elsewhere(mesh, names, seen, Some(&Elsewhere::default()))
    }

    fn build_elsewhere(
        mesh: &Mesh,
        names: &mut Names,
        seen: &mut Seen,
        elsewhere: Option<&Elsewhere>,
    ) -> Desired {
        let services = [LocalService {
            name: name("web"),
            port: Some(80),
            address: "127.0.0.1".parse().unwrap(),
            announce_port: None,
            permissive: false,
            mesh_only: false,
            egress: Vec::new(),
            known_as: name("web"),
        }];
        let workloads =
            HashMap::from([(7, Classified { path: "/cg/web".into(), service: Some(name("web")), flags: 0 })]);
        let view = View {
            node: "a",
            services: &services,
            workloads: &workloads,
            classified_up_to: 9,
            addresses: &HashSet::from(["10.0.0.1".parse().unwrap()]),
            elsewhere,
            host_netns: 1,
            same_host_mtls: false,
            learnt: &Learnt::default(),
            resolving: 0,
            mesh,
        };
        desired(&view, names, seen).0
    }

    fn mesh(action: Action) -> Mesh {
        let intention = Intention {
            id: String::new(),
            source: "web".parse().unwrap(),
            destination: "db".parse().unwrap(),
            action,
            http: false,
        };
        Mesh {
            catalog: Some(Arc::new(Catalog::new(
                [instance("db", "b", "10.0.0.2:5432"), instance("web", "a", "10.0.0.1:80")],
                "a",
            ))),
            intentions: Some(Arc::new(Intentions::new([intention], Action::Deny))),
            ..Mesh::default()
        }
    }

    #[test]
    fn only_allowed_pairs_of_local_sources_are_in_the_policy() {
        let mut names = Names::default();
        let allowed = build(&mesh(Action::Allow), &mut names);
        let key = PolicyKey {
            source: names.id(&name("web")).unwrap(),
            destination: names.id(&name("db")).unwrap(),
        };
        assert_eq!(allowed.policy, Some(HashMap::from([(key, POLICY_ALLOW)])));
        assert_eq!(build(&mesh(Action::Deny), &mut names).policy, Some(HashMap::new()));
    }

    /// The destinations that are made anew and are not of this host.
    fn remote(desired: &Desired) -> Vec<Endpoint> {
        let all = desired.destinations.as_ref().expect("they are made anew");
        all.iter().filter(|(_, d)| d.flags & DESTINATION_HERE == 0).map(|(at, _)| *at).collect()
    }

    #[test]
    fn own_instances_are_protected_ports_and_not_remote_destinations() {
        let mut names = Names::default();
        let all = build(&mesh(Action::Allow), &mut names);
        let db: std::net::SocketAddr = "10.0.0.2:5432".parse().unwrap();
        assert_eq!(remote(&all), [Endpoint::from(db)]);
        assert_eq!(all.protected.keys().copied().collect::<Vec<_>>(), [ProtectedKey::new(1, Port::new(80))]);
    }

    #[test]
    fn a_service_in_a_namespace_of_its_own_is_protected_there_and_meant_at_its_address_from_everywhere() {
        let mut names = Names::default();
        let inhabited = Inhabited {
            services: [name("web")].into(),
            addresses: HashSet::from(["10.78.1.2".parse().unwrap()]),
        };
        let elsewhere = Elsewhere { namespaces: [(7, inhabited)].into(), ..Elsewhere::default() };
        let build = |names: &mut Names, elsewhere| {
            build_elsewhere(&mesh(Action::Allow), names, &mut Seen::nothing(), elsewhere)
        };
        let all = build(&mut names, Some(&elsewhere));
        let web = names.id(&name("web")).unwrap();
        let key = |netns| ProtectedKey::new(netns, Port::new(80));
        assert_eq!(all.protected[&key(7)], Protected { service: web, listener: web, flags: 0 });
        assert_eq!(
            all.protected[&key(1)].flags,
            PROTECTED_ELSEWHERE,
            "the host's own port leads to the proxy"
        );
        let own = |netns, ip: &str| HostAddrKey { netns, addr: Addr::from(ip.parse::<IpAddr>().unwrap()) };
        assert!(all.host_addrs.contains_key(&own(7, "10.78.1.2")));
        assert!(!all.host_addrs.contains_key(&own(1, "10.78.1.2")));
        let destinations = all.destinations.unwrap();
        for at in ["10.78.1.2:80", "10.0.0.1:80"] {
            let at: SocketAddr = at.parse().unwrap();
            let here = Destination { service: web, flags: DESTINATION_HERE };
            assert_eq!(destinations[&Endpoint::from(at)], here, "{at}");
        }
        assert!(!all.keep_elsewhere);

        let both = Elsewhere { at_home: [name("web")].into(), ..elsewhere.clone() };
        assert_eq!(build(&mut names, Some(&both)).protected[&key(1)].flags, 0);
        assert!(build(&mut names, None).keep_elsewhere, "an adopted map stays until one has looked");
    }

    #[test]
    fn nothing_read_yet_is_not_synced_and_allows_nothing() {
        let mut names = Names::default();
        let cold = build(&Mesh::default(), &mut names);
        assert_eq!(cold.settings.flags & SETTINGS_SYNCED, 0);
        assert!(cold.policy.as_ref().is_some_and(HashMap::is_empty) && remote(&cold).is_empty());
        assert_eq!(cold.protected.len(), 1, "protection does not wait for the control plane");
        assert_eq!(build(&mesh(Action::Allow), &mut names).settings.flags & SETTINGS_SYNCED, SETTINGS_SYNCED);
    }

    /// The mesh of `mesh`, in which each service has virtual IPs.
    fn named() -> Mesh {
        let ranges = crate::config::Config::default().address.virtual_ranges;
        let mut ips = VirtualIps::restore(ranges, std::collections::BTreeMap::new());
        ips.allocate([&name("web"), &name("db"), &name("mail")], |_| false);
        Mesh { virtual_ips: Arc::new(ips), ..mesh(Action::Allow) }
    }

    fn virtual_of(mesh: &Mesh, service: &str, v6: bool) -> Virtual {
        let ip = mesh.virtual_ips.of(&name(service)).unwrap();
        let ip = if v6 { IpAddr::V6(ip.v6.unwrap()) } else { IpAddr::V4(ip.v4.unwrap()) };
        build(mesh, &mut Names::default()).virtuals.unwrap()[&Addr::from(ip)]
    }

    #[test]
    fn a_virtual_ip_is_served_by_what_is_not_critical_and_first_by_this_host() {
        let mut mesh = named();
        assert_eq!(virtual_of(&mesh, "db", false).flags, VIRTUAL_SERVED);
        assert_eq!(virtual_of(&mesh, "mail", true).flags, 0, "nobody has heard of an instance");
        let web = virtual_of(&mesh, "web", false);
        assert_eq!(web.flags, VIRTUAL_SERVED | VIRTUAL_LOCAL);
        assert_eq!(SocketAddr::from(web.local).to_string(), "127.0.0.1:80");
        assert_eq!(virtual_of(&mesh, "web", true).flags, VIRTUAL_SERVED, "its program listens on IPv4 only");

        let ill = |service, node, address| Instance {
            health: InstanceHealth::Critical,
            ..instance(service, node, address)
        };
        let all = [ill("db", "b", "10.0.0.2:5432"), ill("web", "a", "10.0.0.1:80")];
        mesh.catalog = Some(Arc::new(Catalog::new(all, "a")));
        assert_eq!(virtual_of(&mesh, "db", false).flags, 0);
        assert_eq!(virtual_of(&mesh, "web", false).flags, 0);
        mesh.stale_since = Some(std::time::SystemTime::UNIX_EPOCH);
        assert_eq!(virtual_of(&mesh, "db", false).flags, VIRTUAL_SERVED, "it may have recovered since");
        assert_eq!(virtual_of(&mesh, "mail", false).flags, 0);
    }

    #[test]
    fn ranges_and_allowed_pairs_of_virtual_ips_reach_the_kernel() {
        let (mesh, mut names) = (named(), Names::default());
        let all = build(&mesh, &mut names);
        let ip = mesh.virtual_ips.of(&name("mail")).unwrap();
        let (v4, v6) = (Addr::from(IpAddr::V4(ip.v4.unwrap())), Addr::from(IpAddr::V6(ip.v6.unwrap())));
        assert!(all.settings.virtual4.contains(&v4) && all.settings.virtual6.contains(&v6));
        assert!(!all.settings.virtual4.contains(&v6));
        assert_eq!(all.virtuals.unwrap().len(), 6);
        let pair = |to| PolicyKey {
            source: names.id(&name("web")).unwrap(),
            destination: names.id(&name(to)).unwrap(),
        };
        let policy = all.policy.unwrap();
        assert!(policy.contains_key(&pair("db")) && !policy.contains_key(&pair("mail")));
    }

    #[test]
    fn only_what_may_have_changed_is_made_anew() {
        let (mut names, mut seen) = (Names::default(), Seen::nothing());
        let made = |desired: &Desired| (desired.destinations.is_some(), desired.policy.is_some());
        let mut current = mesh(Action::Allow);
        assert_eq!(made(&build_after(&current, &mut names, &mut seen)), (true, true));
        current.stale_since = Some(std::time::SystemTime::UNIX_EPOCH);
        assert_eq!(made(&build_after(&current, &mut names, &mut seen)), (false, false));
        current.intentions = mesh(Action::Deny).intentions;
        let denied = build_after(&current, &mut names, &mut seen);
        assert_eq!((denied.destinations, denied.policy), (None, Some(HashMap::new())));
        current.catalog = mesh(Action::Deny).catalog;
        assert_eq!(made(&build_after(&current, &mut names, &mut seen)), (true, true));
        seen.forget();
        assert_eq!(made(&build_after(&current, &mut names, &mut seen)), (true, true));
        current.catalog = None;
        assert_eq!(remote(&build_after(&current, &mut names, &mut seen)), []);
    }
}
