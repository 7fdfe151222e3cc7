//! The proxy: carries captured flows between programs and the mesh.
//!
//! ```text
//! outbound:  program → listener → captured flow → decision → upstream (balance → pool, or dial and tls) → copy → pool
//! inbound:   mesh port → tls → (decision → dial the program, or the external service → copy), again and again
//! guard:     a protected port, dialled around the mesh → reset
//! ```
//!
//! Each connection is one task and one [`Flow`]; policy is read from [`MeshState`] without a lock. Whatever goes wrong
//! reaches the program as a reset, and its [`Reason`] the flow's record, a counter and the audit log. `docs/wire.md`
//! says what a program and what the wire see.

mod accept;
mod audit;
mod balance;
mod buffer;
mod copy;
mod decision;
mod endpoint;
mod flow;
mod guard;
mod inbound;
mod link;
mod outbound;
mod pace;
mod pool;
mod reason;
mod socket;
mod table;
#[cfg(test)]
mod tests;
mod upstream;
mod workers;

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering, fence},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use pool::Pool;
use rustls::ProtocolVersion;
use socket2::SockRef;
use tokio::time::timeout;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use workers::{Placed, Workers};

pub(crate) use accept::{Listener, accept_all};
pub(crate) use audit::RateLimit;
pub use flow::{Direction, Flow, FlowReport, FlowStart, FlowState, Origin};
pub use inbound::{Dial, External, InboundService, Program, Reached};
pub use outbound::{CapturedFlow, CapturedFlows};
pub use pool::PoolSettings;
pub use reason::{NAMES as REASONS, Reason, ReasonCount, Refusals};
pub use socket::Keepalive;
pub(crate) use socket::{connect_local, dial_local, prepare_local, unconnected};
pub use table::{FlowTable, OpenFlow};
pub use workers::Threads;

use crate::{
    state::{Mesh, MeshState},
    tls::{Client, Session, TlsConfigs},
};

/// How long a cut flow may take to be gone, once the drain's deadline has passed.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// How long the proxy waits for others. Idle connections are never timed out.
#[derive(Clone, Copy, Debug)]
pub struct ProxySettings {
    /// For TCP to the instance (outbound) or to the program (inbound).
    pub connect_timeout: Duration,
    /// For a whole TLS handshake.
    pub handshake_timeout: Duration,
    pub keepalive: Keepalive,
    pub pool: PoolSettings,
    pub threads: Threads,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            keepalive: Keepalive::default(),
            pool: PoolSettings::default(),
            threads: Threads::PerCore,
        }
    }
}

/// Why [`ProxyHandle::set_inbound`] changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboundError {
    #[error("service {0} is named twice")]
    Twice(String),
    #[error("service {0} has no mesh port, and none was given")]
    NoListener(String),
    #[error("the mesh port of service {id} cannot be used: {source}")]
    Listener { id: String, source: io::Error },
}

/// A running proxy. Dropped, it stops accepting; flows that are open go on to their end.
pub struct ProxyHandle {
    shared: Arc<Shared>,
    inbound: Mutex<HashMap<String, MeshPort>>,
    /// What ends the outbound listeners of a network namespace, by its cookie.
    outbound: Mutex<HashMap<u64, CancellationToken>>,
    /// The same of guard listeners besides the host's own.
    guards: Mutex<HashMap<u64, CancellationToken>>,
    listeners: TaskTracker,
    stop: CancellationToken,
}

struct MeshPort {
    target: Arc<ArcSwap<inbound::Target>>,
    address: SocketAddr,
    stop: CancellationToken,
}

/// What every connection needs.
struct Shared {
    settings: ProxySettings,
    workers: Workers,
    state: MeshState,
    captured: Arc<dyn CapturedFlows>,
    tls: TlsConfigs,
    pool: Pool,
    flows: Arc<FlowTable>,
    connections: TaskTracker,
    guard_log: audit::RateLimit,
    refusal_log: audit::RateLimit,
    failovers: AtomicU64,
}

