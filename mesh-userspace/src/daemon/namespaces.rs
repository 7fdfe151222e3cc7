//! What the daemon has in the network namespaces of workloads (containers, `ip netns`): listeners, and the guard of the
//! ports that a service has there. It is there as long as a workload's process is.
//!
//! Which namespace a process is in, and the way into it, take capabilities that the daemon drops; [`Visitor`] is one
//! thread that keeps them and does nothing else. A socket keeps its namespace alive, so the sockets are closed when
//! the last of the workloads' processes is gone.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use mesh_common::map::{LISTENER_GUARD4, LISTENER_GUARD6, LISTENER_OUTBOUND4, LISTENER_OUTBOUND6};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

mod inside;
mod served;
mod starts;

use inside::{Opened, Protection, opener};
use served::Namespace;
pub use served::{Guarded, Served};
use starts::Starts;

use super::{
    kernel::{Kernel, News},
    listeners::hand_over_names,
    visitor::{Sight, Visitor},
    whereabouts::{Place, Places, Whereabouts},
};
use crate::{
    datapath::{
        elsewhere::{Elsewhere, Inhabited},
        guards::Guards,
        host,
    },
    dns::{self, Dns},
    identity::ServiceName,
    proxy::ProxyHandle,
};

/// How often one looks without having been told: nothing tells that a process left a namespace.
const LOOK: Duration = Duration::from_secs(5);
/// One looks again this soon after a first process came, and then in pauses twice as long each: what starts it may still
/// be on the way into its network namespace (`ip netns exec`, a container's runtime).
const SETTLING: Duration = Duration::from_millis(50);
/// Causes that come together are dealt with together; a visit that takes long is followed by a pause ten times as long.
const PAUSE: Duration = Duration::from_millis(5);
/// A namespace that could not be served is tried again after this.
const RETRY: Duration = Duration::from_secs(30);

/// What keeps listeners and guards in exactly the namespaces that workloads are in.
pub struct Follower<'a> {
    pub visitor: Visitor,
    pub kernel: Kernel,
    pub proxy: &'a ProxyHandle,
    /// `None`: names are left alone.
    pub dns: Option<&'a Dns>,
    pub served: Served,
    pub whereabouts: Whereabouts,
    pub guards: Guards,
    /// Namespaces in which something did not work, and when.
    pub failed: HashMap<u64, Instant>,
}

