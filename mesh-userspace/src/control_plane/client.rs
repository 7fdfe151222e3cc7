//! One request to the API and its answer: used by the daemon's watches and by the CLI alike.
//!
//! An error says what failed and what to do next. Bounds of an answer are `exchange`'s; retrying, blocking
//! queries' indexes and what an answer means are others' business.

use std::{io, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    address::ApiAddress,
    connector::TlsSetupError,
    exchange::{Exchange, ExchangeError, Reply},
    permission,
    settings::{ApiAccess, Kind, Settings},
    token::TokenError,
};

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
    #[error(
        "{address}: what answers there does not speak TLS; use the port of {server}'s HTTPS API, or http:// if this is its HTTP API"
    )]
    NotTls { address: String, server: &'static str },
    #[error(transparent)]
    TlsSetup(#[from] TlsSetupError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("{path}: no complete answer from {address} within {}", seconds(*.after))]
    Timeout { address: String, path: String, after: Duration },
    #[error("{path}: the connection to {address} broke before the answer was complete: {reason}")]
    Broken { address: String, path: String, reason: String },
    #[error("{path} is forbidden: {reason}; {}", token_advice(*.with_token, .reason))]
    Forbidden { path: String, reason: String, with_token: bool },
    #[error(
        "{path} is refused, it is asked too much: {reason}; see `limits` in the configuration of the agent"
    )]
    TooMany { path: String, reason: String },
    #[error("{address} knows no leader: most servers of the cluster must run and reach each other")]
    NoLeader { address: String },
    #[error("{path} is not there: {reason}")]
    NotFound { path: String, reason: String },
    #[error("{path} was answered with {status}: {reason}")]
    Status { path: String, status: StatusCode, reason: String },
    #[error("{path}: {reason}")]
    TooLarge { path: String, reason: String },
    #[error(
        "{address} is of {key} `{found}`, and the configuration says `{wanted}`: correct {key}, leave it out, or set \
         control_plane.address to an agent of `{wanted}`"
    )]
    Elsewhere { address: String, key: &'static str, found: String, wanted: String },
    #[error(
        "{path}: the answer is not what a Consul agent says: {reason}; does control_plane.address point at one?"
    )]
    Malformed { path: String, reason: String },
}

/// What is the same in two errors whose texts differ.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// Not reached, or it broke off.
    Outage,
    /// The token does not grant it.
    Forbidden,
    /// The server does not know the token.
    UnknownToken,
    /// There is no token where it should be.
    Token,
    TooMany,
    Status(StatusCode),
    /// It cannot be asked, or what it says cannot be used.
    Other,
}

/// Consul's words for a token that it does not know.
const UNKNOWN_TOKEN: &str = "ACL not found";
/// Consul's words where it has no ACLs.
const NO_ACLS: &str = "ACL support disabled";

fn token_advice(with_token: bool, reason: &str) -> &'static str {
    if reason.contains(UNKNOWN_TOKEN) {
        "the server knows no such token (deleted, expired, or another cluster's): set one that it knows as \
         control_plane.token_file"
    } else if reason.contains("ACL bootstrap no longer allowed") {
        "the first management token was made before: use it; with the embedded server, root makes another one by \
         `meshnode acl token create --policy-name global-management`"
    } else if with_token {
        "the token in use does not grant it: extend its policy, or set another one as control_plane.token_file"
    } else {
        "no token is set: set control_plane.token or control_plane.token_file"
    }
}

fn seconds(d: Duration) -> String {
    format!("{} s", d.as_secs())
}

