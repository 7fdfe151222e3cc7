//! The daemon: starts the parts in the order in which they stand on each other, and ends them in the reverse one.
//!
//! Start: directories → own cgroup → BPF (load or adopt) → capabilities dropped → embedded control plane → services →
//! client (disk cache, then live) → maps → listeners → admin socket. Nothing is let through that a part not started
//! yet would have refused: until the maps say otherwise, the kernel denies.

mod clear;
mod egress;
mod gateways;
mod kernel;
mod learnt;
mod listeners;
mod namespaces;
mod place;
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
use tokio::{
    sync::{Notify, watch},
    task::spawn_blocking,
};

use crate::{
    admin::{
        AdminBackend, AdminError, AdminServer, Answer, CutReport, CutRequest, ExecTicket, ReloadReport,
        StatusReport,
    },
    config::{Config, ControlPlane, SameHost},
    control_plane::{
        LocalService, Status as SyncStatus, Sync, SyncHandle, Watched,
        embedded::{CheckedCa, Embedded},
    },
    datapath::{
        cgroup::Governed,
        engine::{self, Engine, Outlets},
        events,
        guards::Guards,
        names::NameReader,
    },
    dns::{self, Dns, Zones},
    identity::ServiceName,
    proxy::{self, InboundService, ProxyHandle, ProxySettings},
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
        let kernel = Kernel::new(engine, mesh.clone());
        kernel.reconcile();
        let recent = outlets.recent;
        let (listeners, sockets) = Listeners::bind(&config)?;
        listeners.hand_to_kernel(&kernel, &sockets)?;
        let proxy =
            proxy::start(ProxySettings::default(), mesh.clone(), Arc::new(outlets.flows), sockets.guard)?;
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
            namespaces: namespaces::Served::default(),
            visitor: visitor.clone(),
            guards,
            recent,
            started: Instant::now(),
            draining: AtomicBool::new(false),
            stop: Notify::new(),
            reloading: tokio::sync::Mutex::new(()),
            broken: AtomicBool::new(false),
        });
        tokio::spawn(learnt.keep(daemon.kernel.clone()));
        tokio::spawn(daemon.clone().drive());
        tokio::spawn(daemon.clone().follow_gateways());
        if let Some(visitor) = visitor {
            tokio::spawn(daemon.clone().follow_namespaces(visitor, whereabouts));
        }
        if let Some(log) = outlets.log {
            tracing::warn!("the BPF programs were built for debugging: they log each decision");
            tokio::spawn(events::follow_log(log));
        }
        tokio::spawn(daemon.clone().follow_events(outlets.events, outlets.names));
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
        learnt::Store::new(&self.config().state_dir).save(&self.kernel);
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

    /// Reads the configuration again; takes it as a whole, or changes nothing.
    async fn reload_config(&self) -> Result<ReloadReport, AdminError> {
        let _one = self.reloading.lock().await;
        let new = Config::load_with_files(self.config_path.as_deref())
            .map_err(|e| AdminError::ConfigRefused(e.to_string()))?;
        let old = self.config.load_full();
        old.diff_reloadable(&new).map_err(AdminError::RestartNeeded)?;
        let system = |e: &dyn std::fmt::Display| AdminError::System(e.to_string());
        let (embedded, ca) = self.given_ca(&new)?;
        for service in &new.services {
            self.governed.make(&services::exec_cgroup(&service.name)).map_err(|e| system(&e))?;
        }
        let mut changes = changes(&old, &new);
        {
            let (mut services, mut gateways) = (self.services(), self.gateways());
            let inbound = services.apply(&new).map_err(|e| system(&e))?;
            let served = gateways.apply(&new).map_err(|e| system(&e)).and_then(|external| {
                let all = all_inbound((&services, inbound), (&gateways, external));
                self.proxy.set_inbound(all).map_err(|e| system(&e))
            });
            if let Err(error) = served {
                // Back to what the proxy still serves.
                let _ = services.apply(&old);
                let _ = gateways.apply(&old);
                return Err(error);
            }
            changes.extend(gateways.renewed().iter().map(|name| format!("gateway {name}: other TLS files")));
            let rules = services::rules(&new, &self.own_cgroup);
            self.egress.set(&new);
            self.kernel.lock().configure(services::kernel_view(&new), rules);
            let all = all_announced(&new, &services, &gateways, &self.advertised);
            self.announce.send_replace(Arc::new(all));
        }
        if let (Some(embedded), Some(ca)) = (embedded, ca) {
            embedded.use_ca(ca).await.map_err(|e| AdminError::ConfigRefused(e.to_string()))?;
        }
        if old.log != new.log {
            self.telemetry.set_filter(&new.log).map_err(|e| system(&e))?;
        }
        self.config.store(Arc::new(new));
        self.kernel.reconcile();
        self.kernel.want_namespaces();
        tracing::info!(?changes, "the configuration was read again");
        Ok(ReloadReport { changes })
    }
}

