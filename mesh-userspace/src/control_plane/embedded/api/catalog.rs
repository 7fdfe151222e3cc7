//! `/v1/catalog/*`, the reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{extract::Path, response::Response};
use serde::Serialize;
use serde_json::json;

use super::{read::Read, view::CatalogEntry, viewer::Viewer};
use crate::control_plane::embedded::{
    model::{Node, Service},
    tables::Tables,
    topics::Topic,
};

pub async fn datacenters(read: Read) -> Response {
    read.json(&[&read.app.datacenter])
}

pub async fn nodes(read: Read) -> Response {
    read.answer(Topic::Nodes, |tables| {
        let (wanted, viewer) = (node_meta(&read), read.viewer());
        let seen = tables.nodes().filter(|node| viewer.sees_node(&node.name));
        Ok(seen.filter(|node| has_meta(node, &wanted)).cloned().collect::<Vec<_>>())
    })
    .await
}

/// Service names with the tags that any instance has.
pub async fn services(read: Read) -> Response {
    let wanted = node_meta(&read);
    if wanted.is_empty() {
        return read
            .answer(Topic::Services, |tables| {
                let viewer = read.viewer();
                let names = tables.service_names().filter(|(name, _)| viewer.sees_service(name));
                let names = names.map(|(name, tags)| (&**name, tags.names().collect()));
                Ok(json!(names.collect::<BTreeMap<&str, Vec<&String>>>()))
            })
            .await;
    }
    read.answer(vec![Topic::Instances, Topic::Nodes], |tables| {
        let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        let viewer = read.viewer();
        for service in tables.services().filter(|service| viewer.sees_service(&service.name)) {
            if tables.node(&service.node).is_some_and(|node| has_meta(node, &wanted)) {
                names.entry(&service.name).or_default().extend(service.tags.iter().map(String::as_str));
            }
        }
        Ok(json!(names))
    })
    .await
}

pub async fn service(Path(name): Path<String>, read: Read) -> Response {
    let topic = Topic::Service(name.as_str().into());
    read.answer(topic, |tables| Ok(json!(entries(&read, tables, tables.instances(&name))))).await
}

pub async fn connect(Path(name): Path<String>, read: Read) -> Response {
    let topic = Topic::Connect(name.as_str().into());
    read.answer(topic, |tables| {
        let seen = connect_instances(&read, tables, &name);
        Ok(json!(entries(&read, tables, seen)))
    })
    .await
}

/// The mTLS ends of a service; none to one who may not see the service.
pub fn connect_instances<'t>(
    read: &Read,
    tables: &'t Tables,
    name: &'t str,
) -> impl Iterator<Item = &'t Arc<Service>> {
    let seen = read.viewer().sees_service(name);
    tables.connect_instances(name).filter(move |_| seen)
}

fn entries<'a>(
    read: &Read,
    tables: &'a Tables,
    services: impl Iterator<Item = &'a Arc<Service>>,
) -> Vec<CatalogEntry<'a>> {
    let chosen = Choice::new(read);
    services.filter_map(|service| Some(CatalogEntry::new(chosen.node(tables, service)?, service))).collect()
}

/// A node with its services by id; `null` where there is none, as Consul answers.
pub async fn node(Path(name): Path<String>, read: Read) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct NodeServices<'a> {
        node: &'a Node,
        services: BTreeMap<&'a str, &'a Service>,
    }
    read.answer(Topic::Node(name.as_str().into()), |tables| {
        let viewer = read.viewer();
        let seen = |service: &&Arc<Service>| viewer.sees_service(&service.name);
        let node = tables.node(&name).filter(|_| viewer.sees_node(&name));
        Ok(json!(node.map(|node| {
            NodeServices {
                node,
                services: tables
                    .services_of_node(&name)
                    .filter(seen)
                    .map(|service| (&*service.id, &**service))
                    .collect(),
            }
        })))
    })
    .await
}

/// Likewise, with its services in a list.
pub async fn node_services(Path(name): Path<String>, read: Read) -> Response {
    read.answer(Topic::Node(name.as_str().into()), |tables| {
        let viewer = read.viewer();
        let seen = tables.services_of_node(&name).filter(|service| viewer.sees_service(&service.name));
        let services: Vec<&Service> = seen.map(|service| &**service).collect();
        Ok(match tables.node(&name).filter(|_| viewer.sees_node(&name)) {
            Some(node) => json!({ "Node": **node, "Services": services }),
            None => json!({ "Node": null, "Services": null }),
        })
    })
    .await
}

/// Which instances a query wants: `tag` and `node-meta`, both repeatable.
///
/// Nobody chooses what the caller may not see: an instance's service, and its node.
pub struct Choice<'a> {
    viewer: Viewer<'a>,
    tags: Vec<&'a str>,
    node_meta: Vec<(&'a str, &'a str)>,
}

impl<'a> Choice<'a> {
    pub fn new(read: &'a Read) -> Self {
        let tags = read.values("tag").filter(|tag| !tag.is_empty()).collect();
        Self { viewer: read.viewer(), tags, node_meta: node_meta(read) }
    }

    /// Returns the service's node, if the query wants the service.
    pub fn node<'t>(&self, tables: &'t Tables, service: &Service) -> Option<&'t Node> {
        // Consul compares tags without their case.
        let tagged = |tag: &&str| service.tags.iter().any(|own| own.eq_ignore_ascii_case(tag));
        if !self.viewer.sees_service(&service.name) || !self.viewer.sees_node(&service.node) {
            return None;
        }
        let node = tables.node(&service.node)?;
        (self.tags.iter().all(tagged) && has_meta(node, &self.node_meta)).then_some(node)
    }
}

pub fn node_meta(read: &Read) -> Vec<(&str, &str)> {
    read.values("node-meta").map(|pair| pair.split_once(':').unwrap_or((pair, ""))).collect()
}

pub fn has_meta(node: &Node, wanted: &[(&str, &str)]) -> bool {
    wanted.iter().all(|(key, value)| node.meta.get(*key).is_some_and(|own| own == value))
}
