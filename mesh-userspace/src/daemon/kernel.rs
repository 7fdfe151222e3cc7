//! Keeps the datapath engine current: one task that wakes for a change of the mesh, the cgroups or the addresses.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use netlink_sys::Socket;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    time::{MissedTickBehavior, interval, sleep},
};

use super::{direct, namespaces::Served, visitor::Visitor};
use crate::{
    datapath::{
        direct::{Doomed, Left},
        engine::{Engine, SWEEP_INTERVAL},
        host,
    },
    proxy::RateLimit,
    state::MeshState,
};

/// The engine, shared by the task that drives it, `status` and `exec`. The hot path never takes this lock.
#[derive(Clone)]
pub struct Kernel {
    engine: Arc<Mutex<Engine>>,
    mesh: MeshState,
    /// A workload may be in a network namespace that the daemon does not listen in.
    namespaces: Arc<Notify>,
    /// The way into those that it listens in.
    visitor: Option<Visitor>,
    served: Served,
    /// One at a time cuts flows in them, so that none is destroyed twice.
    cutting: Arc<tokio::sync::Mutex<()>>,
    /// The host's network namespace.
    host: u64,
    /// Flows that are to end though they are allowed.
    doomed: Arc<Mutex<Vec<Doomed>>>,
    /// Of the line that says that they are too many.
    too_many: Arc<RateLimit>,
}

/// A `connect()` that passed the hook just before a change has a socket to destroy this much later.
const CUT_AGAIN: Duration = Duration::from_millis(50);
/// The most flows that wait to be ended.
const MOST_DOOMED: usize = 16_384;
const DOOMED_AT_ONCE: usize = 256;

impl Kernel {
    pub fn new(engine: Engine, mesh: MeshState, visitor: Option<Visitor>, served: Served) -> Self {
        Self {
            host: engine.host_netns(),
            doomed: Arc::default(),
            too_many: Arc::new(RateLimit::per_second(1)),
            engine: Arc::new(Mutex::new(engine)),
            mesh,
            namespaces: Arc::default(),
            visitor,
            served,
            cutting: Arc::default(),
        }
    }

    /// Wakes the one that waits in [`namespaces_wanted`](Self::namespaces_wanted).
    pub fn want_namespaces(&self) {
        self.namespaces.notify_one();
    }

    /// Returns when a workload may be in a network namespace that the daemon does not listen in.
    pub async fn namespaces_wanted(&self) {
        self.namespaces.notified().await;
    }

    pub fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in new cgroups, and brings the maps in line with the mesh of now. An error is logged: what could not be
    /// written is denied.
    pub fn reconcile(&self) {
        let left = {
            let mut engine = self.lock();
            if let Err(error) = engine.classifier_mut().update() {
                tracing::error!(%error, "cannot follow the cgroups: programs in new ones are denied the mesh");
            }
            let mesh = self.mesh.load();
            engine.reconcile(&mesh)
        };
        match left {
            Ok(left) if !left.again && left.elsewhere.is_empty() => {}
            Ok(left) => drop(tokio::spawn(cut_rest(self.clone(), left))),
            Err(error) => tracing::error!(%error, "cannot write the BPF maps"),
        }
    }

    /// Cuts direct flows that are not allowed any more: those in the host's network namespace now, the others in a moment.
    pub fn cut(&self) {
        if !self.lock().cut().elsewhere.is_empty() {
            let kernel = self.clone();
            tokio::spawn(async move { kernel.cut_everywhere().await });
        }
    }

    /// The same, and waits for it. Returns whether flows are to be cut again soon.
    pub async fn cut_everywhere(&self) -> bool {
        let _one = self.cutting.lock().await;
        // What was cut while this waited is not among them.
        let Left { again, elsewhere } = self.lock().cut();
        let missed = direct::cut(self.host, self.visitor.as_ref(), &self.served, elsewhere).await;
        let engine = self.lock();
        again || missed.into_iter().any(|cookie| engine.has_direct_flow(cookie))
    }

