//! The service catalog as the data plane needs it: where the instances are, and how to reach them in the mesh.

mod load;
mod range;
mod virtual_ips;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use load::{Entered, Load};
pub use range::IpRange;
pub use virtual_ips::{Stored as StoredVirtualIps, VirtualIp, VirtualIps, VirtualRanges};

use crate::identity::ServiceName;

/// What the catalog says of an instance's checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InstanceHealth {
    /// None is critical.
    #[default]
    Passing,
    /// It left the catalog a while ago: nobody says that it is ill, and nobody that it is there.
    Gone,
    Critical,
}

/// One instance of a service that takes mTLS, passing or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub service: ServiceName,
    /// The service's id on its node, as registered.
    pub id: String,
    pub node: String,
    pub datacenter: String,
    pub namespace: String,
    /// Where programs dial it: the service's own address and port.
    pub address: SocketAddr,
    /// Where it takes mTLS: its connect proxy's address and port.
    pub mesh: SocketAddr,
    #[serde(default)]
    pub health: InstanceHealth,
    /// Its share of a virtual IP's connections, compared with the service's other instances; at least 1.
    #[serde(default = "one")]
    pub weight: u32,
    /// It is registered by a meshnode: a connection to it can carry one flow after another.
    #[serde(default)]
    pub meshnode: bool,
    #[serde(default)]
    pub tags: Vec<String>,
    /// Of the node that it is on; `None`: the catalog says a name, or nothing.
    #[serde(default)]
    pub node_address: Option<IpAddr>,
}

fn one() -> u32 {
    1
}

#[cfg(test)]
impl Instance {
    /// A healthy one of a meshnode.
    pub(crate) fn testing(service: &str, node: &str, address: &str) -> Self {
        Self {
            service: service.parse().unwrap(),
            id: service.to_owned(),
            node: node.to_owned(),
            datacenter: "dc1".to_owned(),
            namespace: "default".to_owned(),
            address: address.parse().unwrap(),
            mesh: "10.0.0.2:21000".parse().unwrap(),
            health: InstanceHealth::Passing,
            weight: 1,
            meshnode: true,
            tags: Vec::new(),
            node_address: None,
        }
    }
}

/// An instance and what this host's proxy found with it.
#[derive(Clone, Debug)]
pub struct Placed {
    pub instance: Arc<Instance>,
    pub load: Arc<Load>,
    /// It is this host's own.
    pub own: bool,
}

/// Every known instance, by the address that programs dial and by service.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    by_address: HashMap<SocketAddr, Placed>,
    /// Each instance once, however many addresses it has.
    by_service: HashMap<ServiceName, Arc<[Placed]>>,
    /// This host's own, by service and port: programs dial them by any address of the host, loopback included.
    own: HashMap<(ServiceName, u16), Placed>,
}

impl Catalog {
    /// Where two instances claim one address, the first in the order of (service, node, id) keeps it, so that all
    /// hosts agree. `own_node` is this host's name in the catalog.
    pub fn new(instances: impl IntoIterator<Item = Instance>, own_node: &str) -> Self {
        Self::after(&Self::default(), instances, own_node)
    }

    /// As [`new`](Self::new), with what was found with instances that `before` had too.
    pub fn after(before: &Self, instances: impl IntoIterator<Item = Instance>, own_node: &str) -> Self {
        let mut all: Vec<_> = instances.into_iter().collect();
        all.sort_by(|a, b| (&a.service, &a.node, &a.id).cmp(&(&b.service, &b.node, &b.id)));
        let mut new = Self { by_address: HashMap::with_capacity(all.len()), ..Self::default() };
        let mut of_service: Vec<Placed> = Vec::new();
        for instance in all {
            let own = instance.node == own_node;
            let known = |placed: &&Placed| is_same(&placed.instance, &instance);
            let load =
                of_service.last().filter(known).or(before.by_address.get(&instance.address).filter(known));
            let load = load.map_or_else(Arc::default, |placed| Arc::clone(&placed.load));
            let placed = Placed { instance: Arc::new(instance), load, own };
            let Placed { instance, .. } = &placed;
            if own {
                let key = (instance.service.clone(), instance.address.port());
                new.own.entry(key).or_insert_with(|| placed.clone());
            }
            new.by_address.entry(instance.address).or_insert_with(|| placed.clone());
            match of_service.last() {
                Some(last) if is_same(&last.instance, instance) => {}
                Some(last) if last.instance.service != instance.service => {
                    new.close(std::mem::take(&mut of_service));
                    of_service.push(placed);
                }
                _ => of_service.push(placed),
            }
        }
        new.close(of_service);
        new
    }

