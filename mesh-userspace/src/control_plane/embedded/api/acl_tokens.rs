//! `/v1/acl/token*`: tokens.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    ApiError, App,
    acl::{answer, bad, datacenters, demand, not_found},
    acl_input::{self, Link, Secret, TokenBody, uuid},
    body::Json,
    names,
    read::{self, Read},
};
use crate::control_plane::embedded::{
    acl::{ANONYMOUS, Caller, Registry, Right, Token},
    topics::Topic,
    txn::Txn,
};

/// Consul's limits for a token's life.
const LIVES: std::ops::RangeInclusive<i64> = 60..=24 * 3600;

/// A token with ids of its own that grants nothing.
pub(super) fn new_token(txn: &Txn) -> Token {
    Token {
        accessor: uuid::Uuid::new_v4().to_string().into(),
        secret: uuid::Uuid::new_v4().to_string(),
        description: String::new(),
        policies: Vec::new(),
        service_identities: Vec::new(),
        node_identities: Vec::new(),
        local: false,
        expires: None,
        created_at: txn.now_text(),
        hash: String::new(),
        create_index: 0,
        modify_index: 0,
    }
}

pub async fn tokens(read: Read) -> Response {
    answer(&read, |acl, _| {
        let policy = read.value("policy");
        let now = OffsetDateTime::now_utc();
        let live = acl.tokens().filter(|token| acl.grant(&Registry::hash(&token.secret), now).is_some());
        let chosen =
            live.filter(|token| policy.is_none_or(|id| token.policies.iter().any(|own| **own == *id)));
        Ok(chosen.map(|token| json!(acl_input::token(token, acl, Secret::Left))).collect())
    })
    .await
}

pub async fn token(Path(id): Path<String>, read: Read) -> Response {
    answer(&read, |acl, caller| {
        uuid("AccessorID", &id)?;
        let token = acl.token(&id).ok_or_else(not_found)?;
        let secret = if caller.may(Right::ACL_WRITE) { Secret::Shown } else { Secret::Hidden };
        Ok(json!(acl_input::token(token, acl, secret)))
    })
    .await
}

/// The caller's own token, which needs no permission.
pub async fn token_self(read: Read) -> Response {
    if !read.app.acl {
        return ApiError::AclOff.into_response();
    }
    read.answer(Topic::Acl, |tables| {
        let caller = read.caller();
        if caller.grant().is_none() {
            let text = "no token was sent: through root's door one may do everything without a token";
            return Err(ApiError::NotFound(text.to_owned()));
        }
        let token = caller.grant().and_then(|grant| tables.acl().token(&grant.accessor));
        Ok(acl_input::token(token.ok_or_else(not_found)?, tables.acl(), Secret::Shown))
    })
    .await
}

pub async fn create_token(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<TokenBody>,
) -> Result<Response, ApiError> {
    demand(&app, &caller, Right::ACL_WRITE)?;
    check_token(&app, &body)?;
    for (field, id) in [("AccessorID", &body.accessor_id), ("SecretID", &body.secret_id)] {
        if !id.is_empty() && uuid::Uuid::try_parse(id).is_err() {
            return Err(bad(format!("Invalid Token: {field} is not a valid UUID")));
        }
    }
    let write = app.store.write(move |txn| {
        let mut token = new_token(txn);
        if !body.accessor_id.is_empty() {
            token.accessor = body.accessor_id.as_str().into();
        }
        if !body.secret_id.is_empty() {
            token.secret.clone_from(&body.secret_id);
        }
        let acl = txn.tables.acl();
        if acl.token(&token.accessor).is_some() {
            return Err(bad("Invalid Token: AccessorID is already in use"));
        }
        if acl.tokens().any(|other| other.secret == token.secret) {
            return Err(bad("Invalid Token: SecretID is already in use"));
        }
        token.local = body.local;
        token.expires = expiration(&body, txn.now)?;
        fill(&mut token, body, txn)?;
        let token = txn.put_token(token);
        Ok(acl_input::token(&token, txn.tables.acl(), Secret::Shown))
    });
    Ok(read::json(&write.await?, false))
}

pub async fn update_token(
    Path(id): Path<String>,
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<TokenBody>,
) -> Result<Response, ApiError> {
    demand(&app, &caller, Right::ACL_WRITE)?;
    uuid("AccessorID", &id)?;
    check_token(&app, &body)?;
    if !body.accessor_id.is_empty() && body.accessor_id != id {
        return Err(bad("Token Accessor ID in URL and payload do not match"));
    }
    let write = app.store.write(move |txn| {
        let old = txn.tables.acl().token(&id);
        let mut token = Token::clone(old.ok_or_else(|| bad(format!("Cannot find token \"{id}\"")))?);
        if !body.secret_id.is_empty() && body.secret_id != token.secret && body.secret_id != "<hidden>" {
            return Err(bad("Changing a token's SecretID is not permitted"));
        }
        fill(&mut token, body, txn)?;
        let token = txn.put_token(token);
        Ok(acl_input::token(&token, txn.tables.acl(), Secret::Shown))
    });
    Ok(read::json(&write.await?, false))
}

