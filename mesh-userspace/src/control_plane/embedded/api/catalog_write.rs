//! `/v1/catalog/register` and `/v1/catalog/deregister`: nodes, services and checks that no agent looks after.

use std::sync::Arc;

use axum::{extract::State, response::Response};

use super::{
    ApiError, App,
    body::Json,
    definition,
    input::{CatalogBody, CatalogCheck, CatalogRemoval, CatalogService},
    names, read, vet,
};
use crate::control_plane::embedded::{
    acl::{Caller, Right},
    model::{Check, Connect, Key, Kind, Node, Probe, Service, Status},
    registration::{self, NewCheck, Refusal},
    txn::Txn,
};

fn bad(text: impl Into<String>) -> ApiError {
    ApiError::BadRequest(text.into())
}

pub async fn register(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<CatalogBody>,
) -> Result<Response, ApiError> {
    let node = node(&app, &body)?;
    let skip = body.skip_node_update;
    let name = node.name.clone();
    let service = body.service.map(|body| service(&name, body)).transpose()?;
    let default_service = service.as_ref().map(|service| service.id.to_string());
    let mut checks = Vec::new();
    for (field, body) in body
        .check
        .into_iter()
        .map(|check| ("Check".to_owned(), check))
        .chain(body.checks.into_iter().enumerate().map(|(n, check)| (format!("Checks[{n}]"), check)))
    {
        checks.push(check(&name, &field, body)?);
    }
    if let Some(id) = default_service {
        tracing::debug!(node = %name, service = id, "registered in the catalog");
    }
    app.store
        .write(move |txn| {
            put_node(txn, &caller, node, skip)?;
            if let Some(service) = service {
                vet::service(&caller, &txn.tables, &service)?;
                txn.put_service(service);
            }
            for check in checks {
                vet::check(&caller, &txn.tables, &check.check)?;
                registration::put_check(txn, check)?;
            }
            Ok::<_, ApiError>(())
        })
        .await?;
    Ok(read::json(&true, false))
}

fn put_node(txn: &mut Txn, caller: &Caller, mut node: Node, skip: bool) -> Result<(), ApiError> {
    let old = txn.tables.node(&node.name).cloned();
    if let Some(old) = &old {
        if skip {
            return Ok(());
        }
        if node.id.is_empty() {
            node.id.clone_from(&old.id);
        }
        node.tagged_addresses = node.tagged_addresses.or_else(|| old.tagged_addresses.clone());
    } else if node.address.is_empty() {
        return Err(Refusal::NoNode(node.name.to_string()).into());
    }
    let same = |old: &Node| {
        (&old.id, &old.address, &old.tagged_addresses, &old.meta)
            == (&node.id, &node.address, &node.tagged_addresses, &node.meta)
    };
    if !old.is_some_and(|old| same(&old)) {
        caller.demand(Right::node_write(&node.name))?;
    }
    txn.put_node(node);
    Ok(())
}

fn node(app: &App, body: &CatalogBody) -> Result<Node, ApiError> {
    if body.node.is_empty() {
        return Err(bad("Must provide node: Node is empty"));
    }
    names::node("Node", &body.node)?;
    if body.address.is_empty() && !body.skip_node_update {
        return Err(bad("Must provide address if SkipNodeUpdate is not set: Address is empty"));
    }
    names::address("Address", &body.address)?;
    datacenter(app, &body.datacenter)?;
    names::namespace("Namespace", &body.namespace)?;
    names::namespace("Partition", &body.partition)?;
    if !body.id.is_empty() && uuid::Uuid::try_parse(&body.id).is_err() {
        return Err(bad("ID: a UUID is wanted"));
    }
    if body.node == app.node && !body.skip_node_update && body.address != app.node_address {
        return Err(bad(format!(
            "Address: the node `{}` is this server's own; set SkipNodeUpdate to register services on it",
            app.node
        )));
    }
    let meta = body.node_meta.clone().unwrap_or_default();
    names::meta("NodeMeta", &meta)?;
    if let Some(tagged) = &body.tagged_addresses {
        names::meta("TaggedAddresses", tagged)?;
    }
    Ok(Node {
        id: body.id.clone(),
        name: body.node.as_str().into(),
        address: body.address.clone(),
        datacenter: app.datacenter.clone(),
        tagged_addresses: body.tagged_addresses.clone(),
        meta,
        create_index: 0,
        modify_index: 0,
    })
}

fn datacenter(app: &App, given: &str) -> Result<(), ApiError> {
    match given {
        "" => Ok(()),
        given if given == app.datacenter => Ok(()),
        _ => Err(bad(format!("Datacenter: this server's is `{}`", app.datacenter))),
    }
}

