//! `[[gateway]]`: a service outside the mesh that this host offers to it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use crate::{identity::ServiceName, tls::ExternalFiles};

/// A service outside the mesh, which is reached through this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayConfig {
    /// The identity under which the mesh knows it.
    pub service: ServiceName,
    pub address: ExternalAddress,
    /// `None`: the next free one of `address.mesh_ports`.
    pub mesh_port: Option<u16>,
    /// How it is spoken to in TLS; `None`: in clear.
    pub tls: Option<ExternalFiles>,
    /// How often the daemon tries a TCP connect; `None` when the check is off.
    pub check_interval: Option<Duration>,
}

/// Where a service outside the mesh is: a host of its own, by address or by name, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalAddress {
    Literal(SocketAddr),
    Name { host: String, port: u16 },
}

/// Why an address cannot be that of another host; `None` if it can.
///
/// Every host of the mesh captures what is dialled at the address: one that means each host itself cannot be offered.
pub fn unfit(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    match ip.to_canonical() {
        ip if ip.is_loopback() || ip.is_unspecified() => {
            Some("that is each host itself; a program of this host is a [[service]]")
        }
        ip if ip.is_multicast() => Some("a multicast address is not one host's"),
        _ if link_local => Some("a link-local address means another host on each link"),
        _ => None,
    }
}

impl ExternalAddress {
    /// The host, without the port: what a certificate of it names.
    pub fn host(&self) -> String {
        match self {
            Self::Literal(address) => address.ip().to_string(),
            Self::Name { host, .. } => host.strip_suffix('.').unwrap_or(host).to_owned(),
        }
    }

    /// What it looks like, for messages.
    pub const FORMS: &str = "ADDRESS:PORT or NAME:PORT such as \"10.9.9.9:5432\", \"[2001:db8::9]:5432\", \"db.example.com:5432\"";
}

impl fmt::Display for ExternalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Literal(address) => address.fmt(f),
            Self::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl FromStr for ExternalAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            return match unfit(address.ip()) {
                Some(why) => Err(why),
                None if address.port() == 0 => Err("ports are 1 to 65535"),
                None => Ok(Self::Literal(address)),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or("the port is missing")?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or("ports are 1 to 65535")?;
        if !is_host_name(host) {
            return Err("neither a host name nor an IP address, and IPv6 in brackets");
        }
        Ok(Self::Name { host: host.to_owned(), port })
    }
}

/// Whether a resolver could be asked for it. The last label of a name is no number: `10.9.9` is a slip, not a name.
fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let plain = text.strip_suffix('.').unwrap_or(text);
    let numeric = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
    plain.len() <= 253 && plain.split('.').all(label) && plain.rsplit('.').next().is_some_and(|l| !numeric(l))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_external_address_is_one_that_another_host_can_have() {
        for (text, shown) in [
            ("10.9.9.9:5432", "10.9.9.9:5432"),
            ("[2001:db8::9]:5432", "[2001:db8::9]:5432"),
            ("[::ffff:10.9.9.9]:5432", "10.9.9.9:5432"),
            ("db.example.com:5432", "db.example.com:5432"),
            ("db:1", "db:1"),
        ] {
            assert_eq!(text.parse::<ExternalAddress>().unwrap().to_string(), shown);
        }
        for text in [
            "127.0.0.1:5432",
            "[::1]:5432",
            "0.0.0.0:5432",
            "[::]:1",
            "[::ffff:127.0.0.1]:1",
            "224.0.0.1:1",
            "169.254.1.1:1",
            "[fe80::1]:1",
            "10.9.9.9",
            "10.9.9.9:0",
            "10.9.9:5432",
            "db",
            "db:",
            "db:x",
            ":1",
            "-db:1",
            "a..b:1",
            "2001:db8::9:5432",
            "db/x:1",
            "",
        ] {
            assert!(text.parse::<ExternalAddress>().is_err(), "{text}");
        }
    }
}
