//! Who may do what, by the door that a request came in through. See docs/api.md for the model and its reasons.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderMap, Method, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::api::ApiError;

/// The header in which Consul's clients send their token.
const TOKEN_HEADER: &str = "x-consul-token";

/// A token as its digest, so that comparing takes the same time whatever is sent.
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
    /// TLS for other hosts: everything needs the token.
    Exposed { token: Token },
}

/// A request that may change things and get keys.
#[derive(Clone, Copy)]
pub struct Trusted;

/// Lets a request in, marks it as [`Trusted`], or answers 403 with what is missing.
pub async fn guard(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let sent = sent_token(request.headers());
    let (trusted, refusal) = match &door {
        Door::Unix => (true, String::new()),
        Door::Loopback { token, token_file } => (
            sent.is_some_and(|sent| token.is(sent)),
            format!("on the loopback port this needs the token of {token_file} (or use the unix socket)"),
        ),
        Door::Exposed { token } => (
            sent.is_some_and(|sent| token.is(sent)),
            "every request from another host needs the token of the embedded server's expose section"
                .to_owned(),
        ),
    };
    let free = matches!(door, Door::Loopback { .. }) && is_plain_read(&request);
    if trusted {
        request.extensions_mut().insert(Trusted);
    } else if !free {
        let what = if sent.is_none() { "no token was sent" } else { "the token is wrong" };
        return ApiError::Forbidden(format!(
            "Permission denied: {what}; {refusal}, in the header X-Consul-Token"
        ))
        .into_response();
    }
    next.run(request).await
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

fn sent_token(headers: &HeaderMap) -> Option<&str> {
    if let Some(token) = headers.get(TOKEN_HEADER) {
        return token.to_str().ok().filter(|token| !token.is_empty());
    }
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").filter(|token| !token.is_empty())
}
