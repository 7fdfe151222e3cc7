//! Virtual IPs in the status report: which there are, who serves them, and what is wrong with their ranges.

use crate::{
    admin::VirtualServiceStatus,
    catalog::{InstanceHealth, IpRange, VirtualRanges},
    datapath::host,
    identity::ServiceName,
    state::Mesh,
};

/// Returns every service that has a virtual IP. Not the proxies of services: one may have been given an address while it
/// was in the catalog and its service's instance was not yet.
pub fn services(mesh: &Mesh) -> Vec<VirtualServiceStatus> {
    let catalog = mesh.catalog.as_deref();
    let has_instances =
        |name: &ServiceName| catalog.is_some_and(|catalog| !catalog.instances_of(name).is_empty());
    let is_proxy = |name: &ServiceName| {
        !has_instances(name) && name.sidecar_of().is_some_and(|of| mesh.virtual_ips.of(&of).is_some())
    };
    mesh.virtual_ips
        .services()
        .filter(|(service, _)| !is_proxy(service))
        .map(|(service, ip)| {
            let instances = catalog.map_or(&[][..], |catalog| catalog.instances_of(service));
            let healthy = instances.iter().filter(|i| i.instance.health == InstanceHealth::Passing).count();
            VirtualServiceStatus {
                service: service.to_string(),
                virtual_ipv4: ip.v4,
                virtual_ipv6: ip.v6,
                consul_ipv4: mesh.virtual_ips.consul_of(service),
                instances: instances.len(),
                healthy,
            }
        })
        .collect()
}

/// Returns why the ranges cannot be used on this host as it is now, in words for people.
pub fn conflicts(ranges: &VirtualRanges) -> Vec<String> {
    match host::networks() {
        Ok(networks) => overlaps(ranges, &networks),
        Err(error) => {
            vec![format!("the host's networks cannot be listed to compare virtual IPs with: {error}")]
        }
    }
}

fn overlaps(ranges: &VirtualRanges, networks: &[(String, IpRange)]) -> Vec<String> {
    let mut found = Vec::new();
    for range in ranges.iter() {
        let key = if range.first().is_ipv4() { "address.virtual_ipv4" } else { "address.virtual_ipv6" };
        for (interface, network) in networks.iter().filter(|(_, network)| network.overlaps(range)) {
            found.push(format!(
                "{key} ({range}) overlaps {network}, in which this host is (interface {interface}): an address there \
                 could mean a host or a service; set {key} to another range, the same on all hosts, or to \"off\""
            ));
        }
    }
    found
}

/// Returns what is wrong with the ranges at present.
pub fn degraded(mesh: &Mesh) -> Vec<String> {
    let ranges = mesh.virtual_ips.ranges();
    let mut lines = conflicts(ranges);
    let inside = mesh.catalog.iter().flat_map(|catalog| catalog.instances());
    if let Some(instance) = inside.filter(|i| ranges.contains(i.address.ip())).min_by_key(|i| i.address) {
        lines.push(format!(
            "instance {} of {} has an address that virtual IPs are taken from; dialled, it means the instance: set \
             address.virtual_ipv4 and address.virtual_ipv6 to other ranges",
            instance.address, instance.service
        ));
    }
    let lacking = mesh.virtual_ips.lacking().count();
    if lacking > 0 {
        lines.push(format!(
            "{lacking} services have no virtual IP, for want of room: set address.virtual_ipv4 or address.virtual_ipv6 to \
             a larger range"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::catalog::{Catalog, Instance, StoredVirtualIps, VirtualIps};

    fn instance(service: &str) -> Instance {
        Instance::testing(service, "a", "10.0.0.2:5432")
    }

    /// What is listed in a mesh of `instances` in which each of `names` has an address.
    fn listed(names: &[&str], instances: &[&str]) -> Vec<String> {
        let ranges = VirtualRanges { v4: "240.240.0.0/16".parse().ok(), v6: None };
        let names: Vec<ServiceName> = names.iter().map(|name| name.parse().unwrap()).collect();
        let mut virtual_ips = VirtualIps::restore(ranges, StoredVirtualIps::new());
        virtual_ips.allocate(&names, |_| false);
        let catalog = Catalog::new(instances.iter().map(|name| instance(name)), "a");
        let (virtual_ips, catalog) = (Arc::new(virtual_ips), Some(Arc::new(catalog)));
        let mesh = Mesh { virtual_ips, catalog, ..Mesh::default() };
        services(&mesh)
            .into_iter()
            .map(|s| format!("{} {} of {}", s.service, s.healthy, s.instances))
            .collect()
    }

    #[test]
    fn proxies_are_not_listed_but_services_that_are_named_as_one_are() {
        let names = ["db", "db-sidecar-proxy", "mail-sidecar-proxy", "web"];
        assert_eq!(listed(&names, &["db"]), ["db 1 of 1", "mail-sidecar-proxy 0 of 0", "web 0 of 0"]);
        assert_eq!(listed(&names[..2], &["db-sidecar-proxy"]), ["db 0 of 0", "db-sidecar-proxy 1 of 1"]);
    }

    #[test]
    fn a_range_that_holds_or_is_in_one_of_the_hosts_networks_is_named_with_the_way_out() {
        let networks = [
            ("eth0".to_owned(), "10.77.0.0/24".parse().unwrap()),
            ("eth1".to_owned(), "fd77::/64".parse().unwrap()),
        ];
        let found = |v4: &str, v6: &str| {
            overlaps(&VirtualRanges { v4: v4.parse().ok(), v6: v6.parse().ok() }, &networks)
        };
        assert_eq!(found("240.240.0.0/16", "fd6d:6573:6800::/64"), [""; 0]);
        let wide = found("10.0.0.0/8", "fd77::/48");
        assert!(wide[0].contains("address.virtual_ipv4 (10.0.0.0/8) overlaps 10.77.0.0/24"), "{wide:?}");
        assert!(wide[1].contains("interface eth1") && wide[1].contains("\"off\""), "{wide:?}");
        assert_eq!(found("off", "off"), [""; 0]);
    }
}
