//! Keeps [`MeshState`] equal to what the control plane says, from the daemon's start to its end: the disk cache first,
//! then watches.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{
    api::RootsAnswer,
    audit,
    cache::{Cache, CacheWriter, Item},
    client::{ApiError, Client},
    discovery, expiry, leaf,
    link::{Link, Status},
    policy::{self, Policy},
    pulse, register,
    scope::Watched,
    settings::{LocalService, Settings},
    sight::Sight,
    trust,
};
use crate::{
    catalog::{Catalog, Instance, StoredVirtualIps, VirtualIps},
    state::MeshState,
};

/// How often the time of the last contact is noted on disk.
const CONTACT_NOTE: Duration = Duration::from_secs(30);

/// What all tasks of a sync share.
pub(super) struct Shared {
    pub settings: Settings,
    pub client: Client,
    pub link: Arc<Link>,
    pub state: MeshState,
    pub stored: Cache,
    pub cache: CacheWriter,
    /// The id of the root that signs at present; `None` before it is known.
    pub active_root: watch::Sender<Option<String>>,
    /// Ids of the services that are registered, or about to be.
    pub registered: watch::Sender<BTreeSet<String>>,
    pub sight: Sight,
    pub watched: watch::Sender<Watched>,
    confirmed: AtomicU8,
}

/// A part of the view that the cache holds too.
#[derive(Clone, Copy)]
pub(super) enum Piece {
    Roots = 1,
    Intentions = 2,
    Catalog = 4,
}

const ALL_PIECES: u8 = Piece::Roots as u8 | Piece::Intentions as u8 | Piece::Catalog as u8;

impl Shared {
    /// The control plane confirmed or replaced `piece`.
    pub fn confirmed(&self, piece: Piece) {
        let before = self.confirmed.fetch_or(piece as u8, Ordering::AcqRel);
        if before != ALL_PIECES && before | piece as u8 == ALL_PIECES {
            self.link.live();
        }
    }
}

/// Starts the synchronisation; see [`Sync::start`].
pub struct Sync;

impl Sync {
    /// Fills `state` from the disk cache before it returns, then keeps it current in the background and `local`
    /// registered, with a leaf for each of its services. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ApiError::TlsSetup`] when the TLS files of the settings cannot be used. That the control plane does not answer
    /// is no error: it shows in the handle's status, and in `state`.
    pub fn start(
        settings: Settings,
        state: MeshState,
        local: watch::Receiver<Arc<Vec<LocalService>>>,
    ) -> Result<SyncHandle, ApiError> {
        if !settings.access.address.is_confidential() {
            tracing::warn!(
                address = %settings.access.address,
                "the control plane is spoken to in cleartext: whoever is on the way can change policy and read the \
                 token; use https:// with control_plane.ca_file"
            );
        }
        let stored = Cache::new(&settings);
        let shared = Arc::new(Shared {
            client: Client::new(&settings)?,
            link: Arc::new(Link::new(&settings, state.clone())),
            cache: CacheWriter::new(stored.clone()),
            stored,
            state,
            settings,
            active_root: watch::Sender::new(None),
            registered: watch::Sender::new(BTreeSet::new()),
            sight: Sight::default(),
            watched: watch::Sender::default(),
            confirmed: AtomicU8::new(0),
        });
        let cached = fill_from_cache(&shared, &local.borrow());
        let tasks = vec![
            spawn(shared.cache.clone().run()),
            spawn(pulse::follow(Arc::clone(&shared))),
            spawn(trust::follow(Arc::clone(&shared))),
            spawn(discovery::follow(Arc::clone(&shared), local.clone(), cached.instances)),
            spawn(policy::follow(Arc::clone(&shared), local.clone(), cached.policy)),
            spawn(leaf::follow(Arc::clone(&shared), local.clone(), cached.leafs)),
            spawn(expiry::follow(Arc::clone(&shared))),
            spawn(audit::follow(Arc::clone(&shared), local.clone())),
            spawn(register::follow(Arc::clone(&shared), local)),
            spawn(note_contact(Arc::clone(&shared))),
        ];
        Ok(SyncHandle { shared, tasks })
    }
}

