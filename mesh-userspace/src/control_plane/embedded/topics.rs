//! Who waits for what: an index for each part of the store that a read can depend on, and a way to be woken when it
//! moves. A watcher costs one entry in a channel's wait list; nobody polls.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::select_all;
use tokio::sync::watch;

use crate::intention::Pattern;

/// A part of the store that a read's result depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Topic {
    /// The set of nodes.
    Nodes,
    /// The set of service names and tags.
    Services,
    /// Every service instance.
    Instances,
    /// Every check.
    Checks,
    /// Every intention.
    Intentions,
    /// The intentions with this source.
    Source(Pattern),
    /// The intentions with this destination.
    Destination(Pattern),
    Roots,
    CaConfig,
    /// One node with its services and checks.
    Node(Arc<str>),
    /// The instances of one service with their nodes and checks.
    Service(Arc<str>),
    /// The instances that take mTLS for one service, likewise.
    Connect(Arc<str>),
    /// The leaf that this server made for one service.
    Leaf(Arc<str>),
    /// Policies and tokens.
    Acl,
}

/// Sweeps begin at this many entries, so that names somebody makes up cannot fill the memory.
const SWEEP_AT: usize = 4096;
/// At this many indexes they are forgotten and the floor is raised to the newest, which is always safe.
const MAX_INDEXES: usize = 262_144;

/// What one read depends on.
pub struct DependsOn(Vec<Topic>);

impl From<Topic> for DependsOn {
    fn from(topic: Topic) -> Self {
        Self(vec![topic])
    }
}

impl From<Vec<Topic>> for DependsOn {
    fn from(topics: Vec<Topic>) -> Self {
        Self(topics)
    }
}

/// The indexes of all topics.
///
/// A reader takes the index first and the data after it; the writer publishes data first and the index after it.
/// So data may be newer than its index says (one needless wake), never older (a lost wake).
pub struct Topics(Mutex<Inner>);

struct Inner {
    /// The index of every topic that has no entry.
    floor: u64,
    newest: u64,
    indexes: HashMap<Topic, u64>,
    watchers: HashMap<Topic, watch::Sender<u64>>,
    sweep_at: usize,
}

impl Topics {
    /// After a restart every topic has the store's last index: it never goes backwards, and each watcher is
    /// answered once.
    pub fn new(index: u64) -> Self {
        let floor = index.max(1);
        Self(Mutex::new(Inner {
            floor,
            newest: floor,
            indexes: HashMap::new(),
            watchers: HashMap::new(),
            sweep_at: SWEEP_AT,
        }))
    }

    /// Returns the index of the last change of what a read depends on; at least 1.
    pub fn index_of(&self, read: &DependsOn) -> u64 {
        let inner = self.lock();
        read.0.iter().map(|topic| inner.index(topic)).max().unwrap_or(inner.floor)
    }

    /// Waits until something that a read depends on has moved beyond `seen`.
    pub async fn moved_beyond(&self, read: &DependsOn, seen: u64) {
        let mut watches: Vec<_> = read.0.iter().map(|topic| self.watch(topic)).collect();
        if let [watch] = &mut watches[..] {
            // The sender lives as long as somebody watches.
            drop(watch.wait_for(|index| *index > seen).await);
        } else if !watches.is_empty() {
            let each = watches.iter_mut().map(|watch| Box::pin(watch.wait_for(|index| *index > seen)));
            drop(select_all(each).await);
        }
    }

    /// Returns the newest index of all.
    pub fn newest(&self) -> u64 {
        self.lock().newest
    }

    /// Returns a receiver whose value is the topic's index.
    pub fn watch(&self, topic: &Topic) -> watch::Receiver<u64> {
        let mut inner = self.lock();
        if inner.watchers.len() >= inner.sweep_at {
            inner.watchers.retain(|_, sender| sender.receiver_count() > 0);
            inner.sweep_at = SWEEP_AT.max(inner.watchers.len() * 2);
        }
        let index = inner.index(topic);
        inner.watchers.entry(topic.clone()).or_insert_with(|| watch::Sender::new(index)).subscribe()
    }

    /// Sets the index of the `touched` topics and wakes their watchers.
    pub fn publish(&self, touched: impl IntoIterator<Item = Topic>, index: u64) {
        let mut inner = self.lock();
        inner.newest = index;
        for topic in touched {
            if let Some(sender) = inner.watchers.get(&topic) {
                sender.send_replace(index);
                if sender.receiver_count() == 0 {
                    inner.watchers.remove(&topic);
                }
            }
            inner.indexes.insert(topic, index);
        }
        if inner.indexes.len() > MAX_INDEXES {
            inner.floor = index;
            inner.indexes.clear();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing below panics between two changes, so a poisoned lock still guards a whole value.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn index(&self, topic: &Topic) -> u64 {
        self.indexes.get(topic).copied().unwrap_or(self.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_watchers_of_a_touched_topic_are_woken() {
        let topics = Topics::new(7);
        let mut db = topics.watch(&Topic::Service("db".into()));
        let web = topics.watch(&Topic::Service("web".into()));
        topics.publish([Topic::Service("db".into())], 8);
        assert!(db.has_changed().unwrap());
        assert_eq!(*db.borrow_and_update(), 8);
        assert!(!web.has_changed().unwrap());
        assert_eq!(topics.index_of(&Topic::Service("web".into()).into()), 7);
    }

    #[test]
    fn an_index_is_never_zero_and_never_goes_backwards() {
        let topics = Topics::new(0);
        assert_eq!(topics.index_of(&Topic::Nodes.into()), 1);
        let names = (0..=MAX_INDEXES).map(|n| Topic::Service(n.to_string().into()));
        topics.publish([Topic::Nodes], 5);
        topics.publish(names, 6);
        assert!(topics.index_of(&Topic::Nodes.into()) >= 5);
    }

    #[test]
    fn watchers_that_went_away_are_forgotten() {
        let topics = Topics::new(1);
        for n in 0..3 * SWEEP_AT {
            drop(topics.watch(&Topic::Service(n.to_string().into())));
        }
        assert!(topics.lock().watchers.len() <= SWEEP_AT);
    }
}