impl ApiError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { .. }
            | Self::NoSocket { .. }
            | Self::Unreachable { .. }
            | Self::Tls { .. }
            | Self::NotTls { .. }
            | Self::Timeout { .. }
            | Self::Broken { .. } => ErrorKind::Outage,
            Self::Forbidden { reason, .. } if reason.contains(UNKNOWN_TOKEN) => ErrorKind::UnknownToken,
            Self::Forbidden { .. } => ErrorKind::Forbidden,
            Self::Token(_) => ErrorKind::Token,
            Self::TooMany { .. } => ErrorKind::TooMany,
            Self::NotFound { .. } => ErrorKind::Status(StatusCode::NOT_FOUND),
            Self::Status { status, .. } => ErrorKind::Status(*status),
            Self::SocketPermission { .. }
            | Self::TlsSetup(_)
            | Self::NoLeader { .. }
            | Self::TooLarge { .. }
            | Self::Elsewhere { .. }
            | Self::Malformed { .. } => ErrorKind::Other,
        }
    }

    /// The API itself was not reached, or broke off: whatever it said before may not hold any more.
    pub fn is_outage(&self) -> bool {
        self.kind() == ErrorKind::Outage
    }

    /// How an agent refuses one connection more from the same address: by 429, or, before Consul 1.9, by a reset.
    pub(super) fn is_refusal_of_connections(&self) -> bool {
        matches!(self, Self::TooMany { .. } | Self::Broken { .. })
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
    /// The server's clock: the `Date` header, as sent.
    pub date: Option<String>,
}

/// A client of the HTTP API. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Client {
    exchange: Exchange,
    access: ApiAccess,
    /// What answers at the address, for messages.
    server: &'static str,
    /// `mesh-node=…&mesh-address=…`, added to agent calls.
    on_behalf_of: Option<String>,
}

impl Client {
    /// Returns the daemon's client, which makes agent calls on behalf of its own node. Opens no connection yet. Reads
    /// the TLS files of an `https://` address.
    ///
    /// # Errors
    /// [`ApiError::TlsSetup`].
    pub fn new(settings: &Settings) -> Result<Self, ApiError> {
        let (server, on_behalf_of) = match settings.kind {
            Kind::Consul => ("a Consul agent", None),
            Kind::Embedded | Kind::Remote => {
                let node = escape(&settings.node);
                ("`meshnode run`", Some(format!("mesh-node={node}&mesh-address={}", settings.node_address)))
            }
        };
        Ok(Self { server, on_behalf_of, ..Self::open(settings.access.clone())? })
    }

    /// As [`new`](Self::new), for a caller that is no node: agent calls are about the server's own node.
    ///
    /// # Errors
    /// [`ApiError::TlsSetup`].
    pub fn open(access: ApiAccess) -> Result<Self, ApiError> {
        let exchange = Exchange::new(&access)?;
        Ok(Self { exchange, access, server: "the control plane", on_behalf_of: None })
    }

    pub fn access(&self) -> &ApiAccess {
        &self.access
    }

    /// Returns the answer to `GET path` as it came; `path` begins with `/v1/` and may carry a query, already escaped.
    ///
    /// # Errors
    /// Every [`ApiError`] but `TlsSetup`.
    pub async fn ask(&self, path: &str) -> Result<Answer, ApiError> {
        self.request(Method::GET, path, Bytes::new(), ANSWER_TIMEOUT).await
    }

