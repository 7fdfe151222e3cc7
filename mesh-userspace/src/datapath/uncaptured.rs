//! Connections of the mesh's services that the mesh does not carry: opened before the daemon (or the catalog) knew of
//! them, and still in clear. The hooks act on `connect()`, so nothing but the sockets themselves tells of these.

use std::{collections::HashMap, io, net::SocketAddr, path::PathBuf};

use mesh_common::policy::ServiceId;

use super::{
    classify::Classifier,
    sock_diag::{self, Connection},
    tables::Tables,
};
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
    pub(super) connection: Connection,
}

/// What is asked of the rest of the engine.
pub(super) struct Facts<'a> {
    pub tables: &'a Tables,
    pub classifier: &'a Classifier,
    /// Cookies of the connections that the kernel let through as direct flows.
    pub direct: &'a dyn Fn(u64) -> bool,
    pub name: &'a dyn Fn(ServiceId) -> Option<ServiceName>,
}

/// Lists the uncaptured connections of the host's network namespace.
pub(super) fn list(facts: &Facts<'_>) -> io::Result<Vec<Uncaptured>> {
    let cgroups = facts.classifier.by_id();
    let connections = sock_diag::established()?;
    Ok(connections.into_iter().filter_map(|connection| judge(facts, &cgroups, connection)).collect())
}

fn judge(facts: &Facts<'_>, cgroups: &HashMap<u64, &PathBuf>, connection: Connection) -> Option<Uncaptured> {
    let Connection { local, remote, cookie, cgroup } = connection;
    let here = |end: &mesh_common::addr::Endpoint| end.addr.is_loopback() || facts.tables.is_own(end.addr);
    let path = cgroups.get(&cgroup).map(|path| PathBuf::clone(path));
    let owner = path.as_deref().and_then(|path| facts.classifier.workload_of(path));
    let found = |end, source, destination| Uncaptured {
        end,
        source,
        destination: (facts.name)(destination),
        cgroup: path.clone(),
        local: local.into(),
        remote: remote.into(),
        connection,
    };
    if here(&remote)
        && let Some(service) = facts.tables.guarded(remote.port)
    {
        // From its other end it is the service's own.
        let exempt = owner.is_some_and(|owner| owner.service.is_none());
        let decided = exempt || (facts.direct)(cookie);
        return (!decided).then(|| found(End::Local, owner.and_then(|o| o.service.clone()), service));
    }
    if let Some(service) = facts.tables.guarded(local.port)
        && here(&local)
        && !here(&remote)
    {
        return Some(found(End::Inbound, None, service));
    }
    let service = owner?.service.clone()?;
    let destination = facts.tables.destination(remote)?;
    Some(found(End::Outbound, Some(service), destination))
}
