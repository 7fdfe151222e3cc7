//! The keys of `[[gateway]]`.

use rustls::pki_types::ServerName;

use super::{
    super::{
        ExternalAddress, GatewayConfig, PortRange, document::Section, error::Located, rules, value::absolute,
    },
    NAME, PATH, check,
    control_plane::certificate,
};
use crate::{
    identity::ServiceName,
    tls::{ExternalFiles, ExternalTls},
};

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
    let tls = gateway_tls(section.section("tls"), address.as_ref().map(|address| &address.value));
    let check_interval = check(&section);
    section.finish();
    let service = names.claim(service?);
    Some(GatewayConfig { service, address: address?.value, mesh_port, tls, check_interval })
}

/// Returns how the external service is spoken to in TLS; `None`: not at all.
fn gateway_tls(section: Section<'_>, address: Option<&ExternalAddress>) -> Option<ExternalFiles> {
    const SNI: &str = "the host name, or the address, that the service's certificate is for";
    let ca_file = section.text("ca_file", PATH, absolute);
    let sni = section.text("sni", SNI, |text| ServerName::try_from(text.to_owned()).map_err(|_| ""));
    let cert_file = section.text("cert_file", PATH, absolute);
    let key_file = section.text("key_file", PATH, absolute);
    if section.is_present() && !section.has("ca_file") {
        section
            .missing("ca_file", "the path of the CAs, in PEM, one of which signed the service's certificate");
    }
    let at = [&ca_file, &cert_file, &key_file]
        .map(|file| file.as_ref().map_or_else(|| section.at().clone(), |file| file.at.clone()));
    let own = certificate(&section, cert_file, key_file).map(|own| (own.cert_file, own.key_file));
    let name = match sni {
        Some(sni) => Some(sni.value),
        None if section.has("sni") || !section.is_present() => None,
        None => address.and_then(|address| {
            let name = ServerName::try_from(address.host()).ok();
            if name.is_none() {
                section.missing("sni", SNI);
            }
            name
        }),
    };
    let files = ca_file.zip(name).map(|(ca_file, name)| ExternalFiles { ca_file: ca_file.value, name, own });
    if let Some(Err(error)) = files.as_ref().filter(|_| section.document.opens_files()).map(ExternalTls::load)
    {
        let nth = ["ca_file", "cert_file", "key_file"].iter().position(|key| *key == error.key).unwrap_or(0);
        section.document.note(&at[nth], error);
    }
    section.finish();
    files
}
