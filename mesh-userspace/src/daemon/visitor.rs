//! The thread that looks into network namespaces, and opens, lists and destroys sockets there: the only one that keeps
//! `CAP_SYS_ADMIN` (to enter) and `CAP_SYS_PTRACE` (to see where a process is).
//!
//! It holds a descriptor of each namespace, other than the host's, that a process of a workload is in, from one
//! [`look`](Visitor::look) to the one that does not find any there: what keeps a namespace alive is let go with it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::mpsc,
};

use caps::Capability;
use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::place::{self, EXEC_CGROUP};
use crate::identity::ServiceName;

const KEPT: [Capability; 4] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_READ_SEARCH,
    // To destroy sockets there.
    Capability::CAP_NET_ADMIN,
];

/// The way to ask the thread; it ends when the last of these is dropped.
#[derive(Clone)]
pub struct Visitor(mpsc::Sender<Errand>);

type Errand = Box<dyn FnOnce(&mut Home) + Send>;

/// Cgroups and whose they are; `None`: nobody's, though below somebody's.
pub type Cgroups = HashMap<PathBuf, Option<ServiceName>>;

/// Where the processes of the workloads are.
#[derive(Debug, Default)]
pub struct Sight {
    /// Those who have processes in the host's network namespace.
    pub at_home: BTreeSet<ServiceName>,
    /// Inode numbers of the other network namespaces, and who is in each; nobody but programs of `meshnode exec` in some.
    pub elsewhere: BTreeMap<u64, BTreeSet<ServiceName>>,
}

impl Visitor {
    /// Starts the thread; call it before the calling thread drops its capabilities.
    ///
    /// # Errors
    /// What is missing; namespaces other than the host's cannot be served then.
    pub fn start() -> anyhow::Result<Self> {
        let (errands, asked) = mpsc::channel::<Errand>();
        let (ready, started) = mpsc::channel();
        std::thread::Builder::new().name("namespaces".into()).spawn(move || {
            let home =
                place::keep_capabilities(&KEPT).map_err(anyhow::Error::from).and_then(|()| Ok(Home::open()?));
            match home {
                Ok(mut home) => {
                    let _ = ready.send(Ok(()));
                    for errand in asked {
                        errand(&mut home);
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        started.recv()??;
        Ok(Self(errands))
    }

    /// Looks where the processes of `cgroups` are. `None`: the thread is gone.
    pub async fn look(&self, cgroups: Cgroups) -> Option<Sight> {
        self.ask(move |home| home.look(&cgroups)).await
    }

    /// Returns what `open` returns, called in the network namespace with the inode number `inode`, which the last look
    /// found. It opens sockets and does no more: the thread has capabilities that nothing else of the daemon has.
    ///
    /// # Errors
    /// Those of `open`; `NotFound`: the namespace is not there any more.
    pub async fn inside<T: Send + 'static>(
        &self,
        inode: u64,
        open: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let opened = self.ask(move |home| home.inside(inode, open)).await;
        opened.unwrap_or_else(|| Err(io::Error::other("the thread that enters network namespaces has ended")))
    }

    /// As [`inside`](Self::inside), for a thread that may block.
    ///
    /// # Errors
    /// Those of `act`; `NotFound`: the namespace is not there any more.
    pub fn inside_now<T: Send + 'static>(
        &self,
        inode: u64,
        act: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = mpsc::channel();
        let errand: Errand = Box::new(move |home| drop(answer.send(home.inside(inode, act))));
        let ended = || io::Error::other("the thread that enters network namespaces has ended");
        self.0.send(errand).map_err(|_| ended())?;
        answered.recv().map_err(|_| ended())?
    }

    async fn ask<T: Send + 'static>(
        &self,
        errand: impl FnOnce(&mut Home) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        // An asker that does not wait any more needs no answer.
        let errand: Errand = Box::new(move |home| drop(answer.send(errand(home))));
        self.0.send(errand).ok()?;
        answered.await.ok()
    }
}

/// The host's own network namespace, and the others that are known.
struct Home {
    namespace: File,
    inode: u64,
    others: BTreeMap<u64, File>,
}

impl Home {
    fn open() -> io::Result<Self> {
        let namespace = File::open("/proc/thread-self/ns/net")?;
        Ok(Self { inode: namespace.metadata()?.ino(), namespace, others: BTreeMap::new() })
    }

    fn look(&mut self, cgroups: &Cgroups) -> Sight {
        let mut found: BTreeMap<u64, BTreeSet<ServiceName>> = BTreeMap::new();
        for (cgroup, owner) in cgroups {
            let Some(owner) = owner else { continue };
            // What `meshnode exec` starts calls; it does not serve.
            let serves = !cgroup.iter().any(|part| part == EXEC_CGROUP.trim_start_matches('/'));
            for_each_process(cgroup, cgroups, &mut |pid| {
                // What ends meanwhile does not count.
                if let Some(inode) = self.know(pid) {
                    let there = found.entry(inode).or_default();
                    there.extend(serves.then(|| owner.clone()));
                }
            });
        }
        let at_home = found.remove(&self.inode).unwrap_or_default();
        self.others.retain(|inode, _| found.contains_key(inode));
        Sight { at_home, elsewhere: found }
    }

    /// Returns the inode number of the process's network namespace, which can be entered from here on.
    fn know(&mut self, pid: u32) -> Option<u64> {
        let path = format!("/proc/{pid}/ns/net");
        let inode = fs::metadata(&path).ok()?.ino();
        if inode == self.inode || self.others.contains_key(&inode) {
            return Some(inode);
        }
        // The process may have gone elsewhere since.
        let namespace = File::open(&path).ok()?;
        let inode = namespace.metadata().ok()?.ino();
        if inode != self.inode {
            self.others.insert(inode, namespace);
        }
        Some(inode)
    }

    fn inside<T>(&self, inode: u64, open: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if inode == self.inode {
            return open();
        }
        let Some(namespace) = self.others.get(&inode) else {
            return Err(io::Error::new(io::ErrorKind::NotFound, "no workload is in the network namespace"));
        };
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let opened = open();
        // Whatever happened in there, the next visit starts from home.
        setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        opened
    }
}

/// Tells of each process in the cgroup, or below it as far as no other of `cgroups` begins there.
fn for_each_process(cgroup: &Path, cgroups: &Cgroups, tell: &mut impl FnMut(u32)) {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    processes.lines().filter_map(|line| line.parse().ok()).for_each(&mut *tell);
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let path = entry.path();
        if !cgroups.contains_key(&path) {
            for_each_process(&path, cgroups, tell);
        }
    }
}
