//! The catalog: which services there are and where their instances take mTLS, watched and put into
//! [`crate::state::MeshState`].
//!
//! For each service in scope (`scope` says which) one watch of its mTLS ends, and, while it has any, one of the service
//! itself; one of the list of services where that matters. The watches run as tasks and report to one actor, which
//! alone knows the whole and publishes it.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{
    api::{HealthEntry, ServicesAnswer},
    cache::Item,
    client::ApiError,
    join::{Found, Joined, Place, consul_ip, join, preferred},
    linger::Lingering,
    link::Part,
    scope::{Known, Listing, Scope, Watched, scope},
    settings::LocalService,
    sync::{Piece, Shared},
    watch::{Lines, Permits, Watch},
};
use crate::{
    catalog::{Catalog, Instance, VirtualIps},
    identity::ServiceName,
    intention::Intentions,
};

const SERVICES: &str = "/v1/catalog/services";
/// How often the list of services is read when it only tells whether the catalog is still too large.
const SLOW: Duration = Duration::from_secs(60);
/// Connections that watches of single services may hold at once; a Consul agent takes 200 from one address
/// (`http_max_conns_per_client`). Further services are polled.
const MAX_WATCHES: usize = 140;
/// The same for questions that are answered at once.
const MAX_ASKS: usize = 24;
/// After a publication the next one waits, so that changes that come together are published together: at least the
/// first of these, at most the second, and no more than a fifth of the time is spent with publishing.
const PAUSE: Duration = Duration::from_millis(2);
const MAX_PAUSE: Duration = Duration::from_millis(50);

enum Update {
    Services(BTreeSet<ServiceName>),
    Plain(ServiceName, Vec<HealthEntry>),
    Proxies(ServiceName, Vec<HealthEntry>),
    /// Time has passed.
    Tick,
}

/// What is known of one service.
#[derive(Default)]
struct Entry {
    plain: Option<Vec<HealthEntry>>,
    proxies: Option<Vec<HealthEntry>>,
    /// From the last complete pair of answers, or from the cache; `None` before.
    found: Option<Vec<Found>>,
    live: bool,
    /// The virtual IP that Consul itself gave it.
    consul_ip: Option<Ipv4Addr>,
    unusable: Vec<String>,
    /// What keeps `proxies` and `plain` current.
    proxies_watch: Option<AbortOnDropHandle<()>>,
    plain_watch: Option<AbortOnDropHandle<()>>,
}

struct Discovery {
    shared: Arc<Shared>,
    updates: mpsc::Sender<Update>,
    lines: Arc<Lines>,
    services: BTreeMap<ServiceName, Entry>,
    /// This host's services, and those of them that others dial.
    local: BTreeSet<ServiceName>,
    own: BTreeSet<ServiceName>,
    intentions: Option<Arc<Intentions>>,
    /// The names in the catalog; `None` before they were read, and while nothing depends on them.
    list: Option<BTreeSet<ServiceName>>,
    /// Services that are named as a sidecar's proxy is, and are none.
    suspects: BTreeSet<ServiceName>,
    listing: Listing,
    list_watch: Option<AbortOnDropHandle<()>>,
    /// Services that are or were upstreams.
    former: BTreeSet<ServiceName>,
    /// What has to be watched is known.
    planned: bool,
    /// Every service was answered for at least once; until then a publication would hide services.
    complete: bool,
    published: Option<Vec<Instance>>,
    /// Something changed since the last look at what there is to publish.
    dirty: bool,
    lingering: Lingering,
    /// Those that have virtual IPs: watched, called, or of this host.
    named: BTreeSet<ServiceName>,
    virtual_ips: VirtualIps,
    /// Runs until the first instance that lingers is given up.
    timer: Option<AbortOnDropHandle<()>>,
}

/// Keeps the catalog of `shared.state` current, for ever. `cached` is what it holds at present.
pub(super) async fn follow(
    shared: Arc<Shared>,
    mut local: watch::Receiver<Arc<Vec<LocalService>>>,
    cached: Option<Vec<Instance>>,
) {
    let (updates, mut incoming) = mpsc::channel(64);
    let mut mesh = shared.state.subscribe();
    let mut discovery = Discovery::new(shared, updates, cached);
    discovery.take_local(&local.borrow_and_update());
    discovery.take_intentions();
    loop {
        tokio::select! {
            Some(update) = incoming.recv() => discovery.apply(update),
            Ok(()) = local.changed() => discovery.take_local(&local.borrow_and_update()),
            Ok(()) = mesh.changed() => discovery.take_intentions(),
        }
        while let Ok(update) = incoming.try_recv() {
            discovery.apply(update);
        }
        let started = Instant::now();
        if discovery.publish() {
            tokio::time::sleep((started.elapsed() * 4).clamp(PAUSE, MAX_PAUSE)).await;
        }
    }
}

