//! What Consul's two health answers for one service say together: its instances. Pure.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::{
    api::{CONNECT_PROXY, Check, HealthEntry, Node, SPEAKS, Service},
    settings::Tenancy,
};
use crate::{
    catalog::{Instance, InstanceHealth},
    identity::ServiceName,
};

/// An instance, and whether all of its checks pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub instance: Instance,
    pub passing: bool,
}

/// Instances of one service, and in words what is registered but cannot be served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    pub found: Vec<Found>,
    pub unusable: Vec<String>,
}

/// Who reads the answers.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The one node whose loopback addresses mean something here.
    pub node: &'a str,
    pub tenancy: &'a Tenancy,
}

/// Joins the instances of `name` (`plain`: `/v1/health/service/:name`) with their mTLS ends (`proxies`:
/// `/v1/health/connect/:name`), by node and `DestinationServiceID`, or by node alone where a proxy has no such id.
///
/// Instances with failing checks are kept: who dials one must not get a cleartext connection because it is ill.
/// What is of another namespace, partition or peer is not meant by the service's name here.
pub fn join(name: &ServiceName, plain: &[HealthEntry], proxies: &[HealthEntry], place: &Place<'_>) -> Joined {
    let mut joined = Joined::default();
    let ours = |entry: &&HealthEntry| is_ours(entry, place.tenancy);
    let plain: Vec<_> = plain.iter().filter(ours).collect();
    for end in proxies.iter().filter(ours) {
        match instance(name, &plain, end, place.node) {
            Ok(found) => joined.found.extend(found),
            Err(reason) => {
                joined.unusable.push(format!("{} on node {}: {reason}", end.service.id, end.node.node));
            }
        }
    }
    joined
}

fn is_ours(entry: &HealthEntry, ours: &Tenancy) -> bool {
    let HealthEntry { node, service, .. } = entry;
    node.peer_name.is_empty()
        && service.peer_name.is_empty()
        && ours.is_namespace(&service.namespace)
        && ours.is_partition(if service.partition.is_empty() { &node.partition } else { &service.partition })
}

/// One for each address of the instance; none where there is nothing to dial.
fn instance(
    name: &ServiceName,
    plain: &[&HealthEntry],
    end: &HealthEntry,
    own_node: &str,
) -> Result<Vec<Found>, &'static str> {
    let program = if end.service.kind == CONNECT_PROXY {
        if end.service.proxy.destination_service_name != name.as_str() {
            return Err("it is the proxy of another service");
        }
        // Registered before, or deregistered after, the service itself: there is nothing to dial, yet or any more.
        let Some(program) = program(plain, end) else { return Ok(Vec::new()) };
        program
    } else if end.service.connect.native {
        end
    } else {
        return Err("it is neither a connect proxy nor Connect-native");
    };
    if program.service.port == 0 {
        return Ok(Vec::new());
    }
    let main = address(&program.service, &program.node, own_node)?;
    let mesh = self::address(&end.service, &end.node, own_node)?;
    let namespace = Some(program.service.namespace.clone()).filter(|ns| !ns.is_empty());
    let instance = Instance {
        service: name.clone(),
        id: program.service.id.clone(),
        node: program.node.node.clone(),
        datacenter: program.node.datacenter.clone(),
        namespace: namespace.unwrap_or_else(|| "default".to_owned()),
        address: main,
        mesh,
        health: health(&program.checks, &end.checks),
        weight: weight(program),
        meshnode: end.service.meta.get(SPEAKS.0).is_some_and(|version| version == SPEAKS.1),
        tags: program.service.tags.clone(),
        node_address: program.node.address.parse().ok().map(|ip: IpAddr| ip.to_canonical()),
    };
    let passing = passes(&program.checks) && passes(&end.checks);
    let others = further_addresses(&program.service, &program.node, own_node).filter(|other| *other != main);
    Ok(std::iter::once(main)
        .chain(others)
        .map(|address| Found { instance: Instance { address, ..instance.clone() }, passing })
        .collect())
}

