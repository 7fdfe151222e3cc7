//! The whole store in memory: what every read is answered from. Immutable once published; a write works on a copy
//! that shares all rows it leaves alone (see `ordered`). SQLite keeps the same rows on disk (see `persist`).

use std::{cmp::Reverse, collections::BTreeMap, sync::Arc};

use super::{
    acl::Registry,
    model::{AgentLeaf, CaConfig, Check, IntentionRow, Key, Node, Opaque, Root, Service, Status},
    ordered::Ordered,
};
use crate::{
    identity::ServiceName,
    intention::{Action, Pattern},
};

type Name = Arc<str>;

/// (name, node, id): the services of a name, or the checks of a service.
pub(super) type NameIndex = Ordered<(Name, Name, Name), ()>;

/// The instances of one name, counted, and how many of them have which tag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tags {
    pub(super) instances: usize,
    pub(super) counts: BTreeMap<String, usize>,
}

impl Tags {
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.counts.keys()
    }
}

#[derive(Clone, Debug)]
pub struct Tables {
    /// The index of the last write.
    pub index: u64,
    /// What holds where no intention does.
    pub default_policy: Action,
    pub(super) nodes: Ordered<Name, Arc<Node>>,
    pub(super) services: Ordered<Key, Arc<Service>>,
    pub(super) checks: Ordered<Key, Arc<Check>>,
    pub(super) by_name: NameIndex,
    pub(super) by_destination: NameIndex,
    /// (node, service id, check id); an empty service id for the node's own checks.
    pub(super) by_service: NameIndex,
    pub(super) tags: Ordered<Name, Arc<Tags>>,
    pub(super) intentions: Ordered<Name, Arc<IntentionRow>>,
    /// (destination, source); in this order the more precise of two for one destination comes first.
    pub(super) to: Ordered<(Pattern, Pattern), Arc<IntentionRow>>,
    /// (source, destination).
    pub(super) out_of: Ordered<(Pattern, Pattern), Arc<IntentionRow>>,
    pub(super) roots: Arc<BTreeMap<Name, Arc<Root>>>,
    pub(super) ca_config: Arc<CaConfig>,
    pub(super) settings: Arc<BTreeMap<String, String>>,
    pub(super) leafs: Arc<BTreeMap<Name, Arc<AgentLeaf>>>,
    pub(super) acl: Arc<Registry>,
}