impl Discovery {
    fn new(shared: Arc<Shared>, updates: mpsc::Sender<Update>, cached: Option<Vec<Instance>>) -> Self {
        let mut services: BTreeMap<ServiceName, Entry> = BTreeMap::new();
        for instance in cached.iter().flatten().cloned() {
            let entry = services.entry(instance.service.clone()).or_default();
            entry.found.get_or_insert_default().push(Found { instance, passing: true });
        }
        let virtual_ips = VirtualIps::clone(&shared.state.load().virtual_ips);
        let lingering = Lingering::since(cached.as_deref().unwrap_or_default());
        Self {
            shared,
            updates,
            lines: Arc::new(Lines::new(MAX_WATCHES, MAX_ASKS)),
            services,
            local: BTreeSet::new(),
            own: BTreeSet::new(),
            intentions: None,
            list: None,
            suspects: BTreeSet::new(),
            listing: Listing::None,
            list_watch: None,
            former: BTreeSet::new(),
            planned: false,
            complete: false,
            published: cached,
            dirty: true,
            lingering,
            named: BTreeSet::new(),
            virtual_ips,
            timer: None,
        }
    }

    /// One that listened stays in scope as long as it is local: it may be draining.
    fn take_local(&mut self, services: &[LocalService]) {
        let own = services.iter().filter(|s| s.listens.is_some() || self.own.contains(&s.name));
        self.own = own.map(|s| s.name.clone()).collect();
        self.local = services.iter().map(|s| s.name.clone()).collect();
        self.plan();
    }

    fn take_intentions(&mut self) {
        let now = self.shared.state.load().intentions.clone();
        if now.as_ref().map(Arc::as_ptr) != self.intentions.as_ref().map(Arc::as_ptr) {
            self.intentions = now;
            self.plan();
        }
    }

    fn apply(&mut self, update: Update) {
        match update {
            Update::Tick => self.dirty = true,
            Update::Services(names) => {
                self.list = Some(names).filter(|_| self.listing != Listing::None);
                self.suspects.clear();
                for name in self.services.keys().cloned().collect::<Vec<_>>() {
                    self.suspect(&name);
                }
                self.plan();
            }
            Update::Plain(name, entries) => {
                if let Some(entry) = self.services.get_mut(&name) {
                    entry.plain = Some(entries);
                }
                self.join(&name);
            }
            Update::Proxies(name, entries) => {
                if let Some(entry) = self.services.get_mut(&name) {
                    entry.proxies = Some(entries);
                }
                if self.suspect(&name) {
                    self.plan();
                }
                self.watch_plain(&name);
                self.join(&name);
            }
        }
    }

    /// Looks whether what is named as the sidecar's proxy of `name` is one; returns whether that is news.
    fn suspect(&mut self, name: &ServiceName) -> bool {
        let Some(sidecar) = name.sidecar() else { return false };
        let Some(ends) = self.services.get(name).and_then(|entry| entry.proxies.as_ref()) else {
            return false;
        };
        let listed = self.list.as_ref().is_some_and(|list| list.contains(&sidecar));
        if listed && !ends.iter().any(|end| end.service.service == sidecar.as_str()) {
            self.suspects.insert(sidecar)
        } else {
            self.suspects.remove(&sidecar)
        }
    }

    /// Starts and ends watches so that there is one for each service in scope.
    fn plan(&mut self) {
        let Some(intentions) = &self.intentions else { return };
        let list = self.list.as_ref().map(|list| {
            // By Consul's convention a proxy, which has no proxy itself.
            let is_sidecar = |name: &ServiceName| name.sidecar_of().is_some_and(|of| list.contains(&of));
            let counts = |name: &&ServiceName| !is_sidecar(name) || self.suspects.contains(*name);
            list.iter().filter(counts).cloned().collect()
        });
        let scope = scope(&Known {
            intentions,
            local: &self.local,
            own: &self.own,
            list: list.as_ref(),
            former: &self.former,
            limit: self.shared.settings.catalog_limit,
        });
        self.follow_list(scope.listing);
        self.former.extend(scope.upstreams.iter().cloned());
        self.planned = !scope.incomplete;
        if self.planned {
            self.services.retain(|name, _| scope.services.contains(name));
        }
        for name in &scope.services {
            self.watch_proxies(name);
        }
        self.tell(&scope);
        self.named = scope.services.iter().chain(&scope.upstreams).chain(&self.local).cloned().collect();
        self.dirty = true;
    }

