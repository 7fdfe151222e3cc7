//! The namespaces that are served, as `status` and the one that follows them see them.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::{datapath::uncaptured, identity::ServiceName};

/// By inode number (as in `net:[4026531840]`).
#[derive(Clone, Default)]
pub struct Served(Arc<Mutex<BTreeMap<u64, Namespace>>>);

/// One of them.
pub struct Namespace {
    pub cookie: u64,
    listeners: Vec<SocketAddr>,
    /// Where names are answered.
    names: Vec<SocketAddr>,
    /// Those with a port that are in it.
    pub services: BTreeSet<ServiceName>,
    /// Its own addresses, loopback not included, if services are in it.
    pub addresses: HashSet<IpAddr>,
    guard: Guard,
    /// Cancelled when it is left.
    pub gone: CancellationToken,
}

enum Guard {
    None,
    /// The id of the program.
    Attached(u32),
    Failed(String),
}

/// A namespace whose ports are guarded.
pub struct Guarded {
    pub inode: u64,
    pub services: BTreeSet<ServiceName>,
    /// The id of the program; or why there is none.
    pub program: Result<u32, String>,
}

impl Namespace {
    pub fn new(cookie: u64, listeners: Vec<SocketAddr>, names: Vec<SocketAddr>) -> Self {
        Self {
            cookie,
            listeners,
            names,
            services: BTreeSet::new(),
            addresses: HashSet::new(),
            guard: Guard::None,
            gone: CancellationToken::new(),
        }
    }
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

    /// The namespaces with services, and how these are guarded there.
    pub fn guarded(&self) -> Vec<Guarded> {
        let all = self.lock();
        let with_services = all.iter().filter(|(_, namespace)| !namespace.services.is_empty());
        let each = with_services.map(|(inode, namespace)| Guarded {
            inode: *inode,
            services: namespace.services.clone(),
            program: match &namespace.guard {
                Guard::Attached(program) => Ok(*program),
                Guard::Failed(why) => Err(why.clone()),
                Guard::None => Err("not yet".into()),
            },
        });
        each.collect()
    }

    /// All of them.
    pub fn each(&self) -> Vec<uncaptured::Namespace> {
        let all = self.lock();
        all.iter().map(|(inode, n)| uncaptured::Namespace { inode: *inode, cookie: n.cookie }).collect()
    }

    /// Returns the inode number of the one with the cookie.
    pub fn inode(&self, cookie: u64) -> Option<u64> {
        let all = self.lock();
        all.iter().find(|(_, namespace)| namespace.cookie == cookie).map(|(inode, _)| *inode)
    }

    pub fn has(&self, inode: u64) -> bool {
        self.lock().contains_key(&inode)
    }

    pub fn insert(&self, inode: u64, namespace: Namespace) {
        self.lock().insert(inode, namespace);
    }

    /// Takes out those that are not `present`.
    pub fn take_gone<V>(&self, present: &BTreeMap<u64, V>) -> Vec<(u64, Namespace)> {
        self.lock().extract_if(.., |inode, _| !present.contains_key(inode)).collect()
    }

    /// Notes whose ports are to be guarded, and returns the cookie; `None`: it is not served. Without any the guard is no
    /// longer counted on.
    pub fn set_services(&self, inode: u64, services: &BTreeSet<ServiceName>) -> Option<u64> {
        let mut all = self.lock();
        let namespace = all.get_mut(&inode)?;
        if services.is_empty() {
            namespace.guard = Guard::None;
            namespace.addresses.clear();
        }
        namespace.services.clone_from(services);
        Some(namespace.cookie)
    }

    pub fn is_guarded(&self, inode: u64) -> bool {
        self.lock().get(&inode).is_some_and(|namespace| matches!(namespace.guard, Guard::Attached(_)))
    }

    /// Whether services are in it.
    pub fn is_protected(&self, inode: u64) -> bool {
        self.lock().get(&inode).is_some_and(|namespace| !namespace.services.is_empty())
    }

    /// Notes the guard's program, and returns what is cancelled when the namespace is left.
    pub fn set_guarded(&self, inode: u64, program: u32) -> CancellationToken {
        let mut all = self.lock();
        let Some(namespace) = all.get_mut(&inode) else { return CancellationToken::new() };
        namespace.guard = Guard::Attached(program);
        namespace.gone.clone()
    }

    pub fn set_unguarded(&self, inode: u64, why: String) {
        if let Some(namespace) = self.lock().get_mut(&inode) {
            namespace.guard = Guard::Failed(why);
        }
    }

    pub fn set_addresses(&self, inode: u64, addresses: HashSet<IpAddr>) {
        if let Some(namespace) = self.lock().get_mut(&inode) {
            namespace.addresses = addresses;
        }
    }

    pub fn each_protected(&self, mut tell: impl FnMut(u64, &Namespace)) {
        let all = self.lock();
        all.iter().filter(|(_, n)| !n.services.is_empty()).for_each(|(inode, n)| tell(*inode, n));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Namespace>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
