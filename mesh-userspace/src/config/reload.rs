//! What SIGHUP may change: services, gateways, exemptions, a given CA, the log filter, the drain deadline. All else is
//! bound to things that live as long as the daemon: listeners, pins, the store, the control-plane session.

use super::{Config, ControlPlane, Embedded};

pub(super) fn check(old: &Config, new: &Config) -> Result<(), Vec<String>> {
    // Named in full, so that a new field must be placed here.
    let Config {
        node,
        datacenter,
        state_dir,
        run_dir,
        cgroup_root,
        bpf_dir,
        drain_deadline: _,
        log: _,
        log_format,
        same_host,
        address,
        listen,
        dns,
        limits,
        proxy,
        control_plane,
        catalog_limit,
        services: _,
        gateways: _,
        exempt: _,
    } = old;
    let mut changed: Vec<String> = [
        ("node", *node != new.node),
        ("datacenter", *datacenter != new.datacenter),
        ("state_dir", *state_dir != new.state_dir),
        ("run_dir", *run_dir != new.run_dir),
        ("cgroup_root", *cgroup_root != new.cgroup_root),
        ("bpf_dir", *bpf_dir != new.bpf_dir),
        ("same_host", *same_host != new.same_host),
        ("log_format", *log_format != new.log_format),
        ("address.advertise", address.advertise != new.address.advertise),
        ("address.mesh_ports", address.mesh_ports != new.address.mesh_ports),
        ("address.virtual_ipv4", address.virtual_ranges.v4 != new.address.virtual_ranges.v4),
        ("address.virtual_ipv6", address.virtual_ranges.v6 != new.address.virtual_ranges.v6),
        ("control_plane.catalog_limit", *catalog_limit != new.catalog_limit),
        ("dns", *dns != new.dns),
        ("limits", *limits != new.limits),
        ("proxy.pool", proxy.pool != new.proxy.pool),
        ("listen.outbound_port", listen.outbound_port != new.listen.outbound_port),
        ("listen.guard_port", listen.guard_port != new.listen.guard_port),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(key, _)| key.to_owned())
    .collect();
    changed.extend(
        control_plane_changes(control_plane, &new.control_plane)
            .iter()
            .map(|key| format!("control_plane.{key}")),
    );
    if changed.is_empty() { Ok(()) } else { Err(changed) }
}

fn control_plane_changes(old: &ControlPlane, new: &ControlPlane) -> Vec<&'static str> {
    let keys: Vec<(&str, bool)> = match (old, new) {
        (ControlPlane::Embedded(old), ControlPlane::Embedded(new)) => embedded_changes(old, new),
        (ControlPlane::Remote(old), ControlPlane::Remote(new))
        | (ControlPlane::Consul(old), ControlPlane::Consul(new)) => vec![
            ("address", old.address != new.address),
            ("ca_file", old.ca_file != new.ca_file),
            ("cert_file", old.client_cert != new.client_cert),
            ("namespace", old.tenancy.namespace != new.tenancy.namespace),
            ("partition", old.tenancy.partition != new.tenancy.partition),
            ("token", old.token != new.token),
        ],
        _ => vec![("kind", true)],
    };
    keys.into_iter().filter(|(_, differs)| *differs).map(|(key, _)| key).collect()
}

fn embedded_changes(old: &Embedded, new: &Embedded) -> Vec<(&'static str, bool)> {
    vec![
        ("address", old.listen != new.listen),
        ("embedded.default_policy", old.default_policy != new.default_policy),
        ("embedded.leaf_ttl", old.leaf_ttl != new.leaf_ttl),
        ("embedded.acl", old.acl != new.acl),
        ("embedded.trust_domain", old.trust_domain != new.trust_domain),
        ("embedded.expose", old.expose != new.expose),
        // Its files are read again at each reload; without the section there would be no key to go on with.
        ("embedded.ca", old.ca.is_some() && new.ca.is_none()),
    ]
}
