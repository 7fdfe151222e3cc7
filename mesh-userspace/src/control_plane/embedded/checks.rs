//! Runs the health checks: TTLs that run out, TCP connections that are tried, services that go because they were
//! critical for too long. One task; [`Schedule`] decides what is due.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    net::TcpStream,
    sync::{Notify, Semaphore, mpsc},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    model::{Key, Probe, Status},
    registration::{self, Refusal},
    schedule::{Schedule, Task},
    store::Store,
};

/// TCP checks that may be under way at once.
const MAX_DIALS: usize = 64;
/// The first dial of a new check waits for a random part of this, so that a restart does not dial all at once.
const STAGGER: Duration = Duration::from_millis(500);
/// Consul's own lower bound for `DeregisterCriticalServiceAfter`.
pub const MIN_REAP: Duration = Duration::from_secs(60);

pub struct Checks {
    store: Arc<Store>,
    schedule: Mutex<Schedule>,
    /// The schedule's first entry may have changed.
    moved: Notify,
    min_reap: Duration,
    dials: Arc<Semaphore>,
}

impl Checks {
    pub fn new(store: Arc<Store>, min_reap: Duration) -> Arc<Self> {
        Arc::new(Self {
            store,
            schedule: Mutex::default(),
            moved: Notify::new(),
            min_reap,
            dials: Arc::new(Semaphore::new(MAX_DIALS)),
        })
    }

    /// Plans for a check from what the store says of it. For a TTL check that is: it was just reported.
    pub fn plan(&self, key: &Key) {
        let tables = self.store.tables();
        let stagger = STAGGER.mul_f32(rand::random::<f32>());
        let check = tables.check(key).map(|check| &**check);
        self.schedule().plan(key, check, Instant::now(), stagger, self.min_reap);
        self.moved.notify_one();
    }

    /// Runs until `closing`; `written` says which checks the store has written or deleted.
    pub async fn run(
        self: Arc<Self>,
        mut written: mpsc::UnboundedReceiver<Vec<Key>>,
        tracker: TaskTracker,
        closing: CancellationToken,
    ) {
        // A TTL begins anew at a restart: whoever reports gets one whole period to come back.
        let known: Vec<_> = self.store.tables().checks().map(|check| check.key()).collect();
        known.iter().for_each(|key| self.plan(key));
        loop {
            let next = self.schedule().next();
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = closing.cancelled() => return,
                keys = written.recv() => match keys {
                    Some(keys) => keys.iter().for_each(|key| self.plan(key)),
                    None => return,
                },
                () = self.moved.notified() => {}
                () = due => {
                    let tasks = self.schedule().due(Instant::now());
                    for (key, task) in tasks {
                        self.clone().begin(key, task, &tracker, &closing);
                    }
                }
            }
        }
    }

    fn begin(self: Arc<Self>, key: Key, task: Task, tracker: &TaskTracker, closing: &CancellationToken) {
        if task == Task::Dial {
            self.plan_next_dial(&key);
        }
        let closing = closing.clone();
        tracker.spawn(async move {
            let work = async {
                match task {
                    Task::Expire => self.expire(key).await,
                    Task::Dial => self.dial(key).await,
                    Task::Reap => self.reap(key).await,
                }
            };
            if let Some(Err(error)) = closing.run_until_cancelled(work).await {
                tracing::warn!(%error, "a health check's result could not be kept");
            }
        });
    }

    /// TCP checks keep their interval whatever a dial takes.
    fn plan_next_dial(&self, key: &Key) {
        if let Some(Probe::Tcp { interval_ms, .. }) = self.store.tables().check(key).map(|check| &check.probe)
        {
            let at = Instant::now() + Duration::from_millis(*interval_ms);
            self.schedule().set(key, Task::Dial, at);
        }
    }

    async fn expire(&self, key: Key) -> Result<(), Refusal> {
        self.store.write(move |txn| registration::expire(txn, &key)).await
    }

    async fn dial(&self, key: Key) -> Result<(), Refusal> {
        let Some(check) = self.store.tables().check(&key).cloned() else { return Ok(()) };
        let Probe::Tcp { address, timeout_ms, .. } = &check.probe else { return Ok(()) };
        let _permit = self.dials.acquire().await.expect("invariant: the semaphore is never closed");
        let (status, output) =
            match timeout(Duration::from_millis(*timeout_ms), TcpStream::connect(address.as_str())).await {
                Ok(Ok(_)) => (Status::Passing, format!("TCP connect {address}: Success")),
                Ok(Err(error)) => (Status::Critical, format!("dial tcp {address}: {}", in_gos_words(&error))),
                Err(_) => (Status::Critical, format!("dial tcp {address}: i/o timeout")),
            };
        let probe = check.probe.clone();
        self.store
            .write(move |txn| {
                // Deregistered, or registered anew with another address, while it was dialled.
                let current = txn.tables.check(&key).is_some_and(|check| check.probe == probe);
                if current { registration::set_status(txn, &key, status, &output) } else { Ok(()) }
            })
            .await
    }

    async fn reap(&self, key: Key) -> Result<(), Refusal> {
        self.store.write(move |txn| registration::reap(txn, &key)).await
    }

    fn schedule(&self) -> MutexGuard<'_, Schedule> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the usual failures of a dial as Consul's own checks report them, which people and alerts look for.
fn in_gos_words(error: &std::io::Error) -> String {
    let words = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused",
        std::io::ErrorKind::ConnectionReset => "connection reset by peer",
        std::io::ErrorKind::HostUnreachable => "no route to host",
        std::io::ErrorKind::NetworkUnreachable => "network is unreachable",
        _ => return error.to_string(),
    };
    format!("connect: {words}")
}
