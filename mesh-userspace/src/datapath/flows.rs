//! Captured connections: who opened the one that the outbound listener just accepted.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use aya::maps::{HashMap as BpfHashMap, MapData};
use mesh_common::{
    addr::{Endpoint, Port},
    flow::{COMM_LEN, FlowKey, FlowRecord},
};

use super::{names::NameReader, sys};
use crate::proxy::{CapturedFlow, CapturedFlows};

/// The map `FLOWS`, read by the proxy: one system call for each connection, no lock.
pub struct FlowMap {
    map: MapData,
    names: NameReader,
}

impl FlowMap {
    pub fn new(map: MapData, names: NameReader) -> Self {
        Self { map, names }
    }
}

impl CapturedFlows for FlowMap {
    fn take(&self, netns: u64, peer: SocketAddr, listener: u16) -> io::Result<Option<CapturedFlow>> {
        let key = FlowKey::new(netns, Endpoint::from(peer), Port::new(listener));
        let Some(record) = sys::take::<FlowKey, FlowRecord>(self.map.fd().as_fd(), &key)? else {
            return Ok(None);
        };
        let origin = record.origin;
        let (Some(source), Some(destination)) =
            (self.names.name(origin.source), self.names.name(origin.destination))
        else {
            return Ok(None);
        };
        Ok(Some(CapturedFlow {
            original_dst: origin.original_dst.into(),
            source,
            destination,
            pid: origin.pid,
            program: comm_text(&origin.comm),
            cookie: record.cookie,
        }))
    }
}

/// A record that no `accept()` took within this time never will be: the listener's queue overflowed.
const UNCLAIMED: Duration = Duration::from_secs(60);

/// Removes records that nobody took; `now` is `CLOCK_MONOTONIC`. Returns how many.
pub fn sweep(map: &mut BpfHashMap<MapData, FlowKey, FlowRecord>, now: Duration) -> usize {
    let dead: Vec<FlowKey> = map
        .iter()
        .filter_map(Result::ok)
        .filter(|(_, record)| now.saturating_sub(Duration::from_nanos(record.origin.opened_ns)) > UNCLAIMED)
        .map(|(key, _)| key)
        .collect();
    dead.iter().filter(|key| map.remove(key).is_ok()).count()
}

/// Returns a command name as text: up to its zero byte, what is not UTF-8 or is a control character replaced.
pub fn comm_text(comm: &[u8; COMM_LEN]) -> String {
    let len = comm.iter().position(|b| *b == 0).unwrap_or(COMM_LEN);
    String::from_utf8_lossy(&comm[..len])
        .chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_command_name_becomes_printable_text(raw in any::<[u8; COMM_LEN]>()) {
            prop_assert!(!comm_text(&raw).chars().any(char::is_control));
        }
    }
}
