//! The datapath at run time: owns the maps and keeps them in line with the mesh, the cgroups and the addresses.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
    net::{IpAddr, TcpListener},
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use aya::maps::{HashMap as BpfHashMap, MapData, MapError, PerCpuArray, RingBuf, SockHash};
use aya_log::EbpfLogger;
use mesh_common::{
    counter::Counter,
    dns::{DnsAlias, DnsRoute},
    flow::{FlowKey, FlowRecord},
    map::{self, ListenerKey, NAMESPACE_SERVED},
    policy::PolicyKey,
};

use super::{
    cgroup::{CgroupError, Governed, id_of, process_count},
    classify::{Classifier, WorkloadRule},
    desired::{LocalService, Seen, View, desired},
    direct::{Direct, DirectMap, Doomed, Left, monotonic},
    egress::{Kept, Learnt},
    elsewhere::Elsewhere,
    events::{KernelLog, Recent},
    flows::{self, FlowMap},
    guards::Guards,
    host,
    load::{AttachState, HOOKS, Limits, LoadError, Loaded},
    names::Names,
    queries::{self, QueryMaps},
    sock_diag,
    tables::{TableError, Tables},
    uncaptured::{self, Connection, Facts, Uncaptured},
};
use crate::{identity::ServiceName, state::Mesh};

/// What the engine needs of the configuration.
pub struct Settings {
    pub bpf_dir: PathBuf,
    pub governed: Governed,
    pub limits: Limits,
    pub node: String,
    pub same_host_mtls: bool,
    /// How names are resolved: `SETTINGS_DNS*`.
    pub names: u32,
    pub services: Vec<LocalService>,
    pub rules: Vec<WorkloadRule>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error("map {name}: {source}")]
    Map { name: &'static str, source: MapError },
    #[error("cannot {op}: {source}")]
    Io { op: &'static str, source: io::Error },
}

/// Owns everything that user space has of the kernel side.
pub struct Engine {
    loaded: Loaded,
    tables: Tables,
    names: Names,
    /// What the maps were made from.
    seen: Seen,
    classifier: Classifier,
    direct: DirectMap,
    pending: BpfHashMap<MapData, FlowKey, FlowRecord>,
    listeners: SockHash<MapData, ListenerKey>,
    dns_routes: BpfHashMap<MapData, DnsAlias, DnsRoute>,
    namespaces: BpfHashMap<MapData, u64, u64>,
    counters: PerCpuArray<MapData, u64>,
    addresses: HashSet<IpAddr>,
    elsewhere: Option<Elsewhere>,
    netns: u64,
    node: String,
    services: Vec<LocalService>,
    same_host_mtls: bool,
    /// What the daemon's DNS told `mesh-only` workloads.
    learnt: Learnt,
    resolving: u32,
    degraded: Vec<String>,
    /// Why the maps could not be written last time.
    trouble: Option<String>,
}

/// What the engine hands out once.
pub struct Outlets {
    pub flows: FlowMap,
    pub queries: QueryMaps,
    pub events: RingBuf<MapData>,
    /// What the programs log, if they were built with `cargo xtask build-ebpf --debug`.
    pub log: Option<KernelLog>,
    /// The newest events, once `events::follow` runs.
    pub recent: Recent,
}

/// A workload's cgroup as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadCgroup {
    pub service: Option<ServiceName>,
    pub cgroup: String,
    pub processes: usize,
    pub mesh_only: bool,
}