/// A new token with what an old one has.
pub async fn clone_token(
    Path(id): Path<String>,
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<TokenBody>,
) -> Result<Response, ApiError> {
    demand(&app, &caller, Right::ACL_WRITE)?;
    uuid("AccessorID", &id)?;
    if id == ANONYMOUS {
        return Err(bad("Cannot clone the anonymous token"));
    }
    names::text("Description", &body.description)?;
    let write = app.store.write(move |txn| {
        let old = txn.tables.acl().token(&id).cloned().ok_or_else(not_found)?;
        let new = new_token(txn);
        let mut token = Token { accessor: new.accessor, secret: new.secret, ..Token::clone(&old) };
        token.created_at = new.created_at;
        if !body.description.is_empty() {
            token.description = body.description;
        }
        let token = txn.put_token(token);
        Ok::<_, ApiError>(acl_input::token(&token, txn.tables.acl(), Secret::Shown))
    });
    Ok(read::json(&write.await?, false))
}

/// One that is not there is no error, as with Consul.
pub async fn delete_token(
    Path(id): Path<String>,
    State(app): State<App>,
    caller: Caller,
) -> Result<Response, ApiError> {
    demand(&app, &caller, Right::ACL_WRITE)?;
    uuid("AccessorID", &id)?;
    if id == ANONYMOUS {
        return Err(bad("Delete operation not permitted on the anonymous token"));
    }
    if caller.grant().is_some_and(|grant| *grant.accessor == *id) {
        return Err(bad("Deletion of the request's authorization token is not permitted"));
    }
    let write = app.store.write(move |txn| {
        txn.delete_token(&id);
        Ok::<_, ApiError>(true)
    });
    Ok(read::json(&write.await?, false))
}

fn check_token(app: &App, body: &TokenBody) -> Result<(), ApiError> {
    if !body.roles.is_empty() {
        return Err(bad("Roles: not supported by the embedded control plane; link policies"));
    }
    if !body.auth_method.is_empty() {
        return Err(bad("AuthMethod: not supported by the embedded control plane"));
    }
    if !body.rules.is_empty() {
        return Err(bad("Rules cannot be specified for this token: link policies"));
    }
    names::text("Description", &body.description)?;
    names::namespace("Namespace", &body.namespace)?;
    for identity in &body.service_identities {
        names::service("ServiceIdentities.ServiceName", &identity.service_name)?;
        let given = identity.datacenters.as_deref().unwrap_or_default();
        datacenters("ServiceIdentities.Datacenters", app, given)?;
    }
    for identity in &body.node_identities {
        names::node("NodeIdentities.NodeName", &identity.node_name)?;
        datacenters("NodeIdentities.Datacenter", app, std::slice::from_ref(&identity.datacenter))?;
    }
    Ok(())
}

fn expiration(body: &TokenBody, now: OffsetDateTime) -> Result<Option<String>, ApiError> {
    let ttl = body.expiration_ttl.0;
    let at = match &body.expiration_time {
        Some(_) if !ttl.is_zero() => {
            return Err(bad("Expiration TTL and Expiration Time cannot both be set"));
        }
        Some(text) => OffsetDateTime::parse(text, &Rfc3339)
            .map_err(|_| bad(format!("ExpirationTime: `{text}` is no time of RFC 3339")))?,
        None if ttl.is_zero() => return Ok(None),
        None => now + ttl,
    };
    let life = (at - now).whole_seconds();
    if life < *LIVES.start() {
        return Err(bad(format!("ExpirationTime cannot be less than 1m0s in the future (was {life}s)")));
    }
    if life > *LIVES.end() {
        return Err(bad(format!("ExpirationTime cannot be more than 24h0m0s in the future (was {life}s)")));
    }
    Ok(Some(at.format(&Rfc3339).map_err(|error| bad(format!("ExpirationTime: {error}")))?))
}

/// Gives the token what a body says; the body is checked.
fn fill(token: &mut Token, body: TokenBody, txn: &Txn) -> Result<(), ApiError> {
    token.description = body.description;
    token.policies.clear();
    for Link { id, name } in &body.policies {
        let acl = txn.tables.acl();
        let policy = if id.is_empty() { acl.policy_by_name(name) } else { acl.policy(id) };
        let policy = policy.ok_or_else(|| {
            let (what, value) = if id.is_empty() { ("name", name) } else { ("ID", id) };
            bad(format!("No such ACL policy with {what} \"{value}\""))
        })?;
        token.policies.push(policy.id.clone());
    }
    token.service_identities = body.service_identities;
    token.node_identities = body.node_identities;
    Ok(())
}