/// The instance's addresses of the other family, as Consul's `TaggedAddresses` name them; unusable ones are left out.
fn further_addresses(service: &Service, node: &Node, own_node: &str) -> impl Iterator<Item = SocketAddr> {
    ["lan_ipv4", "lan_ipv6"].into_iter().filter_map(move |tag| {
        let tagged = service.tagged_addresses.get(tag)?;
        let other = Service { address: tagged.address.clone(), port: tagged.port, ..Service::default() };
        address(&other, node, own_node).ok()
    })
}

/// Returns the virtual IP that Consul (1.11 and later) gave the service of `entry`.
pub fn consul_ip(entry: &HealthEntry) -> Option<Ipv4Addr> {
    entry.service.tagged_addresses.get("consul-virtual")?.address.parse().ok()
}

fn program<'a>(plain: &[&'a HealthEntry], end: &HealthEntry) -> Option<&'a HealthEntry> {
    let id = &end.service.proxy.destination_service_id;
    plain
        .iter()
        .filter(|p| p.node.node == end.node.node && p.service.kind.is_empty())
        .filter(|p| id.is_empty() || p.service.id == *id)
        .copied()
        .min_by(|a, b| a.service.id.cmp(&b.service.id))
}

/// A warning is no reason to stay away, as with Consul's own proxies.
fn health(program: &[Check], end: &[Check]) -> InstanceHealth {
    let critical = |check: &Check| !matches!(check.status.as_str(), "passing" | "warning");
    if program.iter().chain(end).any(critical) { InstanceHealth::Critical } else { InstanceHealth::Passing }
}

fn weight(program: &HealthEntry) -> u32 {
    let weights = &program.service.weights;
    let weight = if passes(&program.checks) { weights.passing } else { weights.warning };
    u32::try_from(weight).unwrap_or(0).max(1)
}

fn passes(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status == "passing")
}

fn address(service: &Service, node: &Node, own_node: &str) -> Result<SocketAddr, &'static str> {
    let ip: IpAddr = service
        .address_on(node)
        .parse()
        .map_err(|_| "its address is a name; meshnode needs an IP address")?;
    let ip = ip.to_canonical();
    if service.port == 0 {
        return Err("its mTLS end has no port");
    }
    if ip.is_unspecified() || ip.is_multicast() {
        return Err("its address is not one that can be dialled");
    }
    if ip.is_loopback() && node.node != own_node {
        return Err("its address is the loopback of another node");
    }
    Ok(SocketAddr::new(ip, service.port))
}

