//! `/v1/agent/check*`: the checks of one node (see `agent`), and reports on those with a TTL.

use axum::{
    extract::Path,
    response::{IntoResponse, Response},
};
use serde_json::{Map, json};

use super::{
    ApiError, agent,
    body::Json,
    definition::{self, Place},
    input::{CheckBody, ReportBody},
    names,
    read::Read,
    vet,
    view::agent_check,
};
use crate::control_plane::embedded::{
    model::{Key, Status},
    registration,
    topics::Topic,
};

pub async fn checks(read: Read) -> Response {
    let node = match read.node() {
        Ok(node) => node.to_owned(),
        Err(error) => return error.into_response(),
    };
    read.answer(Topic::Node(node.as_str().into()), |tables| {
        let viewer = read.viewer();
        let checks = tables.checks_of_node(&node).filter(|check| viewer.sees_check(check));
        Ok(checks.map(|c| (c.id.to_string(), json!(agent_check(c)))).collect::<Map<_, _>>())
    })
    .await
}

pub async fn register(read: Read, Json(body): Json<CheckBody>) -> Result<(), ApiError> {
    let app = &read.app;
    let node = read.node()?.to_owned();
    let address = agent::address(&read)?;
    let place = Place { node: &node, remote: (node != app.node).then_some("") };
    let check = definition::check(body, &place)?;
    let datacenter = app.datacenter.clone();
    let caller = read.caller();
    app.store
        .write(move |txn| {
            vet::node(&caller, &txn.tables, &node, address.as_deref())?;
            vet::check(&caller, &txn.tables, &check.check)?;
            registration::ensure_node(txn, &node, address.as_deref(), &datacenter)?;
            Ok(registration::put_check(txn, check)?)
        })
        .await
}

/// Consul answers 200 for a check that is not there, too.
pub async fn deregister(Path(id): Path<String>, read: Read) -> Result<(), ApiError> {
    let key = Key::new(read.node()?, &id);
    let caller = read.caller();
    let write = read.app.store.write(move |txn| {
        vet::known_check(&caller, &txn.tables, &key)?;
        txn.delete_check(&key);
        Ok(())
    });
    write.await
}

pub async fn pass(path: Path<String>, read: Read) -> Result<(), ApiError> {
    report_note(path, read, Status::Passing).await
}

pub async fn warn(path: Path<String>, read: Read) -> Result<(), ApiError> {
    report_note(path, read, Status::Warning).await
}

pub async fn fail(path: Path<String>, read: Read) -> Result<(), ApiError> {
    report_note(path, read, Status::Critical).await
}

async fn report_note(Path(id): Path<String>, read: Read, status: Status) -> Result<(), ApiError> {
    let note = read.value("note").unwrap_or_default().to_owned();
    report(&read, &id, status, note).await
}

pub async fn update(
    Path(id): Path<String>,
    read: Read,
    Json(body): Json<ReportBody>,
) -> Result<(), ApiError> {
    let status = Status::parse(&body.status).ok_or_else(|| {
        let text =
            format!("Invalid check status: '{}' (accepted are passing, warning, critical)", body.status);
        ApiError::BadRequest(text)
    })?;
    report(&read, &id, status, body.output).await
}

async fn report(read: &Read, id: &str, status: Status, output: String) -> Result<(), ApiError> {
    let key = Key::new(read.node()?, id);
    let output = names::cut(output);
    // Most reports say what is known: they put the expiry off, and cost neither a write nor a wake-up.
    let of_report = key.clone();
    let caller = read.caller();
    let write = read.app.store.write(move |txn| {
        vet::known_check(&caller, &txn.tables, &of_report)?;
        Ok::<_, ApiError>(registration::report(txn, &of_report, status, &output)?)
    });
    write.await?;
    read.app.checks.plan(&key);
    Ok(())
}
