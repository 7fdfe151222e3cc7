//! The daemon: starts the parts in the order in which they stand on each other, and ends them in the reverse one.
//!
//! Start: directories → own cgroup → BPF (load or adopt) → capabilities dropped → embedded control plane → services →
//! client (disk cache, then live) → maps → listeners → admin socket. Nothing is let through that a part not started
//! yet would have refused: until the maps say otherwise, the kernel denies.

mod admin;
mod clear;
mod direct;
mod egress;
mod gateways;
mod kernel;
mod learnt;
mod listeners;
mod namespaces;
mod place;
mod reload;
mod services;
mod signals;
mod status;
pub mod virtual_ips;
mod visitor;
mod whereabouts;

use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, TcpListener},
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Instant,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use aya::maps::{MapData, RingBuf};
use tokio::sync::{Notify, watch};

use crate::{
    admin::AdminServer,
    config::{Config, SameHost},
    control_plane::{LocalService, Status as SyncStatus, Sync, SyncHandle, Watched, embedded::Embedded},
    datapath::{
        cgroup::Governed,
        engine::{self, Engine, Outlets},
        events,
        guards::Guards,
    },
    dns::{self, Dns, Zones},
    fast_path::Probed,
    identity::ServiceName,
    proxy::{self, InboundService, PoolSettings, ProxyHandle, ProxySettings},
    state::{Mesh, MeshState},
    telemetry::{self, Telemetry},
};
pub use egress::{UNLISTED_NAME, UNTRUSTED_SERVER};
use gateways::Gateways;
use kernel::Kernel;
use listeners::Listeners;
use services::Services;
use visitor::Visitor;
use whereabouts::Whereabouts;

/// Runs the daemon until SIGTERM, SIGINT or `meshnode drain`.
pub fn run(config: Config, config_path: Option<PathBuf>) -> anyhow::Result<()> {
    let telemetry = telemetry::init(&config.log, config.log_format)?;
    make_directories(&config)?;
    place::raise_file_limit();
    let governed = Governed::find(&config.cgroup_root.to_string_lossy())?;
    let own = place::enter_own_cgroup(&governed)?;
    for service in &config.services {
        governed.make(&services::exec_cgroup(&service.name))?;
    }
    let (mut engine, outlets) = Engine::open(engine::Settings {
        bpf_dir: config.bpf_dir.clone(),
        governed: governed.clone(),
        limits: config.limits,
        node: config.node.clone(),
        same_host_mtls: config.same_host == SameHost::Mtls,
        names: services::resolving(&config),
        services: services::kernel_view(&config),
        rules: services::rules(&config, &own),
    })?;
    if !engine.adopted() {
        // Nothing is known yet: ports are guarded and workloads denied from here on, whatever fails later.
        engine.reconcile(&Mesh::default())?;
    }
    let visitor = Visitor::start();
    // The only thread there is but for the visitor's: every later one inherits what is left.
    place::drop_capabilities()?;
    let visitor = visitor
        .inspect_err(|error| {
            engine.degrade(format!(
                "network namespaces cannot be entered ({error}): workloads in others than the host's are denied the mesh"
            ));
        })
        .ok();
    for line in engine.degraded() {
        tracing::warn!("{line}");
    }
    let _written_at_the_end = telemetry.queue();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start tokio")?;
    runtime.block_on(async {
        let privileged = Privileged { governed, own_cgroup: own, engine, outlets, visitor };
        Daemon::start(config, config_path, telemetry, privileged).await?.serve().await
    })
}

/// State and runtime directories: the first is nobody else's business, the second holds sockets with modes of their own.
fn make_directories(config: &Config) -> anyhow::Result<()> {
    for (dir, mode) in [(&config.state_dir, 0o700), (&config.run_dir, 0o755)] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(dir)
            .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(mode)))
            .with_context(|| format!("cannot make directory {}", dir.display()))?;
    }
    Ok(())
}