/// A running synchronisation; dropping it stops it without a farewell.
pub struct SyncHandle {
    shared: Arc<Shared>,
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl SyncHandle {
    pub fn status(&self) -> Status {
        self.shared.link.status()
    }

    /// How much of the catalog is watched.
    pub fn watched(&self) -> Watched {
        *self.shared.watched.borrow()
    }

    /// A client with the same settings and connections, for the admin API.
    pub fn client(&self) -> Client {
        self.shared.client.clone()
    }

    /// Stops all watches; with `deregister` takes this host's services out of the catalog, for which it waits a few
    /// seconds at most. Writes what the cache has not written yet.
    pub async fn shutdown(self, deregister: bool) {
        self.tasks.iter().for_each(AbortOnDropHandle::abort);
        for task in self.tasks {
            // Cancelled, which is what was asked for.
            let _ = task.await;
        }
        if deregister {
            register::deregister_all(&self.shared).await;
        }
        if self.shared.link.status().connected {
            self.shared.stored.touch_contact();
        }
        self.shared.cache.flush().await;
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

struct Cached {
    instances: Option<Vec<Instance>>,
    policy: Option<Policy>,
    leafs: HashMap<crate::identity::ServiceName, leaf::Stored>,
}

/// Puts what the disk cache has into the state, in one step.
fn fill_from_cache(shared: &Shared, local: &[LocalService]) -> Cached {
    let roots = shared.stored.load::<RootsAnswer>(&Item::Roots).and_then(|(answer, saved)| {
        let roots =
            trust::roots(&answer).inspect_err(|error| tracing::warn!(%error, "ignoring the cached roots"));
        Some((Arc::new(roots.ok()?), saved))
    });
    if let Some((roots, _)) = &roots {
        shared.state.update(|mesh| mesh.roots = Some(Arc::clone(roots)));
    }
    let instances = shared.stored.load::<Vec<Instance>>(&Item::Catalog);
    let policy = shared.stored.load::<policy::Cached>(&Item::Intentions);
    let policy = policy.map(|(cached, saved)| (cached.into_policy(local), saved));
    let (leafs, stored_leafs): (HashMap<_, _>, HashMap<_, _>) = leaf::load(shared, local, SystemTime::now())
        .into_iter()
        .map(|(name, (leaf, stored))| ((name.clone(), Arc::new(leaf)), (name, stored)))
        .unzip();
    let virtual_ips = shared.stored.load::<StoredVirtualIps>(&Item::VirtualIps).map(|(stored, _)| stored);
    let mut virtual_ips =
        VirtualIps::restore(shared.settings.virtual_ranges, virtual_ips.unwrap_or_default());
    virtual_ips.allocate(local.iter().map(|s| &s.name), |_| false);
    let virtual_ips = Arc::new(virtual_ips);
    shared.state.update(|mesh| mesh.virtual_ips = Arc::clone(&virtual_ips));
    let catalog = instances
        .as_ref()
        .map(|(list, _)| Arc::new(Catalog::new(list.iter().cloned(), &shared.settings.node)));
    let intentions = policy.as_ref().map(|(policy, _)| Arc::new(policy.compile()));
    let saved = [roots.map(|r| r.1), instances.as_ref().map(|i| i.1), policy.as_ref().map(|p| p.1)];
    if let Some(saved) = saved.into_iter().flatten().max() {
        shared.state.update(|mesh| {
            mesh.leafs.clone_from(&leafs);
            mesh.catalog.clone_from(&catalog);
            mesh.intentions.clone_from(&intentions);
        });
        shared.link.serves_cache(shared.stored.last_contact().unwrap_or(saved).max(saved));
        tracing::info!(
            instances = instances.as_ref().map_or(0, |i| i.0.len()),
            leafs = leafs.len(),
            "serving the last known state from the disk cache until the control plane answers"
        );
    }
    Cached {
        instances: instances.map(|(list, _)| list),
        policy: policy.map(|(policy, _)| policy),
        leafs: stored_leafs,
    }
}

/// Notes on disk now and then that the control plane answers: a later start from the cache tells how old it is.
async fn note_contact(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(CONTACT_NOTE).await;
        if shared.link.status().connected {
            shared.stored.touch_contact();
        }
    }
}
