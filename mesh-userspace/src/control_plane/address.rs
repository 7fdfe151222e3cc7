//! Where a control plane's HTTP API is, as it is written in the configuration, in options and in messages.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
};

/// Where a control plane's HTTP API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiAddress {
    Http(HostPort),
    Https(HostPort),
    Unix(PathBuf),
}

/// A host, by name or address (IPv6 without brackets), and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    pub host: String,
    pub port: u16,
}

/// What is wrong with the text of an address; the text itself is for the caller to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    #[error("the scheme must be http, https or unix")]
    Scheme,
    #[error("a unix socket's path must be absolute")]
    RelativeSocket,
    #[error("there must be a host name or an address, and IPv6 in brackets")]
    Host,
    #[error("a port is a number from 0 to 65535")]
    Port,
    #[error("nothing may follow the port")]
    Path,
}

impl ApiAddress {
    /// What an address looks like, for messages.
    pub const FORMS: &str = "\"http://HOST:PORT\", \"https://HOST:PORT\", \"unix:///PATH\"";

    /// Returns whether nobody but this host's root can read what travels: TLS, a unix socket, or loopback.
    pub fn is_confidential(&self) -> bool {
        match self {
            Self::Https(_) | Self::Unix(_) => true,
            Self::Http(at) => at.is_loopback(),
        }
    }
}

impl FromStr for ApiAddress {
    type Err = AddressError;

    /// The ports default to Consul's: 8500, and 8501 for https.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        match text.split_once("://") {
            Some(("unix", path)) if path.len() > 1 && path.starts_with('/') && !path.contains('\0') => {
                Ok(Self::Unix(path.into()))
            }
            Some(("unix", _)) => Err(AddressError::RelativeSocket),
            Some(("http", at)) => HostPort::parse(at, 8500).map(Self::Http),
            Some(("https", at)) => HostPort::parse(at, 8501).map(Self::Https),
            _ => Err(AddressError::Scheme),
        }
    }
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(at) => write!(f, "http://{at}"),
            Self::Https(at) => write!(f, "https://{at}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl HostPort {
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
    }

    fn parse(text: &str, default_port: u16) -> Result<Self, AddressError> {
        let text = text.strip_suffix('/').unwrap_or(text);
        if text.contains(['/', '?', '#', '@']) {
            return Err(AddressError::Path);
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(AddressError::Host)?;
                host.parse::<Ipv6Addr>().map_err(|_| AddressError::Host)?;
                match port.strip_prefix(':') {
                    None if !port.is_empty() => return Err(AddressError::Port),
                    port => (host, port),
                }
            }
            None => match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            },
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let fits = text.starts_with('[') || (!host.is_empty() && host.chars().all(is_name));
        // Two colons are an IPv6 address without its brackets.
        if !fits || port.is_some_and(|port| port.contains(':')) {
            return Err(AddressError::Host);
        }
        let port = match port {
            None => default_port,
            Some(port) if port.bytes().all(|b| b.is_ascii_digit()) => {
                port.parse().map_err(|_| AddressError::Port)?
            }
            Some(_) => return Err(AddressError::Port),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn api_address_round_trips_and_fills_in_consuls_ports() {
        for (text, shown) in [
            ("http://127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("http://localhost", "http://localhost:8500"),
            ("https://consul.example/", "https://consul.example:8501"),
            ("https://[fd00::1]:9", "https://[fd00::1]:9"),
            ("https://[fd00::1]", "https://[fd00::1]:8501"),
            ("unix:///run/meshnode/api.sock", "unix:///run/meshnode/api.sock"),
        ] {
            assert_eq!(text.parse::<ApiAddress>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn api_address_refuses_what_is_none() {
        for (text, error) in [
            ("", AddressError::Scheme),
            ("a:1", AddressError::Scheme),
            ("127.0.0.1:8500", AddressError::Scheme),
            ("ftp://a", AddressError::Scheme),
            ("http://", AddressError::Host),
            ("http://fd00::1", AddressError::Host),
            ("http://a:1:2", AddressError::Host),
            ("http://[x]:1", AddressError::Host),
            ("http://[::1", AddressError::Host),
            ("http://a b", AddressError::Host),
            ("http://a%b", AddressError::Host),
            ("http://a:", AddressError::Port),
            ("http://a:x", AddressError::Port),
            ("http://a:+1", AddressError::Port),
            ("http://a:65536", AddressError::Port),
            ("http://[::1]x", AddressError::Port),
            ("http://a:1/v1", AddressError::Path),
            ("http://u@a:1", AddressError::Path),
            ("http://a?b", AddressError::Path),
            ("unix://", AddressError::RelativeSocket),
            ("unix:///", AddressError::RelativeSocket),
            ("unix://rel/path", AddressError::RelativeSocket),
        ] {
            assert_eq!(text.parse::<ApiAddress>(), Err(error), "{text}");
        }
    }

    #[test]
    fn only_cleartext_to_another_host_is_not_confidential() {
        for (text, expected) in [
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://[::ffff:127.0.0.1]:1", true),
            ("http://localhost:1", true),
            ("unix:///x", true),
            ("https://10.0.0.1:1", true),
            ("http://10.0.0.1:1", false),
            ("http://localhost.example:1", false),
        ] {
            assert_eq!(text.parse::<ApiAddress>().unwrap().is_confidential(), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn api_address_never_panics_and_shows_what_it_parses(text in "\\PC{0,60}|(http|https|unix)://[\\[\\]a-z0-9:/.]{0,30}") {
            if let Ok(address) = text.parse::<ApiAddress>() {
                prop_assert_eq!(address.to_string().parse::<ApiAddress>().unwrap(), address);
            }
        }
    }
}
