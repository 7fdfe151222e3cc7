//! The threads that carry flows, one for each core. Each has a runtime of its own, and a flow stays where it was begun: its
//! bytes wake nobody but the thread that moves them.

use std::{
    cell::Cell,
    future::Future,
    io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicIsize, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Instant,
};

use tokio::{
    net::TcpStream,
    runtime::{Builder, Handle},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    accept::{Listener, accept_all},
    audit::RateLimit,
};

thread_local! {
    static OWN: Cell<usize> = const { Cell::new(0) };
}

/// Which of the threads calls.
pub(super) fn own() -> usize {
    OWN.get()
}

/// Who carries flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Threads {
    /// A thread for each core.
    PerCore,
    /// The runtime that the proxy is started in: one thread is enough to follow what it does.
    Callers,
}

/// Dropped, the threads end, and with them what they carry.
pub(super) struct Workers {
    all: Box<[Worker]>,
    turn: AtomicUsize,
    stop: CancellationToken,
}

struct Worker {
    runtime: Handle,
    flows: Arc<Flows>,
}

/// A listener, and the thread that accepts on it.
pub(super) struct Placed {
    listener: Listener,
    runtime: Handle,
}

/// How many a thread carries; in a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Flows(AtomicIsize);

/// Changes how many a thread carries, until it is dropped.
struct Change {
    flows: Arc<Flows>,
    by: isize,
}

/// There is no memory, or no place in epoll (fs.epoll.max_user_watches).
fn not_served(error: &io::Error) {
    static LOG: LazyLock<RateLimit> = LazyLock::new(|| RateLimit::per_second(1));
    if let Some(unlogged_before) = LOG.permit(Instant::now()) {
        tracing::error!(%error, unlogged_before, "a connection cannot be served, and is reset");
    }
}

impl Workers {
    /// # Errors
    /// A thread cannot be started, or has no epoll.
    pub(super) fn start(threads: Threads) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let all = match threads {
            Threads::PerCore => {
                let count = thread::available_parallelism().map_or(1, usize::from);
                (0..count).map(|nth| Worker::start(nth, stop.clone())).collect::<io::Result<_>>()?
            }
            Threads::Callers => [Worker { runtime: Handle::current(), flows: Arc::default() }].into(),
        };
        Ok(Self { all, turn: AtomicUsize::new(0), stop })
    }

    /// Registers a listener with one of the threads, which will accept on it.
    ///
    /// # Errors
    /// See [`Listener::register`].
    pub(super) fn place(&self, listener: TcpListener) -> io::Result<Placed> {
        let runtime = &self.next().runtime;
        let _inside = runtime.enter();
        Ok(Placed { listener: Listener::register(listener)?, runtime: runtime.clone() })
    }

    /// Has the connection served by the thread that has accepted it, or by another one that has nothing to do, or fewer: a
    /// wake-up across threads is the price, so that a difference of one is left alone among those that are busy.
    pub(super) fn serve<S: Future<Output = ()> + Send + 'static>(
        &self,
        connections: &TaskTracker,
        accepted: std::net::TcpStream,
        serve: impl FnOnce(TcpStream) -> S + Send + 'static,
    ) {
        let (here, other) = (&self.all[own()], self.another());
        let (own, others) = (here.load(), other.load());
        let worker = if others < own && (others == 0 || own > others + 1) { other } else { here };
        let counted = Change::new(&worker.flows, 1);
        let serve = async move {
            match TcpStream::from_std(accepted) {
                Ok(stream) => serve(stream).await,
                // Dropped, it is reset.
                Err(error) => not_served(&error),
            }
            drop(counted);
        };
        connections.spawn_on(serve, &worker.runtime);
    }

    /// How many each thread carries.
    #[cfg(test)]
    pub(super) fn loads(&self) -> Vec<isize> {
        self.all.iter().map(Worker::load).collect()
    }

    /// Waits, and does not count the connection among those that its thread carries meanwhile.
    pub(super) async fn uncounted<T>(&self, wait: impl Future<Output = T>) -> T {
        let _uncounted = Change::new(&self.all[own()].flows, -1);
        wait.await
    }

    /// Returns one of the other threads, if there is one.
    fn another(&self) -> &Worker {
        let others = (self.all.len() - 1).max(1);
        let step = 1 + self.turn.fetch_add(1, Relaxed) % others;
        &self.all[(own() + step) % self.all.len()]
    }

    fn next(&self) -> &Worker {
        &self.all[self.turn.fetch_add(1, Relaxed) % self.all.len()]
    }
}

impl Placed {
    /// See [`accept_all`].
    pub(super) fn accept_all(
        self,
        tasks: &TaskTracker,
        what: &'static str,
        stop: CancellationToken,
        serve: impl Fn(std::net::TcpStream, SocketAddr) + Send + 'static,
    ) {
        tasks.spawn_on(accept_all(what, self.listener, stop, serve), &self.runtime);
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Worker {
    fn start(nth: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new().name(format!("proxy-{nth}")).spawn(move || {
            OWN.set(nth);
            runtime.block_on(stop.cancelled());
        })?;
        Ok(Self { runtime: handle, flows: Arc::default() })
    }

    fn load(&self) -> isize {
        self.flows.0.load(Relaxed)
    }
}

impl Change {
    fn new(flows: &Arc<Flows>, by: isize) -> Self {
        flows.0.fetch_add(by, Relaxed);
        Self { flows: flows.clone(), by }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.flows.0.fetch_sub(self.by, Relaxed);
    }
}
