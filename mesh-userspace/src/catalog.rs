//! The service catalog as the data plane needs it: where the instances are, and how to reach them in the mesh.

mod range;
mod virtual_ips;

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

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
}

fn one() -> u32 {
    1
}

/// Every known instance, by the address that programs dial.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    by_address: HashMap<SocketAddr, Arc<Instance>>,
    /// This host's own, by service and port: programs dial them by any address of the host, loopback included.
    own: HashMap<(ServiceName, u16), Arc<Instance>>,
}

impl Catalog {
    /// Where two instances claim one address, the first in the order of (service, node, id) keeps it, so that all
    /// hosts agree. `own_node` is this host's name in the catalog.
    pub fn new(instances: impl IntoIterator<Item = Instance>, own_node: &str) -> Self {
        let mut all: Vec<_> = instances.into_iter().collect();
        all.sort_by(|a, b| (&a.service, &a.node, &a.id).cmp(&(&b.service, &b.node, &b.id)));
        let mut new = Self { by_address: HashMap::with_capacity(all.len()), own: HashMap::new() };
        for instance in all.into_iter().map(Arc::new) {
            if instance.node == own_node {
                let key = (instance.service.clone(), instance.address.port());
                new.own.entry(key).or_insert_with(|| instance.clone());
            }
            new.by_address.entry(instance.address).or_insert(instance);
        }
        new
    }

    /// Returns this host's own instance of `service` whose program listens on `port`.
    pub fn own_instance(&self, service: &ServiceName, port: u16) -> Option<&Arc<Instance>> {
        self.own.get(&(service.clone(), port))
    }

    /// Returns the instance that a program dialling `address` means.
    pub fn instance_at(&self, address: SocketAddr) -> Option<&Arc<Instance>> {
        self.by_address.get(&address)
    }

    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.by_address.values()
    }
}
