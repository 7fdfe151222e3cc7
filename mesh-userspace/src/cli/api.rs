//! One HTTP/1 request to a control plane or to the admin socket: over TCP, TLS, or a unix socket.
//!
//! A thin seam: no watches, no pooling, no retries; the daemon's own client is `control_plane::client`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::config::{ApiAddress, HostPort, Secret};

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);
const LARGEST_ANSWER: usize = 64 << 20;

/// Why there is no usable answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    #[error("{address} cannot be reached: {source}")]
    Connect { address: String, source: io::Error },
    #[error("{address} did not answer within {} s", .after.as_secs())]
    Timeout { address: String, after: Duration },
    #[error("{address} broke off: {source}")]
    Http { address: String, source: hyper::Error },
    #[error("{address} answered with more than {LARGEST_ANSWER} bytes, or not to the end")]
    Body { address: String },
    #[error("{0}")]
    Refused(Refusal),
    #[error("{address} answered {path} with something that is not expected there: {source}")]
    Shape { address: String, path: String, source: serde_json::Error },
    #[error("the CA file {path}: {why}")]
    CaFile { path: PathBuf, why: String },
    #[error("{0}")]
    Address(String),
}

/// An HTTP status that is no success.
#[derive(Debug)]
pub struct Refusal {
    pub address: String,
    pub path: String,
    pub status: StatusCode,
    /// The answer's body, one line of it at most for Consul.
    pub text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { address, path, status, text } = self;
        match *status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => write!(
                f,
                "{address} refused {path}: {status}: {text}\nGive a token that may do this: --token, CONSUL_HTTP_TOKEN, or \
                 control_plane.token_file in the configuration."
            ),
            _ => write!(f, "{address} refused {path}: {status}: {text}"),
        }
    }
}

impl ApiError {
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Timeout { .. } | Self::Http { .. })
    }

    /// Returns the kind of the failed connect.
    pub fn connect_error(&self) -> Option<io::ErrorKind> {
        if let Self::Connect { source, .. } = self { Some(source.kind()) } else { None }
    }
}

/// A successful answer.
pub struct Reply {
    pub body: Bytes,
    /// The `Date` header, as sent.
    pub date: Option<String>,
}

/// Where to ask, and with which token.
#[derive(Clone, Debug)]
pub struct Api {
    pub address: ApiAddress,
    pub ca_file: Option<PathBuf>,
    pub token: Option<Secret>,
}

