//! Who may do what, by the door that a request came in through, and by the token that it brings. See docs/api.md for
//! the model and its reasons.

use std::sync::Arc;

use axum::{
    extract::{Query, Request, State},
    http::{Method, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{
    acl::{ANONYMOUS_SECRET, Caller, Denied, Registry, Right},
    api::{ApiError, App},
};

/// The header in which Consul's clients send their token.
const TOKEN_HEADER: &str = "x-consul-token";

/// A door's own token as its digest, so that comparing takes the same time whatever is sent.
#[derive(Clone)]
pub struct Token(Arc<[u8; 32]>);

impl Token {
    pub fn new(token: &str) -> Self {
        Self(Arc::new(Sha256::digest(token).into()))
    }

    fn is(&self, sent: &str) -> bool {
        let sent: [u8; 32] = Sha256::digest(sent).into();
        let difference = self.0.iter().zip(&sent).fold(0, |all, (own, sent)| all | (own ^ sent));
        std::hint::black_box(difference) == 0
    }
}

/// A way in.
#[derive(Clone)]
pub enum Door {
    /// A socket file of mode 0600: who can open it is trusted.
    Unix,
    /// A loopback port, which every local user can reach: reading is free, the rest needs the token.
    Loopback { token: Token, token_file: String },
    /// TLS for other hosts: everything needs the token. Where ACLs are on, the door has none of its own.
    Exposed { token: Option<Token> },
}

/// A request that may change things and get keys, as far as its [`Caller`] may.
#[derive(Clone, Copy)]
pub struct Trusted;

/// Lets a request in with its [`Caller`], and marks it as [`Trusted`]; or answers 403 with what is missing.
pub async fn guard(State((door, app)): State<(Door, App)>, mut request: Request, next: Next) -> Response {
    let sent = sent_token(&request);
    let caller = if app.acl {
        holder(&door, &app, &request, sent.as_deref())
    } else {
        open(&door, &request, sent.as_deref())
    };
    match caller {
        Ok((caller, trusted)) => {
            request.extensions_mut().insert(caller);
            if trusted {
                request.extensions_mut().insert(Trusted);
            }
            next.run(request).await
        }
        Err(error) => error.into_response(),
    }
}

/// ACLs are off: the door's token opens everything behind the door.
fn open(door: &Door, request: &Request, sent: Option<&str>) -> Result<(Caller, bool), ApiError> {
    let (trusted, refusal) = match door {
        Door::Unix => (true, String::new()),
        Door::Loopback { token, token_file } => (
            sent.is_some_and(|sent| token.is(sent)),
            format!("on the loopback port this needs the token of {token_file} (or use the unix socket)"),
        ),
        Door::Exposed { token } => (
            token.as_ref().zip(sent).is_some_and(|(token, sent)| token.is(sent)),
            "every request from another host needs the token of the embedded server's expose section"
                .to_owned(),
        ),
    };
    let free = matches!(door, Door::Loopback { .. }) && is_plain_read(request);
    if trusted || free {
        return Ok((Caller::UNRESTRICTED, trusted));
    }
    let what = if sent.is_none() { "no token was sent" } else { "the token is wrong" };
    let text = format!("Permission denied: {what}; {refusal}, in the header X-Consul-Token");
    Err(ApiError::Forbidden(text))
}

/// ACLs are on: a token says who it is. Root's own doors (the unix socket without a token, the loopback port with the
/// token in root's file) stay open: who can use them can read and change the store's files as well.
fn holder(door: &Door, app: &App, request: &Request, sent: Option<&str>) -> Result<(Caller, bool), ApiError> {
    match (door, sent) {
        (Door::Unix, None) => return Ok((Caller::UNRESTRICTED, true)),
        (Door::Loopback { token, .. }, Some(sent)) if token.is(sent) => {
            return Ok((Caller::UNRESTRICTED, true));
        }
        _ => {}
    }
    let secret = Registry::hash(sent.unwrap_or(ANONYMOUS_SECRET));
    let tables = app.store.tables();
    let grant = tables.acl().grant(&secret, OffsetDateTime::now_utc()).ok_or(Denied::NoToken)?;
    let caller = Caller::holder(grant.clone());
    if !is_vetted(request) {
        caller.demand(Right::OPERATOR_WRITE)?;
    }
    Ok((caller, true))
}

/// Changes whose handlers ask for what each needs; of any other one, whoever may make it, an operator may. Reads ask
/// for themselves.
fn is_vetted(request: &Request) -> bool {
    const VETTED: [&str; 8] = [
        "/v1/acl/",
        "/v1/agent/check/",
        "/v1/agent/connect/authorize",
        "/v1/agent/service/",
        "/v1/catalog/",
        "/v1/connect/ca/sign/",
        "/v1/connect/intentions",
        "/v1/internal/acl/authorize",
    ];
    let path = request.uri().path();
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    reads || VETTED.iter().any(|known| path.starts_with(known))
}

/// Reads what is no secret: everything by GET but the keys of leafs, which need [`Trusted`] in their handler, too.
fn is_plain_read(request: &Request) -> bool {
    let path = request.uri().path();
    match *request.method() {
        Method::GET | Method::HEAD => !path.starts_with("/v1/agent/connect/ca/leaf"),
        Method::POST => path == "/v1/agent/connect/authorize",
        _ => false,
    }
}

/// Returns the request's token, from where Consul takes it: `?token=`, `X-Consul-Token`, `Authorization: Bearer`.
fn sent_token(request: &Request) -> Option<String> {
    let headers = request.headers();
    if request.uri().query().is_some_and(|query| query.contains("token=")) {
        let pairs = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).ok()?;
        let found = pairs.0.into_iter().find(|(name, value)| name == "token" && !value.is_empty());
        if let Some((_, token)) = found {
            return Some(token);
        }
    }
    let header = match headers.get(TOKEN_HEADER) {
        Some(token) => token.to_str().ok()?,
        None => headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")?,
    };
    Some(header.to_owned()).filter(|token| !token.is_empty())
}