    fn follow_list(&mut self, listing: Listing) {
        if listing == self.listing {
            return;
        }
        self.listing = listing;
        self.list_watch = match listing {
            Listing::None => {
                self.list = None;
                None
            }
            Listing::Watch => Some(spawn(follow_list(Arc::clone(&self.shared), self.updates.clone()))),
            Listing::Slow => Some(spawn(poll_list(Arc::clone(&self.shared), self.updates.clone()))),
        };
    }

    /// Notes for `status` how much is watched, and in the log when that begins or ends to be a part only.
    fn tell(&self, scope: &Scope) {
        let now = Watched { services: scope.services.len(), unwatched: scope.unwatched };
        let partial = |watched: &Watched| watched.unwatched.is_some_and(|n| n > 0);
        let before = self.shared.watched.send_replace(now);
        if partial(&now) && !partial(&before) {
            tracing::warn!(
                limit = self.shared.settings.catalog_limit,
                "{} services of the catalog are not watched: a dial to one that no intention allows is refused by its \
                 own host, not here (control_plane.catalog_limit)",
                scope.unwatched.unwrap_or_default()
            );
        } else if partial(&before) && !partial(&now) {
            tracing::info!("all services of the catalog are watched again");
        }
    }

    fn watch_proxies(&mut self, name: &ServiceName) {
        let entry = self.services.entry(name.clone()).or_default();
        if entry.proxies_watch.is_some() {
            return;
        }
        // Looked at now and then, in case it is none after all.
        let seldom = self.suspects.contains(name);
        let lines = Arc::clone(&self.lines);
        let permits = if seldom { Permits::Never(lines) } else { Permits::From(lines) };
        let (path, part) = (format!("/v1/health/connect/{name}"), Part::Proxies(name.clone()));
        entry.proxies_watch = Some(spawn(follow_health(
            Arc::clone(&self.shared),
            Watch::new(&self.shared.client, &self.shared.link, part, path, permits),
            name.clone(),
            self.updates.clone(),
            Update::Proxies,
        )));
    }

    /// A service without mTLS ends is not in the mesh: where it is does not matter.
    fn watch_plain(&mut self, name: &ServiceName) {
        let Some(entry) = self.services.get_mut(name) else { return };
        if entry.proxies.as_ref().is_none_or(Vec::is_empty) {
            entry.plain_watch = None;
            entry.plain = None;
        } else if entry.plain_watch.is_none() {
            let (path, part) = (format!("/v1/health/service/{name}"), Part::Service(name.clone()));
            let permits = Permits::From(Arc::clone(&self.lines));
            entry.plain_watch = Some(spawn(follow_health(
                Arc::clone(&self.shared),
                Watch::new(&self.shared.client, &self.shared.link, part, path, permits),
                name.clone(),
                self.updates.clone(),
                Update::Plain,
            )));
        }
    }

    fn join(&mut self, name: &ServiceName) {
        let settings = &self.shared.settings;
        let place = Place { node: &settings.node, tenancy: &settings.access.tenancy };
        let Some(entry) = self.services.get_mut(name) else { return };
        let joined = match (&entry.proxies, &entry.plain) {
            (Some(proxies), _) if proxies.is_empty() => Joined::default(),
            (Some(proxies), Some(plain)) => join(name, plain, proxies, &place),
            _ => return,
        };
        for reason in joined.unusable.iter().filter(|reason| !entry.unusable.contains(reason)) {
            tracing::warn!(service = %name, reason, "an instance is left out of the mesh; traffic to it is not protected");
        }
        entry.consul_ip = entry.proxies.iter().chain(&entry.plain).flatten().find_map(consul_ip);
        entry.unusable = joined.unusable;
        self.dirty |= !entry.live || entry.found.as_ref() != Some(&joined.found);
        entry.found = Some(joined.found);
        entry.live = true;
    }

    /// Sees to it that each service has its virtual IPs, and publishes them if there are new ones.
    fn name_services(&mut self) {
        let mut given = false;
        if self.virtual_ips.are_wanted(&self.named) {
            let ranges = *self.virtual_ips.ranges();
            let instances = self.services.values().filter_map(|entry| entry.found.as_ref()).flatten();
            let addresses = instances.map(|found| found.instance.address.ip());
            let taken: HashSet<_> = addresses.filter(|ip| ranges.contains(*ip)).collect();
            given = self.virtual_ips.allocate(&self.named, |ip| taken.contains(&ip));
        }
        if given {
            self.shared.cache.save(Item::VirtualIps, self.virtual_ips.stored());
        }
        let consul = self.services.iter().filter_map(|(name, entry)| Some((entry.consul_ip?, name.clone())));
        if self.virtual_ips.set_consul(consul) || given {
            let all = Arc::new(self.virtual_ips.clone());
            self.shared.state.update(|mesh| mesh.virtual_ips = Arc::clone(&all));
        }
    }

