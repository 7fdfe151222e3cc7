//! `/v1/acl/*`: bootstrap and policies, and what a token may do. Tokens are `acl_tokens`'.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::{
    ApiError, App,
    acl_input::{self, PolicyBody, Question, Secret, uuid},
    acl_tokens::new_token,
    body::Json,
    names,
    read::{self, Read},
};
use crate::control_plane::embedded::{
    acl::{Access, Caller, GLOBAL_MANAGEMENT, NOT_FOUND, Policy, Registry, Resource, Right, parse_rules},
    topics::Topic,
};

/// Where the index of the bootstrap is kept.
const BOOTSTRAPPED: &str = "acl_bootstrap";
/// Questions per request, as Consul.
const MAX_QUESTIONS: usize = 64;

pub(super) fn bad(text: impl Into<String>) -> ApiError {
    ApiError::BadRequest(text.into())
}

pub(super) fn not_found() -> ApiError {
    ApiError::Forbidden(NOT_FOUND.to_owned())
}

/// Refuses everything where ACLs are off, and whoever lacks `right`.
pub(super) fn demand(app: &App, caller: &Caller, right: Right<'_>) -> Result<(), ApiError> {
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

/// Answers a read that needs `acl:read`.
pub(super) async fn answer(
    read: &Read,
    result: impl FnOnce(&Registry, &Caller) -> Result<Value, ApiError>,
) -> Response {
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
pub(super) fn datacenters(field: &str, app: &App, given: &[String]) -> Result<(), ApiError> {
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