/// Starts serving; call it inside a tokio runtime.
///
/// `guard` are the listeners that `sk_lookup` steers to; those that programs are redirected to come by
/// [`ProxyHandle::add_outbound`].
///
/// # Errors
/// A thread cannot be started, or a listener cannot be registered with its runtime.
pub fn start(
    settings: ProxySettings,
    state: MeshState,
    captured: Arc<dyn CapturedFlows>,
    guard: Vec<TcpListener>,
) -> io::Result<ProxyHandle> {
    let stop = CancellationToken::new();
    let shared = Arc::new(Shared {
        settings,
        workers: Workers::start(settings.threads)?,
        state,
        captured,
        tls: TlsConfigs::new(settings.pool.enabled),
        pool: Pool::new(settings.pool),
        flows: Arc::default(),
        connections: TaskTracker::new(),
        guard_log: audit::RateLimit::per_second(10),
        refusal_log: audit::RateLimit::per_second(100),
        failovers: AtomicU64::new(0),
    });
    let listeners = TaskTracker::new();
    serve_guard(&shared, &listeners, guard, &stop)?;
    tokio::spawn(watch_policy(Arc::downgrade(&shared), shared.state.clone()));
    tokio::spawn(close_idle(Arc::downgrade(&shared)));
    Ok(ProxyHandle {
        shared,
        inbound: Mutex::default(),
        outbound: Mutex::default(),
        guards: Mutex::default(),
        listeners,
        stop,
    })
}

/// Resets what is steered to the listeners, until `stop`.
fn serve_guard(
    shared: &Arc<Shared>,
    tasks: &TaskTracker,
    sockets: Vec<TcpListener>,
    stop: &CancellationToken,
) -> io::Result<()> {
    for listener in sockets.into_iter().map(|std| shared.listener(std)).collect::<io::Result<Vec<_>>>()? {
        let shared = shared.clone();
        listener.accept_all(tasks, "guard", stop.clone(), move |stream, peer| {
            guard::refuse(&shared, stream, peer);
        });
    }
    Ok(())
}

impl ProxyHandle {
    /// Serves exactly these services: starts what is new, stops accepting for what is missing, and changes the name or
    /// the program's address of what stays. Live flows go on. Call it inside the runtime.
    ///
    /// # Errors
    /// Nothing was changed: a service is named twice, or one has no listener, or a listener cannot be used.
    pub fn set_inbound(&self, services: Vec<InboundService>) -> Result<(), InboundError> {
        let mut ports = self.inbound.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = HashSet::new();
        let mut checked = Vec::with_capacity(services.len());
        for InboundService { id, name, program, listener: given } in services {
            if !seen.insert(id.clone()) {
                return Err(InboundError::Twice(id));
            }
            let port = match given {
                None if !ports.contains_key(&id) => return Err(InboundError::NoListener(id)),
                None => None,
                Some(std) => match self.mesh_port(std) {
                    Ok(bound) => Some(bound),
                    Err(source) => return Err(InboundError::Listener { id, source }),
                },
            };
            checked.push((id, inbound::Target { name, program }, port));
        }
        ports.retain(|id, port| {
            let stays = seen.contains(id);
            if !stays {
                port.stop.cancel();
            }
            stays
        });
        for (id, target, bound) in checked {
            match (bound, ports.get(&id)) {
                (None, Some(port)) => port.target.store(Arc::new(target)),
                (None, None) => unreachable!("invariant: checked above, under the same lock"),
                (Some((address, bound)), old) => {
                    if let Some(old) = old {
                        old.stop.cancel();
                    }
                    ports.insert(id, self.serve_inbound(target, bound, address));
                }
            }
        }
        Ok(())
    }

