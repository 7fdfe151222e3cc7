//! Services outside the mesh that this host offers to it: where they are now, whether they answer, and what the control
//! plane and the inbound proxy are told of them.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::{net::lookup_host, sync::watch, task::JoinHandle, time::timeout};

use super::services::{CHECK_RETRY, CHECK_TIMEOUT, ServiceError, bind_mesh_port};
use crate::{
    config::{Config, ExternalAddress, GatewayConfig, unfit_for_gateway},
    control_plane::{Health, Listens, LocalService as Announced},
    identity::ServiceName,
    proxy::{External, InboundService},
    tls::ExternalTls,
};

/// How often a name is resolved again where there is no check.
const RESOLVE_EVERY: Duration = Duration::from_secs(10);
/// A name with more addresses than this is offered at the first of them, in the order of numbers.
const MOST_ADDRESSES: usize = 16;

/// A gateway at run time.
pub struct Running {
    pub config: GatewayConfig,
    pub mesh_port: u16,
    pub health: watch::Receiver<Health>,
    /// What the address means now, in the order of numbers; empty while a name does not resolve.
    pub addresses: watch::Receiver<Vec<SocketAddr>>,
    /// The same, those first that answered last.
    external: External,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Running {
    /// The name that the external service's certificate must be for; `None`: it is spoken to in clear.
    pub fn tls_name(&self) -> Option<String> {
        self.external.tls.as_ref().map(|tls| tls.name())
    }
}

/// The gateways of this host.
pub struct Gateways {
    running: HashMap<ServiceName, Running>,
    /// Those of which the last [`apply`](Self::apply) found other TLS files at the same paths.
    renewed: Vec<ServiceName>,
    moved: watch::Sender<()>,
}

impl Default for Gateways {
    fn default() -> Self {
        Self { running: HashMap::new(), renewed: Vec::new(), moved: watch::Sender::new(()) }
    }
}

impl Gateways {
    /// Starts what `config` adds or changes, and stops what it lacks; on an error nothing is changed. Returns the
    /// listeners that are new: each takes mTLS for its service.
    pub fn apply(&mut self, config: &Config) -> Result<HashMap<ServiceName, TcpListener>, ServiceError> {
        let mut taken: Vec<u16> = config.gateways.iter().filter_map(|g| g.mesh_port).collect();
        taken.extend(config.services.iter().filter_map(|s| s.protected.as_ref()?.mesh_port));
        taken.extend(self.running.values().map(|r| r.mesh_port));
        let (mut listeners, mut fresh, mut renewed) = (HashMap::new(), HashMap::new(), Vec::new());
        for wanted in &config.gateways {
            let name = &wanted.service;
            let tls = external_tls(wanted)?;
            let mut before = None;
            let port = match self.running.get(name) {
                Some(running) if running.config == *wanted && running.external.tls == tls => continue,
                Some(running) if running.config == *wanted => {
                    renewed.push(name.clone());
                    before = Some(running);
                    running.mesh_port
                }
                Some(running) if wanted.mesh_port.is_none_or(|port| port == running.mesh_port) => {
                    running.mesh_port
                }
                _ => {
                    let listener = bind_mesh_port(config, name, wanted.mesh_port, &taken)?;
                    let port = listener.local_addr().map_or(0, |a| a.port());
                    taken.push(port);
                    listeners.insert(name.clone(), listener);
                    port
                }
            };
            fresh.insert(name.clone(), run(wanted.clone(), port, tls, before, self.moved.clone()));
        }
        self.running.retain(|name, _| config.gateway(name).is_some());
        self.running.extend(fresh);
        self.renewed = renewed;
        Ok(listeners)
    }

    /// Those of which the last [`apply`](Self::apply) found other TLS files at the same paths.
    pub fn renewed(&self) -> &[ServiceName] {
        &self.renewed
    }