/// What was made while all capabilities were there.
struct Privileged {
    governed: Governed,
    own_cgroup: String,
    engine: Engine,
    outlets: Outlets,
    visitor: Option<Visitor>,
}

/// Everything that runs.
pub struct Daemon {
    config: ArcSwap<Config>,
    config_path: Option<PathBuf>,
    telemetry: Telemetry,
    governed: Governed,
    own_cgroup: String,
    advertised: Vec<IpAddr>,
    mesh: MeshState,
    kernel: Kernel,
    proxy: ProxyHandle,
    /// `None`: names are left alone.
    dns: Option<Dns>,
    sync: Mutex<Option<SyncHandle>>,
    embedded: Mutex<Option<Arc<Embedded>>>,
    services: Mutex<Services>,
    egress: egress::Lists,
    /// Locked after `services`.
    gateways: Mutex<Gateways>,
    announce: watch::Sender<Arc<Vec<LocalService>>>,
    listeners: Listeners,
    namespaces: namespaces::Served,
    /// `None`: no other network namespace than the host's is served.
    visitor: Option<Visitor>,
    guards: Guards,
    probed: Probed,
    learnt: learnt::Store,
    recent: events::Recent,
    started: Instant,
    draining: AtomicBool,
    stop: Notify,
    /// One reload at a time.
    reloading: tokio::sync::Mutex<()>,
    /// A part that cannot be done without ended.
    broken: AtomicBool,
}

impl Daemon {
    async fn start(
        config: Config,
        config_path: Option<PathBuf>,
        telemetry: Telemetry,
        Privileged { governed, own_cgroup, engine, outlets, visitor }: Privileged,
    ) -> anyhow::Result<Arc<Self>> {
        let mesh = MeshState::default();
        let advertised = config.advertised();
        let main_address = *advertised.first().context(
            "this host has no address that others could use: set address.advertise (or bring an interface up)",
        )?;
        if let Some(conflict) = virtual_ips::conflicts(&config.address.virtual_ranges).into_iter().next() {
            anyhow::bail!(conflict);
        }
        let embedded = listeners::start_embedded(&config, main_address).await?;
        let whereabouts = Whereabouts::new(visitor.clone());
        let mut services = Services::new(whereabouts.clone());
        let inbound = services.apply(&config)?;
        let mut gateways = Gateways::default();
        let external = gateways.apply(&config)?;
        let local = all_announced(&config, &services, &gateways, &advertised);
        let (announce, announced) = watch::channel(Arc::new(local));
        let settings = listeners::client_settings(&config, main_address);
        // Returns when the disk cache was read: what it holds serves from here on.
        let sync = Sync::start(settings, mesh.clone(), announced)?;

        let learnt = learnt::Store::new(&config.state_dir);
        let mut engine = engine;
        engine.restore_learnt(learnt.load());
        let namespaces = namespaces::Served::default();
        let kernel = Kernel::new(engine, mesh.clone(), visitor.clone(), namespaces.clone());
        kernel.reconcile();
        let recent = outlets.recent;
        let (listeners, sockets) = Listeners::bind(&config)?;
        listeners.hand_to_kernel(&kernel, &sockets)?;
        let pool = PoolSettings { enabled: config.proxy.pool, ..PoolSettings::default() };
        let settings = ProxySettings { pool, ..ProxySettings::default() };
        let proxy = proxy::start(settings, mesh.clone(), Arc::new(outlets.flows), sockets.guard)?;
        let (host_netns, guards) = {
            let engine = kernel.lock();
            (engine.host_netns(), engine.guards())
        };
        let egress = egress::Lists::default();
        egress.set(&config);
        proxy.add_outbound(host_netns, sockets.outbound)?;
        let dns = match sockets.names {
            Some(names) => {
                let zones = Zones::new(config.dns.domains.clone(), config.dns.consul_domains.clone());
                let dns = Dns::new(zones, mesh.clone(), Box::new(outlets.queries));
                egress.connect(&dns, &kernel, recent.clone());
                dns.add(host_netns, names, dns::Opener::Here)?;
                Some(dns)
            }
            None => None,
        };
        proxy.set_inbound(all_inbound((&services, inbound), (&gateways, external)))?;
        let daemon = Arc::new(Self {
            config: ArcSwap::from_pointee(config),
            config_path,
            telemetry,
            governed,
            own_cgroup,
            advertised,
            mesh,
            kernel,
            proxy,
            dns,
            sync: Mutex::new(Some(sync)),
            embedded: Mutex::new(embedded.map(Arc::new)),
            services: Mutex::new(services),
            gateways: Mutex::new(gateways),
            egress,
            announce,
            listeners,
            namespaces,
            visitor: visitor.clone(),
            guards,
            probed: Probed::start(),
            learnt,
            recent,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            stop: Notify::new(),
            reloading: tokio::sync::Mutex::new(()),
            broken: AtomicBool::new(false),
        });
        tokio::spawn(daemon.learnt.clone().keep(daemon.kernel.clone()));
        tokio::spawn(daemon.clone().drive());
        tokio::spawn(daemon.clone().follow_gateways());
        if let Some(visitor) = visitor {
            tokio::spawn(daemon.clone().follow_namespaces(visitor, whereabouts));
        }
        if let Some(log) = outlets.log {
            tracing::warn!("the BPF programs were built for debugging: they log each decision");
            tokio::spawn(events::follow_log(log));
        }
        tokio::spawn(daemon.clone().follow_events(outlets.events));
        Ok(daemon)
    }

