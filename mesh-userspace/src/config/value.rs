//! Values as they are written: durations, port ranges, API addresses, tokens, absolute paths.

use std::{
    fmt, fs, io,
    net::IpAddr,
    path::{Component, Path, PathBuf},
    str::FromStr,
    time::Duration,
};

/// What a duration looks like, for messages.
pub(super) const DURATION: &str = "a duration such as \"500ms\", \"10s\", \"5m\", \"1h30m\"";

/// Returns the duration that `text` writes: numbers, each with its unit (`ms`, `s`, `m`, `h`, `d`).
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    const BAD: &str = "numbers with the units ms, s, m, h, d";
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(BAD);
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(BAD),
        };
        let number: u64 = number.parse().map_err(|_| BAD)?;
        let part = number.checked_mul(unit_ms).ok_or("too long")?;
        total = total.checked_add(Duration::from_millis(part)).ok_or("too long")?;
        rest = tail;
    }
    Ok(total)
}

/// Returns `duration` as [`parse_duration`] reads it.
pub fn format_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match ms {
        0 => "0s".to_owned(),
        _ if ms.is_multiple_of(3_600_000) => format!("{}h", ms / 3_600_000),
        _ if ms.is_multiple_of(60_000) => format!("{}m", ms / 60_000),
        _ if ms.is_multiple_of(1000) => format!("{}s", ms / 1000),
        _ => format!("{ms}ms"),
    }
}

/// An inclusive range of ports; never empty, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

impl PortRange {
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    pub fn ports(&self) -> std::ops::RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, last) = text.split_once('-').ok_or("two ports and a hyphen")?;
        let port = |text: &str| text.trim().parse::<u16>().map_err(|_| "ports are 1 to 65535");
        let range = Self { first: port(first)?, last: port(last)? };
        if range.first == 0 || range.first > range.last {
            return Err("the first port is at least 1 and not above the last");
        }
        Ok(range)
    }
}

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

/// What an API address looks like, for messages.
pub(super) const API_ADDRESS: &str = "\"http://HOST:PORT\", \"https://HOST:PORT\", \"unix:///PATH\"";

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApiAddressError {
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
    /// Returns whether nobody but this host's root can read what travels: TLS, a unix socket, or loopback.
    pub fn is_confidential(&self) -> bool {
        match self {
            Self::Https(_) | Self::Unix(_) => true,
            Self::Http(at) => at.is_loopback(),
        }
    }
}

