//! `/v1/agent/service*`: the services of one node, by default this server's own. `mesh-node` names another, for which
//! this server is the agent; `mesh-address` makes that node known.

use axum::{
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::{Map, json};

use super::{
    ApiError, App,
    body::Json,
    definition::{self, Place},
    input::ServiceBody,
    names,
    read::Read,
    vet,
    view::{agent_check, agent_service},
};
use crate::control_plane::embedded::{
    acl::Right,
    model::{Key, Probe, Service, Status},
    registration::{self, Refusal},
    tables::Tables,
    topics::Topic,
};

const NO_REASON: &str = "Maintenance mode is enabled for this service, but no reason was provided. \
                         This is a default message.";

pub async fn services(read: Read) -> Response {
    let node = match read.node() {
        Ok(node) => node.to_owned(),
        Err(error) => return error.into_response(),
    };
    read.answer(Topic::Node(node.as_str().into()), |tables| {
        let viewer = read.viewer();
        let services = tables.services_of_node(&node).filter(|service| viewer.sees_service(&service.name));
        Ok(services.map(|s| (s.id.to_string(), agent_service(s).into())).collect::<Map<_, _>>())
    })
    .await
}

/// One service, with a hash of its content that the caller can wait to change.
pub async fn service(Path(id): Path<String>, read: Read) -> Response {
    let key = match read.node() {
        Ok(node) => Key::new(node, &id),
        Err(error) => return error.into_response(),
    };
    read.answer_by_hash(Topic::Node(key.node.clone()), |tables| {
        let service = tables.service(&key).ok_or_else(|| Refusal::NoService(id.clone()))?;
        read.demand(Right::service_read(&service.name))?;
        Ok(agent_service(service))
    })
    .await
}

pub async fn register(
    read: Read,
    State(app): State<App>,
    Json(body): Json<ServiceBody>,
) -> Result<(), ApiError> {
    let node = read.node()?.to_owned();
    let address = address(&read)?;
    let remote = if node == app.node {
        None
    } else {
        let known = app.store.tables().node(&node).map(|node| node.address.clone());
        Some(address.clone().or(known).ok_or(Refusal::NoNode(node.clone()))?)
    };
    let place = Place { node: &node, remote: remote.as_deref() };
    let replace = read.flag("replace-existing-checks")?;
    let registration = definition::registration(body, &place, replace)?;
    let datacenter = app.datacenter.clone();
    let caller = read.caller();
    app.store
        .write(move |txn| {
            vet::node(&caller, &txn.tables, &node, address.as_deref())?;
            vet::registration(&caller, &txn.tables, &registration)?;
            registration::ensure_node(txn, &node, address.as_deref(), &datacenter)?;
            Ok(registration::register(txn, registration)?)
        })
        .await
}

/// The address in `mesh-address`, for another node; this server knows its own.
pub fn address(read: &Read) -> Result<Option<String>, ApiError> {
    let Some(address) = read.value("mesh-address") else { return Ok(None) };
    if read.node()? == read.app.node {
        return Ok(None);
    }
    let ip: std::net::IpAddr = address
        .parse()
        .map_err(|_| ApiError::BadRequest(format!("mesh-address: `{address}` is no IP address")))?;
    names::address("mesh-address", address)?;
    Ok(Some(ip.to_string()))
}

/// Consul answers 200 for a service that is not there, too.
pub async fn deregister(Path(id): Path<String>, read: Read) -> Result<(), ApiError> {
    let key = Key::new(read.node()?, &id);
    let caller = read.caller();
    read.app
        .store
        .write(move |txn| {
            vet::known_service(&caller, &txn.tables, &key)?;
            registration::deregister(txn, &key);
            Ok(())
        })
        .await
}

pub async fn maintenance(Path(id): Path<String>, read: Read) -> Result<(), ApiError> {
    if read.values("enable").next().is_none() {
        return Err(ApiError::BadRequest("Missing value for enable".to_owned()));
    }
    let enable = read.value("enable").unwrap_or_default();
    let enable = match read.flag("enable") {
        Ok(flag) if !enable.is_empty() => flag,
        _ => return Err(ApiError::BadRequest(format!("Invalid value for enable: \"{enable}\""))),
    };
    let reason = read.value("reason").unwrap_or(NO_REASON);
    names::text("reason", reason)?;
    let reason = enable.then(|| reason.to_owned());
    let key = Key::new(read.node()?, &id);
    let caller = read.caller();
    let write = read.app.store.write(move |txn| {
        vet::known_service(&caller, &txn.tables, &key)?;
        registration::maintenance(txn, &key, reason.as_deref()).map_err(|refusal| match refusal {
            Refusal::NoService(id) => ApiError::NotFound(format!("No service registered with ID \"{id}\"")),
            other => other.into(),
        })
    });
    write.await
}

pub async fn health_by_id(Path(id): Path<String>, read: Read) -> Result<Response, ApiError> {
    let tables = read.app.store.tables();
    let key = Key::new(read.node()?, &id);
    let Some(service) = tables.service(&key) else {
        let shown = json!({ "AggregatedStatus": "critical", "Service": null, "Checks": null });
        return Ok(unknown(&read, &format!("ServiceId {id} not found"), &shown));
    };
    read.demand(Right::service_read(&service.name))?;
    let (status, shown) = health(&tables, service);
    Ok((status.code(), answer(&read, status, &shown)).into_response())
}

pub async fn health_by_name(Path(name): Path<String>, read: Read) -> Result<Response, ApiError> {
    let tables = read.app.store.tables();
    let node = read.node()?;
    read.demand(Right::service_read(&name))?;
    let all: Vec<_> = tables
        .services_of_node(node)
        .filter(|service| *service.name == name)
        .map(|service| health(&tables, service))
        .collect();
    let Some(worst) = all.iter().map(|(status, _)| *status).max() else {
        return Ok(unknown(&read, &format!("ServiceName {name} Not Found"), &json!([])));
    };
    let shown: Vec<_> = all.into_iter().map(|(_, shown)| shown).collect();
    Ok((worst.code(), answer(&read, worst, &json!(shown))).into_response())
}

fn unknown(read: &Read, text: &str, shown: &serde_json::Value) -> Response {
    let answer = match read.value("format") {
        Some("text") => ([(CONTENT_TYPE, "text/plain")], text.to_owned()).into_response(),
        _ => read.json(shown),
    };
    (StatusCode::NOT_FOUND, answer).into_response()
}

/// The worst of a service's checks; one that an operator has switched off is worse than any.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Aggregated {
    Checked(Status),
    Maintenance,
}