    /// Serves until told to stop, then drains.
    async fn serve(self: Arc<Self>) -> anyhow::Result<()> {
        let admin = AdminServer::bind(&self.config().admin_socket())?;
        let admin = tokio::spawn(admin.serve(self.clone()));
        tracing::info!(
            node = self.config().node,
            advertise = ?self.advertised,
            adopted = self.kernel.lock().adopted(),
            listeners = ?self.listeners(),
            "meshnode is ready"
        );
        signals::notify("READY=1");
        signals::until_stop(&self).await?;
        signals::notify("STOPPING=1");
        self.shut_down().await;
        admin.abort();
        anyhow::ensure!(
            !self.broken.load(Relaxed),
            "a part that cannot be done without ended; the log says why"
        );
        Ok(())
    }

    /// New flows are refused, live ones get until the deadline; what the kernel enforces stays in place.
    async fn shut_down(&self) {
        self.draining.store(true, Relaxed);
        let deadline = self.config().drain_deadline;
        tracing::info!(
            ?deadline,
            live = self.proxy.flows().live(),
            "draining; programs stay protected afterwards"
        );
        // Out of the catalog first, so that nobody dials; leafs and watches go on, so that a revocation still cuts.
        self.announce();
        self.proxy.drain(deadline).await;
        if let Some(dns) = &self.dns {
            dns.shut_down().await;
        }
        self.learnt.save(&self.kernel);
        let sync = self.sync.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(sync) = sync {
            sync.shutdown(true).await;
        }
        let embedded = self.embedded.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(embedded) = embedded {
            embedded.shutdown().await;
        }
        tracing::info!("stopped");
    }

    fn config(&self) -> arc_swap::Guard<Arc<Config>> {
        self.config.load()
    }

    fn proxy(&self) -> &ProxyHandle {
        &self.proxy
    }

    fn services(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gateways(&self) -> MutexGuard<'_, Gateways> {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the control plane what this host serves now; that is nothing while it drains.
    fn announce(&self) {
        let (services, gateways) = (self.services(), self.gateways());
        let advertised = if self.is_draining() { &[] } else { self.advertised.as_slice() };
        let all = all_announced(&self.config(), &services, &gateways, advertised);
        self.announce.send_replace(Arc::new(all));
    }

    /// How much of the catalog is watched; `None` once the daemon stops.
    fn watched(&self) -> Option<Watched> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(SyncHandle::watched)
    }

