//! The network namespaces, other than the host's, in which services of this host listen.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
};

use crate::identity::ServiceName;

/// Where the processes of services are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elsewhere {
    /// Those who have processes in the host's own namespace.
    pub at_home: BTreeSet<ServiceName>,
    /// The others' namespaces, by cookie.
    pub namespaces: BTreeMap<u64, Inhabited>,
}

/// A namespace and who listens there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inhabited {
    pub services: BTreeSet<ServiceName>,
    /// Its own addresses, loopback not included.
    pub addresses: HashSet<IpAddr>,
}

impl Elsewhere {
    /// Whether a service has processes, and none of them in the host's own namespace.
    pub fn is_away(&self, service: &ServiceName) -> bool {
        !self.at_home.contains(service) && self.namespaces.values().any(|n| n.services.contains(service))
    }
}