impl Engine {
    /// Loads or adopts the BPF side. Nothing is written to the maps before [`reconcile`](Self::reconcile).
    pub fn open(settings: Settings) -> Result<(Self, Outlets), EngineError> {
        let netns =
            host::netns_cookie().map_err(|source| EngineError::Io { op: "read SO_NETNS_COOKIE", source })?;
        let addresses =
            host::addresses().map_err(|source| EngineError::Io { op: "list addresses", source })?;
        let mut loaded = Loaded::open(&settings.bpf_dir, &settings.governed, settings.limits, netns)?;
        let tables = Tables::open(&mut loaded.ebpf)?;
        let names = Names::adopt(tables.names());
        let classifier = Classifier::new(settings.governed.clone(), settings.rules)
            .map_err(|source| EngineError::Io { op: "scan the cgroups", source })?;
        let recent = Recent::new(names.reader());
        let outlets = Outlets {
            recent: recent.clone(),
            log: EbpfLogger::init(&mut loaded.ebpf).ok(),
            flows: FlowMap::new(pinned(&loaded, map::FLOWS)?, names.reader()),
            queries: QueryMaps::new(dns_routes(&loaded)?, pinned(&loaded, map::FLOWS)?, names.reader()),
            events: typed(&mut loaded, map::EVENTS)?,
        };
        let mut degraded = Vec::new();
        let mut same_host_mtls = settings.same_host_mtls;
        if !sock_diag::can_destroy() {
            same_host_mtls = true;
            degraded.push("this kernel cannot destroy sockets (CONFIG_INET_DIAG_DESTROY): flows on one host go through the proxy, so that a revoked intention can cut them".into());
        }
        for (name, size) in loaded.outsized(settings.limits) {
            degraded.push(format!("map {name} was pinned with {size} entries, not as [limits] says: `meshnode detach` before a start applies it"));
        }
        if !settings.governed.is_whole_machine() {
            degraded.push(format!(
                "only programs below cgroup {} are governed",
                settings.governed.path().display()
            ));
        }
        let engine = Self {
            direct: DirectMap::new(typed(&mut loaded, map::DIRECT)?, names.reader(), recent.clone()),
            pending: typed(&mut loaded, map::FLOWS)?,
            listeners: typed(&mut loaded, map::LISTENERS)?,
            dns_routes: dns_routes(&loaded)?,
            namespaces: typed(&mut loaded, map::NAMESPACES)?,
            counters: typed(&mut loaded, map::COUNTERS)?,
            loaded,
            tables,
            names,
            seen: Seen::nothing(),
            classifier,
            addresses,
            elsewhere: None,
            netns,
            node: settings.node,
            services: settings.services,
            same_host_mtls,
            learnt: Learnt::default(),
            resolving: settings.names,
            degraded,
            trouble: None,
        };
        Ok((engine, outlets))
    }

    /// Whether an earlier daemon's maps, filled, were taken over.
    pub fn adopted(&self) -> bool {
        self.loaded.adopted && self.tables.were_filled()
    }

    /// Whether a process in `cgroup` is known to the kernel as `service`.
    pub fn is_workload(&self, cgroup: &Path, service: &ServiceName) -> bool {
        id_of(cgroup).is_ok_and(|id| {
            let known = self.classifier.matched().get(&id);
            known.is_some_and(|c| c.service.as_ref() == Some(service)) && self.tables.has_workload(id)
        })
    }

    pub fn classifier_mut(&mut self) -> &mut Classifier {
        &mut self.classifier
    }

    /// The cookie of the host's own network namespace.
    pub fn host_netns(&self) -> u64 {
        self.netns
    }

    /// Makes `listener` the one that connections of `role` (`LISTENER_*`) in the network namespace are steered to, until
    /// it is closed.
    pub fn set_listener(&mut self, netns: u64, role: u32, listener: &TcpListener) -> Result<(), EngineError> {
        let key = ListenerKey { netns, role, pad: 0 };
        self.listeners
            .insert(key, listener.as_raw_fd(), 0)
            .map_err(|source| EngineError::Map { name: map::LISTENERS, source })
    }

    /// Notes that the daemon listens in a network namespace, other than the host's, or no longer does.
    pub fn set_served(&mut self, netns: u64, served: bool) -> Result<(), EngineError> {
        let changed = if served {
            self.namespaces.insert(netns, NAMESPACE_SERVED, 0)
        } else {
            match self.namespaces.remove(&netns) {
                Err(MapError::KeyNotFound) => Ok(()),
                removed => removed,
            }
        };
        changed.map_err(|source| EngineError::Map { name: map::NAMESPACES, source })
    }

    /// Forgets the namespaces of an earlier daemon.
    pub fn serve_no_namespace(&mut self) -> Result<(), EngineError> {
        self.forget_namespaces(|_| true)
    }

    fn forget_namespaces(&mut self, which: impl Fn(u64) -> bool) -> Result<(), EngineError> {
        let entries = self.namespaces.iter().filter_map(Result::ok);
        let left: Vec<u64> = entries.filter(|(_, value)| which(*value)).map(|(netns, _)| netns).collect();
        left.into_iter().try_for_each(|netns| self.set_served(netns, false))
    }

    /// The cgroups whose processes, and what is below them, are of a workload, or exempt.
    pub fn workload_cgroups(&self) -> HashMap<PathBuf, Option<ServiceName>> {
        let matched = self.classifier.matched().values();
        matched.map(|c| (c.path.clone(), c.service.clone())).collect()
    }

    /// The services whose port is protected, and what their programs are known as.
    pub fn protected_services(&self) -> BTreeMap<ServiceName, ServiceName> {
        let protected = self.services.iter().filter(|s| s.port.is_some());
        protected.map(|s| (s.name.clone(), s.known_as.clone())).collect()
    }

