//! Answers the queries for names that the kernel diverts: the mesh's own from what the host knows, all others by asking
//! the very server that the program asked, from the program's network namespace.
//!
//! ```text
//! program → [connect, sendmsg: alias] → sockets → zone ─ ours ─→ answer
//!                                                   └─ else ─→ forward → the server that was asked → answer
//! ```
//!
//! Nothing of others is kept: how long an answer holds is between the program's resolver and its server.

mod datagrams;
mod domain;
mod forward;
mod gate;
mod learned;
mod sockets;
mod stream;
mod zone;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use domain::Domain;
pub use forward::{Kind, Opener, Opening, Ready};
pub use gate::{Gate, Leaving};
pub use learned::{Learned, Observer};
pub use sockets::Sockets;
pub use zone::{Outcome, Transport, Zones};

use crate::{identity::ServiceName, state::MeshState};
use gate::Refusal;
use learned::Observers;

/// Queries of one workload in one namespace that may wait for servers at a time; more are dropped, as a full queue would.
const IN_FLIGHT_EACH: u32 = 256;
/// The same of all.
const IN_FLIGHT: u32 = 4096;

/// Which server a program asked, and whose program it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    pub server: SocketAddr,
    pub service: ServiceName,
}

/// Where the kernel's notes are read.
pub trait Routes: Send + Sync {
    /// Returns what the alias `at` in the network namespace stands for; `None`: the kernel did not send it there.
    fn route(&self, netns: u64, at: SocketAddr) -> io::Result<Option<Route>>;

    /// Takes the note of the connection from `peer` to the listener with the port `listener`.
    fn take(&self, netns: u64, peer: SocketAddr, listener: u16) -> io::Result<Option<Route>>;
}

/// What became of the queries so far.
#[derive(Debug, Default)]
pub struct Counters {
    answered: AtomicU64,
    forwarded: AtomicU64,
    failed: AtomicU64,
    dropped: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    /// Returns name and value of each.
    pub fn list(&self) -> [(&'static str, u64); 5] {
        [
            // From the catalog.
            ("dns_answered", self.answered.load(Relaxed)),
            // To the server that was asked.
            ("dns_forwarded", self.forwarded.load(Relaxed)),
            // The server could not be reached, or said nothing.
            ("dns_failed", self.failed.load(Relaxed)),
            // Too many at once, no message, or not diverted by the kernel.
            ("dns_dropped", self.dropped.load(Relaxed)),
            // For names that the workload's list of what it may reach does not have.
            ("dns_refused", self.refused.load(Relaxed)),
        ]
    }
}

/// The running part; dropped, it answers no more.
pub struct Dns {
    shared: Arc<Shared>,
    namespaces: Mutex<HashMap<u64, CancellationToken>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What every query needs.
struct Shared {
    zones: Zones,
    mesh: MeshState,
    routes: Box<dyn Routes>,
    observers: Observers,
    gate: OnceLock<Gate>,
    counters: Counters,
    in_flight: Mutex<HashMap<(u64, ServiceName), u32>>,
}

/// The place that queries come from.
struct Namespace {
    netns: u64,
    opener: Opener,
    shared: Arc<Shared>,
    tasks: TaskTracker,
}

impl Dns {
    pub fn new(zones: Zones, mesh: MeshState, routes: Box<dyn Routes>) -> Self {
        let shared = Shared {
            zones,
            mesh,
            routes,
            observers: Observers::default(),
            gate: OnceLock::new(),
            counters: Counters::default(),
            in_flight: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            namespaces: Mutex::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Has `observer` called with what servers say, each time before the program hears it.
    pub fn observe(&self, observer: Observer) {
        self.shared.observers.add(observer);
    }

    /// Has each query that would leave the host asked of `gate` first; the first call counts.
    pub fn guard(&self, gate: Gate) {
        let _ = self.shared.gate.set(gate);
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Answers what comes to `sockets`, which are in the network namespace with the cookie `netns`; `opener` opens others
    /// there. Call it inside the runtime.
    ///
    /// # Errors
    /// A socket cannot be registered with the runtime; nothing was changed.
    pub fn add(&self, netns: u64, sockets: Sockets, opener: Opener) -> io::Result<()> {
        let served = sockets.register()?;
        let stop = self.stop.child_token();
        let (shared, tasks) = (self.shared.clone(), self.tasks.clone());
        let namespace = Arc::new(Namespace { netns, opener, shared, tasks });
        for socket in served.datagrams {
            self.tasks.spawn(datagrams::serve(namespace.clone(), socket, stop.clone()));
        }
        for (listener, port) in served.listeners {
            let (namespace, ending) = (namespace.clone(), stop.clone());
            self.tasks.spawn(crate::proxy::accept_all(
                "dns",
                listener,
                stop.clone(),
                move |program, peer| {
                    let serving = stream::serve(namespace.clone(), program, peer, port);
                    let ending = ending.clone();
                    namespace.tasks.spawn(async move { ending.run_until_cancelled(serving).await });
                },
            ));
        }
        if let Some(before) = self.lock().insert(netns, stop) {
            before.cancel();
        }
        Ok(())
    }

    /// Closes what was opened in a network namespace.
    pub fn remove(&self, netns: u64) {
        if let Some(stop) = self.lock().remove(&netns) {
            stop.cancel();
        }
    }

    /// Answers no more: programs' queries go to their servers again. Returns once all is closed.
    pub async fn shut_down(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, CancellationToken>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    /// Returns the answer if the query is for a name of the mesh.
    fn answer(&self, query: &[u8], transport: Transport) -> Outcome {
        let outcome = self.zones.answer(query, &self.mesh.load(), transport, rand::random);
        if matches!(outcome, Outcome::Answer(_)) {
            count(&self.counters.answered);
        }
        outcome
    }

    /// `None`: too many wait already.
    fn admit(self: &Arc<Self>, netns: u64, service: &ServiceName) -> Option<Admitted> {
        let key = (netns, service.clone());
        let mut all = self.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        let sum: u32 = all.values().sum();
        let own = all.get(&key).copied().unwrap_or_default();
        if own >= IN_FLIGHT_EACH || sum >= IN_FLIGHT {
            return None;
        }
        all.insert(key.clone(), own + 1);
        drop(all);
        Some(Admitted { shared: self.clone(), key })
    }
}

/// One that waits for a server; ends with the wait.
struct Admitted {
    shared: Arc<Shared>,
    key: (u64, ServiceName),
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut all = self.shared.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.key);
            }
        }
    }
}

impl Shared {
    /// Returns what a program is told instead of having its query asked of the server; `None`: it may be asked.
    fn refusal(&self, route: &Route, query: &[u8]) -> Option<Refusal> {
        let refusal = gate::refusal(self.gate.get(), route, query)?;
        count(&self.counters.refused);
        Some(refusal)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// The length of a message's header.
const HEADER: usize = 12;

/// Whether the bytes may be a query: a header that says so.
fn is_query(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & 0x80 == 0
}

/// Whether the bytes may be the response to `query`.
fn is_response_to(message: &[u8], query: &[u8]) -> bool {
    message.len() >= HEADER && message[..2] == query[..2] && message[2] & 0x80 != 0
}
