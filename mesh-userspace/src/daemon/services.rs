//! One configured service, three views of it: the kernel's, the control plane's, and the inbound proxy's.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use mesh_common::policy::{SETTINGS_DNS, SETTINGS_DNS_REFUSE};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

use super::{
    place::EXEC_CGROUP,
    whereabouts::{Programs, Whereabouts},
};
use crate::{
    config::{Config, Egress, GuardMode, ProtectedPort, Selector, ServiceConfig, WhenDown, container_name},
    control_plane::{Health, Listens, LocalService as Announced},
    datapath::{classify::WorkloadRule, desired::LocalService},
    identity::ServiceName,
    listening::take_no_data_in_syn,
    proxy::{Dial as _, InboundService, Program, prepare_local},
    tls::FileError,
};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    #[error("service {service}: cannot listen on mesh port {port}: {source}; set another mesh_port")]
    MeshPort { service: ServiceName, port: u16, source: io::Error },
    #[error("service {service}: no port of address.mesh_ports ({range}) is free; widen the range")]
    NoMeshPort { service: ServiceName, range: String },
    #[error("service {service}: TLS with the external service: {source}")]
    ExternalTls { service: ServiceName, source: FileError },
    #[error("{0} services have a port, and {MOST_PROTECTED} is the most that one host protects")]
    TooMany(usize),
}

/// The size of the map `PROTECTED`.
const MOST_PROTECTED: usize = 1024;

/// Returns what the kernel needs of the services.
pub fn kernel_view(config: &Config) -> Vec<LocalService> {
    config
        .services
        .iter()
        .map(|s| LocalService {
            name: s.name.clone(),
            port: s.protected.as_ref().map(|p| p.port),
            announce_port: s.protected.as_ref().and_then(|p| p.announce_port),
            egress: s.egress_allow.clone(),
            mesh_only: s.egress == Egress::MeshOnly,
            address: s.protected.as_ref().map_or(Ipv4Addr::LOCALHOST.into(), |p| p.address),
            permissive: s.protected.as_ref().is_some_and(|p| p.guard == GuardMode::Permissive),
            known_as: known_as(s, &config.services).clone(),
        })
        .collect()
}

/// Returns the service that programs of `service` are known as, as [`rules`] have it: the first that selects the same.
fn known_as<'c>(service: &'c ServiceConfig, all: &'c [ServiceConfig]) -> &'c ServiceName {
    let selects = service.selector != Selector::default();
    let first = all.iter().find(|other| selects && other.selector == service.selector);
    &first.unwrap_or(service).name
}

/// Returns what the kernel needs to know about names.
pub fn resolving(config: &Config) -> u32 {
    let dns = &config.dns;
    (if dns.enabled { SETTINGS_DNS } else { 0 })
        | (if dns.when_down == WhenDown::Refuse { SETTINGS_DNS_REFUSE } else { 0 })
}

/// Returns the rules that say who a cgroup's processes are; `own` is the daemon's cgroup.
pub fn rules(config: &Config, own: &str) -> Vec<WorkloadRule> {
    let own = own.to_owned();
    let mut rules =
        vec![WorkloadRule { service: None, mesh_only: false, matches: Arc::new(move |path| path == own) }];
    for exemption in &config.exempt {
        let selector = exemption.selector.clone();
        rules.push(WorkloadRule {
            service: None,
            mesh_only: false,
            matches: Arc::new(move |path| selector.matches_named(path, runtime_name)),
        });
    }
    for service in &config.services {
        let selector = service.selector.clone();
        let exec = exec_cgroup(&service.name);
        rules.push(WorkloadRule {
            service: Some(service.name.clone()),
            mesh_only: service.egress == Egress::MeshOnly,
            matches: Arc::new(move |path| path == exec || selector.matches_named(path, runtime_name)),
        });
    }
    rules
}

fn runtime_name(id: &str) -> Option<String> {
    container_name(std::path::Path::new("/"), id)
}

/// The cgroup, below the governed root, in which `meshnode exec` starts programs of `service`.
pub fn exec_cgroup(service: &ServiceName) -> String {
    format!("{EXEC_CGROUP}/{service}")
}

/// A protected service at run time.
pub struct Running {
    pub name: ServiceName,
    pub mesh_port: u16,
    /// The way to the program.
    programs: Arc<Programs>,
    pub health: watch::Receiver<Health>,
    settings: ProtectedPort,
    check: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.check.abort();
    }
}

/// The protected services of this host, in the order of the configuration.
#[derive(Default)]
pub struct Services {
    running: HashMap<ServiceName, Running>,
    whereabouts: Whereabouts,
}

impl Services {
    pub fn new(whereabouts: Whereabouts) -> Self {
        Self { running: HashMap::new(), whereabouts }
    }

