//! One write: changes a copy of the tables, and records what goes to disk, which topics moved, and which checks have
//! to be looked at. Nothing here does I/O; a write that returns an error leaves no trace.

use std::{collections::HashSet, sync::Arc};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    acl,
    model::{AgentLeaf, CaConfig, Check, IntentionRow, Key, Node, Opaque, Probe, Root, Service, Status},
    tables::{Tables, Tags},
    topics::Topic,
};

/// A row that was written, or (`None`) deleted.
#[derive(Clone, Debug)]
pub enum Change {
    Node(Arc<str>, Option<Arc<Node>>),
    Service(Key, Option<Arc<Service>>),
    Check(Key, Option<Arc<Check>>),
    Intention(Arc<str>, Option<Arc<IntentionRow>>),
    Root(Arc<str>, Option<Arc<Root>>),
    CaConfig(Arc<CaConfig>),
    Setting(String, String),
    Policy(Arc<str>, Option<Arc<acl::Policy>>),
    Token(Arc<str>, Option<Arc<acl::Token>>),
}

pub struct Txn {
    pub tables: Tables,
    /// The time of the write.
    pub now: OffsetDateTime,
    /// What the write's rows get as their index.
    pub(super) index: u64,
    pub(super) changes: Vec<Change>,
    pub(super) topics: HashSet<Topic>,
    pub(super) checks: Vec<Key>,
}

impl Txn {
    pub fn new(tables: Tables, now: OffsetDateTime) -> Self {
        let index = tables.index + 1;
        Self { tables, now, index, changes: Vec::new(), topics: HashSet::new(), checks: Vec::new() }
    }

