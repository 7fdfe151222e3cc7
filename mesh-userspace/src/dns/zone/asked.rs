//! What a name in one of the mesh's domains asks for. Syntax only: whether there is such a service is not known here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Read from the labels before the domain, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The domain itself, or a name that only has names below it.
    Nothing,
    /// `NAME`, `NAME.virtual`: the service's virtual IP.
    Virtual(String),
    /// `_NAME._tcp`: where the service's virtual IP is, and at which port.
    VirtualPort(String),
    /// `NAME.service`, `_NAME._tcp.service`, and the same with `.DATACENTER`: healthy instances. `TAG.NAME.service`, which
    /// is written like a name with a dot, and `_NAME._TAG.service`: those of them that have the tag.
    Instances {
        name: String,
        tag: Option<String>,
        datacenter: Option<String>,
    },
    /// `NAME.node`, and the same with `.DATACENTER`: the node's address.
    Node {
        name: String,
        datacenter: Option<String>,
    },
    /// `HEX.addr`: the address that the digits write, which the answers about instances refer to.
    Address(IpAddr),
    Unknown,
}

impl Asked {
    /// `is_datacenter` says whether a label names one.
    pub fn read(labels: &[String], is_datacenter: impl Fn(&str) -> bool) -> Self {
        let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        match labels.as_slice() {
            [] | ["_tcp"] => Self::Nothing,
            [rest @ .., "service"] => instances(rest, None),
            [rest @ .., "service", dc] if is_datacenter(dc) => instances(rest, Some((*dc).to_owned())),
            ["virtual" | "addr" | "node"] => Self::Nothing,
            [rest @ .., "node"] => Self::Node { name: rest.join("."), datacenter: None },
            [rest @ .., "node", dc] if !rest.is_empty() && is_datacenter(dc) => {
                Self::Node { name: rest.join("."), datacenter: Some((*dc).to_owned()) }
            }
            [rest @ .., "virtual"] => Self::Virtual(rest.join(".")),
            [rest @ .., "virtual", dc] if !rest.is_empty() && is_datacenter(dc) => {
                Self::Virtual(rest.join("."))
            }
            [hex, "addr"] => address(hex),
            [hex, "addr", dc] if is_datacenter(dc) => address(hex),
            [name, "_tcp"] => match name.strip_prefix('_') {
                Some(name) if !name.is_empty() => Self::VirtualPort(name.to_owned()),
                _ => Self::Unknown,
            },
            rest => Self::Virtual(rest.join(".")),
        }
    }
}

fn instances(labels: &[&str], datacenter: Option<String>) -> Asked {
    let (name, tag) = match labels {
        [] | ["_tcp"] => return Asked::Nothing,
        [name, "_tcp"] => match name.strip_prefix('_') {
            Some(name) => (name.to_owned(), None),
            None => return Asked::Unknown,
        },
        // RFC 2782's form, as Consul reads it.
        [name, tag] if name.starts_with('_') && tag.starts_with('_') => {
            (name[1..].to_owned(), Some(tag[1..].to_owned()))
        }
        rest => (rest.join("."), None),
    };
    Asked::Instances { name, tag, datacenter }
}

fn address(hex: &str) -> Asked {
    if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Asked::Unknown;
    }
    let v4 = || (hex.len() == 8).then(|| u32::from_str_radix(hex, 16).ok().map(Ipv4Addr::from))?;
    let v6 = || (hex.len() == 32).then(|| u128::from_str_radix(hex, 16).ok().map(Ipv6Addr::from))?;
    v4().map(IpAddr::V4).or_else(|| v6().map(IpAddr::V6)).map_or(Asked::Unknown, Asked::Address)
}

/// Returns the label that [`Asked::Address`] is read from.
pub fn address_label(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(v4) => format!("{:08x}", u32::from(v4)),
        IpAddr::V6(v6) => format!("{:032x}", u128::from(v6)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Asked {
        let labels: Vec<String> = text.split('.').filter(|l| !l.is_empty()).map(str::to_owned).collect();
        Asked::read(&labels, |label| label == "dc1")
    }

    fn instances(name: &str, datacenter: Option<&str>) -> Asked {
        Asked::Instances { name: name.to_owned(), tag: None, datacenter: datacenter.map(str::to_owned) }
    }

    #[test]
    fn each_form_is_read() {
        for (text, expected) in [
            ("", Asked::Nothing),
            ("db", Asked::Virtual("db".into())),
            ("db.v2", Asked::Virtual("db.v2".into())),
            ("db.virtual", Asked::Virtual("db".into())),
            ("db.virtual.dc1", Asked::Virtual("db".into())),
            ("virtual", Asked::Nothing),
            ("_tcp", Asked::Nothing),
            ("_db._tcp", Asked::VirtualPort("db".into())),
            ("_._tcp", Asked::Unknown),
            ("service", Asked::Nothing),
            ("service.dc1", Asked::Nothing),
            ("_tcp.service", Asked::Nothing),
            ("db.service", instances("db", None)),
            ("db.service.dc1", instances("db", Some("dc1"))),
            ("db.service.dc9", Asked::Virtual("db.service.dc9".into())),
            ("_db._tcp.service", instances("db", None)),
            ("_db._tcp.service.dc1", instances("db", Some("dc1"))),
            ("db._tcp.service", Asked::Unknown),
            ("primary.db.service", instances("primary.db", None)),
            (
                "_db._primary.service",
                Asked::Instances { name: "db".into(), tag: Some("primary".into()), datacenter: None },
            ),
            ("node", Asked::Nothing),
            ("host-a.node", Asked::Node { name: "host-a".into(), datacenter: None }),
            ("host.a.node.dc1", Asked::Node { name: "host.a".into(), datacenter: Some("dc1".into()) }),
            ("host-a.node.dc9", Asked::Virtual("host-a.node.dc9".into())),
            ("0a4d0002.addr.dc1", Asked::Address("10.77.0.2".parse().unwrap())),
            ("0a4d0002.addr", Asked::Address("10.77.0.2".parse().unwrap())),
            ("0a4d000.addr", Asked::Unknown),
            ("+a4d0002.addr", Asked::Address("10.77.0.2".parse().unwrap())),
        ] {
            let expected = if text.starts_with('+') { Asked::Unknown } else { expected };
            assert_eq!(read(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn an_address_survives_its_label(ip in any::<IpAddr>()) {
            prop_assert_eq!(read(&format!("{}.addr", address_label(ip))), Asked::Address(ip));
        }

        #[test]
        fn any_labels_are_read(labels in prop::collection::vec(".{0,20}", 0..6)) {
            let _ = Asked::read(&labels, |label| label == "dc1");
        }
    }
}
