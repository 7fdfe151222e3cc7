//! The configuration file: what it may say, typed. Whoever holds a [`Config`] holds one that was checked as a whole.
//!
//! Reading is in `schema`, rules between keys in `rules`; every mistake has its line and column ([`Issue`]).

mod advertise;
mod container;
mod document;
mod egress;
mod error;
mod gateway;
mod reload;
mod rules;
mod schema;
mod selector;
mod value;

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

pub use crate::datapath::load::Limits;
pub use advertise::discover as discover_advertise;
pub use container::container_name;
use document::Files;
pub use egress::{EgressRule, EgressTarget, NamePattern, merged as merged_ports};
pub use error::{ConfigError, Issue};
pub use gateway::{ExternalAddress, GatewayConfig, unfit as unfit_for_gateway};
pub use selector::{CgroupGlob, ContainerRef, Selector, SelectorError, UnitName};
pub use value::{PortRange, format_duration, parse_duration};

use crate::{
    catalog::VirtualRanges,
    control_plane::{ApiAccess, embedded::CaFiles},
    dns::Domain,
    identity::{ServiceName, TrustDomain},
    intention::Action,
};

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "/etc/meshnode/meshnode.toml";

/// The whole configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub node: String,
    /// `None`: `dc1`, or that of the Consul agent.
    pub datacenter: Option<String>,
    /// Disk cache, embedded store, keys.
    pub state_dir: PathBuf,
    /// `admin.sock` and `api.sock`.
    pub run_dir: PathBuf,
    /// The governed subtree, relative to the cgroup v2 mount; absolute, `/` for all of it.
    pub cgroup_root: PathBuf,
    /// Where programs and maps are pinned.
    pub bpf_dir: PathBuf,
    /// How long SIGTERM waits for flows to end.
    pub drain_deadline: Duration,
    /// A filter as `tracing_subscriber::EnvFilter` reads it.
    pub log: String,
    pub log_format: LogFormat,
    pub same_host: SameHost,
    pub address: AddressConfig,
    pub listen: ListenConfig,
    pub dns: DnsConfig,
    pub limits: Limits,
    pub proxy: ProxyConfig,
    pub control_plane: ControlPlane,
    /// The whole catalog is watched while it has no more services than this; 0: never.
    pub catalog_limit: usize,
    /// No two have one name, announced port or mesh port.
    pub services: Vec<ServiceConfig>,
    /// Named as no service is.
    pub gateways: Vec<GatewayConfig>,
    pub exempt: Vec<Exemption>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// What happens to an allowed flow between two workloads of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameHost {
    /// The kernel connects them.
    Direct,
    /// Through the proxy, as between hosts.
    Mtls,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressConfig {
    /// The first is the main one; empty: [`discover_advertise`].
    pub advertise: Vec<IpAddr>,
    pub mesh_ports: PortRange,
    pub virtual_ranges: VirtualRanges,
}

/// Fast paths of the proxy, each of which can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Connections between meshnodes carry one flow after another; off: each is one flow's, as with any other peer.
    pub pool: bool,
}

/// Ports of the outbound and guard listeners on loopback; 0 is any free one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenConfig {
    pub outbound_port: u16,
    pub guard_port: u16,
}

/// What becomes of workloads' queries for names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsConfig {
    pub enabled: bool,
    /// Names in these are the mesh's alone.
    pub domains: Vec<Domain>,
    /// In these, what the catalog does not know is asked of the server that the program asked.
    pub consul_domains: Vec<Domain>,
    pub when_down: WhenDown,
}

/// What becomes of queries that the daemon cannot take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenDown {
    /// They go to the server that they are for.
    Pass,
    Refuse,
}

/// Where catalog, intentions and certificates come from.
#[derive(Clone, Debug, PartialEq)]
pub enum ControlPlane {
    /// This daemon serves it.
    Embedded(Embedded),
    /// Another host's embedded server. The address is confidential, and for https beyond loopback there is a CA.
    Remote(ApiAccess),
    /// A Consul agent; the same holds.
    Consul(ApiAccess),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Embedded {
    /// Loopback; besides `run_dir/api.sock`.
    pub listen: SocketAddr,
    pub default_policy: Action,
    /// 1 minute to 72 hours.
    pub leaf_ttl: Duration,
    /// Consul's ACLs, with default deny.
    pub acl: bool,
    /// `None`: generated once.
    pub trust_domain: Option<TrustDomain>,
    pub expose: Option<Expose>,
    /// `None`: a CA that the embedded server makes itself.
    pub ca: Option<CaFiles>,
}

/// How the embedded server serves other hosts, always with TLS.
#[derive(Clone, Debug, PartialEq)]
pub struct Expose {
    pub listen: SocketAddr,
    /// `None`: a certificate that the embedded server makes itself.
    pub certificate: Option<CertificateFiles>,
    /// Present unless `listen` is loopback, or ACLs are on.
    pub token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

/// A service of this host: who it is, and what is protected if it listens.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceConfig {
    pub name: ServiceName,
    /// May be empty: then only `meshnode exec` starts programs as it.
    pub selector: Selector,
    pub protected: Option<ProtectedPort>,
    pub egress: Egress,
    /// What a `mesh-only` one may reach outside the mesh all the same; else empty.
    pub egress_allow: Vec<EgressRule>,
}

/// The port that a service's program listens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProtectedPort {
    pub port: u16,
    /// The port of the host's addresses that the service is announced at, where its programs are in network namespaces of
    /// their own and nowhere else; `None`: `port`.
    pub announce_port: Option<u16>,
    /// Where the daemon dials the program, in the network namespace that it is in.
    pub address: IpAddr,
    pub guard: GuardMode,
    /// `None`: the next free one of `address.mesh_ports`.
    pub mesh_port: Option<u16>,
    /// How often the daemon tries a TCP connect; `None` when the check is off.
    pub check_interval: Option<Duration>,
}

