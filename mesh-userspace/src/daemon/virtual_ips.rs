//! Virtual IPs in the status report: which there are, who serves them, and what is wrong with their ranges.

use crate::{
    admin::VirtualServiceStatus,
    catalog::{InstanceHealth, IpRange, VirtualRanges},
    datapath::host,
    state::Mesh,
};

/// Returns every service that has a virtual IP.
pub fn services(mesh: &Mesh) -> Vec<VirtualServiceStatus> {
    let catalog = mesh.catalog.as_deref();
    mesh.virtual_ips
        .services()
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
    use super::*;

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
