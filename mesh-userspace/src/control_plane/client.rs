//! One request to the API and its answer: used by the daemon's watches and by the CLI alike.
//!
//! Answers are bounded in time and size, and an error says what failed and what to do next. Retrying, blocking
//! queries' indexes and what an answer means are others' business.

use std::{error::Error as _, io, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body as _;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    connector::{ConnectError, Connector, TlsSetupError},
    settings::{ApiAddress, Kind, Settings, TokenError, TokenSource},
};

/// The longest answer that is read; one health answer of 20,000 instances fits.
const MAX_BODY: usize = 64 << 20;
/// How much of an error's body is kept for the message.
const MAX_REASON: usize = 300;
/// Time for an answer that does not wait for a change.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a request was not answered as hoped. The text names the cause and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    #[error(
        "{address} refuses connections: is {server} running there? (control_plane.address says where to look)"
    )]
    Refused { address: String, server: &'static str },
    #[error("no unix socket at {address}: is {server} running? (control_plane.address says where to look)")]
    NoSocket { address: String, server: &'static str },
    #[error("no permission to open {address}: run as root, or as the owner of the socket")]
    SocketPermission { address: String },
    #[error("cannot reach {address}: {reason}; check the address, the route and firewalls on the way")]
    Unreachable { address: String, reason: String },
    #[error(
        "{address}: {reason}; check control_plane.ca_file, and that the server's certificate names that host"
    )]
    Tls { address: String, reason: String },
    #[error(transparent)]
    TlsSetup(#[from] TlsSetupError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("{path}: no complete answer from {address} within {}", seconds(*.after))]
    Timeout { address: String, path: String, after: Duration },
    #[error("{path}: the connection to {address} broke before the answer was complete: {reason}")]
    Broken { address: String, path: String, reason: String },
    #[error("{path} is forbidden: {reason}; {}", token_advice(*.with_token))]
    Forbidden { path: String, reason: String, with_token: bool },
    #[error("{path} is not there: {reason}")]
    NotFound { path: String, reason: String },
    #[error("{path} was answered with {status}: {reason}")]
    Status { path: String, status: StatusCode, reason: String },
    #[error("{path}: the answer is longer than {limit} bytes")]
    TooLarge { path: String, limit: usize },
    #[error(
        "{path}: the answer is not what a Consul agent says: {reason}; does control_plane.address point at one?"
    )]
    Malformed { path: String, reason: String },
}

fn token_advice(with_token: bool) -> &'static str {
    if with_token {
        "the token in use does not grant it: extend its policy, or set another one as control_plane.token_file"
    } else {
        "no token is set: set control_plane.token or control_plane.token_file"
    }
}

fn seconds(d: Duration) -> String {
    format!("{} s", d.as_secs())
}