    /// Serves the listeners that the kernel redirects programs of a network namespace to; those that served it before
    /// end. Call it inside the runtime.
    ///
    /// # Errors
    /// A listener cannot be registered with the runtime; nothing was changed.
    pub fn add_outbound(&self, netns: u64, sockets: Vec<TcpListener>) -> io::Result<()> {
        let placed = |socket: TcpListener| {
            let place = outbound::Place { netns, port: socket.local_addr()?.port() };
            Ok((self.shared.listener(socket)?, place))
        };
        let sockets = sockets.into_iter().map(placed).collect::<io::Result<Vec<_>>>()?;
        let stop = self.stop.child_token();
        for (listener, place) in sockets {
            let shared = self.shared.clone();
            listener.accept_all(&self.listeners, "outbound", stop.clone(), move |accepted, peer| {
                let served = shared.clone();
                shared.workers.serve(&shared.connections, accepted, move |stream| {
                    outbound::serve(served, stream, place, peer)
                });
            });
        }
        if let Some(before) = self.outbound_ports().insert(netns, stop) {
            before.cancel();
        }
        Ok(())
    }

    /// Serves the listeners that the guard of a network namespace, other than the host's, steers to; those that served
    /// it before end. Call it inside the runtime.
    ///
    /// # Errors
    /// A listener cannot be registered with the runtime; nothing was changed.
    pub fn add_guard(&self, netns: u64, sockets: Vec<TcpListener>) -> io::Result<()> {
        let stop = self.stop.child_token();
        serve_guard(&self.shared, &self.listeners, sockets, &stop)?;
        let mut guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = guards.insert(netns, stop) {
            before.cancel();
        }
        Ok(())
    }

    /// Closes the outbound and guard listeners of a network namespace. Live flows go on.
    pub fn remove_namespace(&self, netns: u64) {
        self.remove_guard(netns);
        if let Some(stop) = self.outbound_ports().remove(&netns) {
            stop.cancel();
        }
    }

    /// Closes the guard listeners of a network namespace.
    pub fn remove_guard(&self, netns: u64) {
        if let Some(stop) = self.guards.lock().unwrap_or_else(PoisonError::into_inner).remove(&netns) {
            stop.cancel();
        }
    }

    fn outbound_ports(&self) -> std::sync::MutexGuard<'_, HashMap<u64, CancellationToken>> {
        self.outbound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the mesh port of the service instance `id`, if it is served.
    pub fn mesh_address(&self, id: &str) -> Option<SocketAddr> {
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner).get(id).map(|port| port.address)
    }

    /// The live and the recently ended flows.
    pub fn flows(&self) -> &Arc<FlowTable> {
        &self.shared.flows
    }

    /// How flows ended, by direction and reason.
    pub fn refusals(&self) -> &Refusals {
        self.shared.flows.ended()
    }

    /// How often an instance did not take a flow to a virtual IP, and the next one was tried.
    pub fn failovers(&self) -> u64 {
        self.shared.failovers.load(Ordering::Relaxed)
    }

    /// How many connections to other meshnodes wait for their next flow.
    pub fn waiting(&self) -> u64 {
        self.shared.pool.len() as u64
    }

    /// Stops accepting, waits until `deadline` for the flows to end, cuts the rest, and returns how many that were.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.stop.cancel();
        self.listeners.close();
        self.listeners.wait().await;
        self.shared.pool.clear();
        let connections = &self.shared.connections;
        connections.close();
        let mut cut = 0;
        if timeout(deadline, connections.wait()).await.is_err() {
            cut = self.shared.flows.recheck(|_| Some(Reason::Drain));
            if timeout(CUT_GRACE, connections.wait()).await.is_err() {
                tracing::warn!(left = connections.len(), "connections did not end after they were cut");
            }
        }
        // Those of flows that have ended meanwhile.
        self.shared.pool.clear();
        cut
    }

    /// What a mesh port accepts comes from another host, which may vanish.
    fn mesh_port(&self, std: TcpListener) -> io::Result<(SocketAddr, Placed)> {
        socket::prepare(SockRef::from(&std), self.shared.settings.keepalive)?;
        Ok((std.local_addr()?, self.shared.workers.place(std)?))
    }

    fn serve_inbound(&self, target: inbound::Target, bound: Placed, address: SocketAddr) -> MeshPort {
        let (target, stop) = (Arc::new(ArcSwap::from_pointee(target)), self.stop.child_token());
        let (shared, served, ending) = (self.shared.clone(), target.clone(), stop.clone());
        bound.accept_all(&self.listeners, "inbound", stop.clone(), move |accepted, peer| {
            let (here, served, ending) = (shared.clone(), served.clone(), ending.clone());
            shared.workers.serve(&shared.connections, accepted, move |stream| {
                inbound::serve(here, served, ending, stream, peer)
            });
        });
        MeshPort { target, address, stop }
    }
}