impl ProtectedPort {
    /// The port of the host's addresses that the service is announced at.
    pub fn announced(&self) -> u16 {
        self.announce_port.unwrap_or(self.port)
    }
}

/// What the guard does with connections that bypass the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuardMode {
    Strict,
    Permissive,
}

impl GuardMode {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Permissive => "permissive",
        }
    }
}

/// What a workload may reach besides the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Egress {
    Passthrough,
    MeshOnly,
}

impl Egress {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::MeshOnly => "mesh-only",
        }
    }
}

/// Cgroups outside the mesh rules.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemption {
    pub selector: Selector,
    pub reason: String,
}

/// A configuration file above this size is refused.
const LARGEST_FILE: u64 = 1 << 20;

impl Config {
    /// Returns the configuration at `path`, or at [`DEFAULT_PATH`], where a missing file means the defaults.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_file(path, Files::Named)
    }

    /// The same for whoever acts on it: certificates and keys that it names are read, and must be good.
    pub fn load_with_files(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::load_file(path, Files::Opened)
    }

    fn load_file(path: Option<&Path>, files: Files) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        match read(file) {
            Ok(bytes) => Self::parse_bytes(&bytes, file, files),
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => Ok(Self::default()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(ConfigError::Missing(file.to_owned()))
            }
            Err(source) => Err(ConfigError::Read { path: file.to_owned(), source }),
        }
    }

    /// Returns the configuration in `text`; `file` is what messages call it.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        schema::read(text, file, Files::Named).0
    }

    fn parse_bytes(bytes: &[u8], file: &Path, files: Files) -> Result<Self, ConfigError> {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) => return schema::read(text, file, files).0,
            Err(error) => error,
        };
        let valid = String::from_utf8_lossy(&bytes[..error.valid_up_to()]);
        let (line, column) = error::position(&valid, valid.len());
        let message = format!("found the byte {:#04x}; accepted: UTF-8", bytes[error.valid_up_to()]);
        let (file, key) = (file.to_owned(), String::new());
        Err(ConfigError::Invalid(vec![Issue { file, line, column, key, message }]))
    }

    /// Returns every key that a configuration may have, as in `service.check.interval`.
    pub fn keys() -> BTreeSet<String> {
        let text = "[[service]]\n[[service.egress_allow]]\n[[gateway]]\n[[exempt]]\n";
        schema::read(text, Path::new(""), Files::Named).1
    }

    /// Whether this configuration may replace `self` in a running daemon; if not, the changed keys that need a restart.
    pub fn diff_reloadable(&self, new: &Self) -> Result<(), Vec<String>> {
        reload::check(self, new)
    }

    /// Returns the addresses that other hosts use for this one, configured or discovered; the first is the main one.
    pub fn advertised(&self) -> Vec<IpAddr> {
        if self.address.advertise.is_empty() { discover_advertise() } else { self.address.advertise.clone() }
    }

    /// Returns the datacenter as configured, or the default.
    pub fn datacenter(&self) -> &str {
        self.datacenter.as_deref().unwrap_or("dc1")
    }

    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join("admin.sock")
    }

    /// Returns the path of the embedded server's unix socket.
    pub fn api_socket(&self) -> PathBuf {
        self.run_dir.join("api.sock")
    }

    pub fn gateway(&self, name: &ServiceName) -> Option<&GatewayConfig> {
        self.gateways.iter().find(|gateway| gateway.service == *name)
    }

    pub fn service(&self, name: &ServiceName) -> Option<&ServiceConfig> {
        self.services.iter().find(|service| service.name == *name)
    }
}

impl Default for Config {
    /// What an empty file says.
    fn default() -> Self {
        schema::read("", Path::new(""), Files::Named).0.expect("invariant: an empty configuration is valid")
    }
}

impl Default for Embedded {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8500)),
            default_policy: Action::Deny,
            leaf_ttl: schema::LONGEST_LEAF,
            acl: false,
            trust_domain: None,
            expose: None,
            ca: None,
        }
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let size = fs::metadata(path)?.len();
    if size > LARGEST_FILE {
        let what = format!("it has {size} bytes; a configuration has at most {LARGEST_FILE}");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    fs::read(path)
}

#[cfg(test)]
mod tests;