    /// Takes in where services are besides the host's network namespace; takes effect with the next
    /// [`reconcile`](Self::reconcile). Returns whether it is news.
    pub fn set_elsewhere(&mut self, elsewhere: Elsewhere) -> bool {
        let news = self.elsewhere.as_ref() != Some(&elsewhere);
        self.elsewhere = Some(elsewhere);
        news
    }

    /// Whether the kernel connects two workloads of this host by itself.
    pub fn connects_one_host(&self) -> bool {
        !self.same_host_mtls
    }

    /// The way to guard other network namespaces.
    pub fn guards(&self) -> Guards {
        self.loaded.guards()
    }

    /// Applies another configuration; takes effect with the next [`reconcile`](Self::reconcile).
    pub fn configure(&mut self, services: Vec<LocalService>, rules: Vec<WorkloadRule>) {
        self.services = services;
        self.classifier.set_rules(rules);
    }

    /// Re-reads the host's addresses.
    pub fn refresh_addresses(&mut self) -> Result<(), EngineError> {
        self.addresses =
            host::addresses().map_err(|source| EngineError::Io { op: "list addresses", source })?;
        Ok(())
    }

    /// Writes into the maps what follows from `mesh`, then [cuts](Self::cut) direct flows that are not allowed any more.
    pub fn reconcile(&mut self, mesh: &Mesh) -> Result<Left, EngineError> {
        let view = View {
            node: &self.node,
            services: &self.services,
            workloads: self.classifier.matched(),
            classified_up_to: self.classifier.classified_up_to(),
            addresses: &self.addresses,
            elsewhere: self.elsewhere.as_ref(),
            host_netns: self.netns,
            same_host_mtls: self.same_host_mtls,
            learnt: &self.learnt,
            resolving: self.resolving,
            mesh,
        };
        let (desired, names) = desired(&view, &mut self.names, &mut self.seen);
        let applied = self.tables.apply(desired, names, Instant::now());
        if applied.is_err() || !self.tables.is_settled() {
            self.seen.forget();
        }
        self.trouble = applied.as_ref().err().map(ToString::to_string);
        applied?;
        self.loaded.retire_other_schemas();
        let left = self.cut();
        Ok(Left { again: left.again || self.tables.shrunk(), ..left })
    }

    /// Lets `service`, if it is `mesh-only` and its list has `name`, reach `addresses`, as it is about to be told, for `ttl`
    /// (a minute at least). What finds no room is denied.
    pub fn let_reach(&mut self, service: &ServiceName, name: &str, addresses: &[IpAddr], ttl: Duration) {
        let Some(local) = self.services.iter().find(|s| s.mesh_only && s.name == *service) else { return };
        let Some(id) = self.names.id(service) else { return };
        if !local.egress.iter().any(|rule| rule.is_for(name)) {
            return;
        }
        let now = Instant::now();
        for address in addresses.iter().map(IpAddr::to_canonical) {
            let noted = self.learnt.note(service, name, address, ttl, now);
            let entry = self.learnt.entry(id, service, &local.egress, address).filter(|_| noted);
            if !entry.is_some_and(|(subject, rules)| self.tables.egress.write(subject, rules)) {
                tracing::warn!(%service, name, %address, "no room for an address that the list allows: it is denied");
            }
        }
    }

    /// What was learnt, to be kept for the next daemon, if it has changed since this was called last.
    pub fn learnt_changes(&mut self) -> Option<Vec<Kept>> {
        self.learnt.changes(Instant::now(), SystemTime::now())
    }

    /// Says that what [`learnt_changes`](Self::learnt_changes) returned last was not kept: it is told again.
    pub fn learnt_not_kept(&mut self) {
        self.learnt.not_kept();
    }

    /// Takes over what an earlier daemon had learnt; call it before the first [`reconcile`](Self::reconcile), which removes
    /// from the kernel what is not known.
    pub fn restore_learnt(&mut self, kept: Vec<Kept>) {
        self.learnt.restore(kept, Instant::now(), SystemTime::now());
    }

    pub fn allows(&self, pair: PolicyKey) -> bool {
        self.tables.allows(pair)
    }

    /// Cuts direct flows that are not allowed any more, in the host's network namespace; returns what is left to do.
    pub fn cut(&self) -> Left {
        self.direct.cut(self.netns, |key| self.tables.allows(key))
    }

    /// Whether the connection with the socket cookie is a direct flow.
    pub fn has_direct_flow(&self, cookie: u64) -> bool {
        self.direct.contains(cookie)
    }