impl HostPort {
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    fn parse(text: &str, default_port: u16) -> Result<Self, ApiAddressError> {
        let text = text.strip_suffix('/').unwrap_or(text);
        if text.contains(['/', '?', '#', '@']) {
            return Err(ApiAddressError::Path);
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(ApiAddressError::Host)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| ApiAddressError::Host)?;
                (host, port.strip_prefix(':').or(port.is_empty().then_some("")).ok_or(ApiAddressError::Port)?)
            }
            None => text.split_once(':').unwrap_or((text, "")),
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%');
        if host.is_empty() || !host.chars().all(is_host) || (host.contains(':') != text.starts_with('[')) {
            return Err(ApiAddressError::Host);
        }
        let port = match port {
            "" if text.ends_with(':') => return Err(ApiAddressError::Port),
            "" => default_port,
            _ if port.bytes().all(|b| b.is_ascii_digit()) => {
                port.parse().map_err(|_| ApiAddressError::Port)?
            }
            _ if port.contains(':') => return Err(ApiAddressError::Host),
            _ => return Err(ApiAddressError::Port),
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

impl FromStr for ApiAddress {
    type Err = ApiAddressError;

    /// The ports default to Consul's: 8500, and 8501 for https.
    fn from_str(text: &str) -> Result<Self, ApiAddressError> {
        match text.split_once("://") {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("unix", _)) => Err(ApiAddressError::RelativeSocket),
            Some(("http", at)) => HostPort::parse(at, 8500).map(Self::Http),
            Some(("https", at)) => HostPort::parse(at, 8501).map(Self::Https),
            _ => Err(ApiAddressError::Scheme),
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

/// An ACL token; not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Returns `None` for what cannot stand in an HTTP header.
    pub fn new(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(text.to_owned()))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where the token comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenSource {
    Inline(Secret),
    File(PathBuf),
}

impl TokenSource {
    /// Returns the token; a file is read now, so that a rotated token is seen.
    pub fn read(&self) -> io::Result<Secret> {
        match self {
            Self::Inline(secret) => Ok(secret.clone()),
            Self::File(path) => read_token(path),
        }
    }
}

/// Returns the token in the file at `path`, without the white space around it.
pub fn read_token(path: &Path) -> io::Result<Secret> {
    let named = |kind, what: String| io::Error::new(kind, format!("{}: {what}", path.display()));
    let text = fs::read_to_string(path).map_err(|e| named(e.kind(), e.to_string()))?;
    Secret::new(text.trim())
        .ok_or_else(|| named(io::ErrorKind::InvalidData, "holds no token of printable ASCII".to_owned()))
}

/// Returns an absolute path without `.` and `..`.
pub(super) fn absolute(text: &str) -> Result<PathBuf, &'static str> {
    let path = Path::new(text);
    let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) || text.contains('\0') {
        return Err("it must begin with / and have no . or .. in it");
    }
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn duration_reads_units_and_sums() {
        for (text, ms) in
            [("10s", 10_000), ("72h", 259_200_000), ("1h30m", 5_400_000), ("0s", 0), ("250ms", 250)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5h", "10 s", "9999999999999999999s", "99999999999999999d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn port_range_is_never_empty() {
        assert_eq!("21000-21255".parse(), Ok(PortRange { first: 21000, last: 21255 }));
        for text in ["", "1", "2-1", "0-5", "1-65536", "a-b", "-"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn api_address_round_trips_and_fills_in_consuls_ports() {
        for (text, shown) in [
            ("http://127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("http://localhost", "http://localhost:8500"),
            ("https://consul.example/", "https://consul.example:8501"),
            ("https://[fd00::1]:9", "https://[fd00::1]:9"),
            ("https://[fd00::1]", "https://[fd00::1]:8501"),
            ("unix:///run/x.sock", "unix:///run/x.sock"),
        ] {
            assert_eq!(text.parse::<ApiAddress>().unwrap().to_string(), shown);
        }
        for text in [
            "",
            "a:1",
            "ftp://a",
            "http://",
            "http://a:",
            "http://a:x",
            "http://a:+1",
            "http://a:70000",
            "http://a/b",
            "http://u@a",
            "http://fd00::1",
            "http://[x]:1",
            "http://[::1]x",
            "unix://x",
            "http://a b",
        ] {
            assert!(text.parse::<ApiAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_cleartext_to_another_host_is_not_confidential() {
        for (text, expected) in [
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://localhost:1", true),
            ("unix:///x", true),
            ("https://10.0.0.1:1", true),
            ("http://10.0.0.1:1", false),
            ("http://localhost.example:1", false),
        ] {
            assert_eq!(text.parse::<ApiAddress>().unwrap().is_confidential(), expected, "{text}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        let secret = Secret::new("hunter2").unwrap();
        assert!(!format!("{:?}", TokenSource::Inline(secret)).contains("hunter2"));
        assert_eq!(Secret::new("a b"), None);
    }

    proptest! {
        #[test]
        fn values_never_panic(text in "\\PC{0,40}|(http|https|unix)://[\\[\\]a-z0-9:/.]{0,20}|[0-9a-z-]{0,12}") {
            let _ = parse_duration(&text);
            let _ = text.parse::<PortRange>();
            let _ = absolute(&text);
            if let Ok(address) = text.parse::<ApiAddress>() {
                prop_assert_eq!(address.to_string().parse::<ApiAddress>().unwrap(), address);
            }
        }

        #[test]
        fn a_formatted_duration_reads_back(ms in 0u64..1_000_000_000) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }
}
