//! `/v1/health/*`.

use std::sync::Arc;

use axum::{extract::Path, response::Response};
use serde_json::json;

use super::{
    ApiError,
    catalog::{Choice, connect_instances, has_meta, node_meta},
    read::Read,
    view::{CheckView, HealthEntry},
};
use crate::control_plane::embedded::{
    model::{Check, Service, Status},
    tables::Tables,
    topics::Topic,
};

pub async fn service(Path(name): Path<String>, read: Read) -> Response {
    let topic = Topic::Service(name.as_str().into());
    read.answer(topic, |tables| entries(&read, tables, tables.instances(&name))).await
}

pub async fn connect(Path(name): Path<String>, read: Read) -> Response {
    let topic = Topic::Connect(name.as_str().into());
    read.answer(topic, |tables| entries(&read, tables, connect_instances(&read, tables, &name))).await
}

fn entries<'a>(
    read: &Read,
    tables: &'a Tables,
    services: impl Iterator<Item = &'a Arc<Service>>,
) -> Result<serde_json::Value, ApiError> {
    let (passing, chosen) = (read.flag("passing")?, Choice::new(read));
    let entries: Vec<_> = services
        .filter_map(|service| Some(HealthEntry::new(tables, chosen.node(tables, service)?, service)))
        .filter(|entry| entry.passing || !passing)
        .collect();
    Ok(json!(entries))
}

/// The checks of every instance of a service.
pub async fn checks(Path(name): Path<String>, read: Read) -> Response {
    read.answer(Topic::Service(name.as_str().into()), |tables| {
        let wanted = node_meta(&read);
        let checks = tables
            .instances(&name)
            .filter(|service| tables.node(&service.node).is_some_and(|node| has_meta(node, &wanted)))
            .flat_map(|service| tables.checks_of_service(&service.node, &service.id));
        Ok(list(&read, checks))
    })
    .await
}

pub async fn node(Path(name): Path<String>, read: Read) -> Response {
    read.answer(Topic::Node(name.as_str().into()), |tables| Ok(list(&read, tables.checks_of_node(&name))))
        .await
}

pub async fn state(Path(state): Path<String>, read: Read) -> Response {
    read.answer(Topic::Checks, |tables| {
        let status = Status::parse(&state);
        if status.is_none() && state != "any" {
            let text = format!("state: `{state}`; accepted are passing, warning, critical, any");
            return Err(ApiError::BadRequest(text));
        }
        let wanted = node_meta(&read);
        let of_node = |check: &Check| tables.node(&check.node).is_some_and(|node| has_meta(node, &wanted));
        let checks = tables.checks().filter(|check| status.is_none_or(|status| check.status == status));
        Ok(list(&read, checks.filter(|check| wanted.is_empty() || of_node(check))))
    })
    .await
}

fn list<'a>(read: &Read, checks: impl Iterator<Item = &'a Arc<Check>>) -> serde_json::Value {
    let viewer = read.viewer();
    let seen = checks.filter(|check| viewer.sees_check(check));
    json!(seen.map(|check| CheckView::from(&**check)).collect::<Vec<_>>())
}