impl Api {
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { address: ApiAddress::Unix(path.into()), ca_file: None, token: None }
    }

    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let reply = self.send(Method::GET, path, None).await?;
        self.parse(path, &reply.body)
    }

    pub async fn send_json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let reply = self.send_value(method, path, body).await?;
        self.parse(path, &reply.body)
    }

    pub async fn send_value(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Reply, ApiError> {
        let body = serde_json::to_vec(body).expect("invariant: requests are made of strings and numbers");
        self.send(method, path, Some(body)).await
    }

    fn parse<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, ApiError> {
        let (address, path) = (self.address.to_string(), path.to_owned());
        serde_json::from_slice(body).map_err(|source| ApiError::Shape { address, path, source })
    }

    /// Sends one request on a connection of its own.
    pub async fn send(&self, method: Method, path: &str, body: Option<Vec<u8>>) -> Result<Reply, ApiError> {
        if !self.address.is_confidential() {
            return Err(ApiError::Address(format!(
                "{} is not asked: the token and the answers would travel in clear. Use https:// with --ca-file, a unix \
                 socket, or loopback.",
                self.address
            )));
        }
        let late = |after| move |_| ApiError::Timeout { address: self.address.to_string(), after };
        let connect = |source| ApiError::Connect { address: self.address.to_string(), source };
        match &self.address {
            ApiAddress::Unix(socket) => {
                let stream = timeout(CONNECT, UnixStream::connect(socket)).await.map_err(late(CONNECT))?;
                self.ask(stream.map_err(connect)?, method, path, body).await
            }
            ApiAddress::Http(at) => {
                let stream = timeout(CONNECT, tcp(at)).await.map_err(late(CONNECT))?;
                self.ask(stream.map_err(connect)?, method, path, body).await
            }
            ApiAddress::Https(at) => {
                let tls = self.tls_config()?;
                let stream = timeout(CONNECT, tls_over_tcp(at, tls)).await.map_err(late(CONNECT))?;
                self.ask(stream.map_err(connect)?, method, path, body).await
            }
        }
    }

    async fn ask<S>(
        &self,
        stream: S,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Reply, ApiError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let answer = timeout(ANSWER, self.exchange(stream, method, path, body)).await;
        answer.unwrap_or_else(|_| Err(ApiError::Timeout { address: self.address.to_string(), after: ANSWER }))
    }

    async fn exchange<S>(
        &self,
        stream: S,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Reply, ApiError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let failed = |source| ApiError::Http { address: self.address.to_string(), source };
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // It ends with the stream; what goes wrong on it is seen by the request.
        let driver = tokio::spawn(connection);
        let response = sender.send_request(self.request(method, path, body)?).await.map_err(failed);
        let response = match response {
            Ok(response) => response,
            Err(error) => {
                driver.abort();
                return Err(error);
            }
        };
        let status = response.status();
        let date =
            response.headers().get(header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        driver.abort();
        let body = body.map_err(|error| {
            let address = self.address.to_string();
            match error.downcast::<hyper::Error>() {
                Ok(source) => ApiError::Http { address, source: *source },
                Err(other) => {
                    debug_assert!(other.is::<LengthLimitError>());
                    ApiError::Body { address }
                }
            }
        })?;
        let body = body.to_bytes();
        if status.is_success() {
            return Ok(Reply { body, date });
        }
        let (address, path) = (self.address.to_string(), path.to_owned());
        Err(ApiError::Refused(Refusal { address, path, status, text: refusal_text(&body) }))
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Request<Full<Bytes>>, ApiError> {
        let host = match &self.address {
            ApiAddress::Http(at) | ApiAddress::Https(at) => at.to_string(),
            ApiAddress::Unix(_) => "localhost".to_owned(),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token.expose());
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let bad = |error: http::Error| ApiError::Address(format!("{path} is no path of a request: {error}"));
        request.body(Full::from(body.unwrap_or_default())).map_err(bad)
    }

    fn tls_config(&self) -> Result<Arc<ClientConfig>, ApiError> {
        let Some(path) = &self.ca_file else {
            return Err(ApiError::Address(format!(
                "{} needs --ca-file (or CONSUL_CACERT): the CA that signed its certificate",
                self.address
            )));
        };
        let bad = |why: String| ApiError::CaFile { path: path.clone(), why };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(path).map_err(bad)? {
            roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| bad(error.to_string()))?;
        Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| error.to_string())?;
    if found.is_empty() { Err("holds no PEM certificate".to_owned()) } else { Ok(found) }
}

async fn tcp(at: &HostPort) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((at.host.as_str(), at.port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn tls_over_tcp(
    at: &HostPort,
    config: Arc<ClientConfig>,
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = ServerName::try_from(at.host.clone()).map_err(io::Error::other)?;
    TlsConnector::from(config).connect(name, tcp(at).await?).await
}

/// Returns what a refusal says: `error` of a JSON object, or else the text as it is.
fn refusal_text(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        error: String,
    }
    match serde_json::from_slice::<Body>(body) {
        Ok(body) => body.error,
        Err(_) => String::from_utf8_lossy(body).trim().chars().take(2000).collect(),
    }
}

/// Returns `text` as one segment of a path, or one value of a query.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte))
            }
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_leaves_nothing_that_ends_a_segment() {
        assert_eq!(escape("a/b?c=*#&%"), "a%2Fb%3Fc%3D%2A%23%26%25");
        assert_eq!(escape("web-1.x_y~"), "web-1.x_y~");
    }

    #[tokio::test]
    async fn cleartext_to_another_host_is_not_even_tried() {
        let address = "http://192.0.2.1:8500".parse().unwrap();
        let api = Api { address, ca_file: None, token: Secret::new("t") };
        let error = api.send(Method::GET, "/v1/x", None).await.err().unwrap();
        assert!(matches!(error, ApiError::Address(_)), "{error}");
    }

    #[tokio::test]
    async fn a_socket_nobody_listens_at_is_unreachable() {
        let dir = tempfile::tempdir().unwrap();
        let error = Api::unix(dir.path().join("none")).get::<()>("/status").await.unwrap_err();
        assert!(error.is_unreachable());
        assert_eq!(error.connect_error(), Some(io::ErrorKind::NotFound));
    }

    #[tokio::test]
    async fn https_without_a_ca_is_refused() {
        let api = Api { address: "https://127.0.0.1:1".parse().unwrap(), ca_file: None, token: None };
        assert!(api.get::<()>("/").await.unwrap_err().to_string().contains("--ca-file"));
    }
}
