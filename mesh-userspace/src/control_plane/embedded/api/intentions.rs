//! `/v1/connect/intentions*`. Precedence is `crate::intention`'s.

use axum::{
    extract::{Path, State},
    response::{IntoResponse, Response},
};
use serde_json::{Map, json};

use super::{
    ApiError, App,
    body::Json,
    input::IntentionBody,
    names,
    read::{self, Read},
    view,
};
use crate::{
    control_plane::embedded::{
        acl::{Caller, Right},
        model::IntentionRow,
        registration::{self, Refusal},
        topics::Topic,
    },
    identity::ServiceName,
    intention::{Action, Pattern},
};

/// Names per `match` request.
const MAX_NAMES: usize = 256;

fn bad(text: impl Into<String>) -> ApiError {
    ApiError::BadRequest(text.into())
}

pub async fn list(read: Read) -> Response {
    read.answer(Topic::Intentions, |tables| {
        let viewer = read.viewer();
        let seen = tables.intentions().into_iter().filter(|row| viewer.sees_intention(row));
        Ok(seen.map(|row| view::intention(row)).collect::<Vec<_>>())
    })
    .await
}

pub async fn read(Path(id): Path<String>, read: Read) -> Response {
    read.answer(Topic::Intentions, |tables| {
        uuid(&id)?;
        readable(&read, tables.intention(&id).ok_or(Refusal::NoExact)?)
    })
    .await
}

fn readable(read: &Read, row: &IntentionRow) -> Result<serde_json::Value, ApiError> {
    if !read.viewer().sees_intention(row) {
        read.demand(Right::intention_read(&row.destination.to_string()))?;
    }
    Ok(view::intention(row))
}

/// An intention is its destination's: who may write it may change who reaches that service.
fn writable(caller: &Caller, row: &IntentionRow) -> Result<(), ApiError> {
    Ok(caller.demand(Right::intention_write(&row.destination.to_string()))?)
}

pub async fn create(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<IntentionBody>,
) -> Result<Response, ApiError> {
    if !body.id.is_empty() {
        return Err(bad("ID must be empty when creating a new intention"));
    }
    let mut row = row(body)?;
    writable(&caller, &row)?;
    let id = uuid::Uuid::new_v4().to_string();
    row.id = id.as_str().into();
    app.store
        .write(move |txn| {
            row.created_at = txn.now_text();
            row.updated_at = txn.now_text();
            registration::put_intention(txn, row)
        })
        .await
        .map_err(|refusal: Refusal| ApiError::from(refusal))?;
    Ok(read::json(&json!({ "ID": id }), false))
}

pub async fn update(
    Path(id): Path<String>,
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<IntentionBody>,
) -> Result<Response, ApiError> {
    uuid(&id)?;
    if !body.id.is_empty() && body.id != id {
        return Err(bad("ID: differs from the one in the path"));
    }
    let mut row = row(body)?;
    row.id = id.as_str().into();
    let answer = json!({ "ID": id });
    app.store
        .write(move |txn| {
            let Some(old) = txn.tables.intention(&id) else {
                return Err(Refusal::NoIntention("modify", id).into());
            };
            writable(&caller, old)?;
            writable(&caller, &row)?;
            row.created_at.clone_from(&old.created_at);
            row.updated_at = txn.now_text();
            Ok::<_, ApiError>(registration::put_intention(txn, row)?)
        })
        .await?;
    Ok(read::json(&answer, false))
}

pub async fn delete(
    Path(id): Path<String>,
    State(app): State<App>,
    caller: Caller,
) -> Result<Response, ApiError> {
    uuid(&id)?;
    let write = app.store.write(move |txn| {
        let Some(row) = txn.tables.intention(&id) else {
            return Err(Refusal::NoIntention("delete", id).into());
        };
        writable(&caller, row)?;
        txn.delete_intention(&id);
        Ok(())
    });
    write.await.map(|()| read::json(&true, false))
}

/// The intentions that may decide for a source or a destination, by name, most precise first.
pub async fn matching(read: Read) -> Response {
    let (by_source, names) = match wanted_matches(&read) {
        Ok(wanted) => wanted,
        Err(error) => return error.into_response(),
    };
    let topic = if by_source { Topic::Source } else { Topic::Destination };
    let topics: Vec<_> =
        names.iter().map(|(_, wanted)| wanted).chain([&Pattern::Any]).cloned().map(topic).collect();
    read.answer(topics, |tables| {
        let mut found = Map::new();
        for (name, wanted) in names {
            read.demand(Right::intention_read(&wanted.to_string()))?;
            let rows =
                if by_source { tables.intentions_from(&wanted) } else { tables.intentions_to(&wanted) };
            // Go's `null` for a list that nothing was added to.
            let shown = (!rows.is_empty())
                .then(|| rows.into_iter().map(|row| view::intention(row)).collect::<Vec<_>>());
            found.insert(name, json!(shown));
        }
        Ok(found)
    })
    .await
}

/// Returns whether sources are asked for, and the names with what they mean.
fn wanted_matches(read: &Read) -> Result<(bool, Vec<(String, Pattern)>), ApiError> {
    let by_source = match read.required("by")? {
        "source" => true,
        "destination" => false,
        _ => return Err(bad("'by' parameter must be one of 'source' or 'destination'")),
    };
    read.required("name")?;
    let names: Vec<_> = read.values("name").collect();
    if names.len() > MAX_NAMES {
        return Err(bad(format!("name: {} of them; {MAX_NAMES} are accepted", names.len())));
    }
    // As Consul: under the names as they were asked for.
    let wanted = names.into_iter().map(|name| Ok((name.to_owned(), pattern("name", name)?)));
    Ok((by_source, wanted.collect::<Result<_, ApiError>>()?))
}