fn service(node: &Arc<str>, body: CatalogService) -> Result<Service, ApiError> {
    let field = |name: &str| format!("Service.{name}");
    if body.service.is_empty() && body.id.is_empty() {
        return Err(bad("Must provide service name with ID: Service.Service is empty"));
    }
    let name = if body.service.is_empty() { &body.id } else { &body.service };
    let id = if body.id.is_empty() { name } else { &body.id };
    match body.kind {
        Kind::Typical => drop(names::service(&field("Service"), name)?),
        Kind::ConnectProxy => names::catalog_name(&field("Service"), name)?,
    }
    names::id(&field("ID"), id)?;
    definition::common(&field, &body.tags, &body.meta, &body.address, &body.tagged_addresses)?;
    names::namespace(&field("Namespace"), &body.namespace)?;
    names::namespace(&field("Partition"), &body.partition)?;
    let connect = body.connect.unwrap_or_default();
    if connect.sidecar_service.is_some() {
        return Err(bad("Service.Connect.SidecarService: for /v1/agent/service/register only"));
    }
    let proxy = definition::proxy(body.kind, body.proxy, body.port, &connect, "Service.")?;
    Ok(Service {
        node: node.clone(),
        as_sidecar: false,
        kind: body.kind,
        id: id.as_str().into(),
        name: name.as_str().into(),
        tags: body.tags,
        address: body.address,
        tagged_addresses: body.tagged_addresses,
        meta: body.meta,
        port: body.port,
        weights: definition::weights(body.weights),
        enable_tag_override: body.enable_tag_override,
        proxy,
        connect: Connect { native: connect.native },
        create_index: 0,
        modify_index: 0,
    })
}

fn check(node: &Arc<str>, field: &str, body: CatalogCheck) -> Result<NewCheck, ApiError> {
    let field = |name: &str| format!("{field}.{name}");
    if !body.node.is_empty() && *body.node != **node {
        return Err(bad(format!("{}: differs from Node", field("Node"))));
    }
    let id = if body.check_id.is_empty() { &body.name } else { &body.check_id };
    names::check_id(&field("CheckID"), id)?;
    names::text(&field("Name"), &body.name)?;
    names::text(&field("Notes"), &body.notes)?;
    names::namespace(&field("Namespace"), &body.namespace)?;
    names::namespace(&field("Partition"), &body.partition)?;
    if !body.service_id.is_empty() {
        names::id(&field("ServiceID"), &body.service_id)?;
    }
    let status = match body.status.as_str() {
        "" => Status::Critical,
        text => Status::parse(text).ok_or_else(|| {
            bad(format!("{}: `{text}`; accepted are passing, warning, critical", field("Status")))
        })?,
    };
    let check = Check {
        node: node.clone(),
        id: id.as_str().into(),
        name: body.name,
        status,
        notes: body.notes,
        output: names::cut(body.output),
        service_id: body.service_id.as_str().into(),
        service_name: "".into(),
        service_tags: Vec::new(),
        probe: Probe::External,
        deregister_after_ms: None,
        create_index: 0,
        modify_index: 0,
    };
    Ok(NewCheck { check, status: Some(status) })
}

/// Removes a service, or a check, or the whole node. What is not there is no error, as with Consul.
pub async fn deregister(
    State(app): State<App>,
    caller: Caller,
    Json(body): Json<CatalogRemoval>,
) -> Result<Response, ApiError> {
    if body.node.is_empty() {
        return Err(bad("Must provide node: Node is empty"));
    }
    datacenter(&app, &body.datacenter)?;
    names::namespace("Namespace", &body.namespace)?;
    names::namespace("Partition", &body.partition)?;
    let whole = body.service_id.is_empty() && body.check_id.is_empty();
    if whole && body.node == app.node {
        return Err(bad(format!("Node: `{}` is this server's own and stays", app.node)));
    }
    app.store
        .write(move |txn| {
            // Who owns the node may remove everything on it.
            let node = Right::node_write(&body.node);
            if whole {
                caller.demand(node)?;
                txn.delete_node(&body.node.as_str().into());
            } else if !body.service_id.is_empty() {
                let key = Key::new(&body.node, &body.service_id);
                if !caller.may(node) {
                    vet::known_service(&caller, &txn.tables, &key)?;
                }
                registration::deregister(txn, &key);
            } else {
                let key = Key::new(&body.node, &body.check_id);
                if !caller.may(node) {
                    vet::known_check(&caller, &txn.tables, &key)?;
                }
                txn.delete_check(&key);
            }
            Ok::<_, ApiError>(())
        })
        .await?;
    Ok(read::json(&true, false))
}