    /// Publishes what is known, if it is the whole and differs; returns whether it did.
    fn publish(&mut self) -> bool {
        if !std::mem::take(&mut self.dirty) {
            return false;
        }
        self.name_services();
        self.complete |= self.planned && self.services.values().all(|entry| entry.found.is_some());
        if !self.complete {
            return false;
        }
        let found = preferred(self.services.values().filter_map(|e| e.found.as_ref()).flatten());
        let settings = &self.shared.settings;
        let instances =
            self.lingering.with(found, &settings.node, settings.linger, std::time::Instant::now());
        self.timer = self.lingering.until().map(|until| spawn(tick(until, self.updates.clone())));
        let changed = self.published.as_ref() != Some(&instances);
        if changed {
            tracing::debug!(instances = instances.len(), "catalog changed");
            let before = self.shared.state.load().catalog.clone().unwrap_or_default();
            let catalog = Arc::new(Catalog::after(&before, instances.iter().cloned(), &settings.node));
            self.shared.state.update(|mesh| mesh.catalog = Some(Arc::clone(&catalog)));
            self.shared.cache.save(Item::Catalog, instances.clone());
            self.published = Some(instances);
        }
        if self.planned && self.services.values().all(|entry| entry.live) {
            self.shared.confirmed(Piece::Catalog);
        }
        changed
    }
}

async fn tick(at: Instant, updates: mpsc::Sender<Update>) {
    tokio::time::sleep_until(at.into()).await;
    // The actor outlives its timer.
    let _ = updates.send(Update::Tick).await;
}

async fn follow_health(
    shared: Arc<Shared>,
    mut watch: Watch,
    name: ServiceName,
    updates: mpsc::Sender<Update>,
    update: fn(ServiceName, Vec<HealthEntry>) -> Update,
) {
    let mut seen = None;
    loop {
        let entries: Vec<HealthEntry> = watch.next().await;
        let answered = Instant::now();
        // One that lacks something may only be hidden.
        if seen.is_none_or(|seen| entries.len() < seen)
            && let Err(error) = shared.sight.clear(&shared.settings, &shared.client, answered).await
        {
            watch.rejected(&error).await;
            continue;
        }
        seen = Some(entries.len());
        if updates.send(update(name.clone(), entries)).await.is_err() {
            return;
        }
    }
}

async fn follow_list(shared: Arc<Shared>, updates: mpsc::Sender<Update>) {
    let mut watch = Watch::new(&shared.client, &shared.link, Part::Services, SERVICES, Permits::Always);
    let mut refused = BTreeSet::new();
    loop {
        let answer: ServicesAnswer = watch.next().await;
        match listed(&shared, answer, &mut refused).await {
            Ok(update) => drop(updates.send(update).await),
            Err(error) => watch.rejected(&error).await,
        }
    }
}

/// As [`follow_list`], now and then; a failure changes nothing, and shows at every other watch.
async fn poll_list(shared: Arc<Shared>, updates: mpsc::Sender<Update>) {
    let mut refused = BTreeSet::new();
    loop {
        tokio::time::sleep(SLOW.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
        let asked = async {
            let answer = shared.client.get::<ServicesAnswer>(SERVICES).await?;
            listed(&shared, answer, &mut refused).await
        };
        match asked.await {
            Ok(update) => drop(updates.send(update).await),
            Err(error) => tracing::debug!(%error, "the list of services cannot be read"),
        }
    }
}

/// Returns the names in `answer`, if nothing was hidden; `refused` are those that the log told of.
async fn listed(
    shared: &Shared,
    answer: ServicesAnswer,
    refused: &mut BTreeSet<String>,
) -> Result<Update, ApiError> {
    shared.sight.clear(&shared.settings, &shared.client, Instant::now()).await?;
    let mut names = BTreeSet::new();
    for (name, _) in answer {
        match name.parse() {
            // Consul's servers; never in the mesh.
            Ok(_) if name == "consul" => {}
            Ok(name) => drop(names.insert(name)),
            Err(error) => {
                if refused.insert(name) {
                    tracing::warn!(%error, "a service of the catalog cannot be in the mesh");
                }
            }
        }
    }
    Ok(Update::Services(names))
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
