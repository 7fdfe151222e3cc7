//! Diverted queries for names: which server a program asked, and whose program it is.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use aya::maps::{HashMap as BpfHashMap, MapData, MapError};
use mesh_common::{
    addr::{Endpoint, Port},
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

    fn take(&self, netns: u64, peer: SocketAddr, listener: u16) -> io::Result<Option<Route>> {
        let key = FlowKey::new(netns, Endpoint::from(peer), Port::new(listener));
        let record = sys::take::<FlowKey, FlowRecord>(self.flows.fd().as_fd(), &key)?;
        Ok(record.and_then(|record| self.named(record.origin.original_dst, record.origin.source)))
    }
}

/// An alias that nobody was diverted to for this long is given to others: there are few for IPv6 servers. A socket that was
/// connected before, and sends only now, is not answered as it was; its program makes another.
const UNUSED: Duration = Duration::from_secs(3600);
/// The same while the map is crowded, as by a program that asks thousands of servers.
const UNUSED_CROWDED: Duration = Duration::from_secs(300);
/// Half of what the map holds.
const CROWDED: usize = 8192;

/// Removes what was long not used; `now` is `CLOCK_MONOTONIC`. Returns how many.
pub fn sweep(map: &mut BpfHashMap<MapData, DnsAlias, DnsRoute>, now: Duration) -> usize {
    let all: Vec<(DnsAlias, DnsRoute)> = map.iter().filter_map(Result::ok).collect();
    let crowded = all.len() >= CROWDED;
    all.iter().filter(|(alias, route)| is_over(route, now, crowded) && map.remove(alias).is_ok()).count()
}

fn is_over(route: &DnsRoute, now: Duration, crowded: bool) -> bool {
    now.saturating_sub(Duration::from_nanos(route.used_ns)) > if crowded { UNUSED_CROWDED } else { UNUSED }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_kept_for_an_hour_and_for_minutes_when_there_are_too_many() {
        let route = DnsRoute { server: Endpoint::UNSPECIFIED, service: 1, used_ns: 1_000_000_000 };
        let after = |seconds: u64| Duration::from_secs(1 + seconds);
        assert!(!is_over(&route, after(3600), false) && is_over(&route, after(3601), false));
        assert!(!is_over(&route, after(300), true) && is_over(&route, after(301), true));
        assert!(!is_over(&route, Duration::ZERO, true));
    }
}
