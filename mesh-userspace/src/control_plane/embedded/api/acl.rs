//! `/v1/acl/*`: bootstrap, policies and tokens, and what a token may do.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    ApiError, App,
    acl_input::{self, Link, PolicyBody, Question, Secret, TokenBody, uuid},
    body::Json,
    names,
    read::{self, Read},
};
use crate::control_plane::embedded::{
    acl::{
        ANONYMOUS, Access, Caller, GLOBAL_MANAGEMENT, NOT_FOUND, Policy, Registry, Resource, Right, Token,
        parse_rules,
    },
    topics::Topic,
    txn::Txn,
};

/// Where the index of the bootstrap is kept.
const BOOTSTRAPPED: &str = "acl_bootstrap";
/// Consul's limits for a token's life.
const LIVES: std::ops::RangeInclusive<i64> = 60..=24 * 3600;
/// Questions per request, as Consul.
const MAX_QUESTIONS: usize = 64;

fn bad(text: impl Into<String>) -> ApiError {
    ApiError::BadRequest(text.into())
}

fn not_found() -> ApiError {
    ApiError::Forbidden(NOT_FOUND.to_owned())
}

/// Refuses everything where ACLs are off, and whoever lacks `right`.
fn demand(app: &App, caller: &Caller, right: Right<'_>) -> Result<(), ApiError> {
    if !app.acl {
        return Err(ApiError::AclOff);
    }
    Ok(caller.demand(right)?)
}

/// Makes the first management token, once. Only for root (see `auth`): the first to come must not be the first to rule.
pub async fn bootstrap(State(app): State<App>, caller: Caller) -> Result<Response, ApiError> {
    if !app.acl {
        return Err(ApiError::AclOff);
    }
    let root = caller.grant().is_none();
    let write = app.store.write(move |txn| {
        if let Some(index) = txn.tables.setting(BOOTSTRAPPED) {
            let text = format!("Permission denied: ACL bootstrap no longer allowed (reset index: {index})");
            return Err(ApiError::Forbidden(text));
        }
        if !root {
            return Err(ApiError::Forbidden(
                "Permission denied: only root bootstraps: use the unix socket (CONSUL_HTTP_ADDR=unix:///run/meshnode/\
                 api.sock), or on the loopback port the token of the file api-token"
                    .to_owned(),
            ));
        }
        let mut token = new_token(txn);
        token.description = "Bootstrap Token (Global Management)".to_owned();
        token.policies = vec![GLOBAL_MANAGEMENT.into()];
        let token = txn.put_token(token);
        let index = token.create_index.to_string();
        txn.put_setting(BOOTSTRAPPED, &index);
        let mut shown = acl_input::token(&token, txn.tables.acl(), Secret::Shown);
        shown.insert("ID".to_owned(), json!(token.secret));
        Ok(shown)
    });
    Ok(read::json(&write.await?, false))
}

