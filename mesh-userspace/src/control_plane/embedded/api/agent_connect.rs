//! `/v1/agent/connect/*`: may this caller connect, and leafs with a key made here.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{
    ApiError, App,
    body::Json,
    input::AuthorizeBody,
    names,
    read::{self, Read, with_index},
};
use crate::{
    control_plane::embedded::{
        acl::{Caller, Right},
        auth::Trusted,
        registration,
        topics::Topic,
    },
    identity::SpiffeId,
    intention::Action,
};

pub async fn authorize(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<AuthorizeBody>,
) -> Result<Response, ApiError> {
    let bad = |text: String| ApiError::BadRequest(format!("Bad request: {text}"));
    if body.target.is_empty() {
        return Err(bad("Target service must be specified".to_owned()));
    }
    names::namespace("Namespace", &body.namespace)?;
    let target = names::service("Target", &body.target)?;
    caller.demand(Right::service_write(target.as_str()))?;
    let caller: SpiffeId = body
        .client_cert_uri
        .parse()
        .map_err(|error| bad(format!("ClientCertURI not a valid Connect identifier: {error}")))?;
    let tables = app.store.tables();
    let (action, by) = tables.decide(&caller.service, &target);
    // Consul leaves the trust domain to whoever verified the certificate; here a wrong one is refused as well.
    let (authorized, reason) = if caller.trust_domain != *app.issuer.trust_domain() {
        (
            false,
            format!(
                "the caller's trust domain is {}, not {}",
                caller.trust_domain,
                app.issuer.trust_domain()
            ),
        )
    } else {
        let reason = match by {
            Some(row) => format!("Matched intention: {}", registration::describe(row)),
            None => format!("Default intention policy: {}", word(action)),
        };
        (action == Action::Allow, reason)
    };
    Ok(read::json(&json!({ "Authorized": authorized, "Reason": reason }), false))
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    }
}

/// The leaf of a service with its key; waits until there is a newer one than the caller has.
pub async fn leaf(_: Trusted, Path(service): Path<String>, read: Read) -> Response {
    match wait_for_leaf(&service, &read).await {
        Ok(response) => response,
        Err(error) => error.into_response(),
    }
}

async fn wait_for_leaf(service: &str, read: &Read) -> Result<Response, ApiError> {
    let service = names::service("service", service)?;
    let deadline = read.deadline();
    let seen = read.wait_beyond();
    let mut watch = read.app.store.topics().watch(&Topic::Leaf(service.as_str().into()));
    let mut rotations = read.app.issuer.rotations();
    let mut acl = read.watch_acl();
    loop {
        watch.mark_unchanged();
        rotations.mark_unchanged();
        read.renew(&read.app.store.tables())?;
        read.demand(Right::service_write(service.as_str()))?;
        let (leaf, due) = read.app.issuer.leaf(&service).await?;
        let news = seen.is_none_or(|seen| leaf.modify_index > seen);
        if news || Instant::now() >= deadline || read.app.closing.is_cancelled() {
            return Ok(with_index(read.json(&*leaf), leaf.modify_index));
        }
        tokio::select! {
            _ = watch.changed() => {}
            // A rotation makes it due sooner.
            _ = rotations.changed() => {}
            () = acl.changed() => {}
            () = sleep_until(due.min(deadline)) => {}
            () = read.app.closing.cancelled() => {}
        }
    }
}