    /// Anything to commit?
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.topics.is_empty()
    }

    /// Returns the time of the write as RFC 3339 in UTC.
    pub fn now_text(&self) -> String {
        self.now.format(&Rfc3339).expect("invariant: a time of this era has an RFC 3339 form")
    }

    /// Writes the node, unless it is there just so.
    pub fn put_node(&mut self, mut node: Node) {
        let old = self.tables.nodes.get(&node.name);
        node.create_index = old.map_or(self.index, |old| old.create_index);
        node.modify_index = old.map_or(self.index, |old| old.modify_index);
        if old.is_some_and(|old| **old == node) {
            return;
        }
        node.modify_index = self.index;
        let (name, node) = (node.name.clone(), Arc::new(node));
        self.tables.nodes.insert(name.clone(), node.clone());
        self.changes.push(Change::Node(name.clone(), Some(node)));
        self.topics.insert(Topic::Nodes);
        self.touch_node(&name);
    }

    /// Removes the node with everything on it.
    pub fn delete_node(&mut self, name: &Arc<str>) {
        if !self.tables.nodes.contains_key(name) {
            return;
        }
        self.touch_node(name);
        let services: Vec<_> = self.tables.services_of_node(name).map(|s| s.key()).collect();
        for key in services {
            self.delete_service(&key);
        }
        let checks: Vec<_> = self.tables.checks_of_node(name).map(|c| c.key()).collect();
        for key in checks {
            self.delete_check(&key);
        }
        self.tables.nodes.remove(name);
        self.changes.push(Change::Node(name.clone(), None));
        self.topics.insert(Topic::Nodes);
    }

    /// Writes the service, unless it is there just so.
    pub fn put_service(&mut self, mut service: Service) {
        let key = service.key();
        let old = self.tables.services.get(&key).cloned();
        service.create_index = old.as_ref().map_or(self.index, |old| old.create_index);
        service.modify_index = old.as_ref().map_or(self.index, |old| old.modify_index);
        if old.as_deref() == Some(&service) {
            return;
        }
        service.modify_index = self.index;
        let names: Vec<_> = old.iter().map(|old| &old.name).chain([&service.name]).cloned().collect();
        let before = names.iter().map(|name| (name.clone(), self.tables.tags.get(name).cloned())).collect();
        if let Some(old) = &old {
            self.unindex(old);
        }
        let service = Arc::new(service);
        self.tables.index_service(service.clone());
        self.touch_service(&service);
        self.touch_names(before);
        if old.is_none_or(|old| old.name != service.name || old.tags != service.tags) {
            self.rename_in_checks(&service);
        }
        self.changes.push(Change::Service(key, Some(service)));
    }

    /// Removes the service with its checks. Returns whether it was there.
    pub fn delete_service(&mut self, key: &Key) -> bool {
        let Some(old) = self.tables.services.get(key).cloned() else { return false };
        let checks: Vec<_> =
            self.tables.checks_of_service(&key.node, &key.id).map(|check| check.key()).collect();
        for check in checks {
            self.delete_check(&check);
        }
        let before = vec![(old.name.clone(), self.tables.tags.get(&old.name).cloned())];
        self.unindex(&old);
        self.tables.services.remove(key);
        self.touch_names(before);
        self.changes.push(Change::Service(key.clone(), None));
        self.update_aliases(&key.node, &key.id);
        true
    }

    /// Writes the check, unless it is there just so, and what follows from it for its aliases.
    pub fn put_check(&mut self, mut check: Check) {
        let key = check.key();
        let old = self.tables.checks.get(&key).cloned();
        check.create_index = old.as_ref().map_or(self.index, |old| old.create_index);
        check.modify_index = old.as_ref().map_or(self.index, |old| old.modify_index);
        if old.as_deref() == Some(&check) {
            return;
        }
        check.modify_index = self.index;
        if let Some(old) = &old {
            self.unindex_check(old);
        }
        let check = Arc::new(check);
        let entry = (key.node.clone(), check.service_id.clone(), key.id.clone());
        self.tables.by_service.insert(entry, ());
        self.tables.checks.insert(key.clone(), check.clone());
        self.changes.push(Change::Check(key.clone(), Some(check.clone())));
        self.touch_check(&check);
        self.checks.push(key.clone());
        if old.is_none_or(|old| old.status != check.status || old.service_id != check.service_id) {
            self.update_aliases(&key.node, &check.service_id);
        }
    }

    /// Removes the check. Returns whether it was there.
    pub fn delete_check(&mut self, key: &Key) -> bool {
        let Some(old) = self.tables.checks.get(key).cloned() else { return false };
        self.unindex_check(&old);
        self.tables.checks.remove(key);
        self.changes.push(Change::Check(key.clone(), None));
        self.checks.push(key.clone());
        self.update_aliases(&key.node, &old.service_id);
        true
    }

    /// Writes the intention; whether its pair is free is the caller's to see to.
    pub fn put_intention(&mut self, mut row: IntentionRow) {
        let old = self.tables.intentions.get(&row.id).cloned();
        row.create_index = old.as_ref().map_or(self.index, |old| old.create_index);
        row.modify_index = self.index;
        if let Some(old) = &old {
            self.unindex_intention(old);
        }
        let row = Arc::new(row);
        self.touch_intention(&row);
        self.tables.index_intention(&row);
        self.changes.push(Change::Intention(row.id.clone(), Some(row)));
    }

    /// Removes the intention. Returns whether it was there.
    pub fn delete_intention(&mut self, id: &str) -> bool {
        let Some(old) = self.tables.intentions.remove(id) else { return false };
        self.unindex_intention(&old);
        self.changes.push(Change::Intention(old.id.clone(), None));
        true
    }

    fn unindex_intention(&mut self, row: &IntentionRow) {
        let (source, destination) = (row.source.clone(), row.destination.clone());
        self.tables.out_of.remove(&(source.clone(), destination.clone()));
        self.tables.to.remove(&(destination, source));
        self.touch_intention(row);
    }

    fn touch_intention(&mut self, row: &IntentionRow) {
        self.topics.insert(Topic::Intentions);
        self.topics.insert(Topic::Source(row.source.clone()));
        self.topics.insert(Topic::Destination(row.destination.clone()));
    }

    pub fn put_root(&mut self, mut root: Root) {
        let id: Arc<str> = root.id.as_str().into();
        root.create_index = self.tables.roots.get(&id).map_or(self.index, |old| old.create_index);
        root.modify_index = self.index;
        let root = Arc::new(root);
        Arc::make_mut(&mut self.tables.roots).insert(id.clone(), root.clone());
        self.changes.push(Change::Root(id, Some(root)));
        self.topics.insert(Topic::Roots);
    }

    pub fn delete_root(&mut self, id: &str) {
        if let Some((id, _)) = Arc::make_mut(&mut self.tables.roots).remove_entry(id) {
            self.changes.push(Change::Root(id, None));
            self.topics.insert(Topic::Roots);
        }
    }

    pub fn put_ca_config(&mut self, config: Opaque) {
        let old = &self.tables.ca_config;
        if old.config == config {
            return;
        }
        let create_index = if old.create_index == 0 { self.index } else { old.create_index };
        let row = Arc::new(CaConfig { config, create_index, modify_index: self.index });
        self.tables.ca_config = row.clone();
        self.changes.push(Change::CaConfig(row));
        self.topics.insert(Topic::CaConfig);
    }

    pub fn put_setting(&mut self, name: &str, value: &str) {
        if self.tables.setting(name) == Some(value) {
            return;
        }
        Arc::make_mut(&mut self.tables.settings).insert(name.to_owned(), value.to_owned());
        self.changes.push(Change::Setting(name.to_owned(), value.to_owned()));
    }

    /// Keeps the leaf in memory; only its index goes to disk.
    pub fn put_leaf(&mut self, mut leaf: AgentLeaf) {
        let service: Arc<str> = leaf.service.as_str().into();
        leaf.create_index = self.index;
        leaf.modify_index = self.index;
        Arc::make_mut(&mut self.tables.leafs).insert(service.clone(), Arc::new(leaf));
        self.topics.insert(Topic::Leaf(service));
    }

    fn unindex(&mut self, service: &Service) {
        self.touch_service(service);
        self.tables.unindex_service(service);
    }

    /// Moves the list of names and tags, if one of these names has other tags than before, or is new, or gone.
    fn touch_names(&mut self, before: Vec<(Arc<str>, Option<Arc<Tags>>)>) {
        for (name, before) in before {
            let same = match (before, self.tables.tags.get(&name)) {
                (Some(before), Some(now)) => before.names().eq(now.names()),
                (before, now) => before.is_none() && now.is_none(),
            };
            if !same {
                self.topics.insert(Topic::Services);
            }
        }
    }

    fn unindex_check(&mut self, check: &Check) {
        let entry = (check.node.clone(), check.service_id.clone(), check.id.clone());
        self.tables.by_service.remove(&entry);
        self.touch_check(check);
    }

    fn touch_service(&mut self, service: &Service) {
        if let Some(destination) = service.connect_destination() {
            self.topics.insert(Topic::Connect(destination.into()));
        }
        self.topics.insert(Topic::Instances);
        self.topics.insert(Topic::Service(service.name.clone()));
        self.topics.insert(Topic::Node(service.node.clone()));
    }

    /// A check of a service moves that service; one of the node moves everything on it.
    fn touch_check(&mut self, check: &Check) {
        self.topics.insert(Topic::Checks);
        if check.service_id.is_empty() {
            self.touch_node(&check.node);
        } else if let Some(service) =
            self.tables.services.get(&Key { node: check.node.clone(), id: check.service_id.clone() }).cloned()
        {
            self.touch_service(&service);
        }
    }

    fn touch_node(&mut self, name: &Arc<str>) {
        self.topics.insert(Topic::Node(name.clone()));
        let services: Vec<_> = self.tables.services_of_node(name).cloned().collect();
        for service in services {
            self.touch_service(&service);
        }
    }

    /// Checks show their service's name and tags.
    fn rename_in_checks(&mut self, service: &Service) {
        let checks: Vec<_> =
            self.tables.checks_of_service(&service.node, &service.id).map(|c| Check::clone(c)).collect();
        for mut check in checks {
            check.service_name = service.name.clone();
            check.service_tags = service.tags.clone();
            self.put_check(check);
        }
    }

    /// Sets the alias checks on `node` that stand for the service whose checks have changed.
    fn update_aliases(&mut self, node: &str, service_id: &str) {
        let aliases: Vec<Check> = self
            .tables
            .checks_of_node(node)
            .filter(|check| matches!(&check.probe, Probe::Alias { service_id: of } if **of == *service_id))
            .map(|check| Check::clone(check))
            .collect();
        for alias in aliases {
            self.put_alias(alias);
        }
    }

    /// Writes an alias check with the status that follows from the checks it stands for.
    pub fn put_alias(&mut self, mut alias: Check) {
        if let Probe::Alias { service_id } = &alias.probe {
            // Checks of the alias' own service would make it stand for itself.
            let of: Vec<_> = self
                .tables
                .checks_of_service(&alias.node, service_id)
                .filter(|check| !matches!(check.probe, Probe::Alias { .. }))
                .collect();
            let worst = of.iter().max_by_key(|check| check.status);
            (alias.status, alias.output) = match worst {
                Some(check) if check.status > Status::Passing => {
                    (check.status, format!("Aliased check \"{}\" failing: {}", check.name, check.output))
                }
                Some(_) => (Status::Passing, "All checks passing.".to_owned()),
                None => (Status::Passing, "No checks found.".to_owned()),
            };
        }
        self.put_check(alias);
    }
}
