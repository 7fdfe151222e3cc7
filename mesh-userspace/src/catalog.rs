//! The service catalog as the data plane needs it: where the instances are, and how to reach them in the mesh.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::identity::ServiceName;

/// One passing instance of a service that takes mTLS.
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
}

/// Every known instance, by the address that programs dial.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    by_address: HashMap<SocketAddr, Arc<Instance>>,
}

impl Catalog {
    /// Where two instances claim one address, the first in the order of (service, node, id) keeps it, so that all
    /// hosts agree.
    pub fn new(instances: impl IntoIterator<Item = Instance>) -> Self {
        let mut all: Vec<_> = instances.into_iter().collect();
        all.sort_by(|a, b| (&a.service, &a.node, &a.id).cmp(&(&b.service, &b.node, &b.id)));
        let mut by_address = HashMap::with_capacity(all.len());
        for instance in all {
            by_address.entry(instance.address).or_insert_with(|| Arc::new(instance));
        }
        Self { by_address }
    }

    /// Returns the instance that a program dialling `address` means.
    pub fn instance_at(&self, address: SocketAddr) -> Option<&Arc<Instance>> {
        self.by_address.get(&address)
    }

    pub fn instances(&self) -> impl Iterator<Item = &Arc<Instance>> {
        self.by_address.values()
    }
}