impl Follower<'_> {
    /// Runs until dropped.
    pub async fn follow(mut self) -> io::Result<()> {
        let mut starts = Starts::new()?;
        if let Err(error) = self.kernel.lock().serve_no_namespace() {
            tracing::error!(%error, "cannot forget the network namespaces of the daemon before");
        }
        let mut next = SETTLING;
        loop {
            tokio::select! {
                () = self.kernel.namespaces_wanted() => {}
                started = starts.readable() => {
                    started?;
                    next = SETTLING;
                }
                () = sleep(next) => next = LOOK.min(next * 2),
            }
            let cgroups = self.kernel.lock().workload_cgroups();
            starts.watch(&cgroups);
            let started = Instant::now();
            self.failed.retain(|_, at| at.elapsed() < RETRY);
            let Some(sight) = self.visitor.look(cgroups).await else {
                return Err(io::Error::other("the thread that enters network namespaces has ended"));
            };
            self.take_in(sight).await;
            sleep(PAUSE.max(started.elapsed() * 10)).await;
        }
    }

    async fn take_in(&mut self, sight: Sight) {
        let known_as = self.kernel.lock().protected_services();
        let protected: BTreeSet<_> = known_as.values().cloned().collect();
        for (inode, present) in &sight.elsewhere {
            if !self.failed.contains_key(inode) && !self.served.has(*inode) {
                self.enter(*inode).await;
            }
            self.protect(*inode, present.intersection(&protected).cloned().collect()).await;
        }
        for (inode, namespace) in self.served.take_gone(&sight.elsewhere) {
            namespace.gone.cancel();
            self.remove(namespace.cookie);
            tracing::info!(namespace = inode, "a network namespace without workloads is left");
        }
        self.publish(&sight, &protected, &known_as);
        // One that cannot be served now may have a guard of the daemon before.
        self.guards.keep(|inode| self.served.is_protected(inode) || self.failed.contains_key(&inode));
    }

    /// Listens for what programs in the namespace dial.
    async fn enter(&mut self, inode: u64) {
        let with_names = self.dns.is_some();
        let opened = self.visitor.inside(inode, move || Opened::open(with_names)).await;
        let added = match opened {
            Ok(opened) => self.add(inode, opened),
            // It is gone again.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = added {
            tracing::error!(
                namespace = inode,
                %error,
                retry_s = RETRY.as_secs(),
                "cannot listen in a workload's network namespace: what would be captured in it is denied"
            );
            self.failed.insert(inode, Instant::now());
        }
    }

    fn add(&self, inode: u64, opened: Opened) -> anyhow::Result<()> {
        let Opened { cookie, outbound, names } = opened;
        let listeners = self.serve(cookie, outbound).inspect_err(|_| self.remove(cookie))?;
        tracing::info!(namespace = inode, ?listeners, "listening in a workload's network namespace");
        let names = names.map_or_else(|| Ok(Vec::new()), |sockets| self.add_names(inode, cookie, sockets?));
        let names = names.unwrap_or_else(|error| {
            tracing::error!(
                namespace = inode,
                %error,
                "names cannot be answered in a workload's network namespace: what is asked there is not diverted"
            );
            Vec::new()
        });
        self.served.insert(inode, Namespace::new(cookie, listeners, names));
        Ok(())
    }

    fn add_names(&self, inode: u64, cookie: u64, sockets: dns::Sockets) -> anyhow::Result<Vec<SocketAddr>> {
        let Some(dns) = self.dns else { return Ok(Vec::new()) };
        let listeners = hand_over_names(&mut self.kernel.lock(), cookie, &sockets)?;
        dns.add(cookie, sockets, opener(self.visitor.clone(), inode))?;
        Ok(listeners)
    }

    fn serve(&self, cookie: u64, sockets: Vec<TcpListener>) -> anyhow::Result<Vec<SocketAddr>> {
        let listeners = self.hand_over(cookie, &sockets, LISTENER_OUTBOUND4, LISTENER_OUTBOUND6)?;
        self.kernel.lock().set_served(cookie, true)?;
        self.proxy.add_outbound(cookie, sockets)?;
        Ok(listeners)
    }

    /// Tells the kernel of listeners, by the roles of IPv4 and IPv6.
    fn hand_over(
        &self,
        cookie: u64,
        sockets: &[TcpListener],
        v4: u32,
        v6: u32,
    ) -> anyhow::Result<Vec<SocketAddr>> {
        let listeners = sockets.iter().map(TcpListener::local_addr).collect::<io::Result<Vec<_>>>()?;
        let mut engine = self.kernel.lock();
        for (socket, at) in sockets.iter().zip(&listeners) {
            engine.set_listener(cookie, if at.is_ipv4() { v4 } else { v6 }, socket)?;
        }
        Ok(listeners)
    }

    fn remove(&self, cookie: u64) {
        self.proxy.remove_namespace(cookie);
        if let Some(dns) = self.dns {
            dns.remove(cookie);
        }
        if let Err(error) = self.kernel.lock().set_served(cookie, false) {
            tracing::error!(%error, "cannot forget a network namespace");
        }
    }

    /// Guards the ports of `services` in the namespace, and takes in the addresses that they have there.
    async fn protect(&mut self, inode: u64, services: BTreeSet<ServiceName>) {
        let Some(cookie) = self.served.set_services(inode, &services) else { return };
        if services.is_empty() {
            self.proxy.remove_guard(cookie);
            return;
        }
        let attached = self.served.is_guarded(inode);
        let guards = (!attached && !self.failed.contains_key(&inode)).then(|| self.guards.clone());
        if let Some(guards) = guards {
            let opened = self.visitor.inside(inode, move || Protection::open(&guards, inode, cookie)).await;
            let guarded = match opened {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(error) => Err(error.into()),
                Ok(protection) => self.guard(inode, cookie, protection),
            };
            if let Err(error) = guarded {
                tracing::error!(namespace = inode, ?services, %error, retry_s = RETRY.as_secs(), "cannot guard ports in a network namespace");
                self.served.set_unguarded(inode, error.to_string());
                self.failed.insert(inode, Instant::now());
            }
        }
        if let Ok(addresses) = self.visitor.inside(inode, host::addresses).await {
            self.served.set_addresses(inode, addresses);
        }
    }

    fn guard(&self, inode: u64, cookie: u64, protection: Protection) -> anyhow::Result<()> {
        let Protection { program, listeners, news } = protection;
        self.hand_over(cookie, &listeners, LISTENER_GUARD4, LISTENER_GUARD6)?;
        self.proxy.add_guard(cookie, listeners)?;
        let kernel = self.kernel.clone();
        // SAFETY: `News` owns the descriptor, and lives inside of the registration.
        let news = unsafe { AsyncFd::register_with_interest(News(news), Interest::READABLE) }?;
        let gone = self.served.set_guarded(inode, program);
        tokio::spawn(async move {
            let follow = async {
                while let Ok(mut ready) = news.readable().await {
                    host::drain_news(&news.get_ref().0);
                    ready.clear_ready();
                    kernel.want_namespaces();
                }
            };
            gone.run_until_cancelled(follow).await;
        });
        tracing::info!(
            namespace = inode,
            program,
            "the ports of services in a network namespace are guarded"
        );
        Ok(())
    }

    /// Tells everybody where services are.
    fn publish(
        &self,
        sight: &Sight,
        protected: &BTreeSet<ServiceName>,
        known_as: &BTreeMap<ServiceName, ServiceName>,
    ) {
        let at_home: BTreeSet<_> = sight.at_home.intersection(protected).cloned().collect();
        let mut places: BTreeMap<ServiceName, Places> = BTreeMap::new();
        for service in &at_home {
            places.entry(service.clone()).or_default().at_home = true;
        }
        let mut elsewhere = Elsewhere { at_home, ..Elsewhere::default() };
        self.served.each_protected(|inode, namespace| {
            let mut addresses: Vec<IpAddr> = namespace.addresses.iter().copied().collect();
            addresses.sort();
            for service in &namespace.services {
                let place = Place { inode, addresses: addresses.clone(), gone: namespace.gone.clone() };
                places.entry(service.clone()).or_default().elsewhere.push(place);
            }
            let (services, addresses) = (namespace.services.clone(), namespace.addresses.clone());
            elsewhere.namespaces.insert(namespace.cookie, Inhabited { services, addresses });
        });
        // What they reach is guarded before they are told.
        if self.kernel.lock().set_elsewhere(elsewhere) {
            self.kernel.reconcile();
        }
        let of = |known: &ServiceName| places.get(known).cloned().unwrap_or_default();
        self.whereabouts.set(known_as.iter().map(|(name, known)| (name.clone(), of(known))).collect());
    }
}