pub async fn check(read: Read) -> Response {
    let wanted = || {
        let (source, destination) = (read.required("source")?, read.required("destination")?);
        if let Some(other) = read.value("source-type").filter(|kind| *kind != "consul") {
            return Err(bad(format!("unsupported SourceType: \"{other}\"")));
        }
        Ok::<_, ApiError>((exact_name("source", source)?, exact_name("destination", destination)?))
    };
    let (source, destination) = match wanted() {
        Ok(wanted) => wanted,
        Err(error) => return error.into_response(),
    };
    let topics = vec![Topic::Source(Pattern::Exact(source.clone())), Topic::Source(Pattern::Any)];
    read.answer(topics, |tables| {
        // As Consul: the answer tells no more than a connection would.
        read.demand(Right::service_read(destination.as_str()))?;
        let (action, _) = tables.decide(&source, &destination);
        Ok(json!({ "Allowed": action == Action::Allow }))
    })
    .await
}

pub async fn exact(read: Read) -> Response {
    let (source, destination) = match pair(&read) {
        Ok(pair) => pair,
        Err(error) => return error.into_response(),
    };
    read.answer(Topic::Source(source.clone()), |tables| {
        readable(&read, tables.intention_of(&source, &destination).ok_or(Refusal::NoExact)?)
    })
    .await
}

/// Creates the pair's intention, or changes the one there is.
pub async fn put_exact(read: Read, Json(mut body): Json<IntentionBody>) -> Result<Response, ApiError> {
    let (source, destination) = pair(&read)?;
    for (field, given, wanted) in [
        ("SourceName", &mut body.source_name, &source),
        ("DestinationName", &mut body.destination_name, &destination),
    ] {
        if given.is_empty() {
            *given = wanted.to_string();
        } else if pattern(field, given)? != *wanted {
            return Err(bad(format!("{field}: differs from the one in the query")));
        }
    }
    let mut row = row(body)?;
    writable(&read.caller(), &row)?;
    read.app
        .store
        .write(move |txn| {
            let old = txn.tables.intention_of(&source, &destination);
            row.id = old.map_or_else(|| uuid::Uuid::new_v4().to_string().into(), |old| old.id.clone());
            row.created_at = old.map_or_else(|| txn.now_text(), |old| old.created_at.clone());
            row.updated_at = txn.now_text();
            registration::put_intention(txn, row)
        })
        .await
        .map_err(|refusal: Refusal| ApiError::from(refusal))?;
    Ok(read.json(&true))
}

pub async fn delete_exact(read: Read) -> Result<Response, ApiError> {
    let (source, destination) = pair(&read)?;
    read.demand(Right::intention_write(&destination.to_string()))?;
    read.app
        .store
        .write(move |txn| {
            let id = txn.tables.intention_of(&source, &destination).map(|row| row.id.clone());
            if let Some(id) = id {
                txn.delete_intention(&id);
            }
            Ok::<_, Refusal>(())
        })
        .await?;
    Ok(read.json(&true))
}

fn pair(read: &Read) -> Result<(Pattern, Pattern), ApiError> {
    let (source, destination) = (read.required("source")?, read.required("destination")?);
    Ok((pattern("source", source)?, pattern("destination", destination)?))
}

/// Consul writes `default/web` where namespaces may be.
fn pattern(field: &str, text: &str) -> Result<Pattern, ApiError> {
    let plain = text.strip_prefix("default/").unwrap_or(text);
    if plain != "*" && plain.contains('*') {
        return Err(bad(format!("{field}: wildcard character '*' cannot be used with partial values")));
    }
    plain.parse().map_err(|error| bad(format!("{field}: {error}")))
}

fn exact_name(field: &str, text: &str) -> Result<ServiceName, ApiError> {
    names::service(field, text.strip_prefix("default/").unwrap_or(text))
}

fn uuid(id: &str) -> Result<(), ApiError> {
    match uuid::Uuid::try_parse(id) {
        Ok(_) if id.len() == 36 => Ok(()),
        _ => Err(bad("Bad request: failed intention lookup: index error: UUID must be 36 characters")),
    }
}

/// Returns the row that a body asks for, without id and times.
fn row(body: IntentionBody) -> Result<IntentionRow, ApiError> {
    for (field, value) in [("SourceName", &body.source_name), ("DestinationName", &body.destination_name)] {
        if value.is_empty() {
            return Err(bad(format!("{field} must be set")));
        }
    }
    let action = match body.action.as_str() {
        "allow" => Action::Allow,
        "deny" => Action::Deny,
        _ => return Err(bad("Action must be set to 'allow' or 'deny'")),
    };
    if !matches!(body.source_type.as_str(), "" | "consul") {
        return Err(bad("SourceType must be set to 'consul'"));
    }
    if !body.permissions.is_empty() {
        return Err(bad("Permissions: HTTP permissions are not supported; give an Action"));
    }
    if !body.default_addr.is_empty() || body.default_port != 0 {
        return Err(bad("DefaultAddr and DefaultPort are not supported"));
    }
    for (field, namespace) in [("SourceNS", &body.source_ns), ("DestinationNS", &body.destination_ns)] {
        names::namespace(field, namespace)?;
    }
    names::text("Description", &body.description)?;
    names::meta("Meta", &body.meta)?;
    Ok(IntentionRow {
        id: "".into(),
        source: pattern("SourceName", &body.source_name)?,
        destination: pattern("DestinationName", &body.destination_name)?,
        action,
        description: body.description,
        meta: body.meta,
        created_at: String::new(),
        updated_at: String::new(),
        create_index: 0,
        modify_index: 0,
    })
}
