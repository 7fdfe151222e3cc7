//! `[[service]]`: who it is, what is protected, what it may reach besides the mesh.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    super::{
        Egress, EgressRule, EgressTarget, GuardMode, PortRange, ProtectedPort, ServiceConfig,
        document::Section, egress, rules,
    },
    NAME, check, selector,
};
use crate::identity::ServiceName;

pub(super) fn services(
    root: &Section<'_>,
    mesh_ports: &PortRange,
    claims: &mut rules::Claims<'_>,
    names: &mut rules::Names<'_>,
) -> Vec<ServiceConfig> {
    let document = root.document;
    let mut services = Vec::new();
    for section in root.sections("service") {
        let at = section.at().clone();
        if let Some(service) = service(section, mesh_ports, claims, names) {
            services.push(service);
        }
        rules::room_for(document, &at, mesh_ports, &services);
    }
    services
}

fn service(
    section: Section<'_>,
    mesh_ports: &PortRange,
    claims: &mut rules::Claims<'_>,
    names: &mut rules::Names<'_>,
) -> Option<ServiceConfig> {
    let name = section.text("name", NAME, |text| text.parse::<ServiceName>());
    if !section.has("name") {
        section.missing("name", NAME);
    }
    let selector = selector(&section);
    let protected = protected_port(&section, mesh_ports, claims);
    let egress = section.choice(
        "egress",
        &[(Egress::Passthrough.as_str(), Egress::Passthrough), (Egress::MeshOnly.as_str(), Egress::MeshOnly)],
    );
    let egress = egress.map_or(Egress::Passthrough, |egress| egress.value);
    let egress_allow = egress_allow(&section, egress);
    section.finish();
    let name = names.claim(name?);
    Some(ServiceConfig { name, selector, protected, egress, egress_allow })
}

fn egress_allow(section: &Section<'_>, mode: Egress) -> Vec<EgressRule> {
    let mut rules = Vec::new();
    for section in section.sections("egress_allow") {
        let (document, at) = (section.document, section.at().clone());
        if mode != Egress::MeshOnly {
            document
                .note(&at, "only with egress = \"mesh-only\"; with \"passthrough\" everything is allowed");
        }
        let Some(rule) = egress_rule(section) else { continue };
        let fitted = egress::fits(&rules);
        rules.push(rule);
        if fitted && !egress::fits(&rules) {
            let most = mesh_common::egress::EGRESS_RANGES;
            document.note(
                &at,
                format_args!("accepted: at most {most} different port ranges in one service's list"),
            );
        }
    }
    rules
}

fn egress_rule(section: Section<'_>) -> Option<EgressRule> {
    const CIDR: &str = "a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", or one address";
    const HOST: &str = "a host name, or \"*.\" and the end of one";
    let cidr = section.text("cidr", CIDR, egress::network);
    let host = section.text("name", HOST, str::parse);
    let found =
        section.texts("ports", "a port such as \"443\" or a range such as \"8000-8100\"", egress::ports);
    let ports = if section.has("ports") {
        found.into_iter().map(|range| range.value).collect()
    } else {
        vec![egress::ALL_PORTS]
    };
    let (tcp, udp) = (mesh_common::egress::EGRESS_TCP, mesh_common::egress::EGRESS_UDP);
    let protocols = section.choice("protocol", &[("tcp", tcp), ("udp", udp), ("both", tcp | udp)]);
    let to = match (cidr, host) {
        (Some(network), None) => Some(EgressTarget::Network(network.value)),
        (None, Some(host)) => Some(EgressTarget::Name(host.value)),
        (Some(_), Some(host)) => {
            section.document.note(&host.at, "found besides cidr; accepted: one of cidr, name");
            None
        }
        (None, None) => {
            if !section.has("cidr") && !section.has("name") {
                section.missing("cidr", &format!("{CIDR}; or `name`, {HOST}"));
            }
            None
        }
    };
    section.finish();
    Some(EgressRule { to: to?, ports, protocols: protocols.map_or(tcp | udp, |both| both.value) })
}

fn protected_port(
    section: &Section<'_>,
    mesh_ports: &PortRange,
    claims: &mut rules::Claims<'_>,
) -> Option<ProtectedPort> {
    let port = section.port("port", 1..=u16::MAX);
    let announce_port = section.port("announce_port", 1..=u16::MAX);
    let address = section.text("address", "the IP address that the program listens on", |text| {
        text.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified() && !ip.is_multicast()).ok_or("")
    });
    let modes = [GuardMode::Strict, GuardMode::Permissive].map(|mode| (mode.as_str(), mode));
    let guard = section.choice("guard", &modes);
    let mesh_port = section.port("mesh_port", 1..=u16::MAX);
    let check_interval = check(section);

    let Some(port) = port else {
        if !section.has("port") {
            let orphans = ["announce_port", "address", "guard", "mesh_port", "check"]
                .into_iter()
                .filter(|key| section.has(key));
            for key in orphans {
                section.missing("port", &format!("with `{key}`, the port that the program listens on"));
            }
        }
        return None;
    };
    let value = port.value;
    // In a namespace of its own the service's port clashes with nothing of the host's.
    let (of_host, announce_port) = match announce_port {
        Some(announced) => {
            let number = announced.value;
            (announced, Some(number))
        }
        None => (port, None),
    };
    rules::outside_mesh_range(section.document, &of_host, mesh_ports);
    let mesh_port = mesh_port.map(|port| {
        rules::inside_mesh_range(section.document, &port, mesh_ports);
        claims.claim(port)
    });
    Some(ProtectedPort {
        port: {
            claims.claim(of_host);
            value
        },
        announce_port,
        address: address.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.value),
        guard: guard.map_or(GuardMode::Strict, |guard| guard.value),
        mesh_port,
        check_interval,
    })
}
