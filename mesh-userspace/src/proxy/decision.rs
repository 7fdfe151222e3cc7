//! Who may connect to whom, with which certificate: pure decisions over one view of the mesh.

use std::{collections::HashSet, net::SocketAddr, sync::Arc, time::SystemTime};

use super::{
    flow::{Direction, Flow, Origin},
    reason::Reason,
};
use crate::{
    catalog::Placed,
    identity::{Leaf, Roots, ServiceName, SpiffeId},
    intention::{Action, Intention, Intentions},
    state::Mesh,
};

/// What a TLS connection of a local service needs.
pub(super) struct Identity {
    pub(super) leaf: Arc<Leaf>,
    pub(super) roots: Arc<Roots>,
}

/// Where a captured connection goes, and as whom.
pub(super) struct Route {
    pub(super) identity: Identity,
    pub(super) targets: Targets,
}

/// The instances that a dialled address means.
pub(super) enum Targets {
    /// The one that has it.
    One(Placed),
    /// A virtual IP means all of its service's; there is one at least.
    AnyOf(Arc<[Placed]>),
}

/// Returns the route of a captured connection to `original_dst`, if it may be at all.
pub(super) fn route(
    mesh: &Mesh,
    origin: &Origin,
    original_dst: SocketAddr,
    now: SystemTime,
) -> Result<Route, Reason> {
    let Origin { source, destination, .. } = origin;
    authorize(mesh, source, destination)?;
    let catalog = mesh.catalog.as_ref().ok_or(Reason::NotSynced)?;
    let expected = |found: &ServiceName| match destination == found {
        true => Ok(()),
        false => Err(Reason::OtherService { expected: destination.clone(), found: found.clone() }),
    };
    // In the kernel's order: an instance's own address is that instance, even among those of virtual IPs.
    let targets = if let Some(placed) = catalog.placed_at(original_dst) {
        expected(&placed.instance.service)?;
        Some(Targets::One(placed.clone()))
    } else if let Some(service) = mesh.virtual_ips.service_at(original_dst.ip()) {
        expected(service)?;
        catalog.share_of(destination).map(Targets::AnyOf)
    } else {
        let own = catalog.own_placed(destination, original_dst.port());
        own.or_else(|| catalog.own_placed_of(destination)).cloned().map(Targets::One)
    };
    let targets = targets.ok_or_else(|| Reason::NoInstance(destination.clone()))?;
    Ok(Route { identity: identity(mesh, source, now)?, targets })
}

/// Refuses a peer of another namespace than `service` of this host: intentions name services of that one, and another's
/// `web` is not the `web` they mean.
pub(super) fn same_namespace(mesh: &Mesh, peer: &SpiffeId, service: &ServiceName) -> Result<(), Reason> {
    let leaf = mesh.leafs.get(service).ok_or_else(|| Reason::NoLeaf(service.clone()))?;
    if leaf.id.namespace == peer.namespace {
        Ok(())
    } else {
        Err(Reason::OtherNamespace(peer.namespace.clone()))
    }
}

/// Returns what `service` of this host proves itself with.
pub(super) fn identity(mesh: &Mesh, service: &ServiceName, now: SystemTime) -> Result<Identity, Reason> {
    let roots = mesh.roots.clone().ok_or(Reason::NoRoots)?;
    let leaf = mesh.leafs.get(service).cloned().ok_or_else(|| Reason::NoLeaf(service.clone()))?;
    if leaf.not_after <= now {
        return Err(Reason::LeafExpired(service.clone()));
    }
    Ok(Identity { leaf, roots })
}

/// Allows what an intention allows; everything is denied before the first sync.
pub(super) fn authorize(mesh: &Mesh, source: &ServiceName, destination: &ServiceName) -> Result<(), Reason> {
    let intentions = mesh.intentions.as_ref().filter(|_| mesh.is_synced()).ok_or(Reason::NotSynced)?;
    let decision = intentions.decide(source, destination);
    match decision.by {
        _ if decision.action == Action::Allow => Ok(()),
        Some(Intention { source, destination, http: true, .. }) => {
            Err(Reason::HttpPermissions { from: source.clone(), to: destination.clone() })
        }
        _ => Err(Reason::NotAllowed { from: source.clone(), to: destination.clone() }),
    }
}

