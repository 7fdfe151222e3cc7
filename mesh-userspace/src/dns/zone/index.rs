//! The mesh by lower-case name: names in DNS have no case, and a large catalog is not searched for each query.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use crate::{
    catalog::{Catalog, Instance, InstanceHealth, VirtualIps},
    identity::ServiceName,
    state::Mesh,
};

/// A service as names show it.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// Healthy ones.
    pub instances: Vec<Arc<Instance>>,
    /// Ports of all instances.
    pub ports: Vec<u16>,
    pub virtual_ips: Vec<IpAddr>,
}

/// A node that has an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub datacenter: String,
    pub address: IpAddr,
}

/// Made of one catalog and its virtual IPs.
#[derive(Debug)]
pub struct Index {
    catalog: Arc<Catalog>,
    virtual_ips: Arc<VirtualIps>,
    services: HashMap<String, Entry>,
    nodes: HashMap<String, Vec<Node>>,
    datacenters: HashSet<String>,
}

impl Index {
    /// `None`: nothing is known yet.
    pub fn of(mesh: &Mesh) -> Option<Self> {
        let catalog = mesh.catalog.clone()?;
        let virtual_ips = mesh.virtual_ips.clone();
        let mut services: HashMap<String, Entry> = HashMap::new();
        let mut nodes: HashMap<String, Vec<Node>> = HashMap::new();
        let mut datacenters = HashSet::new();
        let mut named: HashMap<String, ServiceName> = HashMap::new();
        for instance in catalog.instances() {
            let key = instance.service.as_str().to_ascii_lowercase();
            datacenters.insert(instance.datacenter.to_ascii_lowercase());
            let entry = services.entry(key.clone()).or_default();
            if !entry.ports.contains(&instance.address.port()) {
                entry.ports.push(instance.address.port());
            }
            if let Some(address) = instance.node_address
                && instance.health != InstanceHealth::Gone
            {
                let node = Node { datacenter: instance.datacenter.to_ascii_lowercase(), address };
                let of_name = nodes.entry(instance.node.to_ascii_lowercase()).or_default();
                if !of_name.contains(&node) {
                    of_name.push(node);
                }
            }
            if instance.health == InstanceHealth::Passing {
                entry.instances.push(instance.clone());
            }
            named.insert(key, instance.service.clone());
        }
        for (_, service) in virtual_ips.iter() {
            let key = service.as_str().to_ascii_lowercase();
            named.entry(key.clone()).or_insert_with(|| service.clone());
            services.entry(key).or_default();
        }
        for (key, entry) in &mut services {
            if let Some(given) = named.get(key).and_then(|name| virtual_ips.of(name)) {
                entry.virtual_ips = given.iter().collect();
            }
            entry.ports.sort_unstable();
        }
        Some(Self { catalog, virtual_ips, services, nodes, datacenters })
    }

    /// Whether this is the index of what `mesh` has now.
    pub fn is_of(&self, mesh: &Mesh) -> bool {
        mesh.catalog.as_ref().is_some_and(|catalog| Arc::ptr_eq(catalog, &self.catalog))
            && Arc::ptr_eq(&mesh.virtual_ips, &self.virtual_ips)
    }

    /// `name` in lower case.
    pub fn service(&self, name: &str) -> Option<&Entry> {
        self.services.get(name)
    }

    /// The service that `name` is, or the one behind the first of its dots that ends a tag; with the tag. Lower case, all.
    pub fn tagged<'n>(&self, name: &'n str) -> Option<(&Entry, Option<&'n str>)> {
        if let Some(entry) = self.service(name) {
            return Some((entry, None));
        }
        name.match_indices('.')
            .find_map(|(dot, _)| Some((self.service(&name[dot + 1..])?, Some(&name[..dot]))))
    }

    /// Those of that name, in lower case: one in each datacenter.
    pub fn nodes(&self, name: &str) -> &[Node] {
        self.nodes.get(name).map_or(&[], |all| all)
    }

    /// `label` in lower case.
    pub fn is_datacenter(&self, label: &str) -> bool {
        self.datacenters.contains(label)
    }

    pub fn service_at(&self, virtual_ip: IpAddr) -> Option<&ServiceName> {
        self.virtual_ips.service_at(virtual_ip)
    }
}