    /// Removes records of connections that never came to be. Returns direct flows that there is no room for any more.
    #[must_use]
    pub fn sweep(&mut self) -> Vec<Doomed> {
        // The reconcile that follows takes their entries out of the map.
        self.learnt.expire(Instant::now());
        let unlisted = self.direct.sweep();
        // Those that are not served; who is still in one is told of again. What stays until the next sweep does no harm.
        let _ = self.forget_namespaces(|value| value != NAMESPACE_SERVED);
        queries::sweep(&mut self.dns_routes, monotonic());
        let lost = flows::sweep(&mut self.pending, monotonic());
        if lost > 0 {
            tracing::warn!(lost, "captured connections that the listener never accepted");
        }
        unlisted
    }

    /// Asks the kernel what is in effect at each hook: program, hook, state, details.
    pub fn attachments(&self) -> Vec<(&'static str, &'static str, AttachState, String)> {
        HOOKS
            .iter()
            .map(|hook| {
                let (state, detail) = self.loaded.verify(hook);
                (hook.program, hook.name, state, detail)
            })
            .collect()
    }

    /// Returns the cgroups that are workloads or exempt.
    pub fn workloads(&self, governed: &Governed) -> Vec<WorkloadCgroup> {
        let mut all: Vec<_> = self
            .classifier
            .matched()
            .values()
            .map(|c| WorkloadCgroup {
                service: c.service.clone(),
                cgroup: governed.relative(&c.path),
                processes: process_count(&c.path),
                mesh_only: c.flags & mesh_common::policy::WORKLOAD_MESH_ONLY != 0,
            })
            .collect();
        // The ones with programs first.
        let key = |w: &WorkloadCgroup| (w.service.clone(), w.processes == 0, w.cgroup.clone());
        all.sort_by_key(key);
        all
    }

    /// Returns the direct flows; the counters of those in other network namespaces than the host's are not filled in.
    pub fn direct_flows(&self) -> Vec<Direct> {
        self.direct.list(self.netns)
    }

    /// Returns those of `connections` that are in clear and would be the mesh's, had they been opened now.
    pub fn uncaptured(&self, connections: Vec<Connection>) -> Vec<Uncaptured> {
        let names = self.names.reader();
        let facts = Facts {
            tables: &self.tables,
            classifier: &self.classifier,
            direct: &|cookie| self.direct.contains(cookie),
            name: &|id| names.name(id),
        };
        uncaptured::judge(&facts, connections)
    }

    /// Returns how many captured connections wait for `accept()`.
    pub fn pending_flows(&self) -> usize {
        self.pending.keys().filter_map(Result::ok).count()
    }

    /// Returns the kernel's counters, summed over the CPUs.
    pub fn counters(&self) -> Vec<(Counter, u64)> {
        Counter::ALL
            .iter()
            .map(|c| {
                let values = self.counters.get(&(*c as u32), 0);
                (*c, values.map_or(0, |values| values.iter().sum()))
            })
            .collect()
    }

    /// Notes something that does not work as it should, for good.
    pub fn degrade(&mut self, line: String) {
        self.degraded.push(line);
    }

    /// Returns what does not work as it should, in words for people.
    pub fn degraded(&self) -> Vec<String> {
        let gone =
            self.attachments().into_iter().filter(|(_, _, state, _)| *state != AttachState::Attached).map(
                |(_, hook, _, detail)| {
                    format!(
                        "{hook} is not in effect ({detail}): programs may bypass the mesh; restart the daemon"
                    )
                },
            );
        let missed = self.classifier.missed().map(|why| {
            format!("cgroups may have been missed ({why}): programs in new ones are denied the mesh")
        });
        let trouble = self.trouble.as_ref().map(|why| format!("the BPF maps are out of date: {why}"));
        let full = self
            .tables
            .incomplete()
            .iter()
            .map(|name| format!("map {name} is full: what it lacks is denied"));
        gone.chain(missed).chain(trouble).chain(self.degraded.iter().cloned()).chain(full).collect()
    }
}

/// How often the daemon calls [`Engine::sweep`].
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

fn typed<T: TryFrom<aya::maps::Map, Error = MapError>>(
    loaded: &mut Loaded,
    name: &'static str,
) -> Result<T, EngineError> {
    let map = loaded.ebpf.take_map(name).ok_or(TableError::Missing(name))?;
    T::try_from(map).map_err(|source| EngineError::Map { name, source })
}

fn dns_routes(loaded: &Loaded) -> Result<BpfHashMap<MapData, DnsAlias, DnsRoute>, EngineError> {
    let failed = |source| EngineError::Map { name: map::DNS_ROUTES, source };
    BpfHashMap::try_from(aya::maps::Map::HashMap(pinned(loaded, map::DNS_ROUTES)?)).map_err(failed)
}

/// A second handle of a pinned map.
fn pinned(loaded: &Loaded, name: &'static str) -> Result<MapData, EngineError> {
    MapData::from_pin(loaded.map_pin(name)).map_err(|source| EngineError::Map { name, source })
}
