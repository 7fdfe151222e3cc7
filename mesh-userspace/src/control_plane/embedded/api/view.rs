//! The shapes of answers that are not just a row.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use crate::control_plane::embedded::{
    model::{Check, IntentionRow, Node, Opaque, Proxy, Service, Status, Strings, TaggedAddress, Weights},
    tables::Tables,
};

/// Returns a service as its agent shows it: without what is empty, and without indexes.
pub fn agent_service(service: &Service) -> Opaque {
    let mut shown = serde_json::to_value(service).expect("invariant: a row has string keys only");
    let fields = shown.as_object_mut().expect("invariant: a row is an object");
    fields.remove("CreateIndex");
    fields.remove("ModifyIndex");
    if service.kind.is_typical() {
        fields.remove("Proxy");
    }
    if !service.connect.native {
        fields.remove("Connect");
    }
    if fields["Meta"].is_null() {
        fields.insert("Meta".to_owned(), json!({}));
    }
    let upstreams = fields.get_mut("Proxy").and_then(|proxy| proxy.get_mut("Upstreams"));
    for upstream in upstreams.and_then(serde_json::Value::as_array_mut).into_iter().flatten() {
        let upstream = upstream.as_object_mut().expect("invariant: an upstream is an object");
        upstream.retain(|name, value| {
            let empty = value.is_null() || value == "";
            !(empty && matches!(name.as_str(), "Config" | "Datacenter"))
        });
    }
    std::mem::take(fields)
}

/// Returns a check as its agent shows it: without indexes.
pub fn agent_check(check: &Check) -> CheckView<'_> {
    CheckView { create_index: 0, modify_index: 0, ..CheckView::from(check) }
}

/// A service with its node, as `/v1/catalog/service/:name` lists it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CatalogEntry<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    node: &'a str,
    address: &'a str,
    datacenter: &'a str,
    tagged_addresses: &'a Option<Strings>,
    node_meta: &'a Strings,
    service_kind: crate::control_plane::embedded::model::Kind,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [String],
    service_address: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    service_tagged_addresses: &'a BTreeMap<String, TaggedAddress>,
    service_weights: Weights,
    service_meta: &'a Strings,
    service_port: u16,
    service_enable_tag_override: bool,
    service_proxy: &'a Proxy,
    service_connect: crate::control_plane::embedded::model::Connect,
    create_index: u64,
    modify_index: u64,
}

impl<'a> CatalogEntry<'a> {
    pub fn new(node: &'a Node, service: &'a Service) -> Self {
        Self {
            id: &node.id,
            node: &node.name,
            address: &node.address,
            datacenter: &node.datacenter,
            tagged_addresses: &node.tagged_addresses,
            node_meta: &node.meta,
            service_kind: service.kind,
            service_id: &service.id,
            service_name: &service.name,
            service_tags: &service.tags,
            service_address: &service.address,
            service_tagged_addresses: &service.tagged_addresses,
            service_weights: service.weights,
            service_meta: &service.meta,
            service_port: service.port,
            service_enable_tag_override: service.enable_tag_override,
            service_proxy: &service.proxy,
            service_connect: service.connect,
            create_index: service.create_index,
            modify_index: service.modify_index,
        }
    }
}

/// A check as Consul lists it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CheckView<'a> {
    node: &'a str,
    #[serde(rename = "CheckID")]
    check_id: &'a str,
    name: &'a str,
    status: Status,
    notes: &'a str,
    output: &'a str,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
    service_tags: &'a [String],
    r#type: &'static str,
    definition: Opaque,
    create_index: u64,
    modify_index: u64,
}

impl<'a> From<&'a Check> for CheckView<'a> {
    fn from(check: &'a Check) -> Self {
        Self {
            node: &check.node,
            check_id: &check.id,
            name: &check.name,
            status: check.status,
            notes: &check.notes,
            output: &check.output,
            service_id: &check.service_id,
            service_name: &check.service_name,
            service_tags: &check.service_tags,
            r#type: check.probe.type_name(),
            definition: Opaque::new(),
            create_index: check.create_index,
            modify_index: check.modify_index,
        }
    }
}

/// A service with its node and all checks that concern it, as `/v1/health/service/:name` lists it.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthEntry<'a> {
    node: &'a Node,
    service: &'a Service,
    checks: Vec<CheckView<'a>>,
    #[serde(skip)]
    pub passing: bool,
}

impl<'a> HealthEntry<'a> {
    pub fn new(tables: &'a Tables, node: &'a Node, service: &'a Service) -> Self {
        let checks: Vec<&Check> = tables
            .checks_of_service(&service.node, "")
            .chain(tables.checks_of_service(&service.node, &service.id))
            .map(|check| &**check)
            .collect();
        let passing = checks.iter().all(|check| check.status == Status::Passing);
        Self { node, service, checks: checks.into_iter().map(CheckView::from).collect(), passing }
    }
}

/// Returns an intention as the API shows it.
pub fn intention(row: &IntentionRow) -> serde_json::Value {
    json!({
        "ID": row.id,
        "Description": row.description,
        "SourceNS": "default",
        "SourceName": row.source,
        "DestinationNS": "default",
        "DestinationName": row.destination,
        "SourceType": "consul",
        "Action": row.action,
        "DefaultAddr": "",
        "DefaultPort": 0,
        "Meta": row.meta,
        "Precedence": row.precedence(),
        "CreatedAt": row.created_at,
        "UpdatedAt": row.updated_at,
        "CreateIndex": row.create_index,
        "ModifyIndex": row.modify_index,
    })
}