    fn close(&mut self, of_service: Vec<Placed>) {
        if let Some(first) = of_service.first() {
            self.by_service.insert(first.instance.service.clone(), of_service.into());
        }
    }

    /// Returns this host's own instance of `service` whose program listens on `port`.
    pub fn own_instance(&self, service: &ServiceName, port: u16) -> Option<&Arc<Instance>> {
        self.own_placed(service, port).map(|placed| &placed.instance)
    }

    /// As [`own_instance`](Self::own_instance), with its load.
    pub fn own_placed(&self, service: &ServiceName, port: u16) -> Option<&Placed> {
        self.own.get(&(service.clone(), port))
    }

    /// Returns this host's own instance of `service`, at whatever port: a container's own address is in no catalog.
    pub fn own_placed_of(&self, service: &ServiceName) -> Option<&Placed> {
        self.own.iter().find(|((name, _), _)| name == service).map(|(_, placed)| placed)
    }

    /// Returns the instance that a program dialling `address` means.
    pub fn instance_at(&self, address: SocketAddr) -> Option<&Arc<Instance>> {
        self.placed_at(address).map(|placed| &placed.instance)
    }

    /// As [`instance_at`](Self::instance_at), with its load.
    pub fn placed_at(&self, address: SocketAddr) -> Option<&Placed> {
        self.by_address.get(&address)
    }

    /// Returns the instances of `service`, each once, whatever their health; in an order that all hosts share.
    pub fn instances_of(&self, service: &ServiceName) -> &[Placed] {
        self.by_service.get(service).map_or(&[], |all| all)
    }

    /// As [`instances_of`](Self::instances_of), to be kept.
    pub fn share_of(&self, service: &ServiceName) -> Option<Arc<[Placed]>> {
        self.by_service.get(service).cloned()
    }

    /// Returns every instance, once for each of its addresses.
    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.by_address.values().map(|placed| &placed.instance)
    }
}

fn is_same(a: &Instance, b: &Instance) -> bool {
    (&a.service, &a.node, &a.id, a.mesh) == (&b.service, &b.node, &b.id, b.mesh)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_with_two_addresses_is_one_of_its_service() {
        let all = [
            Instance::testing("db", "a", "10.0.0.2:5432"),
            Instance::testing("db", "b", "10.0.0.3:5432"),
            Instance::testing("db", "a", "[fd00::2]:5432"),
            Instance::testing("web", "a", "10.0.0.2:80"),
        ];
        let catalog = Catalog::new(all, "a");
        let db = catalog.instances_of(&"db".parse().unwrap());
        assert_eq!(
            db.iter().map(|p| (p.instance.node.as_str(), p.own)).collect::<Vec<_>>(),
            [("a", true), ("b", false)]
        );
        assert_eq!(catalog.instances_of(&"web".parse().unwrap()).len(), 1);
        assert!(catalog.instances_of(&"mail".parse().unwrap()).is_empty());
        assert_eq!(catalog.instances().count(), 4);
        let at = |text: &str| catalog.placed_at(text.parse().unwrap()).unwrap();
        assert!(Arc::ptr_eq(&at("10.0.0.2:5432").load, &at("[fd00::2]:5432").load));
        assert!(!Arc::ptr_eq(&at("10.0.0.2:5432").load, &at("10.0.0.3:5432").load));
    }

    #[test]
    fn what_was_found_with_an_instance_outlives_a_change_of_the_catalog() {
        let before = Catalog::new([Instance::testing("db", "a", "10.0.0.2:5432")], "");
        before.placed_at("10.0.0.2:5432".parse().unwrap()).unwrap().load.failed(0);
        let ill =
            Instance { health: InstanceHealth::Critical, ..Instance::testing("db", "a", "10.0.0.2:5432") };
        let after = Catalog::after(&before, [ill, Instance::testing("db", "b", "10.0.0.3:5432")], "");
        let shunned = after.instances_of(&"db".parse().unwrap()).iter().map(|p| p.load.is_shunned(1));
        assert_eq!(shunned.collect::<Vec<_>>(), [true, false]);
    }
}