    /// `None` once the daemon stops.
    fn sync_status(&self) -> Option<SyncStatus> {
        self.sync.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(SyncHandle::status)
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// Every socket that listens: role and address.
    fn listeners(&self) -> Vec<(String, String)> {
        let mut all = self.listeners.list();
        all.extend(self.namespaces.list());
        for running in self.services().iter() {
            all.push((format!("inbound {}", running.name), format!("*:{}", running.mesh_port)));
        }
        for running in self.gateways().iter() {
            all.push((format!("inbound {}", running.config.service), format!("*:{}", running.mesh_port)));
        }
        all.sort();
        all
    }
}

impl Daemon {
    fn embedded(&self) -> Option<Arc<Embedded>> {
        self.embedded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the control plane is told of this host's services and gateways.
fn all_announced(
    config: &Config,
    services: &Services,
    gateways: &Gateways,
    advertised: &[IpAddr],
) -> Vec<LocalService> {
    let mut all = services.announced(config, advertised);
    all.extend(gateways.announced(config, advertised.first()));
    all
}

type NewListeners = HashMap<ServiceName, TcpListener>;

/// What the proxy serves, with the listeners that are new.
fn all_inbound(
    (services, inbound): (&Services, NewListeners),
    (gateways, external): (&Gateways, NewListeners),
) -> Vec<InboundService> {
    let mut all = services.inbound(inbound);
    all.extend(gateways.inbound(external));
    all
}

impl Daemon {
    /// Follows mesh, cgroups and addresses. Without it the kernel enforces what was: that is no state to go on in.
    async fn drive(self: Arc<Self>) {
        let outcome = self.kernel.clone().drive().await;
        tracing::error!(?outcome, "the BPF maps are not followed any more: stopping");
        self.broken.store(true, Relaxed);
        self.stop.notify_one();
    }

    /// Announces the gateways anew when a name resolves to other addresses.
    async fn follow_gateways(self: Arc<Self>) {
        let mut moved = self.gateways().moved();
        // What came before this looked.
        moved.mark_changed();
        while moved.changed().await.is_ok() {
            let _one = self.reloading.lock().await;
            self.announce();
        }
    }

    async fn follow_namespaces(self: Arc<Self>, visitor: Visitor, whereabouts: Whereabouts) {
        let follower = namespaces::Follower {
            visitor,
            kernel: self.kernel.clone(),
            proxy: &self.proxy,
            dns: self.dns.as_ref(),
            served: self.namespaces.clone(),
            whereabouts,
            guards: self.guards.clone(),
            failed: HashMap::new(),
        };
        if let Err(error) = follower.follow().await {
            tracing::error!(%error, "network namespaces are not followed any more: workloads in new ones are denied");
        }
    }

    async fn follow_events(self: Arc<Self>, ring: RingBuf<MapData>) {
        let [kernel, unlisted, unserved] = [(); 3].map(|()| self.kernel.clone());
        // A connect() that read the policy just before a change is seen here, once it is established.
        let allows = {
            let kernel = kernel.clone();
            move |pair| kernel.lock().allows(pair)
        };
        let mesh = self.mesh.clone();
        let explain = move |source: &ServiceName, destination: &ServiceName| {
            mesh.load().intentions.as_ref()?.decide(source, destination).explanation()
        };
        let (cut, unlisted) = (move || kernel.cut(), move |flows| unlisted.end(flows));
        let unserved = move || unserved.want_namespaces();
        let told = events::Told { allows, cut, unlisted, unserved, explain };
        if let Err(error) = events::follow(ring, self.recent.clone(), told).await {
            tracing::error!(%error, "the kernel's events are not read any more: stopping");
            self.broken.store(true, Relaxed);
            self.stop.notify_one();
        }
    }
}

/// Removes everything that outlives the daemon in the kernel.
pub fn detach(config: &Config) -> anyhow::Result<bool> {
    Ok(crate::datapath::load::detach(Path::new(&config.bpf_dir))?)
}
