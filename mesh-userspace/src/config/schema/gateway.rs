//! `[[gateway]]`: services outside the mesh that this host offers to it.

use super::{
    super::{ExternalAddress, GatewayConfig, PortRange, document::Section, error::Located, rules},
    NAME, check,
};
use crate::identity::ServiceName;

/// Returns the gateways, each with its place.
pub(super) fn gateways(
    root: &Section<'_>,
    mesh_ports: &PortRange,
    claims: &mut rules::Claims<'_>,
    names: &mut rules::Names<'_>,
) -> Vec<Located<GatewayConfig>> {
    let found = root.sections("gateway").into_iter().filter_map(|section| {
        let at = section.at().clone();
        gateway(section, mesh_ports, claims, names).map(|value| Located { value, at })
    });
    found.collect()
}

fn gateway(
    section: Section<'_>,
    mesh_ports: &PortRange,
    claims: &mut rules::Claims<'_>,
    names: &mut rules::Names<'_>,
) -> Option<GatewayConfig> {
    let service = section.text("service", NAME, |text| text.parse::<ServiceName>());
    if !section.has("service") {
        section.missing("service", NAME);
    }
    let address = section.text("address", ExternalAddress::FORMS, str::parse);
    if !section.has("address") {
        section.missing("address", ExternalAddress::FORMS);
    }
    let mesh_port = section.port("mesh_port", 1..=u16::MAX).map(|port| {
        rules::inside_mesh_range(section.document, &port, mesh_ports);
        claims.claim(port)
    });
    let check_interval = check(&section);
    section.finish();
    let service = names.claim(service?);
    Some(GatewayConfig { service, address: address?.value, mesh_port, check_interval })
}
