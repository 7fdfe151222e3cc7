//! The thread that looks into network namespaces and opens sockets there: the only one that keeps `CAP_SYS_ADMIN` (to
//! enter) and `CAP_SYS_PTRACE` (to see where a process is).

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    sync::mpsc,
};

use caps::Capability;
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Socket, Type};
use tokio::sync::oneshot;

use super::{listeners::is_absent, place, services::take_no_data_in_syn};
use crate::datapath::host;

const KEPT: [Capability; 3] =
    [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_PTRACE, Capability::CAP_DAC_READ_SEARCH];

/// The way to ask the thread; it ends when this is dropped.
pub struct Visitor(mpsc::Sender<Ask>);

struct Ask {
    cgroups: Vec<PathBuf>,
    known: HashSet<u64>,
    answer: oneshot::Sender<Visit>,
}

/// What the thread found.
pub struct Visit {
    /// Inode numbers of the network namespaces, other than the host's, that processes of the cgroups are in.
    pub present: HashSet<u64>,
    pub opened: Vec<Opened>,
    pub failed: Vec<(u64, String)>,
}

/// Listeners in a namespace that was not known before.
pub struct Opened {
    pub inode: u64,
    pub cookie: u64,
    /// On loopback, one for each family that the namespace has.
    pub sockets: Vec<TcpListener>,
}

impl Visitor {
    /// Starts the thread; call it before the calling thread drops its capabilities.
    ///
    /// # Errors
    /// What is missing; namespaces other than the host's cannot be served then.
    pub fn start() -> anyhow::Result<Self> {
        let (asks, asked) = mpsc::channel::<Ask>();
        let (ready, started) = mpsc::channel();
        std::thread::Builder::new().name("namespaces".into()).spawn(move || {
            let home =
                place::keep_capabilities(&KEPT).map_err(anyhow::Error::from).and_then(|()| Ok(Home::open()?));
            match home {
                Ok(home) => {
                    let _ = ready.send(Ok(()));
                    for Ask { cgroups, known, answer } in asked {
                        // An asker that does not wait any more needs no answer.
                        let _ = answer.send(home.visit(&cgroups, &known));
                    }
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        started.recv()??;
        Ok(Self(asks))
    }

    /// Looks where the processes of `cgroups` are, and opens listeners in the namespaces that are not `known`. `None`:
    /// the thread is gone.
    pub async fn visit(&self, cgroups: Vec<PathBuf>, known: HashSet<u64>) -> Option<Visit> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Ask { cgroups, known, answer }).ok()?;
        answered.await.ok()
    }
}

/// The host's own network namespace.
struct Home {
    namespace: File,
    inode: u64,
}

impl Home {
    fn open() -> io::Result<Self> {
        let namespace = File::open("/proc/thread-self/ns/net")?;
        Ok(Self { inode: namespace.metadata()?.ino(), namespace })
    }

    fn visit(&self, cgroups: &[PathBuf], known: &HashSet<u64>) -> Visit {
        let mut found = HashMap::new();
        for cgroup in cgroups {
            namespaces_of(cgroup, &mut found);
        }
        found.remove(&self.inode);
        let mut visit =
            Visit { present: found.keys().copied().collect(), opened: Vec::new(), failed: Vec::new() };
        for (inode, pid) in found.into_iter().filter(|(inode, _)| !known.contains(inode)) {
            match self.open_in(inode, pid) {
                Ok(opened) => visit.opened.extend(opened),
                Err(error) => visit.failed.push((inode, error.to_string())),
            }
        }
        visit
    }

    /// `None`: the process is gone, or has gone elsewhere.
    fn open_in(&self, inode: u64, pid: u32) -> io::Result<Option<Opened>> {
        let Ok(namespace) = File::open(format!("/proc/{pid}/ns/net")) else { return Ok(None) };
        if namespace.metadata()?.ino() != inode {
            return Ok(None);
        }
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let opened = listen();
        // Whatever happened in there, the next visit starts from home.
        setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let (cookie, sockets) = opened?;
        Ok(Some(Opened { inode, cookie, sockets }))
    }
}

/// Notes a process for each network namespace that processes of the cgroup, or below it, are in. What ends meanwhile
/// does not count.
fn namespaces_of(cgroup: &Path, found: &mut HashMap<u64, u32>) {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse::<u32>().ok()) {
        if let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/net")) {
            found.insert(namespace.ino(), pid);
        }
    }
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        namespaces_of(&entry.path(), found);
    }
}

/// Listens on loopback of the calling thread's namespace, whether it is up yet or not.
fn listen() -> io::Result<(u64, Vec<TcpListener>)> {
    let v4 = loopback(Domain::IPV4, Ipv4Addr::LOCALHOST.into())?;
    let cookie = host::cookie_of(&v4)?;
    let mut sockets = vec![v4];
    match loopback(Domain::IPV6, Ipv6Addr::LOCALHOST.into()) {
        Ok(v6) => sockets.push(v6),
        // A namespace without IPv6: nobody in it dials IPv6.
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(error),
    }
    Ok((cookie, sockets))
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
