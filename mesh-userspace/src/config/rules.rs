//! Rules between keys: what each key accepts alone may still clash with another.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use super::{
    GatewayConfig, PortRange, ServiceConfig,
    document::Document,
    error::{Located, Location},
};
use crate::{
    control_plane::{ApiAddress, TokenSource},
    identity::ServiceName,
};

/// TCP ports of this host, each taken by one key.
pub(super) struct Claims<'d> {
    document: &'d Document<'d>,
    /// Who has the port, in words.
    by_port: HashMap<u16, String>,
}

impl<'d> Claims<'d> {
    pub fn new(document: &'d Document<'d>) -> Self {
        Self { document, by_port: HashMap::new() }
    }

    /// Returns the port after noting a clash. 0, "any free one", clashes with nothing.
    pub fn claim(&mut self, port: Located<u16>) -> u16 {
        let Located { value, at } = port;
        match self.by_port.get(&value) {
            _ if value == 0 => {}
            Some(owner) => {
                let hint = if at.key.starts_with("service[") && at.key.ends_with("].port") {
                    " (a service whose programs are in network namespaces of their own, as containers are, can be \
                     announced at another one: announce_port)"
                } else {
                    ""
                };
                let accepted = format_args!(
                    "found {value}; accepted: a port that nothing else has; {owner} has it{hint}"
                );
                self.document.note(&at, accepted);
            }
            None => {
                let owner = format!("`{}` at {}", at.key, self.document.place(&at));
                self.by_port.insert(value, owner);
            }
        }
        value
    }

    /// Takes a port that the text does not name.
    pub fn claim_default(&mut self, port: u16, key: &str) {
        self.by_port.entry(port).or_insert_with(|| format!("`{key}`, by default,"));
    }
}

/// Service names, each used once.
pub(super) struct Names<'d> {
    document: &'d Document<'d>,
    first: HashMap<ServiceName, Location>,
}

impl<'d> Names<'d> {
    pub fn new(document: &'d Document<'d>) -> Self {
        Self { document, first: HashMap::new() }
    }

    /// Returns the name after noting that it was used before.
    pub fn claim(&mut self, name: Located<ServiceName>) -> ServiceName {
        let Located { value, at } = name;
        if let Some(first) = self.first.get(&value) {
            let place = self.document.place(first);
            self.document.note(
                &at,
                format_args!(
                    "found \"{value}\" again; accepted: a name that no other service has, and the one at {place} has it \
                     (a service's cgroup, unit and container may be arrays)"
                ),
            );
        } else {
            self.first.insert(value.clone(), at);
        }
        value
    }
}

/// This host's own address means this host.
pub(super) fn not_virtual(document: &Document<'_>, own: &Located<IpAddr>, key: &str) {
    document.note(
        &own.at,
        format_args!(
            "found {}, which is in address.{key}; accepted: another address, or another range",
            own.value
        ),
    );
}

/// A service's own port must not be one that is given out to mesh listeners.
pub(super) fn outside_mesh_range(document: &Document<'_>, port: &Located<u16>, range: &PortRange) {
    if range.contains(port.value) {
        let value = port.value;
        document.note(
            &port.at,
            format_args!("found {value}; accepted: a port outside address.mesh_ports ({range})"),
        );
    }
}

pub(super) fn inside_mesh_range(document: &Document<'_>, port: &Located<u16>, range: &PortRange) {
    if !range.contains(port.value) {
        let value = port.value;
        document
            .note(&port.at, format_args!("found {value}; accepted: a port of address.mesh_ports ({range})"));
    }
}

/// Notes at the first service with a port for which the range has none left.
pub(super) fn room_for(
    document: &Document<'_>,
    at: &Location,
    range: &PortRange,
    services: &[ServiceConfig],
) {
    let listening = services.iter().filter(|service| service.protected.is_some()).count();
    let last_listens = services.last().is_some_and(|service| service.protected.is_some());
    if last_listens && listening == range.ports().count() + 1 {
        document.note(
            at,
            format_args!("address.mesh_ports ({range}) has no port left for it; accepted: a wider range"),
        );
    }
}

/// Notes at the first gateway for which the services and the gateways before it leave no mesh port.
pub(super) fn room_for_gateways(
    document: &Document<'_>,
    range: &PortRange,
    services: &[ServiceConfig],
    gateways: &[Located<GatewayConfig>],
) {
    let listening = services.iter().filter(|service| service.protected.is_some()).count();
    let left = range.ports().count().saturating_sub(listening);
    if let Some(gateway) = gateways.get(left) {
        let message =
            format_args!("address.mesh_ports ({range}) has no port left for it; accepted: a wider range");
        document.note(&gateway.at, message);
    }
}

/// A token is given once.
pub(super) fn one_token(
    document: &Document<'_>,
    token: Option<Located<TokenSource>>,
    file: Option<Located<PathBuf>>,
) -> Option<TokenSource> {
    match (token, file) {
        (Some(_), Some(file)) => {
            document.note(&file.at, "found besides token; accepted: one of token, token_file");
            None
        }
        (Some(token), None) => Some(token.value),
        (None, Some(file)) => Some(TokenSource::file(file.value)),
        (None, None) => None,
    }
}

/// Nothing travels in clear beyond loopback, and https is verified.
pub(super) fn confidential(
    document: &Document<'_>,
    address: &Located<ApiAddress>,
    ca_file: Option<&Located<PathBuf>>,
) {
    let shown = &address.value;
    match (&address.value, ca_file) {
        (ApiAddress::Http(_), _) if !shown.is_confidential() => document.note(
            &address.at,
            format_args!(
                "found \"{shown}\"; accepted: https:// (with ca_file), unix:///PATH, or http:// to loopback: the token and \
                 the answers would travel in clear"
            ),
        ),
        (ApiAddress::Https(host), None) if !host.is_loopback() => document.note(
            &address.at,
            format_args!("found \"{shown}\" without ca_file; accepted: https:// with ca_file, the CA that signed its certificate"),
        ),
        (ApiAddress::Http(_) | ApiAddress::Unix(_), Some(ca_file)) => {
            document.note(&ca_file.at, format_args!("only with an https:// address, not with \"{shown}\""));
        }
        _ => {}
    }
}

/// A client certificate is for TLS.
pub(super) fn https_only(
    document: &Document<'_>,
    address: &ApiAddress,
    files: [&Option<Located<PathBuf>>; 2],
) {
    if !matches!(address, ApiAddress::Https(_)) {
        for file in files.into_iter().flatten() {
            document.note(&file.at, format_args!("only with an https:// address, not with \"{address}\""));
        }
    }
}

/// The embedded server's own address is a loopback literal without TLS.
pub(super) fn loopback_listen(
    document: &Document<'_>,
    address: Located<ApiAddress>,
) -> Option<Located<SocketAddr>> {
    let ip = |host: &str| host.parse::<IpAddr>().ok().filter(IpAddr::is_loopback);
    let listen = match &address.value {
        ApiAddress::Http(at) => ip(&at.host).map(|ip| SocketAddr::new(ip, at.port)),
        ApiAddress::Https(_) | ApiAddress::Unix(_) => None,
    };
    if listen.is_none() {
        document.note(
            &address.at,
            format_args!(
                "found \"{}\"; accepted with kind = \"embedded\": http:// with a loopback address, as in \
                 \"http://127.0.0.1:8500\" (a unix socket is always there; for other hosts: \
                 [control_plane.embedded.expose])",
                address.value
            ),
        );
    }
    listen.map(|value| Located { value, at: address.at })
}
