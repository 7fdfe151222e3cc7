//! The store: tables in memory for readers, one writer thread that commits to SQLite, and the wake-ups.
//!
//! A write is a closure over a [`Txn`]. The writer takes what is waiting, runs it, commits all of it in one SQLite
//! transaction (one fsync for many writers), publishes the new tables, wakes the watchers, and only then answers.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use arc_swap::ArcSwap;
use time::OffsetDateTime;
use tokio::sync::{mpsc as tokio_mpsc, oneshot};

use super::{
    model::Key,
    persist::{Disk, DiskError},
    tables::Tables,
    topics::{Topic, Topics},
    txn::Txn,
};
use crate::intention::Action;

/// At most so many writes share one SQLite transaction.
const BATCH: usize = 128;

/// A write that could not be kept. Nothing of it is in the store.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    #[error("the store did not take the write: {0}")]
    Disk(Arc<DiskError>),
    #[error("the store is closed")]
    Closed,
}

/// Runs a write; says whether to keep it, and how to tell whoever asked for it.
type Job = Box<dyn FnOnce(&mut Txn) -> (bool, Reply) + Send>;
type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

pub struct Store {
    shared: Arc<Shared>,
    /// `None` once closed.
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    tables: ArcSwap<Tables>,
    topics: Topics,
    /// Tells the check runner which checks were written or deleted.
    checks: tokio_mpsc::UnboundedSender<Vec<Key>>,
}

impl Store {
    /// Opens the store. Blocks; the receiver gets the checks that each commit wrote or deleted.
    pub fn open(
        path: &Path,
        default_policy: Action,
    ) -> Result<(Self, tokio_mpsc::UnboundedReceiver<Vec<Key>>), DiskError> {
        let disk = Disk::open(path)?;
        let tables = disk.load(default_policy)?;
        let (checks, written) = tokio_mpsc::unbounded_channel();
        let topics = Topics::new(tables.index);
        let shared = Arc::new(Shared { topics, tables: ArcSwap::from_pointee(tables), checks });
        let (jobs, queue) = mpsc::channel();
        let of_writer = shared.clone();
        let writer = std::thread::Builder::new()
            .name("meshnode-store".to_owned())
            .spawn(move || write_all(disk, &of_writer, &queue))
            .map_err(|error| DiskError::Damaged(format!("no thread for its writer: {error}")))?;
        Ok((Self { shared, jobs: Mutex::new(Some(jobs)), writer: Mutex::new(Some(writer)) }, written))
    }

    /// Returns the tables of now.
    pub fn tables(&self) -> Arc<Tables> {
        self.shared.tables.load_full()
    }

    pub fn topics(&self) -> &Topics {
        &self.shared.topics
    }

    /// Runs `edit` as one write. On an error, its own or the disk's, the store is as it was.
    pub async fn write<T, E>(
        &self,
        edit: impl FnOnce(&mut Txn) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |txn| {
            let result = edit(txn);
            let keep = result.is_ok();
            let reply: Reply = Box::new(move |stored| {
                // The caller may have gone away; the write stands.
                let _ = answer.send(result.and_then(|value| stored.map(|()| value).map_err(E::from)));
            });
            (keep, reply)
        });
        let sent = match &*self.jobs.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(jobs) => jobs.send(job).is_ok(),
            None => false,
        };
        if !sent {
            return Err(StoreError::Closed.into());
        }
        answered.await.unwrap_or_else(|_| Err(StoreError::Closed.into()))
    }

    /// Lets the writer finish what is waiting, then closes the file. Blocks.
    pub fn close(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(_)) = writer.map(JoinHandle::join) {
            tracing::error!("the store's writer had panicked");
        }
    }
}

fn write_all(mut disk: Disk, shared: &Shared, queue: &mpsc::Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let batch = std::iter::once(first).chain(queue.try_iter().take(BATCH - 1));
        write_batch(&mut disk, shared, batch);
    }
}

fn write_batch(disk: &mut Disk, shared: &Shared, batch: impl Iterator<Item = Job>) {
    let mut tables = Tables::clone(&shared.tables.load());
    let mut replies = Vec::new();
    let mut changes = Vec::new();
    let mut topics = HashSet::new();
    let mut checks = Vec::new();
    for job in batch {
        let mut txn = Txn::new(tables.clone(), OffsetDateTime::now_utc());
        let (keep, reply) = job(&mut txn);
        replies.push(reply);
        if keep && !txn.is_empty() {
            tables = Tables { index: txn.index, ..txn.tables };
            changes.append(&mut txn.changes);
            topics.extend(txn.topics);
            checks.append(&mut txn.checks);
        }
    }
    let mut stored = Ok(());
    if !topics.is_empty() || !changes.is_empty() {
        stored = disk.commit(&changes, tables.index).map_err(|error| StoreError::Disk(Arc::new(error)));
        match &stored {
            Ok(()) => publish(shared, tables, topics, checks),
            Err(error) => tracing::error!(%error, "control plane store"),
        }
    }
    for reply in replies {
        reply(stored.clone());
    }
}

/// Data first, indexes after it: see [`Topics`].
fn publish(shared: &Shared, tables: Tables, topics: HashSet<Topic>, checks: Vec<Key>) {
    let index = tables.index;
    shared.tables.store(Arc::new(tables));
    // One batch is one step for watchers: every topic that moved gets the batch's index.
    shared.topics.publish(topics, index);
    if !checks.is_empty() {
        // The runner is gone only when the server is stopping.
        let _ = shared.checks.send(checks);
    }
}
