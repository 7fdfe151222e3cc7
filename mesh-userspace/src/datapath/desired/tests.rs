//! What the kernel is told of a catalog, intentions, and what runs here.

use std::sync::Arc;

use super::*;
use crate::{
    catalog::{Catalog, Instance, InstanceHealth},
    datapath::elsewhere::Inhabited,
    intention::{Action, Intention, Intentions},
};

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
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
            [Instance::testing("db", "b", "10.0.0.2:5432"), Instance::testing("web", "a", "10.0.0.1:80")],
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
    let key =
        PolicyKey { source: names.id(&name("web")).unwrap(), destination: names.id(&name("db")).unwrap() };
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
    assert_eq!(all.protected[&key(1)].flags, PROTECTED_ELSEWHERE, "the host's own port leads to the proxy");
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
        ..Instance::testing(service, node, address)
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
    let pair =
        |to| PolicyKey { source: names.id(&name("web")).unwrap(), destination: names.id(&name(to)).unwrap() };
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
