//! Listeners in the network namespaces of workloads (containers, `ip netns`), there as long as a workload's process is.
//!
//! Which namespace a process is in, and the way into it, take capabilities that the daemon drops; [`Visitor`] is one
//! thread that keeps them and does nothing else. A socket keeps its namespace alive, so the listeners are closed when
//! the last of the workloads' processes is gone.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use mesh_common::map::{LISTENER_OUTBOUND4, LISTENER_OUTBOUND6};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    kernel::Kernel,
    listeners::{hand_over_names, is_absent},
    services::take_no_data_in_syn,
    visitor::{Cgroups, Visitor},
};
use crate::{
    datapath::host,
    dns::{self, Dns},
    proxy::ProxyHandle,
};

/// How often one looks without having been told: nothing tells that a process left a namespace.
const LOOK: Duration = Duration::from_secs(5);
/// Causes that come together are dealt with together; a visit that takes long is followed by a pause ten times as long.
const PAUSE: Duration = Duration::from_millis(5);
/// A namespace that could not be served is tried again after this.
const RETRY: Duration = Duration::from_secs(30);

/// The namespaces that are served, by their inode number (as in `net:[4026531840]`).
#[derive(Clone, Default)]
pub struct Served(Arc<Mutex<BTreeMap<u64, Namespace>>>);

struct Namespace {
    cookie: u64,
    listeners: Vec<SocketAddr>,
    /// Where names are answered.
    names: Vec<SocketAddr>,
}

impl Served {
    /// Role and address of each listener.
    pub fn list(&self) -> Vec<(String, String)> {
        let all = self.lock();
        let each = all.iter().flat_map(|(inode, namespace)| {
            let outbound = namespace.listeners.iter().map(|at| ("outbound", at));
            let all = outbound.chain(namespace.names.iter().map(|at| ("dns", at)));
            all.map(move |(role, at)| (format!("{role} net:[{inode}]"), at.to_string()))
        });
        each.collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Namespace>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who serves the listeners.
#[derive(Clone, Copy)]
pub struct Servers<'a> {
    pub proxy: &'a ProxyHandle,
    /// `None`: names are left alone.
    pub dns: Option<&'a Dns>,
}

/// Keeps listeners in exactly the namespaces that workloads are in; runs until dropped.
pub async fn follow(
    visitor: Visitor,
    kernel: Kernel,
    servers: Servers<'_>,
    served: Served,
) -> io::Result<()> {
    let mut starts = Starts::new()?;
    if let Err(error) = kernel.lock().serve_no_namespace() {
        tracing::error!(%error, "cannot forget the network namespaces of the daemon before");
    }
    let mut failed: HashMap<u64, Instant> = HashMap::new();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = kernel.namespaces_wanted() => {}
            started = starts.readable() => started?,
            _ = tick.tick() => {}
        }
        let cgroups = kernel.lock().workload_cgroups();
        starts.watch(&cgroups);
        let started = Instant::now();
        failed.retain(|_, at| at.elapsed() < RETRY);
        let Some(sight) = visitor.look(cgroups).await else {
            return Err(io::Error::other("the thread that enters network namespaces has ended"));
        };
        for inode in sight.elsewhere.keys() {
            if failed.contains_key(inode) || served.lock().contains_key(inode) {
                continue;
            }
            let with_names = servers.dns.is_some();
            let added = match visitor.inside(*inode, move || open(with_names)).await {
                Ok(opened) => add(&kernel, servers, &served, &visitor, *inode, opened),
                // It is gone again.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = added {
                refuse(&mut failed, *inode, &error);
            }
        }
        // `status` takes the kernel's lock and then this one, so that both must not be held here.
        let gone: Vec<_> =
            served.lock().extract_if(.., |inode, _| !sight.elsewhere.contains_key(inode)).collect();
        for (inode, namespace) in gone {
            remove(&kernel, servers, namespace.cookie);
            tracing::info!(namespace = inode, "a network namespace without workloads is left");
        }
        sleep(PAUSE.max(started.elapsed() * 10)).await;
    }
}

/// Notes that a namespace is not served for now.
fn refuse(failed: &mut HashMap<u64, Instant>, inode: u64, error: &dyn std::fmt::Display) {
    tracing::error!(
        namespace = inode,
        %error,
        retry_s = RETRY.as_secs(),
        "cannot listen in a workload's network namespace: what would be captured in it is denied"
    );
    failed.insert(inode, Instant::now());
}

/// Sockets in a namespace that was not known before.
struct Opened {
    cookie: u64,
    /// On loopback, one for each family that the namespace has.
    outbound: Vec<TcpListener>,
    names: Option<io::Result<dns::Sockets>>,
}

/// Called in the namespace.
fn open(with_names: bool) -> io::Result<Opened> {
    let outbound = listen()?;
    let names = with_names.then(dns::Sockets::bind);
    Ok(Opened { cookie: host::cookie_of(&outbound[0])?, outbound, names })
}

