//! The catalog: which services there are and where their instances take mTLS, watched and put into
//! [`crate::state::MeshState`].
//!
//! One watch of the list of services; for each service one of its mTLS ends, and, while it has any, one of the
//! service itself. The watches run as tasks and report to one actor, which alone knows the whole and publishes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{
    api::{HealthEntry, ServicesAnswer},
    cache::Item,
    client::ApiError,
    join::{Found, join, preferred},
    linger::Lingering,
    link::Part,
    settings::Kind,
    sync::{Piece, Shared},
    watch::{Lines, Permits, Watch},
};
use crate::{
    catalog::{Catalog, Instance},
    identity::ServiceName,
};

const SERVICES: &str = "/v1/catalog/services";
/// Connections that watches of single services may hold at once; a Consul agent takes 200 from one address
/// (`http_max_conns_per_client`). Further services are polled.
const MAX_WATCHES: usize = 140;
/// The same for questions that are answered at once.
const MAX_ASKS: usize = 24;
/// Changes that come together are published together.
const DEBOUNCE: Duration = Duration::from_millis(5);
const MAX_DEBOUNCE: Duration = Duration::from_millis(50);

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
    listed: bool,
    /// Every service was answered for at least once; until then a publication would hide services.
    complete: bool,
    published: Option<Vec<Instance>>,
    lingering: Lingering,
    /// Runs until the first instance that lingers is given up.
    timer: Option<AbortOnDropHandle<()>>,
}

/// Keeps the catalog of `shared.state` current, for ever. `cached` is what it holds at present.
pub(super) async fn follow(shared: Arc<Shared>, cached: Option<Vec<Instance>>) {
    let (updates, mut incoming) = mpsc::channel(64);
    let _list = spawn(follow_list(Arc::clone(&shared), updates.clone()));
    let mut discovery = Discovery {
        shared,
        updates,
        lines: Arc::new(Lines::new(MAX_WATCHES, MAX_ASKS)),
        services: BTreeMap::new(),
        listed: false,
        complete: false,
        published: cached.clone(),
        lingering: Lingering::default(),
        timer: None,
    };
    for instance in cached.into_iter().flatten() {
        let entry = discovery.services.entry(instance.service.clone()).or_default();
        entry.found.get_or_insert_default().push(Found { instance, passing: true });
    }
    while let Some(update) = incoming.recv().await {
        discovery.apply(update);
        let deadline = Instant::now() + MAX_DEBOUNCE;
        loop {
            let quiet = (Instant::now() + DEBOUNCE).min(deadline);
            match tokio::time::timeout_at(quiet, incoming.recv()).await {
                Ok(Some(update)) if Instant::now() < deadline => discovery.apply(update),
                Ok(Some(update)) => {
                    discovery.apply(update);
                    break;
                }
                Ok(None) | Err(_) => break,
            }
        }
        discovery.publish();
    }
}