/// Returns what the catalog is made of: where several instances claim one address and some of them pass their checks,
/// the failing ones are left out; a dead registration must not shadow a live one.
pub fn preferred<'a>(all: impl Iterator<Item = &'a Found> + Clone) -> Vec<Instance> {
    let mut passing: HashMap<SocketAddr, bool> = HashMap::new();
    for found in all.clone() {
        *passing.entry(found.instance.address).or_default() |= found.passing;
    }
    let mut kept: Vec<_> =
        all.filter(|f| f.passing || !passing[&f.instance.address]).map(|f| f.instance.clone()).collect();
    kept.sort_by(|a, b| (&a.service, &a.node, &a.id).cmp(&(&b.service, &b.node, &b.id)));
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control_plane::api::{Proxy, TaggedAddress};

    fn entry(node: &str, id: &str, address: &str, port: u16, status: &str) -> HealthEntry {
        HealthEntry {
            node: Node {
                node: node.to_owned(),
                address: "10.0.0.1".to_owned(),
                datacenter: "dc1".to_owned(),
                ..Node::default()
            },
            service: Service { id: id.to_owned(), address: address.to_owned(), port, ..Service::default() },
            checks: vec![Check { status: status.to_owned(), ..Check::default() }],
        }
    }

    fn proxy(node: &str, of: &str, port: u16) -> HealthEntry {
        let mut entry = entry(node, "p", "", port, "passing");
        entry.service.kind = CONNECT_PROXY.to_owned();
        entry.service.proxy = Proxy {
            destination_service_name: "db".to_owned(),
            destination_service_id: of.to_owned(),
            ..Proxy::default()
        };
        entry
    }

    const A: Place<'static> = Place { node: "a", tenancy: &Tenancy { namespace: None, partition: None } };

    fn db() -> ServiceName {
        "db".parse().unwrap()
    }

    #[test]
    fn join_is_by_node_and_service_id() {
        let plain = [
            entry("a", "db1", "10.1.0.1", 5432, "passing"),
            entry("a", "db2", "", 5433, "passing"),
            entry("b", "db1", "10.2.0.1", 5432, "passing"),
        ];
        let joined = join(&db(), &plain, &[proxy("a", "db2", 21000), proxy("b", "db1", 21001)], &A);
        let pairs: Vec<_> = joined
            .found
            .iter()
            .map(|f| (f.instance.address.to_string(), f.instance.mesh.to_string()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("10.0.0.1:5433".into(), "10.0.0.1:21000".into()),
                ("10.2.0.1:5432".into(), "10.0.0.1:21001".to_owned())
            ]
        );
    }

    #[test]
    fn proxy_without_service_id_belongs_to_the_service_of_its_node() {
        let plain = [entry("b", "x", "10.2.0.1", 1, "passing"), entry("a", "y", "10.1.0.1", 2, "passing")];
        let joined = join(&db(), &plain, &[proxy("a", "", 21000)], &A);
        assert_eq!(joined.found[0].instance.id, "y");
        assert!(join(&db(), &plain, &[proxy("c", "", 21000)], &A).found.is_empty());
    }

    #[test]
    fn failing_instance_stays_in_the_catalog_so_that_nobody_dials_it_in_clear() {
        let plain = [entry("a", "db1", "10.1.0.1", 5432, "critical")];
        let joined = join(&db(), &plain, &[proxy("a", "db1", 21000)], &A);
        assert!(!joined.found[0].passing);
        assert_eq!(preferred(joined.found.iter()).len(), 1);
    }

    #[test]
    fn failing_instance_does_not_shadow_a_passing_one_at_the_same_address() {
        let plain =
            [entry("a", "old", "10.1.0.1", 5432, "critical"), entry("z", "new", "10.1.0.1", 5432, "passing")];
        let joined = join(&db(), &plain, &[proxy("a", "old", 21000), proxy("z", "new", 21001)], &A);
        let kept = preferred(joined.found.iter());
        assert_eq!(kept.iter().map(|i| i.id.as_str()).collect::<Vec<_>>(), ["new"]);
    }

    #[test]
    fn what_cannot_be_dialled_is_named_instead_of_guessed() {
        for (address, usable) in [
            ("db.example", false),
            ("0.0.0.0", false),
            ("127.0.0.1", false),
            ("fd00::2", true),
            ("::ffff:10.0.0.9", true),
        ] {
            let joined =
                join(&db(), &[entry("b", "db1", address, 5432, "passing")], &[proxy("b", "db1", 21000)], &A);
            assert_eq!(
                (joined.found.len(), joined.unusable.len()),
                (usize::from(usable), usize::from(!usable)),
                "{address}"
            );
        }
        // On this node loopback is a place.
        let own =
            join(&db(), &[entry("a", "db1", "127.0.0.1", 5432, "passing")], &[proxy("a", "db1", 21000)], &A);
        assert_eq!(own.found.len(), 1);
    }

    #[test]
    fn proxy_of_another_service_is_not_an_instance() {
        let mut other = proxy("a", "db1", 21000);
        other.service.proxy.destination_service_name = "web".to_owned();
        assert!(join(&db(), &[entry("a", "db1", "", 5432, "passing")], &[other], &A).found.is_empty());
    }

    #[test]
    fn tagged_lan_addresses_are_the_same_instance_by_another_family() {
        let mut plain = entry("b", "db1", "10.2.0.1", 5432, "passing");
        let tag = |address: &str, port| TaggedAddress { address: address.to_owned(), port };
        plain.service.tagged_addresses = [
            ("lan_ipv4".to_owned(), tag("10.2.0.1", 5432)),
            ("lan_ipv6".to_owned(), tag("fd77::2", 5432)),
            ("wan".to_owned(), tag("192.0.2.1", 5432)),
        ]
        .into();
        let joined = join(&db(), &[plain], &[proxy("b", "db1", 21000)], &A);
        let addresses: Vec<_> = joined.found.iter().map(|f| f.instance.address.to_string()).collect();
        assert_eq!(addresses, ["10.2.0.1:5432", "[fd77::2]:5432"]);
        assert!(joined.found.iter().all(|f| f.instance.mesh.port() == 21000));
    }

    #[test]
    fn what_is_of_another_namespace_partition_or_peer_is_no_instance_here() {
        for change in [
            |e: &mut HealthEntry| e.service.namespace = "team".to_owned(),
            |e: &mut HealthEntry| e.service.partition = "team".to_owned(),
            |e: &mut HealthEntry| e.node.partition = "team".to_owned(),
            |e: &mut HealthEntry| e.service.peer_name = "cluster-2".to_owned(),
            |e: &mut HealthEntry| e.node.peer_name = "cluster-2".to_owned(),
        ] {
            let plain = entry("a", "db1", "10.1.0.1", 5432, "passing");
            let end = proxy("a", "db1", 21000);
            let found = |plain: &HealthEntry, end: &HealthEntry| {
                join(&db(), std::slice::from_ref(plain), std::slice::from_ref(end), &A).found.len()
            };
            let (mut foreign_plain, mut foreign_end) = (plain.clone(), end.clone());
            change(&mut foreign_plain);
            change(&mut foreign_end);
            assert_eq!(found(&plain, &end), 1);
            assert_eq!((found(&foreign_plain, &end), found(&plain, &foreign_end)), (0, 0));
        }
    }

    #[test]
    fn virtual_addresses_of_newer_consul_are_no_instances() {
        let mut plain = entry("b", "db1", "10.2.0.1", 5432, "passing");
        let tag = |address: &str, port| TaggedAddress { address: address.to_owned(), port };
        plain.service.tagged_addresses = [
            ("consul-virtual".to_owned(), tag("240.0.0.1", 5432)),
            ("virtual".to_owned(), tag("198.18.0.1", 5432)),
        ]
        .into();
        let joined = join(&db(), &[plain], &[proxy("b", "db1", 21000)], &A);
        let addresses: Vec<_> = joined.found.iter().map(|f| f.instance.address.to_string()).collect();
        assert_eq!(addresses, ["10.2.0.1:5432"]);
    }

    #[test]
    fn health_of_a_newer_consul_is_the_instance_of_our_own_cluster() {
        let entries = |text| -> Vec<HealthEntry> { serde_json::from_str(text).unwrap() };
        let plain = entries(include_str!("fixtures/health-service-1.15.json"));
        let proxies = entries(include_str!("fixtures/health-connect-1.15.json"));
        let joined = join(&db(), &plain, &proxies, &A);
        let pairs: Vec<_> = joined
            .found
            .iter()
            .map(|f| (f.instance.address.to_string(), f.instance.mesh.to_string(), f.passing))
            .collect();
        assert_eq!(pairs, [("10.4.0.1:5432".to_owned(), "10.4.0.1:21000".to_owned(), true)]);
        assert!(joined.unusable.is_empty(), "{:?}", joined.unusable);
    }

    proptest! {
        #[test]
        fn join_never_panics(address in "\\PC{0,20}", node in "\\PC{0,5}", port: u16, mesh_port: u16) {
            let _ = join(&db(), &[entry(&node, "db1", &address, port, "passing")], &[proxy(&node, "db1", mesh_port)], &A);
        }
    }
}
