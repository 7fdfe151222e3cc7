//! One HTTP request and its answer, over whatever `connector` opens; bounded in time and size. What is asked, and what an
//! answer means, is known by [`super::Client`] (Consul's API) and by the command line (the daemon's admin socket).

use std::{error::Error, io, path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header, request};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body as _;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};

use super::{
    address::ApiAddress,
    connector::{ConnectError, Connector, TlsSetupError},
    settings::ApiAccess,
};

/// The longest answer that is read; one health answer of 20,000 instances fits.
const MAX_BODY: usize = 64 << 20;
/// The longest refusal that is read; of a longer one only the status counts.
const MAX_REFUSAL: usize = 64 << 10;

/// Sends requests to one address, with a pool of kept-alive connections. Cheap to clone; clones share the pool.
#[derive(Clone)]
pub struct Exchange {
    http: legacy::Client<Connector, Full<Bytes>>,
    /// What stands in the URI and in `Host`.
    authority: String,
}

/// A whole answer, whatever its status.
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why there is no whole answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// No connection; `kind` tells why, in the operating system's terms.
    #[error("{reason}")]
    Connect { kind: io::ErrorKind, reason: String },
    #[error("{0}")]
    Tls(String),
    #[error("the server does not speak TLS")]
    NotTls,
    #[error("no complete answer within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the connection broke before the answer was complete: {0}")]
    Broken(String),
    #[error("the answer is longer than {MAX_BODY} bytes")]
    TooLarge,
}

impl Exchange {
    /// Opens no connection yet. Reads the TLS files of an `https://` address.
    ///
    /// # Errors
    /// When those cannot be used.
    pub fn new(access: &ApiAccess) -> Result<Self, TlsSetupError> {
        let authority = match &access.address {
            ApiAddress::Http(at) | ApiAddress::Https(at) => at.to_string(),
            ApiAddress::Unix(path) => return Ok(Self::unix(path)),
        };
        Ok(Self::over(Connector::new(access)?, authority))
    }

    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self::over(Connector::unix(path), "localhost".to_owned())
    }

    fn over(connector: Connector, authority: String) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            // They count at the agent, too.
            .pool_max_idle_per_host(4)
            .build(connector);
        Self { http, authority }
    }

    /// Returns a request for `path`, which begins with `/` and may carry a query, already escaped. The caller adds its
    /// headers; a body is JSON.
    pub fn request(&self, method: Method, path: &str) -> request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.authority))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("meshnode/", env!("CARGO_PKG_VERSION")))
    }

    /// Returns the whole answer to `request`, within `limit`.
    ///
    /// # Errors
    /// Every [`ExchangeError`].
    pub async fn send(&self, request: Request<Bytes>, limit: Duration) -> Result<Reply, ExchangeError> {
        let answer = tokio::time::timeout(limit, self.answer(request)).await;
        answer.unwrap_or(Err(ExchangeError::Timeout(limit)))
    }

    async fn answer(&self, mut request: Request<Bytes>) -> Result<Reply, ExchangeError> {
        if !request.body().is_empty() {
            let json = HeaderValue::from_static("application/json");
            request.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        let response = self.http.request(request.map(Full::new)).await.map_err(|e| failed(&e))?;
        let (head, body) = response.into_parts();
        let limit = if head.status.is_success() { MAX_BODY } else { MAX_REFUSAL };
        if head.status.is_success() && body.size_hint().lower() > limit as u64 {
            return Err(ExchangeError::TooLarge);
        }
        let body = match Limited::new(body, limit).collect().await {
            Ok(body) => body.to_bytes(),
            Err(e) if !e.is::<LengthLimitError>() => {
                return Err(ExchangeError::Broken(root_cause(e.as_ref())));
            }
            Err(_) if head.status.is_success() => return Err(ExchangeError::TooLarge),
            Err(_) => Bytes::new(),
        };
        Ok(Reply { status: head.status, headers: head.headers, body })
    }
}

fn failed(error: &legacy::Error) -> ExchangeError {
    let mut cause = error.source();
    while let Some(inner) = cause.filter(|e| !e.is::<ConnectError>()) {
        cause = inner.source();
    }
    match cause.and_then(|e| e.downcast_ref::<ConnectError>()) {
        Some(ConnectError::Io(e)) => ExchangeError::Connect { kind: e.kind(), reason: e.to_string() },
        Some(e @ ConnectError::Timeout) => {
            ExchangeError::Connect { kind: io::ErrorKind::TimedOut, reason: e.to_string() }
        }
        Some(e @ ConnectError::Tls(_)) => ExchangeError::Tls(e.to_string()),
        Some(ConnectError::NotTls) => ExchangeError::NotTls,
        None => ExchangeError::Broken(root_cause(error)),
    }
}

fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
