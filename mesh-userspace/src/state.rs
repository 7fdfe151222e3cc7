//! What this host knows of the mesh at one moment. The control-plane client replaces it as a whole; everybody else
//! reads it without a lock.

use std::{collections::HashMap, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::{
    catalog::{Catalog, VirtualIps},
    identity::{Leaf, Roots, ServiceName},
    intention::Intentions,
};

/// A consistent view. Parts are shared, so that replacing one of them is cheap.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    /// `None` until the control plane, or the disk cache, named them.
    pub roots: Option<Arc<Roots>>,
    /// One leaf for each service that this host runs.
    pub leafs: HashMap<ServiceName, Arc<Leaf>>,
    /// `None` until read once.
    pub catalog: Option<Arc<Catalog>>,
    /// `None` until read once.
    pub intentions: Option<Arc<Intentions>>,
    /// What addresses mean services; of each service that this host has heard of.
    pub virtual_ips: Arc<VirtualIps>,
    /// Since when the control plane does not answer; `None` while it does.
    pub stale_since: Option<SystemTime>,
}

impl Mesh {
    /// Catalog and intentions were read; the kernel may decide.
    pub fn is_synced(&self) -> bool {
        self.catalog.is_some() && self.intentions.is_some()
    }
}

/// The current [`Mesh`]: one writer, readers that never wait, and a way to be told of a change.
#[derive(Clone)]
pub struct MeshState {
    current: Arc<ArcSwap<Mesh>>,
    changed: watch::Sender<u64>,
}

impl Default for MeshState {
    fn default() -> Self {
        Self { current: Arc::default(), changed: watch::Sender::new(0) }
    }
}

impl MeshState {
    /// Returns the view of now; hold it only as long as one decision takes.
    pub fn load(&self) -> arc_swap::Guard<Arc<Mesh>> {
        self.current.load()
    }

    /// Replaces the view by what `edit` makes of it, and wakes those who wait for a change.
    pub fn update(&self, edit: impl Fn(&mut Mesh)) {
        self.current.rcu(|mesh| {
            let mut next = Mesh::clone(mesh);
            edit(&mut next);
            next
        });
        self.changed.send_modify(|version| *version += 1);
    }

    /// Returns a receiver that is woken by each [`update`](Self::update).
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