/// Returns why a live flow may no longer be there under `mesh`; `None` if it may, or is not decided yet.
pub(super) fn recheck(mesh: &Mesh, flow: &Flow) -> Option<Reason> {
    let Origin { source, destination, .. } = flow.origin()?;
    let local = match flow.direction() {
        Direction::Outbound => source,
        Direction::Inbound => destination,
    };
    if mesh.roots.is_none() || !mesh.leafs.contains_key(local) {
        return Some(Reason::IdentityGone(local.clone()));
    }
    authorize(mesh, source, destination).is_err().then_some(Reason::Revoked)
}

/// What [`recheck`] looks at. While it is the same, no flow's verdict is another one.
#[derive(Debug)]
pub(super) struct Grounds {
    intentions: Option<Arc<Intentions>>,
    has_roots: bool,
    has_catalog: bool,
    identities: HashSet<ServiceName>,
}

impl Grounds {
    pub fn of(mesh: &Mesh) -> Self {
        Self {
            intentions: mesh.intentions.clone(),
            has_roots: mesh.roots.is_some(),
            has_catalog: mesh.catalog.is_some(),
            identities: mesh.leafs.keys().cloned().collect(),
        }
    }

    pub fn are_those_of(&self, mesh: &Mesh) -> bool {
        let intentions = match (&self.intentions, &mesh.intentions) {
            (Some(own), Some(others)) => Arc::ptr_eq(own, others),
            (own, others) => own.is_none() && others.is_none(),
        };
        intentions
            && self.has_roots == mesh.roots.is_some()
            && self.has_catalog == mesh.catalog.is_some()
            && self.identities.len() == mesh.leafs.len()
            && mesh.leafs.keys().all(|name| self.identities.contains(name))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        allocations,
        catalog::{Catalog, Instance, VirtualIps},
        config::Config,
        tls::test_pki::Ca,
    };

    fn mesh() -> Mesh {
        let ca = Ca::new("td.consul");
        let instance = Instance::testing("db", "b", "10.0.0.2:5432");
        let allow = Intention {
            id: String::new(),
            source: "web".parse().unwrap(),
            destination: "db".parse().unwrap(),
            action: Action::Allow,
            http: false,
        };
        let leaf = ca.leaf("web");
        Mesh {
            roots: Some(ca.roots()),
            leafs: [(leaf.id.service.clone(), leaf)].into(),
            catalog: Some(Arc::new(Catalog::new([instance], ""))),
            intentions: Some(Arc::new(Intentions::new([allow], Action::Deny))),
            ..Mesh::default()
        }
    }

    fn origin() -> Origin {
        Origin {
            source: "web".parse().unwrap(),
            destination: "db".parse().unwrap(),
            original_dst: Some("10.0.0.2:5432".parse().unwrap()),
            program: "psql".to_owned(),
            pid: 1,
            cookie: 1,
        }
    }

    fn route_of(mesh: &Mesh, origin: &Origin, now: SystemTime) -> Result<Route, Reason> {
        route(mesh, origin, origin.original_dst.unwrap(), now)
    }

