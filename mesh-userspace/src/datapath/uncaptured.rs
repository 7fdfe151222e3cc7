//! Connections of the mesh's services that the mesh does not carry: opened before the daemon (or the catalog) knew of
//! them, and still in clear. The hooks act on `connect()`, so nothing but the sockets themselves tells of these.

use std::{collections::HashMap, io, net::SocketAddr, path::PathBuf};

use mesh_common::{addr::Endpoint, policy::ServiceId};

pub use super::sock_diag::{Connection, Namespace, established};
use super::{classify::Classifier, sock_diag, tables::Tables};
use crate::identity::ServiceName;

/// Which end of the connection is here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// A workload's program dialled a remote instance.
    Outbound,
    /// Somebody outside dialled a protected port.
    Inbound,
    /// Both ends are on this host.
    Local,
}

/// A connection in clear that would be the mesh's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uncaptured {
    pub end: End,
    /// The calling service; `None` for a caller that is no workload, or on another host.
    pub source: Option<ServiceName>,
    pub destination: Option<ServiceName>,
    /// The cgroup that the socket was made in.
    pub cgroup: Option<PathBuf>,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// With the two ends, what destroys it.
    connection: Connection,
}

/// What is asked of the rest of the engine.
pub(super) struct Facts<'a> {
    pub tables: &'a Tables,
    pub classifier: &'a Classifier,
    /// Cookies of the connections that the kernel let through as direct flows.
    pub direct: &'a dyn Fn(u64) -> bool,
    pub name: &'a dyn Fn(ServiceId) -> Option<ServiceName>,
}

impl Uncaptured {
    /// Where it is, if not in the host's network namespace.
    pub fn namespace(&self) -> Option<Namespace> {
        self.connection.namespace
    }

    /// Destroys it: its program sees `ECONNABORTED`, its peer a reset. Call it in its network namespace.
    ///
    /// # Errors
    /// The kernel's; that it ended by itself meanwhile is none.
    pub fn cut(&self) -> io::Result<()> {
        let Connection { local, remote, cookie, .. } = self.connection;
        match sock_diag::destroy(local, remote, cookie) {
            Err(gone) if gone.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }
}

/// Picks the uncaptured ones of [`established`].
pub(super) fn judge(facts: &Facts<'_>, connections: Vec<Connection>) -> Vec<Uncaptured> {
    let cgroups = facts.classifier.by_id();
    connections.into_iter().filter_map(|connection| judge_one(facts, &cgroups, connection)).collect()
}

fn judge_one(
    facts: &Facts<'_>,
    cgroups: &HashMap<u64, &PathBuf>,
    connection: Connection,
) -> Option<Uncaptured> {
    let Connection { local, remote, cookie, cgroup, namespace } = connection;
    let netns = namespace.map(|namespace| namespace.cookie);
    let here = |end: &Endpoint| end.addr.is_loopback() || facts.tables.is_own(netns, end.addr);
    let path = cgroups.get(&cgroup).map(|path| PathBuf::clone(path));
    let owner = path.as_deref().and_then(|path| facts.classifier.workload_of(path));
    let exempt = owner.is_some_and(|owner| owner.service.is_none());
    if exempt {
        return None;
    }
    let source = owner.and_then(|owner| owner.service.clone());
    let (end, source, destination) = if here(&remote) {
        // From its other end it is the service's own.
        let destination = facts.tables.guarded(netns, remote.port).filter(|_| !(facts.direct)(cookie))?;
        (End::Local, source, destination)
    } else if here(&local)
        && let Some(destination) = facts.tables.guarded(netns, local.port)
    {
        (End::Inbound, None, destination)
    } else {
        (End::Outbound, Some(source?), facts.tables.destination(remote)?)
    };
    Some(Uncaptured {
        end,
        source,
        destination: (facts.name)(destination),
        cgroup: path,
        local: local.into(),
        remote: remote.into(),
        connection,
    })
}