    pub fn get(&self, name: &ServiceName) -> Option<&Running> {
        self.running.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Running> {
        self.running.values()
    }

    /// Is woken when one of them is found at other addresses than before.
    pub fn moved(&self) -> watch::Receiver<()> {
        self.moved.subscribe()
    }

    /// Returns what the proxy serves; `listeners` are those that are new.
    pub fn inbound(&self, mut listeners: HashMap<ServiceName, TcpListener>) -> Vec<InboundService> {
        let served = self.running.iter().map(|(name, running)| InboundService {
            id: name.to_string(),
            name: name.clone(),
            program: running.external.clone().into(),
            listener: listeners.remove(name),
        });
        served.collect()
    }

    /// Returns what the control plane is told: an instance for each address. `advertised` is the host's announced
    /// address; without one nothing is offered.
    pub fn announced(&self, config: &Config, advertised: Option<&IpAddr>) -> Vec<Announced> {
        let mut all = Vec::new();
        for gateway in &config.gateways {
            let name = &gateway.service;
            let before = all.len();
            if let Some((running, host)) = self.get(name).zip(advertised) {
                let mesh = SocketAddr::new(*host, running.mesh_port);
                let instance = |address: &SocketAddr| Announced {
                    name: name.clone(),
                    id: instance_id(gateway, *address),
                    listens: Some(Listens {
                        port: address.port(),
                        address: *address,
                        also: Vec::new(),
                        mesh,
                        check: running.health.clone(),
                    }),
                };
                all.extend(running.addresses.borrow().iter().map(instance));
            }
            if all.len() == before {
                // Its leaf does not wait for the name to resolve.
                all.push(Announced { name: name.clone(), id: name.to_string(), listens: None });
            }
        }
        all
    }
}

fn instance_id(gateway: &GatewayConfig, address: SocketAddr) -> String {
    match gateway.address {
        ExternalAddress::Literal(_) => gateway.service.to_string(),
        ExternalAddress::Name { .. } => format!("{}-{}", gateway.service, address.ip()),
    }
}

/// Reads the files anew.
fn external_tls(gateway: &GatewayConfig) -> Result<Option<Arc<ExternalTls>>, ServiceError> {
    let Some(files) = &gateway.tls else { return Ok(None) };
    let failed = |source| ServiceError::ExternalTls { service: gateway.service.clone(), source };
    ExternalTls::load(files).map(|tls| Some(Arc::new(tls))).map_err(failed)
}

/// Begins with what is known from `before`, the same gateway with other TLS files.
fn run(
    config: GatewayConfig,
    mesh_port: u16,
    tls: Option<Arc<ExternalTls>>,
    before: Option<&Running>,
    moved: watch::Sender<()>,
) -> Running {
    let known = match (before, &config.address) {
        (Some(before), _) => before.addresses.borrow().clone(),
        (None, ExternalAddress::Literal(address)) => vec![*address],
        (None, ExternalAddress::Name { .. }) => Vec::new(),
    };
    let starting = match (before, config.check_interval) {
        (Some(before), _) => before.health.borrow().clone(),
        (None, None) if !known.is_empty() => Health::Passing,
        (None, _) => Health::Critical("not checked yet".into()),
    };
    let found = match before {
        Some(before) => before.external.found.clone(),
        None => Arc::new(ArcSwap::from_pointee(known.clone())),
    };
    let external = External { address: config.address.to_string().into(), found, tls };
    let (health_sender, health) = watch::channel(starting);
    let (addresses_sender, addresses) = watch::channel(known);
    let follower = Follower {
        config: config.clone(),
        external: external.clone(),
        health: health_sender,
        addresses: addresses_sender,
        moved,
    };
    Running { config, mesh_port, health, addresses, external, task: tokio::spawn(follower.follow()) }
}

/// Keeps what is known of one external service current.
struct Follower {
    config: GatewayConfig,
    external: External,
    health: watch::Sender<Health>,
    addresses: watch::Sender<Vec<SocketAddr>>,
    moved: watch::Sender<()>,
}

impl Follower {
    async fn follow(self) {
        let interval = self.config.check_interval.unwrap_or(RESOLVE_EVERY);
        loop {
            let health = self.look().await;
            let pause = if health == Health::Passing { interval } else { interval.min(CHECK_RETRY) };
            self.health.send_if_modified(|old| {
                let changed = *old != health;
                if changed && let Health::Critical(why) = &health {
                    tracing::warn!(service = %self.config.service, why, "the external service cannot be reached");
                }
                *old = health;
                changed
            });
            tokio::time::sleep(pause).await;
        }
    }

    async fn look(&self) -> Health {
        let resolved = match resolve(&self.config.address).await {
            Ok(addresses) => addresses,
            // What was known may still be right, and the health says that it may not.
            Err(why) => return Health::Critical(why),
        };
        let moved = self.addresses.send_if_modified(|old| {
            let changed = *old != resolved;
            old.clone_from(&resolved);
            changed
        });
        if moved {
            tracing::info!(service = %self.config.service, address = %self.config.address, ?resolved, "the external service's name resolves");
            self.external.found.store(Arc::new(resolved.clone()));
            self.moved.send_replace(());
        }
        if self.config.check_interval.is_none() {
            return Health::Passing;
        }
        self.check(resolved).await
    }

    /// Tries each address; those that accept go first from now on.
    async fn check(&self, addresses: Vec<SocketAddr>) -> Health {
        let (mut answering, mut silent, mut why) = (Vec::new(), Vec::new(), None);
        for address in addresses {
            let failure = match timeout(CHECK_TIMEOUT, self.external.answers(address)).await {
                Ok(Ok(())) => {
                    answering.push(address);
                    continue;
                }
                Ok(Err(failure)) => failure,
                Err(_) => format!("tcp {address}: no answer in {CHECK_TIMEOUT:?}"),
            };
            silent.push(address);
            why.get_or_insert(failure);
        }
        let health = match why {
            Some(why) if answering.is_empty() => Health::Critical(why),
            _ => Health::Passing,
        };
        answering.append(&mut silent);
        if **self.external.found.load() != answering {
            self.external.found.store(Arc::new(answering));
        }
        health
    }
}

/// Returns what `address` means now, in the order of numbers, or why it means nothing.
async fn resolve(address: &ExternalAddress) -> Result<Vec<SocketAddr>, String> {
    let (host, port) = match address {
        ExternalAddress::Literal(address) => return Ok(vec![*address]),
        ExternalAddress::Name { host, port } => (host.as_str(), *port),
    };
    let found = lookup_host((host, port)).await.map_err(|error| format!("cannot resolve {host}: {error}"))?;
    let mut usable = BTreeSet::new();
    let mut refused = None;
    for address in found.map(|a| SocketAddr::new(a.ip().to_canonical(), a.port())) {
        match unfit_for_gateway(address.ip()) {
            None => drop(usable.insert(address)),
            Some(why) => drop(refused.get_or_insert(format!("{host} resolves to {}: {why}", address.ip()))),
        }
    }
    if usable.is_empty() {
        return Err(refused.unwrap_or_else(|| format!("cannot resolve {host}: it has no address")));
    }
    Ok(usable.into_iter().take(MOST_ADDRESSES).collect())
}
