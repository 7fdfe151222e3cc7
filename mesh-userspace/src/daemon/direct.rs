//! Direct flows in all network namespaces: their sockets are asked about, and destroyed, in there.

use std::{
    collections::{BTreeMap, HashMap},
    io,
};

use tokio::task::spawn_blocking;

use super::{namespaces::Served, visitor::Visitor};
use crate::datapath::direct::{Bytes, Direct, Doomed};

/// Destroys the sockets of `doomed`, where they are; `host` is the host's network namespace. Returns the cookies of those that
/// had none.
///
/// Flows of a namespace that is not served stay: once it is, the maps are written anew, and what is not allowed is cut, but for
/// those that the maps have no room for.
pub async fn cut(host: u64, visitor: Option<&Visitor>, namespaces: &Served, doomed: Vec<Doomed>) -> Vec<u64> {
    let mut missed = Vec::new();
    for (netns, there) in by_namespace(doomed, Doomed::netns) {
        let cut = |there: Vec<Doomed>| {
            there.iter().filter(|one| !one.cut()).map(Doomed::cookie).collect::<Vec<_>>()
        };
        if netns == host {
            missed.extend(spawn_blocking(move || cut(there)).await.unwrap_or_default());
            continue;
        }
        let (Some(visitor), Some(inode)) = (visitor, namespaces.inode(netns)) else {
            let flows = there.len();
            tracing::warn!(
                flows,
                netns,
                "flows that are to be cut are in a network namespace that is not served: they stay open"
            );
            continue;
        };
        match visitor.inside(inode, move || Ok(cut(there))).await {
            Ok(cookies) => missed.extend(cookies),
            // Its last workload has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(namespace = inode, %error, "cannot cut flows in a network namespace");
            }
        }
    }
    missed
}

/// Fills in the counters of the flows that are not in the network namespace `host`; those that cannot be asked for stay
/// as they are. It takes time, and blocks.
pub fn count(visitor: Option<&Visitor>, namespaces: &Served, host: u64, flows: &mut [Direct]) {
    let Some(visitor) = visitor else { return };
    let elsewhere = flows.iter().filter(|flow| flow.netns != host).cloned().collect();
    let mut counted: HashMap<u64, Bytes> = HashMap::new();
    for (netns, there) in by_namespace(elsewhere, |flow: &Direct| flow.netns) {
        let count = move || Ok(there.iter().map(|flow| (flow.cookie, flow.count())).collect::<Vec<_>>());
        let inode = namespaces.inode(netns);
        // For people to read: no error of its own.
        counted.extend(inode.and_then(|inode| visitor.inside_now(inode, count).ok()).unwrap_or_default());
    }
    for flow in flows {
        if let Some(bytes) = counted.get(&flow.cookie) {
            flow.bytes = *bytes;
        }
    }
}

fn by_namespace<T>(flows: Vec<T>, netns: impl Fn(&T) -> u64) -> BTreeMap<u64, Vec<T>> {
    let mut all: BTreeMap<u64, Vec<T>> = BTreeMap::new();
    for flow in flows {
        all.entry(netns(&flow)).or_default().push(flow);
    }
    all
}
