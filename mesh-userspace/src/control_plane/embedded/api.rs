//! Consul's HTTP API: routes, what handlers share, and errors. What is supported is listed in docs/api.md.

mod acl;
mod acl_input;
mod acl_tokens;
mod agent;
mod agent_checks;
mod agent_connect;
mod body;
mod ca;
mod catalog;
mod catalog_write;
mod definition;
mod health;
mod input;
mod intentions;
mod names;
mod read;
mod status;
mod vet;
mod view;
mod viewer;

use std::sync::Arc;

use axum::{
    Router,
    extract::FromRequestParts,
    http::{Method, StatusCode, header::CONTENT_TYPE, request::Parts},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use tokio_util::sync::CancellationToken;

use super::{
    acl::{Caller, Denied},
    auth::{Door, Trusted, guard},
    ca::CaError,
    checks::Checks,
    files::FileError,
    issuer::{IssueError, LeafIssuer},
    registration::Refusal,
    rotation::RotateError,
    store::{Store, StoreError},
};

/// What every handler works with.
#[derive(Clone)]
pub struct App(Arc<Shared>);

pub struct Shared {
    pub store: Arc<Store>,
    pub checks: Arc<Checks>,
    pub issuer: Arc<LeafIssuer>,
    /// This host's node name.
    pub node: String,
    pub node_address: String,
    pub datacenter: String,
    /// ACLs are on.
    pub acl: bool,
    /// Waiting reads answer at once when the server stops.
    pub closing: CancellationToken,
}

impl App {
    pub fn new(shared: Shared) -> Self {
        Self(Arc::new(shared))
    }
}

impl std::ops::Deref for App {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// Returns the API as one door shows it.
pub fn router(app: App, door: Door) -> Router {
    agent_routes()
        .merge(catalog_routes())
        .merge(connect_routes())
        .merge(acl_routes())
        .route("/v1/status/leader", get(status::leader))
        .route("/v1/status/peers", get(status::peers))
        .fallback(no_endpoint)
        .method_not_allowed_fallback(no_method)
        .with_state(app.clone())
        .layer(from_fn_with_state((door, app), guard))
}

fn agent_routes() -> Router<App> {
    Router::new()
        .route("/v1/agent/self", get(status::agent_self))
        .route("/v1/agent/members", get(status::members))
        .route("/v1/agent/services", get(agent::services))
        .route("/v1/agent/service/{id}", get(agent::service))
        .route("/v1/agent/service/register", put(agent::register))
        .route("/v1/agent/service/deregister/{id}", put(agent::deregister))
        .route("/v1/agent/service/maintenance/{id}", put(agent::maintenance))
        .route("/v1/agent/health/service/id/{id}", get(agent::health_by_id))
        .route("/v1/agent/health/service/name/{name}", get(agent::health_by_name))
        .route("/v1/agent/checks", get(agent_checks::checks))
        .route("/v1/agent/check/register", put(agent_checks::register))
        .route("/v1/agent/check/deregister/{id}", put(agent_checks::deregister))
        .route("/v1/agent/check/pass/{id}", put(agent_checks::pass))
        .route("/v1/agent/check/warn/{id}", put(agent_checks::warn))
        .route("/v1/agent/check/fail/{id}", put(agent_checks::fail))
        .route("/v1/agent/check/update/{id}", put(agent_checks::update))
        .route("/v1/agent/connect/authorize", post(agent_connect::authorize))
        .route("/v1/agent/connect/ca/roots", get(ca::roots))
        .route("/v1/agent/connect/ca/leaf/{service}", get(agent_connect::leaf))
}

fn catalog_routes() -> Router<App> {
    Router::new()
        .route("/v1/catalog/datacenters", get(catalog::datacenters))
        .route("/v1/catalog/nodes", get(catalog::nodes))
        .route("/v1/catalog/services", get(catalog::services))
        .route("/v1/catalog/service/{name}", get(catalog::service))
        .route("/v1/catalog/connect/{name}", get(catalog::connect))
        .route("/v1/catalog/node/{name}", get(catalog::node))
        .route("/v1/catalog/node-services/{name}", get(catalog::node_services))
        .route("/v1/catalog/register", put(catalog_write::register))
        .route("/v1/catalog/deregister", put(catalog_write::deregister))
        .route("/v1/health/service/{name}", get(health::service))
        .route("/v1/health/connect/{name}", get(health::connect))
        .route("/v1/health/checks/{name}", get(health::checks))
        .route("/v1/health/node/{name}", get(health::node))
        .route("/v1/health/state/{state}", get(health::state))
}

fn connect_routes() -> Router<App> {
    Router::new()
        .route("/v1/connect/intentions", get(intentions::list).post(intentions::create))
        .route("/v1/connect/intentions/match", get(intentions::matching))
        .route("/v1/connect/intentions/check", get(intentions::check))
        .route(
            "/v1/connect/intentions/exact",
            get(intentions::exact).put(intentions::put_exact).delete(intentions::delete_exact),
        )
        .route(
            "/v1/connect/intentions/{id}",
            get(intentions::read).put(intentions::update).delete(intentions::delete),
        )
        .route("/v1/connect/ca/roots", get(ca::roots))
        .route("/v1/connect/ca/configuration", get(ca::configuration).put(ca::configure))
        .route("/v1/connect/ca/rotate", put(ca::rotate))
        .route("/v1/connect/ca/sign/{service}", put(ca::sign))
}

fn acl_routes() -> Router<App> {
    Router::new()
        .route("/v1/acl/bootstrap", put(acl::bootstrap))
        .route("/v1/acl/policies", get(acl::policies))
        .route("/v1/acl/policy", put(acl::create_policy))
        .route("/v1/acl/policy/name/{name}", get(acl::policy_by_name))
        .route("/v1/acl/policy/{id}", get(acl::policy).put(acl::update_policy).delete(acl::delete_policy))
        .route("/v1/acl/tokens", get(acl_tokens::tokens))
        .route("/v1/acl/token", put(acl_tokens::create_token))
        .route("/v1/acl/token/self", get(acl_tokens::token_self))
        .route(
            "/v1/acl/token/{id}",
            get(acl_tokens::token).put(acl_tokens::update_token).delete(acl_tokens::delete_token),
        )
        .route("/v1/acl/token/{id}/clone", put(acl_tokens::clone_token))
        .route("/v1/internal/acl/authorize", post(acl::authorize))
}

async fn no_endpoint() -> ApiError {
    ApiError::NotFound(
        "this endpoint is not served by the embedded control plane: see docs/api.md".to_owned(),
    )
}

async fn no_method(method: Method) -> ApiError {
    ApiError::Method(method)
}

/// Why a request was not done; the text is the body, as with Consul.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApiError {
    #[error("{0}")]
    BadRequest(String),
    #[error("ACL support disabled")]
    AclOff,
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    NotFound(String),
    #[error("method {0} not allowed")]
    Method(Method),
    #[error("{0}")]
    Conflict(String),
    #[error("the body is longer than {limit} bytes")]
    TooLarge { limit: usize },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Ca(CaError),
    #[error(transparent)]
    Key(FileError),
    #[error("rate limit reached, try again later")]
    Busy,
}

impl ApiError {
    fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::AclOff => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Ca(_) | Self::Key(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Busy => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status(), [(CONTENT_TYPE, "text/plain; charset=utf-8")], self.to_string()).into_response()
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NoService(_) | Refusal::NoCheck(_) | Refusal::NoIntention(..) | Refusal::NoExact => {
                Self::NotFound(text)
            }
            Refusal::NotTtl(_) | Refusal::NoNode(_) | Refusal::NoPort => Self::BadRequest(text),
            Refusal::Duplicate(_) => Self::Conflict(text),
            Refusal::Store(error) => Self::Store(error),
        }
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        Self::Forbidden(denied.to_string())
    }
}

