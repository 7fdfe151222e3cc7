//! Diverted queries for names: which server a program asked, and whose program it is.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use aya::maps::{HashMap as BpfHashMap, MapData, MapError};
use mesh_common::{
    addr::Endpoint,
    dns::{DnsAlias, DnsRoute},
    flow::{FlowKey, FlowRecord},
    policy::ServiceId,
};

use super::{names::NameReader, sys};
use crate::dns::{Route, Routes};

/// The maps `DNS_ROUTES` and `FLOWS`: one system call for each query that is forwarded, no lock.
pub struct QueryMaps {
    routes: BpfHashMap<MapData, DnsAlias, DnsRoute>,
    flows: MapData,
    names: NameReader,
}

impl QueryMaps {
    pub fn new(routes: BpfHashMap<MapData, DnsAlias, DnsRoute>, flows: MapData, names: NameReader) -> Self {
        Self { routes, flows, names }
    }

    fn named(&self, server: Endpoint, service: ServiceId) -> Option<Route> {
        Some(Route { server: server.into(), service: self.names.name(service)? })
    }
}

impl Routes for QueryMaps {
    fn route(&self, netns: u64, at: SocketAddr) -> io::Result<Option<Route>> {
        let key = DnsAlias { netns, at: Endpoint::from(at), pad: 0 };
        match self.routes.get(&key, 0) {
            Ok(route) => Ok(self.named(route.server, route.service)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    fn take(&self, netns: u64, peer: SocketAddr) -> io::Result<Option<Route>> {
        let key = FlowKey { netns, peer: Endpoint::from(peer), pad: 0 };
        let record = sys::take::<FlowKey, FlowRecord>(self.flows.fd().as_fd(), &key)?;
        Ok(record.and_then(|record| self.named(record.origin.original_dst, record.origin.source)))
    }
}

/// A socket that was connected longer ago than this, and sends only now, has to be made anew when the map is crowded.
const UNUSED: Duration = Duration::from_secs(3600);
/// Half of what the map holds.
const CROWDED: usize = 8192;

/// Removes what was long not used from a map that fills up; `now` is `CLOCK_MONOTONIC`. Returns how many.
pub fn sweep(map: &mut BpfHashMap<MapData, DnsAlias, DnsRoute>, now: Duration) -> usize {
    let all: Vec<(DnsAlias, DnsRoute)> = map.iter().filter_map(Result::ok).collect();
    if all.len() < CROWDED {
        return 0;
    }
    let is_old = |route: &DnsRoute| now.saturating_sub(Duration::from_nanos(route.used_ns)) > UNUSED;
    all.iter().filter(|(alias, route)| is_old(route) && map.remove(alias).is_ok()).count()
}