    /// Ends `flows` in a moment, as a program may make more of them than can be ended at once.
    pub fn end(&self, flows: Vec<Doomed>) {
        if flows.is_empty() {
            return;
        }
        let mut doomed = self.doomed.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = doomed.is_empty();
        let room = MOST_DOOMED.saturating_sub(doomed.len());
        if flows.len() > room
            && let Some(unlogged_before) = self.too_many.permit(Instant::now())
        {
            tracing::error!(
                unlogged_before,
                "too many direct flows that cannot be listed: some stay, and are shown as uncaptured"
            );
        }
        doomed.extend(flows.into_iter().take(room));
        if idle {
            tokio::spawn(self.clone().end_doomed());
        }
    }

    async fn end_doomed(self) {
        loop {
            // Anew for each lot: who is to cut what is revoked gets a turn.
            let _one = self.cutting.lock().await;
            let lot: Vec<_> = {
                let mut doomed = self.doomed.lock().unwrap_or_else(PoisonError::into_inner);
                let most = doomed.len().min(DOOMED_AT_ONCE);
                doomed.drain(..most).collect()
            };
            if lot.is_empty() {
                return;
            }
            // One without a socket has ended.
            direct::cut(self.host, self.visitor.as_ref(), &self.served, lot).await;
        }
    }

    /// Runs until dropped.
    pub async fn drive(self) -> std::io::Result<()> {
        let (inotify, news) = (self.inotify()?, News(host::address_news()?));
        // SAFETY: both own their descriptors, and live inside of the registrations.
        let (cgroups, addresses) = unsafe {
            (
                AsyncFd::register_with_interest(inotify, Interest::READABLE)?,
                AsyncFd::register_with_interest(news, Interest::READABLE)?,
            )
        };
        // One that came between the first look and the socket.
        self.refresh_addresses();
        self.reconcile();
        let mut mesh = self.mesh.subscribe();
        let mut sweep = interval(SWEEP_INTERVAL);
        let mut said = self.lock().degraded();
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut moved = false;
            tokio::select! {
                changed = mesh.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
                ready = cgroups.readable() => {
                    ready?.clear_ready();
                    moved = true;
                }
                ready = addresses.readable() => {
                    host::drain_news(&addresses.get_ref().0);
                    ready?.clear_ready();
                    self.refresh_addresses();
                }
                _ = sweep.tick() => {
                    self.refresh_addresses();
                    let mut engine = self.lock();
                    let unlisted = engine.sweep();
                    let now = engine.degraded();
                    for line in now.iter().filter(|line| !said.contains(line)) {
                        tracing::error!("{line}");
                    }
                    said = now;
                    drop(engine);
                    self.end(unlisted);
                }
            }
            self.reconcile();
            if moved {
                // Not before the new cgroups are known.
                self.want_namespaces();
            }
        }
    }

    fn refresh_addresses(&self) {
        if let Err(error) = self.lock().refresh_addresses() {
            tracing::error!(%error, "cannot read the host's addresses");
        }
    }

    fn inotify(&self) -> std::io::Result<OwnedFd> {
        let mut engine = self.lock();
        engine.classifier_mut().inotify().as_fd().try_clone_to_owned()
    }
}

async fn cut_rest(kernel: Kernel, Left { mut again, elsewhere }: Left) {
    if !elsewhere.is_empty() {
        again |= kernel.cut_everywhere().await;
    }
    // A socket that is still without a SYN after this gets none, and the sweep removes its entry; or it is a late one
    // (TCP_FASTOPEN_CONNECT), which the kernel tells of.
    for _ in 0..20 {
        if !again {
            return;
        }
        sleep(CUT_AGAIN).await;
        again = kernel.cut_everywhere().await;
    }
}

/// A socket that tells of addresses.
pub struct News(pub Socket);

impl AsRawFd for News {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for News {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the socket that this borrows.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