impl Aggregated {
    fn as_str(self) -> &'static str {
        match self {
            Self::Checked(status) => status.as_str(),
            Self::Maintenance => "maintenance",
        }
    }

    fn code(self) -> StatusCode {
        match self {
            Self::Checked(Status::Passing) => StatusCode::OK,
            Self::Checked(Status::Warning) => StatusCode::TOO_MANY_REQUESTS,
            Self::Checked(Status::Critical) | Self::Maintenance => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

fn health(tables: &Tables, service: &Service) -> (Aggregated, serde_json::Value) {
    let mut of_service = tables.checks_of_service(&service.node, &service.id);
    let status = if of_service.any(|check| check.probe == Probe::Maintenance) {
        Aggregated::Maintenance
    } else {
        let own = tables.worst_status(&service.node, &service.id);
        Aggregated::Checked(own.max(tables.worst_status(&service.node, "")))
    };
    let checks: Vec<_> = tables
        .checks_of_service(&service.node, &service.id)
        .chain(tables.checks_of_service(&service.node, ""))
        .map(|check| agent_check(check))
        .collect();
    (
        status,
        json!({ "AggregatedStatus": status.as_str(), "Service": agent_service(service), "Checks": checks }),
    )
}

fn answer(read: &Read, status: Aggregated, shown: &serde_json::Value) -> Response {
    match read.value("format") {
        Some("text") => ([(CONTENT_TYPE, "text/plain")], status.as_str()).into_response(),
        _ => read.json(shown),
    }
}