    /// Starts what `config` adds or changes, and stops what it lacks; on an error nothing is changed. Returns the
    /// listeners that are new: each takes mTLS for its service.
    pub fn apply(&mut self, config: &Config) -> Result<HashMap<ServiceName, TcpListener>, ServiceError> {
        let protected = config.services.iter().filter(|s| s.protected.is_some()).count();
        if protected > MOST_PROTECTED {
            return Err(ServiceError::TooMany(protected));
        }
        let mut taken: Vec<u16> =
            config.services.iter().filter_map(|s| s.protected.as_ref()?.mesh_port).collect();
        taken.extend(config.gateways.iter().filter_map(|gateway| gateway.mesh_port));
        let keeps = |running: &Running, wanted: &ProtectedPort| {
            running.settings == *wanted || wanted.mesh_port.is_none_or(|port| port == running.mesh_port)
        };
        taken.extend(self.running.values().map(|r| r.mesh_port));
        let mut listeners = HashMap::new();
        let mut fresh = HashMap::new();
        for service in &config.services {
            let Some(wanted) = &service.protected else { continue };
            let port = match self.running.get(&service.name) {
                Some(running) if running.settings == *wanted => continue,
                Some(running) if keeps(running, wanted) => running.mesh_port,
                _ => {
                    let listener = bind_mesh_port(config, &service.name, wanted.mesh_port, &taken)?;
                    let port = listener.local_addr().map_or(0, |a| a.port());
                    taken.push(port);
                    listeners.insert(service.name.clone(), listener);
                    port
                }
            };
            fresh.insert(
                service.name.clone(),
                run(service.name.clone(), wanted.clone(), port, &self.whereabouts),
            );
        }
        self.running.retain(|name, _| config.service(name).is_some_and(|s| s.protected.is_some()));
        self.running.extend(fresh);
        Ok(listeners)
    }

    pub fn get(&self, name: &ServiceName) -> Option<&Running> {
        self.running.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Running> {
        self.running.values()
    }

    /// Returns what the proxy serves; `listeners` are those that are new.
    pub fn inbound(&self, mut listeners: HashMap<ServiceName, TcpListener>) -> Vec<InboundService> {
        self.running
            .values()
            .map(|running| InboundService {
                id: running.name.to_string(),
                name: running.name.clone(),
                program: Program::Wherever(running.programs.clone()),
                listener: listeners.remove(&running.name),
            })
            .collect()
    }

    /// Returns what the control plane is told of this host's services; `advertised` are the host's announced
    /// addresses, the first one is the main one.
    pub fn announced(&self, config: &Config, advertised: &[IpAddr]) -> Vec<Announced> {
        config
            .services
            .iter()
            .map(|service| Announced {
                name: service.name.clone(),
                id: service.name.to_string(),
                listens: self.get(&service.name).zip(advertised.first()).map(|(running, main)| Listens {
                    port: running.settings.announced(),
                    address: SocketAddr::new(*main, running.settings.announced()),
                    also: advertised[1..]
                        .iter()
                        .map(|ip| SocketAddr::new(*ip, running.settings.announced()))
                        .collect(),
                    mesh: SocketAddr::new(*main, running.mesh_port),
                    check: running.health.clone(),
                }),
            })
            .collect()
    }
}

fn run(name: ServiceName, settings: ProtectedPort, mesh_port: u16, whereabouts: &Whereabouts) -> Running {
    let program = SocketAddr::new(settings.address, settings.port);
    let only_elsewhere = settings.announce_port.is_some();
    let programs = Arc::new(Programs::new(name.clone(), program, only_elsewhere, whereabouts.clone()));
    let starting = match settings.check_interval {
        Some(_) => Health::Critical("not checked yet".into()),
        None => Health::Passing,
    };
    let (sender, health) = watch::channel(starting);
    let check = tokio::spawn(check(programs.clone(), settings.check_interval, sender));
    Running { name, mesh_port, programs, health, settings, check }
}

pub const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// While a program is not there, it is tried this often, so that a start is seen soon.
pub const CHECK_RETRY: Duration = Duration::from_secs(1);

/// Dials the program again and again; says `Passing` while it accepts.
async fn check(programs: Arc<Programs>, interval: Option<Duration>, health: watch::Sender<Health>) {
    let Some(interval) = interval else { return };
    let program = programs.address();
    loop {
        let moved = programs.moved();
        tokio::pin!(moved);
        moved.as_mut().enable();
        let found = match timeout(CHECK_TIMEOUT, programs.dial()).await {
            Ok(Ok(_)) => Health::Passing,
            Ok(Err(e)) => Health::Critical(format!("tcp {program}: {e}")),
            Err(_) => Health::Critical(format!("tcp {program}: no answer in {CHECK_TIMEOUT:?}")),
        };
        let pause = if found == Health::Passing { interval } else { interval.min(CHECK_RETRY) };
        health.send_if_modified(|old| {
            let changed = *old != found;
            *old = found;
            changed
        });
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = moved => {}
        }
    }
}

/// Returns the listener of a service's mesh port: at `wanted`, or at one of the configured range that is not `taken`.
pub fn bind_mesh_port(
    config: &Config,
    service: &ServiceName,
    wanted: Option<u16>,
    taken: &[u16],
) -> Result<TcpListener, ServiceError> {
    if let Some(port) = wanted {
        return listen_everywhere(port).map_err(|source| ServiceError::MeshPort {
            service: service.clone(),
            port,
            source,
        });
    }
    let range = &config.address.mesh_ports;
    range
        .ports()
        .filter(|port| !taken.contains(port))
        .find_map(|port| listen_everywhere(port).ok())
        .ok_or_else(|| ServiceError::NoMeshPort { service: service.clone(), range: range.to_string() })
}

const BACKLOG: i32 = 4096;

/// Listens on every address of the host, IPv6 and IPv4 by one socket where the host has IPv6.
pub fn listen_everywhere(port: u16) -> io::Result<TcpListener> {
    let v6 = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
    match listen(v6) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) => {
            listen(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port))
        }
        other => other,
    }
}

/// Binds a non-blocking listener with a long queue.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    prepare_local(&SockRef::from(&socket))?;
    socket.listen(BACKLOG)?;
    take_no_data_in_syn(&socket)?;
    Ok(socket.into())
}