    fn refused(mesh: &Mesh, origin: &Origin) -> Option<&'static str> {
        route_of(mesh, origin, SystemTime::now()).err().map(|reason| reason.name())
    }

    fn named(mesh: &mut Mesh) -> std::net::Ipv4Addr {
        let mut ips = VirtualIps::restore(Config::default().address.virtual_ranges, BTreeMap::new());
        let db = "db".parse().unwrap();
        ips.allocate([&db, &"mail".parse().unwrap()], |_| false);
        let ip = ips.of(&db).unwrap().v4.unwrap();
        mesh.virtual_ips = Arc::new(ips);
        ip
    }

    #[test]
    fn a_virtual_ip_means_all_instances_of_its_service_at_any_port() {
        let mut mesh = mesh();
        let ip = named(&mut mesh);
        for port in [1, 5432] {
            let dialled = SocketAddr::new(ip.into(), port);
            let route = super::route(&mesh, &origin(), dialled, SystemTime::now()).unwrap();
            assert!(matches!(route.targets, Targets::AnyOf(all) if all.len() == 1));
        }
    }

    #[test]
    fn a_virtual_ip_that_is_not_the_destinations_or_has_no_instance_is_refused() {
        let mut mesh = mesh();
        let ip = named(&mut mesh);
        let refused = |mesh: &Mesh, origin: &Origin, dialled| {
            super::route(mesh, origin, SocketAddr::new(dialled, 1), SystemTime::now())
                .err()
                .map(|reason| reason.name())
        };
        let mail = mesh.virtual_ips.of(&"mail".parse().unwrap()).unwrap().v4.unwrap();
        assert_eq!(refused(&mesh, &origin(), mail.into()), Some("other-service"));
        let denied = Origin { source: "mallory".parse().unwrap(), ..origin() };
        assert_eq!(refused(&mesh, &denied, ip.into()), Some("not-allowed"));
        mesh.catalog = Some(Arc::default());
        assert_eq!(refused(&mesh, &origin(), ip.into()), Some("no-instance"));
    }

    #[test]
    fn an_allowed_flow_gets_the_instance_that_was_dialled_and_the_callers_leaf() {
        let route = route_of(&mesh(), &origin(), SystemTime::now()).ok().unwrap();
        let Targets::One(placed) = route.targets else { panic!("an instance's address means that instance") };
        assert_eq!(placed.instance.mesh, "10.0.0.2:21000".parse().unwrap());
        assert_eq!(route.identity.leaf.id.service.as_str(), "web");
    }

    #[test]
    fn a_route_to_an_instance_or_a_virtual_ip_allocates_nothing() {
        let (mut mesh, origin, now) = (mesh(), origin(), SystemTime::now());
        let ip = named(&mut mesh);
        for dialled in [origin.original_dst.unwrap(), SocketAddr::new(ip.into(), 1)] {
            let (route, allocations) = allocations::during(|| super::route(&mesh, &origin, dialled, now));
            assert!(route.is_ok());
            assert_eq!(allocations, 0, "{dialled}");
        }
    }

    #[test]
    fn grounds_for_another_verdict_are_all_that_a_live_flow_can_lose_and_not_the_catalog() {
        type Change = fn(&mut Mesh);
        let before = mesh();
        let changed = |change: Change| {
            let mut now = before.clone();
            change(&mut now);
            !Grounds::of(&before).are_those_of(&now)
        };
        let loses: [Change; 4] = [
            |mesh| mesh.intentions = Some(Arc::default()),
            |mesh| mesh.intentions = None,
            |mesh| mesh.roots = None,
            |mesh| mesh.leafs.clear(),
        ];
        assert!(loses.into_iter().all(changed));
        let keeps: [Change; 3] = [
            |mesh| mesh.catalog = Some(Arc::default()),
            |mesh| mesh.stale_since = Some(SystemTime::UNIX_EPOCH),
            |mesh| {
                let leaf = Ca::new("td.consul").leaf("web");
                mesh.leafs.insert(leaf.id.service.clone(), leaf);
            },
        ];
        assert!(!keeps.into_iter().any(changed));
    }

    #[test]
    fn each_missing_piece_refuses_with_its_own_reason() {
        type Spoil = fn(&mut Mesh, &mut Origin);
        let cases: [(&str, Spoil); 8] = [
            ("not-synced", |mesh, _| mesh.catalog = None),
            ("not-synced", |mesh, _| mesh.intentions = None),
            ("not-allowed", |mesh, _| mesh.intentions = Some(Arc::default())),
            ("not-allowed", |_, origin| origin.source = "cron".parse().unwrap()),
            ("no-instance", |_, origin| origin.original_dst = "10.0.0.2:80".parse().ok()),
            ("no-leaf", |mesh, _| mesh.leafs.clear()),
            ("no-roots", |mesh, _| mesh.roots = None),
            ("other-service", |mesh, origin| {
                mesh.intentions = Some(Arc::new(Intentions::new([], Action::Allow)));
                origin.destination = "cache".parse().unwrap();
            }),
        ];
        assert_eq!(refused(&mesh(), &origin()), None);
        for (reason, spoil) in cases {
            let (mut mesh, mut origin) = (mesh(), self::tests::origin());
            spoil(&mut mesh, &mut origin);
            assert_eq!(refused(&mesh, &origin), Some(reason));
        }
    }

    #[test]
    fn an_intention_with_http_permissions_refuses_in_words() {
        let mut mesh = mesh();
        let http = Intention {
            id: String::new(),
            source: "web".parse().unwrap(),
            destination: "db".parse().unwrap(),
            action: Action::Deny,
            http: true,
        };
        mesh.intentions = Some(Arc::new(Intentions::new([http], Action::Allow)));
        let reason = route_of(&mesh, &origin(), SystemTime::now()).err().unwrap();
        assert_eq!(reason.name(), "http-permissions");
        assert!(reason.to_string().starts_with("intention web -> db has HTTP permissions"), "{reason}");
    }

    #[test]
    fn an_expired_leaf_of_this_host_is_not_used() {
        let (mesh, later) = (mesh(), SystemTime::now() + std::time::Duration::from_secs(100 * 3600));
        assert_eq!(route_of(&mesh, &origin(), later).err().unwrap().name(), "leaf-expired");
    }
}