impl ApiError {
    /// The API itself was not reached, or broke off: whatever it said before may not hold any more.
    pub fn is_outage(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::NoSocket { .. }
            | Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Broken { .. } => true,
            Self::SocketPermission { .. }
            | Self::TlsSetup(_)
            | Self::Token(_)
            | Self::Forbidden { .. }
            | Self::NotFound { .. }
            | Self::Status { .. }
            | Self::TooLarge { .. }
            | Self::Malformed { .. } => false,
        }
    }

    /// Returns [`ApiError::Malformed`] for `path`.
    pub(super) fn malformed(path: &str, reason: impl ToString) -> Self {
        Self::Malformed { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// A healthy answer.
#[derive(Debug)]
pub struct Answer {
    pub body: Bytes,
    /// `X-Consul-Index`, where the endpoint has one.
    pub index: Option<u64>,
}

/// A client of the HTTP API with a pool of kept-alive connections. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Client {
    http: legacy::Client<Connector, Full<Bytes>>,
    address: ApiAddress,
    /// What stands in the URI and in `Host`.
    authority: String,
    token: Option<TokenSource>,
    server: &'static str,
    /// `mesh-node=…&mesh-address=…`, added to agent calls.
    on_behalf_of: Option<String>,
}

impl Client {
    /// Opens no connection yet. Reads the TLS files of an `https://` address.
    ///
    /// # Errors
    /// [`ApiError::TlsSetup`].
    pub fn new(settings: &Settings) -> Result<Self, ApiError> {
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(8)
            .build(Connector::new(settings)?);
        let authority = match &settings.address {
            ApiAddress::Http(host, port) | ApiAddress::Https(host, port) if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            ApiAddress::Http(host, port) | ApiAddress::Https(host, port) => format!("{host}:{port}"),
            ApiAddress::Unix(_) => "localhost".to_owned(),
        };
        let on_behalf_of = (settings.kind != Kind::Consul)
            .then(|| format!("mesh-node={}&mesh-address={}", escape(&settings.node), settings.node_address));
        Ok(Self {
            http,
            address: settings.address.clone(),
            authority,
            token: settings.token.clone(),
            server: if settings.kind == Kind::Consul { "a Consul agent" } else { "`meshnode run`" },
            on_behalf_of,
        })
    }

    /// Returns the answer to `GET path`; `path` begins with `/v1/` and may carry a query, already escaped.
    ///
    /// # Errors
    /// Every [`ApiError`] but `TlsSetup`.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        let answer = self.request(Method::GET, path, Bytes::new(), ANSWER_TIMEOUT).await?;
        decode(path, &answer.body)
    }

    /// Sends `body` as JSON; an empty answer reads as JSON `null`, so that `T` may be `()` or an `Option`.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.send(Method::PUT, path, body).await
    }

    /// As [`put`](Self::put), by `POST`.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.send(Method::POST, path, body).await
    }

    /// Sends `DELETE path`; what is answered (Consul says `true`) is dropped.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn delete(&self, path: &str) -> Result<(), ApiError> {
        self.request(Method::DELETE, path, Bytes::new(), ANSWER_TIMEOUT).await.map(drop)
    }

    /// Sends `body` as it is, for the one endpoint that takes PEM.
    pub(super) async fn put_text<T: DeserializeOwned>(
        &self,
        path: &str,
        body: String,
    ) -> Result<T, ApiError> {
        let answer = self.request(Method::PUT, path, body.into(), ANSWER_TIMEOUT).await?;
        decode(path, &answer.body)
    }

    /// Returns the answer to a blocking query: at once when `index` is 0, else when there is a newer one, or after
    /// `wait` (and up to a sixteenth more, which Consul adds).
    pub(super) async fn blocking(&self, path: &str, index: u64, wait: Duration) -> Result<Answer, ApiError> {
        if index == 0 {
            return self.request(Method::GET, path, Bytes::new(), ANSWER_TIMEOUT).await;
        }
        let and = if path.contains('?') { '&' } else { '?' };
        let query = format!("{path}{and}index={index}&wait={}s", wait.as_secs());
        self.request(Method::GET, &query, Bytes::new(), wait + wait / 16 + ANSWER_TIMEOUT).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ApiError> {
        let body = serde_json::to_vec(body).expect("wire types have string keys only");
        let answer = self.request(method, path, body.into(), ANSWER_TIMEOUT).await?;
        let body = if answer.body.is_empty() { Bytes::from_static(b"null") } else { answer.body };
        // An endpoint that answers nothing of interest may say so in any words (Consul: `true`).
        if size_of::<T>() == 0 { decode(path, b"null") } else { decode(path, &body) }
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<Answer, ApiError> {
        let timeout = || ApiError::Timeout {
            address: self.address.to_string(),
            path: bare(path).to_owned(),
            after: limit,
        };
        tokio::time::timeout(limit, self.exchange(method, path, body)).await.map_err(|_| timeout())?
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, ApiError> {
        let request = self.compose(method, path, body)?;
        let response = self.http.request(request).await.map_err(|e| self.failed(path, &e))?;
        let status = response.status();
        let index = index(path, response.headers())?;
        let filtered =
            response.headers().get("x-consul-results-filtered-by-acls").is_some_and(|v| v == "true");
        let limit = if status.is_success() { MAX_BODY } else { MAX_REASON * 16 };
        let too_large = || ApiError::TooLarge { path: bare(path).to_owned(), limit };
        let body = response.into_body();
        if status.is_success() && body.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let body = match Limited::new(body, limit).collect().await {
            Ok(body) => body.to_bytes(),
            Err(e) if e.is::<LengthLimitError>() && status.is_success() => return Err(too_large()),
            Err(e) if e.is::<LengthLimitError>() => Bytes::new(),
            Err(e) => return Err(self.broken(path, root_cause(e.as_ref()))),
        };
        if !status.is_success() {
            return Err(self.refusal(path, status, &body));
        }
        if filtered {
            // Consul 1.11 and later: part of the answer was withheld, which must not read as "there is no more".
            return Err(self.refusal(path, StatusCode::FORBIDDEN, b"some results were withheld by ACLs"));
        }
        Ok(Answer { body, index })
    }

    fn compose(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, ApiError> {
        let query = self
            .on_behalf_of
            .as_ref()
            .filter(|_| path.starts_with("/v1/agent/"))
            .map_or_else(String::new, |query| {
                format!("{}{query}", if path.contains('?') { '&' } else { '?' })
            });
        let mut request = Request::builder()
            .method(method)
            .uri(format!("http://{}{path}{query}", self.authority))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("meshnode/", env!("CARGO_PKG_VERSION")));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        if let Some(token) = &self.token {
            request = request.header("x-consul-token", token.current()?);
        }
        request.body(Full::new(body)).map_err(|e| ApiError::malformed(bare(path), e))
    }

    /// Maps what hyper says to what the user can do about it.
    fn failed(&self, path: &str, error: &legacy::Error) -> ApiError {
        let address = self.address.to_string();
        let mut cause: Option<&(dyn std::error::Error + 'static)> = error.source();
        while let Some(inner) = cause.filter(|e| !e.is::<ConnectError>()) {
            cause = inner.source();
        }
        let connect = cause.and_then(|e| e.downcast_ref::<ConnectError>());
        let unix = matches!(self.address, ApiAddress::Unix(_));
        match connect {
            Some(ConnectError::Io(e)) => match e.kind() {
                io::ErrorKind::ConnectionRefused => ApiError::Refused { address, server: self.server },
                io::ErrorKind::NotFound if unix => ApiError::NoSocket { address, server: self.server },
                io::ErrorKind::PermissionDenied if unix => ApiError::SocketPermission { address },
                _ => ApiError::Unreachable { address, reason: e.to_string() },
            },
            Some(e @ ConnectError::Timeout) => ApiError::Unreachable { address, reason: e.to_string() },
            Some(e @ ConnectError::Tls(_)) => ApiError::Tls { address, reason: e.to_string() },
            None => self.broken(path, root_cause(error)),
        }
    }

    fn broken(&self, path: &str, reason: String) -> ApiError {
        ApiError::Broken { address: self.address.to_string(), path: bare(path).to_owned(), reason }
    }

    fn refusal(&self, path: &str, status: StatusCode, body: &[u8]) -> ApiError {
        let path = bare(path).to_owned();
        let reason = reason(body, status);
        match status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                ApiError::Forbidden { path, reason, with_token: self.token.is_some() }
            }
            StatusCode::NOT_FOUND => ApiError::NotFound { path, reason },
            _ => ApiError::Status { path, status, reason },
        }
    }
}

/// Escapes one path segment or query value.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// The path without its query, for messages.
fn bare(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

pub(super) fn decode<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|e| ApiError::malformed(bare(path), e))
}

/// `X-Consul-Index` when there is one; it must be a number then.
fn index(path: &str, headers: &http::HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get("x-consul-index") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| ApiError::malformed(bare(path), format!("X-Consul-Index is {value:?}")))
}

/// The server's own words in one line, shortened.
fn reason(body: &[u8], status: StatusCode) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text
        .split(|c: char| c.is_control())
        .filter(|part| !part.trim().is_empty())
        .collect::<Vec<_>>()
        .join(" ");
    match line.char_indices().nth(MAX_REASON) {
        _ if line.is_empty() => status.canonical_reason().unwrap_or("no reason given").to_owned(),
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
