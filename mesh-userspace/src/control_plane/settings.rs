//! Where the control plane is and who asks: addresses and tokens, parsed at the edge.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex},
    time::SystemTime,
};

use http::HeaderValue;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::identity::ServiceName;

/// What answers at the address, which decides how leafs are got and on whose behalf agent calls are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// This daemon's own embedded server.
    Embedded,
    /// Another host's embedded server.
    Remote,
    /// A Consul agent.
    Consul,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::Remote => "remote",
            Self::Consul => "consul",
        })
    }
}

/// All that the client side of the control plane needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    pub kind: Kind,
    pub address: ApiAddress,
    /// The CA that an `https://` address is verified against; `None` takes the system's bundle.
    pub ca_file: Option<PathBuf>,
    pub client_cert: Option<ClientCert>,
    pub token: Option<TokenSource>,
    /// The node that this host's services are registered on (kinds embedded and remote; a Consul agent knows its own).
    pub node: String,
    pub node_address: IpAddr,
    pub datacenter: String,
    /// The disk cache lives in `control-plane/` below it.
    pub state_dir: PathBuf,
}

/// A client certificate for an `https://` address that demands one; PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCert {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// A service that this host runs.
#[derive(Clone, Debug)]
pub struct LocalService {
    pub name: ServiceName,
    /// Unique on the node; the proxy is registered as `ID-sidecar-proxy`.
    pub id: String,
    /// `None` for a service that only connects: it gets a leaf, and is not registered.
    pub listens: Option<Listens>,
}

/// How others reach a [`LocalService`].
#[derive(Clone, Debug)]
pub struct Listens {
    /// The port that the program listens on.
    pub port: u16,
    /// Where programs of other hosts dial it, as announced.
    pub address: SocketAddr,
    /// Other addresses at which it may be dialled: one of each family is announced, as `lan_ipv4` and `lan_ipv6`.
    pub also: Vec<SocketAddr>,
    /// Where it takes mTLS, as announced.
    pub mesh: SocketAddr,
    pub check: watch::Receiver<Health>,
}

/// What the daemon's own check of a local service found last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    Passing,
    /// With the reason, shown as the check's output.
    Critical(String),
}

/// Where the HTTP API is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApiAddress {
    /// Host (name or address) and port.
    Http(String, u16),
    Https(String, u16),
    Unix(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    #[error("`{0}` is no API address: http://HOST:PORT, https://HOST:PORT and unix:///PATH are accepted")]
    Scheme(String),
    #[error(
        "`{0}` is no API address: after the host only a port (1 to 65535) may follow, no path, query or user"
    )]
    Authority(String),
    #[error(
        "`{0}` is no API address: the path of a unix socket must be absolute, as in unix:///run/meshnode/api.sock"
    )]
    Path(String),
}

impl FromStr for ApiAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix://") {
            let absolute = path.len() > 1 && path.starts_with('/') && !path.contains('\0');
            return if absolute {
                Ok(Self::Unix(path.into()))
            } else {
                Err(AddressError::Path(text.to_owned()))
            };
        }
        let (make, rest): (fn(String, u16) -> Self, _) = if let Some(rest) = text.strip_prefix("http://") {
            (Self::Http, rest)
        } else if let Some(rest) = text.strip_prefix("https://") {
            (Self::Https, rest)
        } else {
            return Err(AddressError::Scheme(text.to_owned()));
        };
        let (host, port) = host_and_port(rest.strip_suffix('/').unwrap_or(rest))
            .ok_or_else(|| AddressError::Authority(text.to_owned()))?;
        Ok(make(host, port))
    }
}

/// The port that Consul's agent (and the embedded server) takes when none is given.
const DEFAULT_PORT: u16 = 8500;

fn host_and_port(text: &str) -> Option<(String, u16)> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let fits = !host.is_empty()
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':'));
    let port = port.map_or(Some(DEFAULT_PORT), |p| p.parse().ok().filter(|p| *p != 0))?;
    fits.then(|| (host.to_owned(), port))
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, host, port) = match self {
            Self::Unix(path) => return write!(f, "unix://{}", path.display()),
            Self::Http(host, port) => ("http", host, port),
            Self::Https(host, port) => ("https", host, port),
        };
        if host.contains(':') {
            write!(f, "{scheme}://[{host}]:{port}")
        } else {
            write!(f, "{scheme}://{host}:{port}")
        }
    }
}

