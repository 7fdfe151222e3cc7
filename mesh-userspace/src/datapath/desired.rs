//! What the maps should hold: a function of what the host knows, which leaves out what cannot have changed.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use mesh_common::{
    addr::{Addr, Endpoint, Port},
    policy::{
        Destination, Name, POLICY_ALLOW, PROTECTED_PERMISSIVE, PolicyKey, Protected, ProtectedKey,
        SETTINGS_SAME_HOST_MTLS, SETTINGS_SYNCED, ServiceId, Settings, Workload,
    },
};

use super::{classify::Classified, names::Names};
use crate::{catalog::Catalog, identity::ServiceName, intention::Intentions, state::Mesh};

/// A service of this host, as far as the kernel cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalService {
    pub name: ServiceName,
    /// The port that its programs listen on, when it is protected.
    pub port: Option<u16>,
    pub permissive: bool,
    /// The service that its programs are known as: itself, unless an earlier one selects the same cgroups.
    pub known_as: ServiceName,
}

/// Everything that the maps depend on.
pub struct View<'a> {
    pub node: &'a str,
    pub services: &'a [LocalService],
    pub workloads: &'a HashMap<u64, Classified>,
    pub classified_up_to: u64,
    pub addresses: &'a HashSet<IpAddr>,
    pub host_netns: u64,
    pub same_host_mtls: bool,
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
    pub protected: HashMap<ProtectedKey, Protected>,
    /// `None`: the same as last time.
    pub policy: Option<HashMap<PolicyKey, u32>>,
    pub host_addrs: HashMap<Addr, u32>,
    pub settings: Settings,
}

/// What [`Desired`] was made from last time.
#[derive(Debug, Default)]
pub struct Seen {
    catalog: Option<Arc<Catalog>>,
    intentions: Option<Arc<Intentions>>,
    local: HashSet<ServiceName>,
    addresses: HashSet<IpAddr>,
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

    /// Takes in what is there now; returns whether destinations, and the policy, may be others than before.
    fn compare(&mut self, view: &View<'_>, local: &HashSet<&ServiceName>) -> (bool, bool) {
        let same = |a: Option<*const ()>, b: Option<*const ()>| a == b;
        let catalog = same(address(&self.catalog), address(&view.mesh.catalog));
        let intentions = same(address(&self.intentions), address(&view.mesh.intentions));
        let locals = self.local.len() == local.len() && local.iter().all(|name| self.local.contains(*name));
        let addresses = self.addresses == *view.addresses;
        let stale = std::mem::take(&mut self.stale);
        // Held, so that no later one gets the same address.
        self.catalog.clone_from(&view.mesh.catalog);
        self.intentions.clone_from(&view.mesh.intentions);
        if !locals {
            self.local = local.iter().copied().cloned().collect();
        }
        if !addresses {
            self.addresses.clone_from(view.addresses);
        }
        (stale || !catalog || !addresses, stale || !catalog || !intentions || !locals)
    }
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
    let (destinations_moved, policy_moved) = seen.compare(view, &local);
    let catalog = view.mesh.catalog.as_deref();
    // Others have their numbers already, when neither moved.
    let instances = catalog.filter(|_| destinations_moved || policy_moved);
    let known: HashSet<&ServiceName> = local
        .iter()
        .copied()
        .chain(instances.into_iter().flat_map(|c| c.instances().map(|i| &i.service)))
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
        destinations: destinations_moved.then(|| {
            catalog
                .into_iter()
                .flat_map(|c| c.instances())
                .filter(|i| !(i.node == view.node && is_own(i.address.ip(), view.addresses)))
                .map(|i| (Endpoint::from(i.address), Destination { service: id(&i.service), pad: 0 }))
                .collect()
        }),
        protected: view
            .services
            .iter()
            .filter_map(|s| Some((s, s.port?)))
            .map(|(s, port)| protected(s, port, id))
            .collect(),
        policy: policy_moved.then(|| policy(view.mesh, &local, &known, id)),
        host_addrs: view.addresses.iter().map(|ip| (Addr::from(*ip), 1)).collect(),
        settings: Settings {
            flags: if view.mesh.is_synced() { SETTINGS_SYNCED } else { 0 }
                | if view.same_host_mtls { SETTINGS_SAME_HOST_MTLS } else { 0 }
                | view.resolving,
            pad: 0,
            classified_up_to: view.classified_up_to,
            host_netns: view.host_netns,
        },
    };
    (desired, added)
}

fn is_own(ip: IpAddr, addresses: &HashSet<IpAddr>) -> bool {
    addresses.contains(&ip) || Addr::from(ip).is_loopback()
}

fn protected(
    service: &LocalService,
    port: u16,
    id: impl Fn(&ServiceName) -> ServiceId,
) -> (ProtectedKey, Protected) {
    let flags = if service.permissive { PROTECTED_PERMISSIVE } else { 0 };
    let (service, listener) = (id(&service.name), id(&service.known_as));
    (ProtectedKey::new(Port::new(port)), Protected { service, listener, flags })
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
        }
    }

    fn build(mesh: &Mesh, names: &mut Names) -> Desired {
        build_after(mesh, names, &mut Seen::nothing())
    }

    fn build_after(mesh: &Mesh, names: &mut Names, seen: &mut Seen) -> Desired {
        let services =
            [LocalService { name: name("web"), port: Some(80), permissive: false, known_as: name("web") }];
        let workloads =
            HashMap::from([(7, Classified { path: "/cg/web".into(), service: Some(name("web")), flags: 0 })]);
        let view = View {
            node: "a",
            services: &services,
            workloads: &workloads,
            classified_up_to: 9,
            addresses: &HashSet::from(["10.0.0.1".parse().unwrap()]),
            host_netns: 1,
            same_host_mtls: false,
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

    #[test]
    fn own_instances_are_protected_ports_and_not_remote_destinations() {
        let mut names = Names::default();
        let all = build(&mesh(Action::Allow), &mut names);
        let db: std::net::SocketAddr = "10.0.0.2:5432".parse().unwrap();
        assert_eq!(all.destinations.unwrap().keys().copied().collect::<Vec<_>>(), [Endpoint::from(db)]);
        assert_eq!(all.protected.keys().copied().collect::<Vec<_>>(), [ProtectedKey::new(Port::new(80))]);
    }

    #[test]
    fn nothing_read_yet_is_not_synced_and_allows_nothing() {
        let mut names = Names::default();
        let cold = build(&Mesh::default(), &mut names);
        assert_eq!(cold.settings.flags & SETTINGS_SYNCED, 0);
        assert!(cold.policy.unwrap().is_empty() && cold.destinations.unwrap().is_empty());
        assert_eq!(cold.protected.len(), 1, "protection does not wait for the control plane");
        assert_eq!(build(&mesh(Action::Allow), &mut names).settings.flags & SETTINGS_SYNCED, SETTINGS_SYNCED);
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
        assert_eq!(build_after(&current, &mut names, &mut seen).destinations, Some(HashMap::new()));
    }
}