impl Daemon {
    fn embedded(&self) -> Option<Arc<Embedded>> {
        self.embedded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the embedded server with the CA that `new` gives it, read and checked.
    fn given_ca(&self, new: &Config) -> Result<(Option<Arc<Embedded>>, Option<CheckedCa>), AdminError> {
        let embedded = self.embedded();
        let files = match &new.control_plane {
            ControlPlane::Embedded(settings) => settings.ca.as_ref(),
            _ => None,
        };
        let checked = match (&embedded, files) {
            (Some(embedded), Some(files)) => Some(embedded.check_ca(files)),
            _ => None,
        };
        let checked = checked.transpose().map_err(|e| AdminError::ConfigRefused(e.to_string()))?;
        Ok((embedded, checked))
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

/// One line for each service that came, went or changed.
fn changes(old: &Config, new: &Config) -> Vec<String> {
    let mut lines = Vec::new();
    for service in &new.services {
        match old.service(&service.name) {
            None => lines.push(format!("service {} added", service.name)),
            Some(before) if before != service => lines.push(format!("service {} changed", service.name)),
            Some(_) => {}
        }
    }
    lines.extend(
        old.services
            .iter()
            .filter(|s| new.service(&s.name).is_none())
            .map(|s| format!("service {} removed", s.name)),
    );
    if old.gateways != new.gateways {
        lines.push("gateways changed".into());
    }
    if old.exempt != new.exempt {
        lines.push("exemptions changed".into());
    }
    if old.log != new.log {
        lines.push("log changed".into());
    }
    if old.drain_deadline != new.drain_deadline {
        lines.push("drain_deadline changed".into());
    }
    lines
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

    async fn follow_events(self: Arc<Self>, ring: RingBuf<MapData>, names: NameReader) {
        let (kernel, unserved) = (self.kernel.clone(), self.kernel.clone());
        // A connect() that read the policy just before a change is seen here, once it is established.
        let opened = move |pair| {
            let engine = kernel.lock();
            if !engine.allows(pair) {
                engine.cut();
            }
        };
        let mesh = self.mesh.clone();
        let explain = move |source: &ServiceName, destination: &ServiceName| {
            mesh.load().intentions.as_ref()?.decide(source, destination).explanation()
        };
        let told = events::Told { opened, unserved: move || unserved.want_namespaces(), explain };
        if let Err(error) = events::follow(ring, names, self.recent.clone(), told).await {
            tracing::error!(%error, "the kernel's events are not read any more: stopping");
            self.broken.store(true, Relaxed);
            self.stop.notify_one();
        }
    }
}

impl AdminBackend for Daemon {
    fn status(&self) -> StatusReport {
        status::report(self)
    }

    fn prepare_exec(&self, service: ServiceName) -> Answer<'_, ExecTicket> {
        Box::pin(async move {
            let config = self.config();
            if config.service(&service).is_none() {
                let known = config.services.iter().map(|s| s.name.clone()).collect();
                return Err(AdminError::UnknownService { service, known });
            }
            let cgroup = self
                .governed
                .make(&services::exec_cgroup(&service))
                .map_err(|e| AdminError::System(e.to_string()))?;
            // The kernel knows the cgroup before the program is in it.
            self.kernel.reconcile();
            self.kernel.want_namespaces();
            if !self.kernel.lock().is_workload(&cgroup, &service) {
                let why = "the kernel does not know the cgroup yet; `meshnode status` says what is degraded";
                return Err(AdminError::System(why.into()));
            }
            Ok(ExecTicket { cgroup_procs_path: cgroup.join("cgroup.procs") })
        })
    }

    fn reload(&self) -> Answer<'_, ReloadReport> {
        Box::pin(self.reload_config())
    }

    fn cut(&self, CutRequest { service }: CutRequest) -> Answer<'_, CutReport> {
        Box::pin(async move {
            let system = |error: &dyn std::fmt::Display| AdminError::System(error.to_string());
            let (visitor, namespaces) = (self.visitor.clone(), self.namespaces.clone());
            let listing = spawn_blocking(move || clear::connections(visitor.as_ref(), &namespaces));
            let connections = listing.await.map_err(|e| system(&e))?.map_err(|e| system(&e))?;
            let uncaptured = self.kernel.lock().uncaptured(connections);
            let mut report = CutReport::default();
            for one in uncaptured {
                if service.is_some() && one.source != service && one.destination != service {
                    continue;
                }
                let status = status::uncaptured_status(self, &one);
                match clear::cut(self.visitor.as_ref(), &one).await {
                    Ok(()) => report.cut.push(status),
                    Err(error) => report.failed.push(format!("{} → {}: {error}", one.local, one.remote)),
                }
            }
            Ok(report)
        })
    }

    fn drain(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            self.stop.notify_one();
            Ok(())
        })
    }
}

/// Removes everything that outlives the daemon in the kernel.
pub fn detach(config: &Config) -> anyhow::Result<bool> {
    Ok(crate::datapath::load::detach(Path::new(&config.bpf_dir))?)
}
