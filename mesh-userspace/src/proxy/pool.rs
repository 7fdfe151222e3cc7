//! Links to other meshnodes that wait for their next flow.
//!
//! A link is found again only by what it was made with (source identity, trust bundle, destination) and the instance that
//! it leads to, and by the thread that it belongs to. So a renewed leaf or a rotated root finds none of the old ones, and their
//! flows' end is their end.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use super::{link::Link, workers};
use crate::tls::Client;

/// How many links wait, and how long.
#[derive(Clone, Copy, Debug)]
pub struct PoolSettings {
    /// Otherwise the protocol between meshnodes, which lets a link wait, is not spoken at all.
    pub enabled: bool,
    /// For each source identity, instance, and thread that carries flows.
    pub most_alike: usize,
    pub most: usize,
    /// One that no flow used for this long is closed.
    pub idle: Duration,
    /// One that is older takes no further flow: each side's certificate is looked at anew from time to time.
    pub age: Duration,
}

impl Default for PoolSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            most_alike: 128,
            most: 2048,
            idle: Duration::from_secs(30),
            age: Duration::from_mins(10),
        }
    }
}

/// Those of one source and instance meet at one lock, which is held for a few instructions.
const SHARDS: usize = 16;

/// So many are looked at before one connects anew.
const LOOKS: usize = 8;

pub(super) struct Pool {
    settings: PoolSettings,
    shards: [Mutex<HashMap<Key, Vec<Idle>>>; SHARDS],
    count: AtomicUsize,
}

/// A client configuration, by its address, an instance's mesh port, and the thread that the link's bytes wake.
type Key = (usize, SocketAddr, usize);

struct Idle {
    link: Box<Link>,
    /// Keeps the configuration's address its own.
    client: Arc<Client>,
}

impl Pool {
    pub(super) fn new(settings: PoolSettings) -> Self {
        Self { settings, shards: std::array::from_fn(|_| Mutex::default()), count: AtomicUsize::new(0) }
    }

    /// How many links wait.
    pub(super) fn len(&self) -> usize {
        self.count.load(Relaxed)
    }

    /// Returns the link that waited the shortest of those whose other end is there and has done with the flow before.
    pub(super) fn take(&self, client: &Arc<Client>, mesh: SocketAddr) -> Option<Box<Link>> {
        let key = key(client, mesh);
        let (mut found, mut later) = (None, Vec::new());
        for _ in 0..LOOKS {
            let Some(mut idle) = self.shard(&key).get_mut(&key).and_then(Vec::pop) else { break };
            self.count.fetch_sub(1, Relaxed);
            // Out of the lock: it may ask the kernel, and open what has come.
            match if self.is_good(&idle.link) { idle.link.is_free() } else { Some(false) } {
                Some(true) if idle.link.begin().is_ok() => {
                    found = Some(idle.link);
                    break;
                }
                Some(_) => {}
                // Its peer has not said the last word yet.
                None => later.push(idle),
            }
        }
        if !later.is_empty() {
            self.count.fetch_add(later.len(), Relaxed);
            self.shard(&key).entry(key).or_default().extend(later.into_iter().rev());
        }
        found
    }

    /// Lets `link`, which [may close](Link::may_close), wait for its next flow, or closes it where enough wait already.
    pub(super) fn put(&self, client: Arc<Client>, mesh: SocketAddr, mut link: Box<Link>) {
        link.used = Instant::now();
        if self.len() >= self.settings.most || !self.is_good(&link) {
            return;
        }
        let key = key(&client, mesh);
        let mut shard = self.shard(&key);
        let alike = shard.entry(key).or_default();
        if alike.len() < self.settings.most_alike {
            alike.push(Idle { link, client });
            self.count.fetch_add(1, Relaxed);
        }
    }

    /// Closes those that have waited too long, and those for whose configuration `keep` is false.
    pub(super) fn retain(&self, keep: impl Fn(&Client) -> bool) {
        for shard in &self.shards {
            let mut closed = Vec::new();
            lock(shard).retain(|_, alike| {
                closed.extend(alike.extract_if(.., |idle| !self.is_good(&idle.link) || !keep(&idle.client)));
                !alike.is_empty()
            });
            self.count.fetch_sub(closed.len(), Relaxed);
        }
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        self.retain(|_| false);
    }

    pub(super) fn settings(&self) -> &PoolSettings {
        &self.settings
    }

    fn is_good(&self, link: &Link) -> bool {
        link.used.elapsed() < self.settings.idle && link.made.elapsed() < self.settings.age
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Vec<Idle>>> {
        // Configurations are far apart in memory.
        lock(&self.shards[((key.0 >> 6) ^ usize::from(key.1.port()) ^ key.2) % SHARDS])
    }
}

fn key(client: &Arc<Client>, mesh: SocketAddr) -> Key {
    (Arc::as_ptr(client).addr(), mesh, workers::own())
}

/// A map operation that panicked leaves the map usable.
fn lock<T>(shard: &Mutex<T>) -> MutexGuard<'_, T> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
