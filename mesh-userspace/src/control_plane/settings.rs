//! What the client side of the control plane is told: where the API is, who asks, and what this host runs.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{address::ApiAddress, token::TokenSource};
use crate::{catalog::VirtualRanges, identity::ServiceName};

/// What answers at the address, which decides how leafs are got and on whose behalf agent calls are made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// This daemon's own embedded server.
    Embedded,
    /// Another host's embedded server.
    Remote,
    /// A Consul agent.
    Consul,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::Remote => "remote",
            Self::Consul => "consul",
        })
    }
}

/// All that the client side of the control plane needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    pub kind: Kind,
    pub access: ApiAccess,
    /// The node that this host's services are registered on (kinds embedded and remote; a Consul agent knows its own).
    pub node: String,
    pub node_address: IpAddr,
    pub datacenter: String,
    /// The configuration names the datacenter: an agent of another one is refused.
    pub datacenter_given: bool,
    /// The size up to which the whole catalog is watched, not only what local workloads may call.
    pub catalog_limit: usize,
    /// The disk cache lives in `control-plane/` below it.
    pub state_dir: PathBuf,
    /// How long an instance that left the catalog is still served: [`super::LINGER`].
    pub linger: Duration,
    /// What virtual IPs are taken from.
    pub virtual_ranges: VirtualRanges,
    /// Peers are told that the mTLS ends of this host speak the protocol between meshnodes.
    pub speaks_meshnode: bool,
}

/// Where the API is, and what it takes to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiAccess {
    pub address: ApiAddress,
    /// The CA that an `https://` address is verified against; `None` takes the system's bundle.
    pub ca_file: Option<PathBuf>,
    pub client_cert: Option<ClientCert>,
    pub token: Option<TokenSource>,
    pub tenancy: Tenancy,
}

/// Where in a Consul Enterprise everything asked for is; `None` is `default`, and not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenancy {
    pub namespace: Option<String>,
    pub partition: Option<String>,
}

const DEFAULT: &str = "default";

impl Tenancy {
    /// Whether what is said of `namespace` (empty where the server has none) is said of ours.
    pub fn is_namespace(&self, namespace: &str) -> bool {
        is_ours(self.namespace.as_deref(), namespace)
    }

    /// Whether what is said of `partition` (empty where the server has none) is said of ours.
    pub fn is_partition(&self, partition: &str) -> bool {
        is_ours(self.partition.as_deref(), partition)
    }

    pub fn is_default(&self) -> bool {
        self.is_namespace(DEFAULT) && self.is_partition(DEFAULT)
    }
}

fn is_ours(ours: Option<&str>, found: &str) -> bool {
    let found = if found.is_empty() { DEFAULT } else { found };
    ours.unwrap_or(DEFAULT) == found
}

impl ApiAccess {
    /// Returns the access to `address` with nothing to show.
    pub fn anonymous(address: ApiAddress) -> Self {
        Self { address, ca_file: None, client_cert: None, token: None, tenancy: Tenancy::default() }
    }
}

/// A client certificate for an `https://` address that demands one; PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCert {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// A service that this host runs.
#[derive(Clone, Debug)]
pub struct LocalService {
    pub name: ServiceName,
    /// Unique on the node; the proxy is registered as `ID-sidecar-proxy`.
    pub id: String,
    /// `None` for a service that only connects: it gets a leaf, and is not registered.
    pub listens: Option<Listens>,
}

/// How others reach a [`LocalService`].
#[derive(Clone, Debug)]
pub struct Listens {
    /// The port that the program listens on.
    pub port: u16,
    /// Where programs of other hosts dial it, as announced.
    pub address: SocketAddr,
    /// Other addresses at which it may be dialled: one of each family is announced, as `lan_ipv4` and `lan_ipv6`.
    pub also: Vec<SocketAddr>,
    /// Where it takes mTLS, as announced.
    pub mesh: SocketAddr,
    pub check: watch::Receiver<Health>,
}

/// What the daemon's own check of a local service found last.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Health {
    Passing,
    /// With the reason, shown as the check's output.
    Critical(String),
}