fn new_token(txn: &Txn) -> Token {
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

/// Answers a read that needs `acl:read`.
async fn answer(read: &Read, result: impl FnOnce(&Registry, &Caller) -> Result<Value, ApiError>) -> Response {
    if !read.app.acl {
        return ApiError::AclOff.into_response();
    }
    read.answer(Topic::Acl, |tables| {
        read.demand(Right::ACL_READ)?;
        result(tables.acl(), &read.caller())
    })
    .await
}

pub async fn policies(read: Read) -> Response {
    answer(&read, |acl, _| {
        let all = acl.policies().map(|policy| {
            let mut shown = json!(**policy);
            // As Consul: the list is without the rules, and says where each holds.
            if let Some(fields) = shown.as_object_mut() {
                fields.remove("Rules");
                fields.insert("Datacenters".to_owned(), Value::Null);
            }
            shown
        });
        Ok(all.collect())
    })
    .await
}

pub async fn policy(Path(id): Path<String>, read: Read) -> Response {
    answer(&read, |acl, _| {
        uuid("ID", &id)?;
        Ok(json!(**acl.policy(&id).ok_or_else(not_found)?))
    })
    .await
}

pub async fn policy_by_name(Path(name): Path<String>, read: Read) -> Response {
    answer(&read, |acl, _| Ok(json!(**acl.policy_by_name(&name).ok_or_else(not_found)?))).await
}

pub async fn create_policy(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<PolicyBody>,
) -> Result<Response, ApiError> {
    demand(&app, &caller, Right::ACL_WRITE)?;
    if !body.id.is_empty() {
        return Err(bad("Cannot specify the ID when creating a new policy"));
    }
    put_policy(&app, None, body).await
}

pub async fn update_policy(
    Path(id): Path<String>,
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<PolicyBody>,
) -> Result<Response, ApiError> {
    demand(&app, &caller, Right::ACL_WRITE)?;
    uuid("ID", &id)?;
    if !body.id.is_empty() && body.id != id {
        return Err(bad("Policy ID in URL and payload do not match"));
    }
    put_policy(&app, Some(id), body).await
}

async fn put_policy(app: &App, id: Option<String>, body: PolicyBody) -> Result<Response, ApiError> {
    check_policy(app, &body)?;
    let PolicyBody { name, description, rules, .. } = body;
    let policy = app.store.write(move |txn| {
        let acl = txn.tables.acl();
        let old =
            id.as_deref().map(|id| acl.policy(id).ok_or_else(|| bad(format!("cannot find policy {id}"))));
        let old = old.transpose()?;
        if acl.policy_by_name(&name).is_some_and(|other| old.is_none_or(|old| old.id != other.id)) {
            return Err(bad(format!("Invalid Policy: A Policy with Name \"{name}\" already exists")));
        }
        if old.is_some_and(|old| &*old.id == GLOBAL_MANAGEMENT && old.rules != rules) {
            let text = "Changing the Rules for the builtin global-management policy is not permitted";
            return Err(bad(text));
        }
        let id = old.map_or_else(|| uuid::Uuid::new_v4().to_string().into(), |old| old.id.clone());
        let policy =
            Policy { id, name, description, rules, hash: String::new(), create_index: 0, modify_index: 0 };
        Ok(txn.put_policy(policy))
    });
    Ok(read::json(&*policy.await?, false))
}

fn check_policy(app: &App, body: &PolicyBody) -> Result<(), ApiError> {
    if body.name.is_empty() {
        return Err(bad("Invalid Policy: no Name is set"));
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if body.name.len() > 128 || !body.name.chars().all(fits) {
        let text =
            "Invalid Policy: invalid Name. Only alphanumeric characters, '-' and '_' are allowed, up to 128";
        return Err(bad(text));
    }
    names::text("Description", &body.description)?;
    names::namespace("Namespace", &body.namespace)?;
    datacenters("Datacenters", app, &body.datacenters)?;
    parse_rules(&body.rules).map(drop).map_err(|error| bad(error.to_string()))
}

/// There is one datacenter: a policy for others would hold nowhere.
fn datacenters(field: &str, app: &App, given: &[String]) -> Result<(), ApiError> {
    match given.iter().find(|dc| **dc != app.datacenter) {
        Some(_) => Err(bad(format!("{field}: this server's is `{}`, and there is no other", app.datacenter))),
        None => Ok(()),
    }
}

/// One that is not there is no error, as with Consul.
pub async fn delete_policy(
    Path(id): Path<String>,
    State(app): State<App>,
    caller: Caller,
) -> Result<Response, ApiError> {
    demand(&app, &caller, Right::ACL_WRITE)?;
    uuid("ID", &id)?;
    if id == GLOBAL_MANAGEMENT {
        return Err(bad("Delete operation not permitted on the builtin global-management policy"));
    }
    let write = app.store.write(move |txn| {
        txn.delete_policy(&id);
        Ok::<_, ApiError>(true)
    });
    Ok(read::json(&write.await?, false))
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

/// What the caller's token may do, question by question.
pub async fn authorize(
    State(app): State<App>,
    caller: Caller,
    Json(questions): Json<Vec<Question>>,
) -> Result<Response, ApiError> {
    if !app.acl {
        return Err(ApiError::AclOff);
    }
    if questions.len() > MAX_QUESTIONS {
        return Err(bad(format!("Refusing to process more than {MAX_QUESTIONS} authorizations at once")));
    }
    let answers: Result<Vec<Value>, ApiError> =
        questions.iter().map(|question| answered(question, &caller)).collect();
    Ok(read::json(&answers?, false))
}

fn answered(question: &Question, caller: &Caller) -> Result<Value, ApiError> {
    let Question { resource, access, segment } = question;
    let wanted = Resource::parse(resource)
        .ok_or_else(|| bad(format!("Bad request: Invalid ACL resource requested: {resource:?}")))?;
    let level = Access::parse(access).filter(|level| *level != Access::Deny);
    let level = level.ok_or_else(|| bad(format!("Bad request: Invalid access level: {access:?}")))?;
    let allow = caller.may(Right { resource: wanted, access: level, name: segment });
    let mut answer = json!({ "Resource": resource, "Access": access, "Allow": allow });
    if !segment.is_empty() {
        answer["Segment"] = json!(segment);
    }
    Ok(answer)
}