/// Listens on loopback of the calling thread's namespace, whether it is up yet or not.
fn listen() -> io::Result<Vec<TcpListener>> {
    let mut sockets = vec![loopback(Domain::IPV4, Ipv4Addr::LOCALHOST.into())?];
    match loopback(Domain::IPV6, Ipv6Addr::LOCALHOST.into()) {
        Ok(v6) => sockets.push(v6),
        // A namespace without IPv6: nobody in it dials IPv6.
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(sockets)
}

fn loopback(domain: Domain, ip: IpAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(domain, Type::STREAM, None)?;
    if domain == Domain::IPV4 {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    socket.listen(128)?;
    take_no_data_in_syn(&socket)?;
    Ok(socket.into())
}

fn add(
    kernel: &Kernel,
    servers: Servers<'_>,
    served: &Served,
    visitor: &Visitor,
    inode: u64,
    opened: Opened,
) -> anyhow::Result<()> {
    let Opened { cookie, outbound, names } = opened;
    let listeners =
        serve(kernel, servers.proxy, cookie, outbound).inspect_err(|_| remove(kernel, servers, cookie))?;
    tracing::info!(namespace = inode, ?listeners, "listening in a workload's network namespace");
    let names = match (names, servers.dns) {
        (Some(sockets), Some(dns)) => sockets.map_err(anyhow::Error::from).and_then(|sockets| {
            let listeners = hand_over_names(&mut kernel.lock(), cookie, &sockets)?;
            dns.add(cookie, sockets, opener(visitor.clone(), inode))?;
            Ok(listeners)
        }),
        _ => Ok(Vec::new()),
    };
    let names = names.unwrap_or_else(|error| {
        tracing::error!(
            namespace = inode,
            %error,
            "names cannot be answered in a workload's network namespace: what is asked there is not diverted"
        );
        Vec::new()
    });
    served.lock().insert(inode, Namespace { cookie, listeners, names });
    Ok(())
}

/// Opens sockets in the namespace, as long as a workload is in it.
fn opener(visitor: Visitor, inode: u64) -> dns::Opener {
    let open = move |kind: dns::Kind, count: usize| -> dns::Opening<'static> {
        let visitor = visitor.clone();
        Box::pin(
            async move { visitor.inside(inode, move || (0..count).map(|_| kind.open()).collect()).await },
        )
    };
    dns::Opener::There { open: Box::new(open), ready: dns::Ready::default() }
}

fn serve(
    kernel: &Kernel,
    proxy: &ProxyHandle,
    cookie: u64,
    sockets: Vec<TcpListener>,
) -> anyhow::Result<Vec<SocketAddr>> {
    let listeners = sockets.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
    {
        let mut engine = kernel.lock();
        for (socket, at) in sockets.iter().zip(&listeners) {
            let role = if at.is_ipv4() { LISTENER_OUTBOUND4 } else { LISTENER_OUTBOUND6 };
            engine.set_listener(cookie, role, socket)?;
        }
        engine.set_served(cookie, true)?;
    }
    proxy.add_outbound(cookie, sockets)?;
    Ok(listeners)
}

fn remove(kernel: &Kernel, servers: Servers<'_>, cookie: u64) {
    servers.proxy.remove_outbound(cookie);
    if let Some(dns) = servers.dns {
        dns.remove(cookie);
    }
    if let Err(error) = kernel.lock().set_served(cookie, false) {
        tracing::error!(%error, "cannot forget a network namespace");
    }
}

/// Tells when a workload's cgroup gets its first process, as a container's does when it starts.
struct Starts {
    inotify: AsyncFd<Inotify>,
    watched: HashMap<PathBuf, WatchDescriptor>,
}

impl Starts {
    fn new() -> io::Result<Self> {
        let inotify = Inotify::init()?;
        // SAFETY: the registration owns the descriptor.
        let inotify = unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE) }?;
        Ok(Self { inotify, watched: HashMap::new() })
    }

    /// Watches exactly `cgroups`.
    fn watch(&mut self, cgroups: &Cgroups) {
        let mut watches = self.inotify.get_ref().watches();
        self.watched.retain(|path, wd| {
            let stays = cgroups.contains_key(path);
            if !stays {
                // The kernel took it away with the cgroup.
                let _ = watches.remove(wd.clone());
            }
            stays
        });
        for path in cgroups.keys().filter(|path| !self.watched.contains_key(*path)).collect::<Vec<_>>() {
            // A cgroup that is gone; the next look does without. Too many watches: the look every few seconds remains.
            if let Ok(wd) = watches.add(path.join("cgroup.events"), WatchMask::MODIFY) {
                self.watched.insert(path.clone(), wd);
            }
        }
    }

    async fn readable(&mut self) -> io::Result<()> {
        let mut ready = self.inotify.readable_mut().await?;
        let mut buffer = [0; 4096];
        while let Ok(events) = ready.get_inner_mut().read_events(&mut buffer) {
            for event in events.filter(|event| event.mask.contains(EventMask::IGNORED)) {
                // The cgroup is gone; another one of the same path is watched anew.
                self.watched.retain(|_, wd| *wd != event.wd);
            }
        }
        ready.clear_ready();
        Ok(())
    }
}