impl Discovery {
    fn apply(&mut self, update: Update) {
        match update {
            Update::Tick => {}
            Update::Services(names) => self.list(names),
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
                self.watch_plain(&name);
                self.join(&name);
            }
        }
    }

    /// Starts and ends watches so that there is one for each of `names`.
    fn list(&mut self, names: BTreeSet<ServiceName>) {
        self.listed = true;
        self.services.retain(|name, _| names.contains(name));
        for name in &names {
            let entry = self.services.entry(name.clone()).or_default();
            if entry.proxies_watch.is_none() {
                let path = format!("/v1/health/connect/{name}");
                let permits = if is_sidecar_of(name, &names) {
                    Permits::Never(Arc::clone(&self.lines))
                } else {
                    Permits::From(Arc::clone(&self.lines))
                };
                let watch = Watch::new(
                    &self.shared.client,
                    &self.shared.link,
                    Part::Proxies(name.clone()),
                    path,
                    permits,
                );
                entry.proxies_watch =
                    Some(spawn(follow_health(watch, name.clone(), self.updates.clone(), Update::Proxies)));
            }
        }
    }

    /// A service without mTLS ends is not in the mesh: where it is does not matter.
    fn watch_plain(&mut self, name: &ServiceName) {
        let Some(entry) = self.services.get_mut(name) else { return };
        if entry.proxies.as_ref().is_none_or(Vec::is_empty) {
            entry.plain_watch = None;
            entry.plain = None;
        } else if entry.plain_watch.is_none() {
            let path = format!("/v1/health/service/{name}");
            let permits = Permits::From(Arc::clone(&self.lines));
            let watch = Watch::new(
                &self.shared.client,
                &self.shared.link,
                Part::Service(name.clone()),
                path,
                permits,
            );
            entry.plain_watch =
                Some(spawn(follow_health(watch, name.clone(), self.updates.clone(), Update::Plain)));
        }
    }

    fn join(&mut self, name: &ServiceName) {
        let Some(entry) = self.services.get_mut(name) else { return };
        let joined = match (&entry.proxies, &entry.plain) {
            (Some(proxies), _) if proxies.is_empty() => join(name, &[], &[], ""),
            (Some(proxies), Some(plain)) => join(name, plain, proxies, &self.shared.settings.node),
            _ => return,
        };
        for reason in joined.unusable.iter().filter(|reason| !entry.unusable.contains(reason)) {
            tracing::warn!(service = %name, reason, "an instance is left out of the mesh; traffic to it is not protected");
        }
        entry.unusable = joined.unusable;
        entry.found = Some(joined.found);
        entry.live = true;
    }

    fn publish(&mut self) {
        self.complete |= self.listed && self.services.values().all(|entry| entry.found.is_some());
        if !self.complete {
            return;
        }
        let found = preferred(self.services.values().filter_map(|e| e.found.as_ref()).flatten());
        let settings = &self.shared.settings;
        let instances =
            self.lingering.with(found, &settings.node, settings.linger, std::time::Instant::now());
        self.timer = self.lingering.until().map(|until| spawn(tick(until.into(), self.updates.clone())));
        if self.published.as_ref() != Some(&instances) {
            tracing::debug!(instances = instances.len(), "catalog changed");
            let catalog = Arc::new(Catalog::new(instances.iter().cloned(), &self.shared.settings.node));
            self.shared.state.update(|mesh| mesh.catalog = Some(Arc::clone(&catalog)));
            self.shared.cache.save(Item::Catalog, instances.clone());
            self.published = Some(instances);
        }
        if self.services.values().all(|entry| entry.live) {
            self.shared.confirmed(Piece::Catalog);
        }
    }
}

/// By Consul's convention a proxy, which has no proxy itself: looked at now and then, in case it is none.
fn is_sidecar_of(name: &ServiceName, names: &BTreeSet<ServiceName>) -> bool {
    name.as_str().strip_suffix("-sidecar-proxy").is_some_and(|of| names.iter().any(|n| n.as_str() == of))
}

async fn tick(at: Instant, updates: mpsc::Sender<Update>) {
    tokio::time::sleep_until(at).await;
    // The actor outlives its timer.
    let _ = updates.send(Update::Tick).await;
}

async fn follow_health(
    mut watch: Watch,
    name: ServiceName,
    updates: mpsc::Sender<Update>,
    update: fn(ServiceName, Vec<HealthEntry>) -> Update,
) {
    loop {
        let entries = watch.next().await;
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
        if let Err(error) = sees_the_catalog(&shared).await {
            watch.rejected(&error).await;
            continue;
        }
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
        if updates.send(Update::Services(names)).await.is_err() {
            return;
        }
    }
}

/// Consul leaves out of its answers what the token may not read, without a word, and an empty catalog would mean that
/// nothing is protected. Its own service `consul` is in every catalog: who does not see that lacks permissions.
async fn sees_the_catalog(shared: &Shared) -> Result<(), ApiError> {
    if shared.settings.kind != Kind::Consul {
        return Ok(());
    }
    let path = "/v1/health/service/consul";
    let servers: Vec<HealthEntry> = shared.client.get(path).await?;
    if servers.is_empty() {
        return Err(ApiError::Forbidden {
            path: SERVICES.to_owned(),
            reason: "the service `consul` is not visible, so ACLs hide parts of the catalog; the token needs \
                     service_prefix \"\" { policy = \"read\" intentions = \"read\" } and node_prefix \"\" { policy = \"read\" }"
                .to_owned(),
            with_token: shared.settings.access.token.is_some(),
        });
    }
    Ok(())
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}