impl Tables {
    pub fn empty(default_policy: Action) -> Self {
        Self {
            index: 0,
            default_policy,
            nodes: Ordered::default(),
            services: Ordered::default(),
            checks: Ordered::default(),
            by_name: Ordered::default(),
            by_destination: Ordered::default(),
            by_service: Ordered::default(),
            tags: Ordered::default(),
            intentions: Ordered::default(),
            to: Ordered::default(),
            out_of: Ordered::default(),
            roots: Arc::default(),
            ca_config: Arc::new(CaConfig { config: Opaque::new(), create_index: 0, modify_index: 0 }),
            settings: Arc::default(),
            leafs: Arc::default(),
            acl: Arc::default(),
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
            .after(&|key| *key.node < *node)
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
        index
            .after(&|(of, _, _)| **of < *name)
            .take_while(move |((of, _, _), ())| **of == *name)
            .filter_map(|((_, node, id), ())| self.services.get(&Key { node: node.clone(), id: id.clone() }))
    }

    pub fn check(&self, key: &Key) -> Option<&Arc<Check>> {
        self.checks.get(key)
    }

    pub fn checks(&self) -> impl Iterator<Item = &Arc<Check>> {
        self.checks.values()
    }

    pub fn checks_of_node(&self, node: &str) -> impl Iterator<Item = &Arc<Check>> {
        self.checks
            .after(&|key| *key.node < *node)
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
            .after(&|(of, service, _)| (&**of, &**service) < (node, service_id))
            .take_while(move |((of, service, _), ())| **of == *node && **service == *service_id)
            .filter_map(|((node, _, id), ())| self.checks.get(&Key { node: node.clone(), id: id.clone() }))
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
        self.to.get(&(destination.clone(), source.clone()))
    }

    /// All intentions in the order in which Consul lists them.
    pub fn intentions(&self) -> Vec<&Arc<IntentionRow>> {
        precise_first(self.to.values().collect())
    }

    /// Returns the intentions that may decide for `destination`, in that order.
    pub fn intentions_to(&self, destination: &Pattern) -> Vec<&Arc<IntentionRow>> {
        matching(&self.to, destination)
    }

    /// Returns the intentions that may decide for `source`, in that order.
    pub fn intentions_from(&self, source: &Pattern) -> Vec<&Arc<IntentionRow>> {
        matching(&self.out_of, source)
    }

    /// Whether `source` may connect to `destination`, and the intention that says so; `None` where the default does.
    pub fn decide(
        &self,
        source: &ServiceName,
        destination: &ServiceName,
    ) -> (Action, Option<&Arc<IntentionRow>>) {
        let exact = |name: &ServiceName| Pattern::Exact(name.clone());
        let pairs = [
            (exact(source), exact(destination)),
            (Pattern::Any, exact(destination)),
            (exact(source), Pattern::Any),
            (Pattern::Any, Pattern::Any),
        ];
        let by = pairs.iter().find_map(|(source, destination)| self.intention_of(source, destination));
        (by.map_or(self.default_policy, |row| row.action), by)
    }

    /// Returns the names of services with the tags that any instance has.
    pub fn service_names(&self) -> impl Iterator<Item = (&Name, &Tags)> {
        self.tags.iter().map(|(name, tags)| (name, &**tags))
    }

    /// Takes the row into every table that it is in.
    pub(super) fn index_intention(&mut self, row: &Arc<IntentionRow>) {
        let (source, destination) = (row.source.clone(), row.destination.clone());
        self.out_of.insert((source.clone(), destination.clone()), row.clone());
        self.to.insert((destination, source), row.clone());
        self.intentions.insert(row.id.clone(), row.clone());
    }

    pub(super) fn index_service(&mut self, service: Arc<Service>) {
        let Key { node, id } = service.key();
        if let Some(destination) = service.connect_destination() {
            self.by_destination.insert((destination.into(), node.clone(), id.clone()), ());
        }
        self.by_name.insert((service.name.clone(), node, id), ());
        self.count(&service, |count| *count += 1);
        self.services.insert(service.key(), service);
    }

    /// Takes the service out of the indexes; the row itself stays.
    pub(super) fn unindex_service(&mut self, service: &Service) {
        let Key { node, id } = service.key();
        if let Some(destination) = service.connect_destination() {
            self.by_destination.remove(&(destination.into(), node.clone(), id.clone()));
        }
        self.by_name.remove(&(service.name.clone(), node, id));
        self.count(service, |count| *count -= 1);
    }

    fn count(&mut self, service: &Service, step: impl Fn(&mut usize)) {
        let mut tags = self.tags.get(&service.name).map(|tags| Tags::clone(tags)).unwrap_or_default();
        step(&mut tags.instances);
        // A tag that is given twice counts twice, here and when it goes.
        service.tags.iter().for_each(|tag| step(tags.counts.entry(tag.clone()).or_default()));
        tags.counts.retain(|_, count| *count > 0);
        if tags.instances == 0 {
            self.tags.remove(&service.name);
        } else {
            self.tags.insert(service.name.clone(), Arc::new(tags));
        }
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

    pub fn acl(&self) -> &Registry {
        &self.acl
    }

    pub fn leaf(&self, service: &str) -> Option<&Arc<AgentLeaf>> {
        self.leafs.get(service)
    }
}

/// Returns the rows whose first side is `side` or any.
fn matching<'a>(
    rows: &'a Ordered<(Pattern, Pattern), Arc<IntentionRow>>,
    side: &Pattern,
) -> Vec<&'a Arc<IntentionRow>> {
    let of = |side: Pattern| {
        let after = rows.after(&|(own, _)| *own < side);
        after.take_while(move |((own, _), _)| *own == side).map(|(_, row)| row)
    };
    let any = (*side != Pattern::Any).then(|| of(Pattern::Any));
    precise_first(of(side.clone()).chain(any.into_iter().flatten()).collect())
}

fn precise_first(mut rows: Vec<&Arc<IntentionRow>>) -> Vec<&Arc<IntentionRow>> {
    rows.sort_by(|a, b| {
        let key = |row: &IntentionRow| Reverse(row.precedence());
        key(a).cmp(&key(b)).then_with(|| (&a.destination, &a.source).cmp(&(&b.destination, &b.source)))
    });
    rows
}
