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

/// Made of one catalog and its virtual IPs.
#[derive(Debug)]
pub struct Index {
    catalog: Arc<Catalog>,
    virtual_ips: Arc<VirtualIps>,
    services: HashMap<String, Entry>,
    datacenters: HashSet<String>,
}

impl Index {
    /// `None`: nothing is known yet.
    pub fn of(mesh: &Mesh) -> Option<Self> {
        let catalog = mesh.catalog.clone()?;
        let virtual_ips = mesh.virtual_ips.clone();
        let mut services: HashMap<String, Entry> = HashMap::new();
        let mut datacenters = HashSet::new();
        let mut named: HashMap<String, ServiceName> = HashMap::new();
        for instance in catalog.instances() {
            let key = instance.service.as_str().to_ascii_lowercase();
            datacenters.insert(instance.datacenter.to_ascii_lowercase());
            let entry = services.entry(key.clone()).or_default();
            if !entry.ports.contains(&instance.address.port()) {
                entry.ports.push(instance.address.port());
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
        Some(Self { catalog, virtual_ips, services, datacenters })
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

    /// `label` in lower case.
    pub fn is_datacenter(&self, label: &str) -> bool {
        self.datacenters.contains(label)
    }

    pub fn service_at(&self, virtual_ip: IpAddr) -> Option<&ServiceName> {
        self.virtual_ips.service_at(virtual_ip)
    }
}