impl Drop for ProxyHandle {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Cuts live flows that the mesh no longer allows, at each change of it, until the proxy is gone.
async fn watch_policy(shared: std::sync::Weak<Shared>, state: MeshState) {
    let mut changed = state.subscribe();
    let mut grounds = None;
    // `state` keeps the sender alive, so that only the proxy's end stops this.
    while changed.changed().await.is_ok() {
        let Some(shared) = shared.upgrade() else { return };
        let started = Instant::now();
        let mesh = Arc::clone(&state.load());
        shared.tls.retain(|name| mesh.leafs.contains_key(name));
        shared.pool.retain(|client| is_current(client, &mesh));
        if grounds.as_ref().is_some_and(|grounds: &decision::Grounds| grounds.are_those_of(&mesh)) {
            // The catalog moved, or a leaf was renewed.
            continue;
        }
        grounds = Some(decision::Grounds::of(&mesh));
        let cut = shared.flows.recheck(|flow| decision::recheck(&mesh, flow));
        if cut > 0 {
            tracing::info!(cut, took_us = started.elapsed().as_micros(), "a change of policy cut live flows");
        }
    }
}

/// Whether the mesh has not given the source another leaf since, or another trust bundle.
fn is_current(client: &Client, mesh: &Mesh) -> bool {
    let leaf = mesh.leafs.get(client.source());
    leaf.zip(mesh.roots.as_ref()).is_some_and(|(leaf, roots)| client.is_for(leaf, roots))
}

/// Closes links that no flow has used for long, until the proxy is gone.
async fn close_idle(shared: std::sync::Weak<Shared>) {
    loop {
        let Some(pause) = shared.upgrade().map(|shared| shared.pool.settings().idle / 4) else { return };
        tokio::time::sleep(pause).await;
        let Some(shared) = shared.upgrade() else { return };
        shared.pool.retain(|_| true);
    }
}

impl Shared {
    /// Places a listener for programs of this host. What it accepts inherits the options of its socket.
    fn listener(&self, std: TcpListener) -> io::Result<Placed> {
        socket::prepare_local(&SockRef::from(&std))?;
        self.workers.place(std)
    }

    /// Decides by the mesh of now. What is known of the flow must have been stored before: then a change of policy
    /// that this does not see sees the flow.
    fn with_mesh<R>(&self, decide: impl FnOnce(&Mesh) -> R) -> R {
        fence(Ordering::SeqCst);
        decide(&self.state.load())
    }

    /// Notes that bytes may flow now.
    fn opened(&self, flow: &Flow, tls: &Session) {
        let version = match tls.version() {
            ProtocolVersion::TLSv1_2 => "TLS 1.2",
            _ => "TLS 1.3",
        };
        flow.set_tls(version);
        flow.set_open();
        audit::allowed(flow, version);
    }

    fn failed_over(&self) {
        self.failovers.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self, flow: OpenFlow, outcome: Result<(), Reason>) {
        let reason = outcome.err().unwrap_or(Reason::Finished);
        audit::ended(&flow, &reason, &self.refusal_log);
        flow.end(reason);
    }
}
