//! The whole store in memory: what every read is answered from. Immutable once published; a write works on a copy
//! that shares all tables it leaves alone. SQLite keeps the same rows on disk (see `persist`).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::model::{AgentLeaf, CaConfig, Check, IntentionRow, Key, Node, Opaque, Root, Service, Status};
use crate::intention::{Action, Intentions, Pattern};

type Name = Arc<str>;

/// (name, node, id): the services of a name, or the checks of a service.
pub(super) type NameIndex = BTreeSet<(Name, Name, Name)>;

#[derive(Clone, Debug)]
pub struct Tables {
    /// The index of the last write.
    pub index: u64,
    pub(super) nodes: Arc<BTreeMap<Name, Arc<Node>>>,
    pub(super) services: Arc<BTreeMap<Key, Arc<Service>>>,
    pub(super) checks: Arc<BTreeMap<Key, Arc<Check>>>,
    pub(super) by_name: Arc<NameIndex>,
    pub(super) by_destination: Arc<NameIndex>,
    /// (node, service id, check id); an empty service id for the node's own checks.
    pub(super) by_service: Arc<NameIndex>,
    pub(super) intentions: Arc<BTreeMap<Name, Arc<IntentionRow>>>,
    pub(super) decider: Arc<Intentions>,
    pub(super) roots: Arc<BTreeMap<Name, Arc<Root>>>,
    pub(super) ca_config: Arc<CaConfig>,
    pub(super) settings: Arc<BTreeMap<String, String>>,
    pub(super) leafs: Arc<BTreeMap<Name, Arc<AgentLeaf>>>,
}

impl Tables {
    pub fn empty(default_policy: Action) -> Self {
        Self {
            index: 0,
            nodes: Arc::default(),
            services: Arc::default(),
            checks: Arc::default(),
            by_name: Arc::default(),
            by_destination: Arc::default(),
            by_service: Arc::default(),
            intentions: Arc::default(),
            decider: Arc::new(Intentions::new([], default_policy)),
            roots: Arc::default(),
            ca_config: Arc::new(CaConfig { config: Opaque::new(), create_index: 0, modify_index: 0 }),
            settings: Arc::default(),
            leafs: Arc::default(),
        }
    }

    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    pub fn service(&self, key: &Key) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    pub fn services_of_node(&self, node: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.services
            .range(Key::new(node, "")..)
            .take_while(move |(key, _)| *key.node == *node)
            .map(|(_, service)| service)
    }

    /// Returns the instances of the service `name`, ordered by node and id.
    pub fn instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Service>> {
        self.keyed(&self.by_name, name)
    }

    /// Returns the instances that take mTLS for the service `name`: its proxies, and those that do it themselves.
    pub fn connect_instances<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Arc<Service>> {
        self.keyed(&self.by_destination, name)
    }

    fn keyed<'a>(&'a self, index: &'a NameIndex, name: &'a str) -> impl Iterator<Item = &'a Arc<Service>> {
        let none: Name = "".into();
        index
            .range((Name::from(name), none.clone(), none)..)
            .take_while(move |(of, _, _)| **of == *name)
            .filter_map(|(_, node, id)| self.services.get(&Key { node: node.clone(), id: id.clone() }))
    }

    pub fn check(&self, key: &Key) -> Option<&Arc<Check>> {
        self.checks.get(key)
    }

    pub fn checks(&self) -> impl Iterator<Item = &Arc<Check>> {
        self.checks.values()
    }

    pub fn checks_of_node(&self, node: &str) -> impl Iterator<Item = &Arc<Check>> {
        self.checks
            .range(Key::new(node, "")..)
            .take_while(move |(key, _)| *key.node == *node)
            .map(|(_, check)| check)
    }

    /// Returns the checks of one service instance; with an empty id those of the node itself.
    pub fn checks_of_service<'a>(
        &'a self,
        node: &'a str,
        service_id: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Check>> {
        self.by_service
            .range((Name::from(node), Name::from(service_id), Name::from(""))..)
            .take_while(move |(of, service, _)| **of == *node && **service == *service_id)
            .filter_map(|(node, _, id)| self.checks.get(&Key { node: node.clone(), id: id.clone() }))
    }

    /// Returns the worst status of an instance's own checks; passing where it has none.
    pub fn worst_status(&self, node: &str, service_id: &str) -> Status {
        self.checks_of_service(node, service_id).map(|c| c.status).max().unwrap_or(Status::Passing)
    }

    pub fn intention(&self, id: &str) -> Option<&Arc<IntentionRow>> {
        self.intentions.get(id)
    }

    /// Returns the intention for just this pair.
    pub fn intention_of(&self, source: &Pattern, destination: &Pattern) -> Option<&Arc<IntentionRow>> {
        self.intentions.values().find(|row| row.source == *source && row.destination == *destination)
    }

    /// All intentions in the order in which Consul lists them.
    pub fn intentions(&self) -> Vec<&Arc<IntentionRow>> {
        self.decider.list().into_iter().filter_map(|rule| self.intentions.get(&*rule.id)).collect()
    }

    /// Who may connect to whom.
    pub fn decider(&self) -> &Intentions {
        &self.decider
    }

    /// Returns the roots, the active one first and then the latest.
    pub fn roots(&self) -> Vec<&Arc<Root>> {
        let mut all: Vec<_> = self.roots.values().collect();
        all.sort_by_key(|root| (!root.active, std::cmp::Reverse(root.create_index)));
        all
    }

    pub fn active_root(&self) -> Option<&Arc<Root>> {
        self.roots.values().find(|root| root.active)
    }

    pub fn ca_config(&self) -> &CaConfig {
        &self.ca_config
    }

    pub fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    pub fn leaf(&self, service: &str) -> Option<&Arc<AgentLeaf>> {
        self.leafs.get(service)
    }
}