    /// As [`ask`](Self::ask), read as JSON.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ApiError> {
        decode(path, &self.ask(path).await?.body)
    }

    /// As [`get`](Self::get), with `limit` for the answer.
    pub(super) async fn get_within<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<T, ApiError> {
        decode(path, &self.request(Method::GET, path, Bytes::new(), limit).await?.body)
    }

    pub(super) fn no_leader(&self) -> ApiError {
        ApiError::NoLeader { address: self.access.address.to_string() }
    }

    /// Sends `body` as JSON; an empty answer reads as JSON `null`, so that `T` may be `()` or an `Option`.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.send(Method::PUT, path, body).await
    }

    /// As [`put`](Self::put), by `POST`.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ApiError> {
        self.send(Method::POST, path, body).await
    }

    /// Sends `DELETE path`; what is answered (Consul says `true`) is dropped.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
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
            return self.ask(path).await;
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
        let asked = (method.clone(), body.clone());
        let request = self.compose(method, path, body)?;
        let reply = self.exchange.send(request, limit).await;
        let Reply { status, headers, body } = reply.map_err(|e| self.failed(path, e))?;
        if !status.is_success() {
            return Err(self.refusal(&asked, path, status, &body));
        }
        if headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html")) {
            // A proxy on the way that wants somebody to log in says so with 200, to a registration as well.
            return Err(ApiError::malformed(bare(path), "it is a web page"));
        }
        if headers.get("x-consul-results-filtered-by-acls").is_some_and(|v| v == "true") {
            // Consul 1.11 and later: part of the answer was withheld, which must not read as "there is no more".
            return Err(self.refusal(
                &asked,
                path,
                StatusCode::FORBIDDEN,
                b"some results were withheld by ACLs",
            ));
        }
        let date = headers.get(header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
        Ok(Answer { body, index: index(path, &headers)?, date })
    }

    fn compose(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Bytes>, ApiError> {
        let mut target = path.to_owned();
        let mut add = |parameter: &str| {
            target.push(if target.contains('?') { '&' } else { '?' });
            target.push_str(parameter);
        };
        if let Some(node) = self.on_behalf_of.as_ref().filter(|_| path.starts_with("/v1/agent/")) {
            add(node);
        }
        if let Some(partition) = &self.access.tenancy.partition {
            add(&format!("partition={}", escape(partition)));
        }
        let mut request = self.exchange.request(method, &target);
        if let Some(namespace) = &self.access.tenancy.namespace {
            request = request.header("x-consul-namespace", namespace);
        }
        if let Some(token) = &self.access.token {
            request = request.header("x-consul-token", token.current()?);
        }
        request.body(body).map_err(|e| ApiError::malformed(bare(path), e))
    }

    /// Maps what went wrong to what the user can do about it.
    fn failed(&self, path: &str, error: ExchangeError) -> ApiError {
        let (address, path) = (self.access.address.to_string(), bare(path).to_owned());
        let unix = matches!(self.access.address, ApiAddress::Unix(_));
        match error {
            ExchangeError::Connect { kind, reason } => match kind {
                io::ErrorKind::ConnectionRefused => ApiError::Refused { address, server: self.server },
                io::ErrorKind::NotFound if unix => ApiError::NoSocket { address, server: self.server },
                io::ErrorKind::PermissionDenied if unix => ApiError::SocketPermission { address },
                _ => ApiError::Unreachable { address, reason },
            },
            ExchangeError::Tls(reason) => ApiError::Tls { address, reason },
            ExchangeError::NotTls => ApiError::NotTls { address, server: self.server },
            ExchangeError::Timeout(after) => ApiError::Timeout { address, path, after },
            ExchangeError::Broken(reason) => ApiError::Broken { address, path, reason },
            e @ ExchangeError::TooLarge => ApiError::TooLarge { path, reason: e.to_string() },
        }
    }

    /// `asked`: with which method and body.
    fn refusal(&self, asked: &(Method, Bytes), path: &str, status: StatusCode, body: &[u8]) -> ApiError {
        let needed = permission::needed(&asked.0, path, &asked.1);
        let path = bare(path).to_owned();
        let mut reason = reason(body, status);
        match status {
            StatusCode::UNAUTHORIZED if reason == NO_ACLS => ApiError::Status { path, status, reason },
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => {
                if let Some(needed) = needed.filter(|_| !reason.contains(UNKNOWN_TOKEN)) {
                    reason = format!("{reason}; {needed}");
                }
                ApiError::Forbidden { path, reason, with_token: self.access.token.is_some() }
            }
            StatusCode::TOO_MANY_REQUESTS => ApiError::TooMany { path, reason },
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
fn index(path: &str, headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_leaves_nothing_that_ends_a_segment() {
        assert_eq!(escape("a/b?c=*#&%ä"), "a%2Fb%3Fc%3D%2A%23%26%25%C3%A4");
        assert_eq!(escape("web-1.x_y~"), "web-1.x_y~");
    }
}