/// Where the API token comes from. Its `Debug` never shows it.
#[derive(Clone)]
pub struct TokenSource(Source);

#[derive(Clone)]
enum Source {
    Value(HeaderValue),
    File { path: PathBuf, read: Arc<Mutex<Option<ReadToken>>> },
}

/// What a token file held when it looked like `stamp`.
struct ReadToken {
    stamp: (SystemTime, u64, u64),
    value: HeaderValue,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    #[error("cannot read the token file {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("the token{} is empty or has characters that a header cannot carry", .0.as_ref().map(|p| format!(" in {}", p.display())).unwrap_or_default())]
    Form(Option<PathBuf>),
}

impl TokenSource {
    /// # Errors
    /// [`TokenError::Form`] when `token` is empty or no header can carry it.
    pub fn value(token: &str) -> Result<Self, TokenError> {
        header(token).map(|value| Self(Source::Value(value))).ok_or(TokenError::Form(None))
    }

    /// The file is read when the first request is made, and again whenever it has changed.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(Source::File { path: path.into(), read: Arc::default() })
    }

    /// Returns the token of now.
    ///
    /// # Errors
    /// When the file cannot be read or holds no token; a token read before is not used then, as it may be revoked.
    pub(super) fn current(&self) -> Result<HeaderValue, TokenError> {
        match &self.0 {
            Source::Value(value) => Ok(value.clone()),
            Source::File { path, read } => {
                let mut read = read.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                let fresh = read_token(path, read.take())?;
                Ok(read.insert(fresh).value.clone())
            }
        }
    }
}

fn read_token(path: &Path, before: Option<ReadToken>) -> Result<ReadToken, TokenError> {
    use std::os::unix::fs::MetadataExt;
    let failed = |source| TokenError::Read { path: path.to_owned(), source };
    let meta = std::fs::metadata(path).map_err(failed)?;
    let stamp = (meta.modified().map_err(failed)?, meta.ino(), meta.len());
    if let Some(before) = before.filter(|b| b.stamp == stamp) {
        return Ok(before);
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let value = header(&text).ok_or_else(|| TokenError::Form(Some(path.to_owned())))?;
    Ok(ReadToken { stamp, value })
}

fn header(token: &str) -> Option<HeaderValue> {
    let token = token.trim();
    let mut value = HeaderValue::from_str(token).ok().filter(|_| !token.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Value(_) => f.write_str("TokenSource(value)"),
            Source::File { path, .. } => write!(f, "TokenSource({})", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn api_address_accepts_the_three_schemes() {
        for (text, shown) in [
            ("http://127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("http://consul.example/", "http://consul.example:8500"),
            ("https://[fd00::1]:8501", "https://[fd00::1]:8501"),
            ("unix:///run/meshnode/api.sock", "unix:///run/meshnode/api.sock"),
        ] {
            assert_eq!(text.parse::<ApiAddress>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn api_address_refuses_paths_users_and_bad_ports() {
        for text in [
            "",
            "127.0.0.1:8500",
            "ftp://a",
            "http://",
            "http://a:0",
            "http://a:65536",
            "http://a:1/v1",
            "http://u@a:1",
            "http://a?b",
            "http://a:1:2",
            "http://[::1",
            "http://[a]:1",
            "unix://",
            "unix:///",
            "unix://rel/path",
        ] {
            assert!(text.parse::<ApiAddress>().is_err(), "{text}");
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

    #[test]
    fn token_file_is_read_again_when_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "first\n").unwrap();
        let source = TokenSource::file(&path);
        assert_eq!(source.current().unwrap(), "first");
        std::fs::write(&path, "the second\n").unwrap();
        assert_eq!(source.current().unwrap(), "the second");
        std::fs::remove_file(&path).unwrap();
        assert!(source.current().is_err());
    }

    #[test]
    fn token_is_refused_when_empty_and_never_shown() {
        assert!(TokenSource::value(" \n").is_err());
        assert!(TokenSource::value("a\nb").is_err());
        let source = TokenSource::value("s3cret").unwrap();
        assert!(!format!("{source:?} {:?}", source.current().unwrap()).contains("s3cret"));
    }
}