impl From<CaError> for ApiError {
    fn from(error: CaError) -> Self {
        match error {
            CaError::Make(_) | CaError::Expired(_) => Self::Ca(error),
            _ => Self::BadRequest(error.to_string()),
        }
    }
}

impl From<IssueError> for ApiError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Ca(error) => error.into(),
            IssueError::Store(error) => Self::Store(error),
            IssueError::Busy => Self::Busy,
        }
    }
}

impl From<RotateError> for ApiError {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::Ca(error) => error.into(),
            RotateError::File(error) => Self::Key(error),
            RotateError::Store(error) => Self::Store(error),
        }
    }
}

/// In a handler's arguments: only for those whom the door trusts. Changes are refused by the door already; this is
/// for what looks like a plain read and is none.
impl<S: Send + Sync> FromRequestParts<S> for Trusted {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let refusal = || ApiError::Forbidden("Permission denied: this needs a token".to_owned());
        parts.extensions.get::<Self>().copied().ok_or_else(refusal)
    }
}

/// In a handler's arguments: who asks. Without one nothing is done.
impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let refusal = || ApiError::Forbidden("Permission denied".to_owned());
        parts.extensions.get::<Self>().cloned().ok_or_else(refusal)
    }
}

/// Refuses what is no node's name.
pub fn node_name(name: &str) -> Result<(), ApiError> {
    names::node("node", name)
}
