//! Getting a flow to an instance: TCP, TLS, and, for a virtual IP, to the next instance when one does not take it.
//!
//! | what goes wrong before a byte of the program was sent | dialled: an instance | dialled: a virtual IP |
//! |---|---|---|
//! | TCP or TLS fails, or takes too long | the flow ends | the next instance |
//! | the peer is not who the catalog says | the flow ends | the next instance; the audit log has it |
//! | the peer's daemon cannot reach its program (it says so: [`READY`]) | the flow ends | the next instance |
//! | the peer refuses this side by an alert | the flow ends | the flow ends: so would the others |

use std::{
    sync::LazyLock,
    time::{Duration, Instant},
};

use tokio::{
    io::AsyncReadExt as _,
    net::TcpStream,
    time::{timeout, timeout_at},
};
use tokio_rustls::TlsConnector;

use super::{
    Shared, audit,
    balance::{self, MOST_TRIES},
    decision::{Identity, Route, Targets},
    flow::Flow,
    reason::Reason,
    socket,
};
use crate::{
    catalog::{Entered, Instance, Placed},
    tls::{PeerError, READY},
};

/// How long one of several instances may take to take a flow.
const PATIENCE: Duration = Duration::from_secs(3);

/// A connection to an instance that may carry the program's bytes.
pub(super) struct Upstream {
    pub(super) mesh: TcpStream,
    pub(super) tls: rustls::Connection,
    /// Counts the flow among those of the instance.
    pub(super) _load: Entered,
}

/// Returns a connection to what `route` leads to.
pub(super) async fn connect(shared: &Shared, route: &Route, flow: &Flow) -> Result<Upstream, Reason> {
    match &route.targets {
        Targets::One(placed) => {
            flow.set_upstream(placed.instance.mesh);
            let load = placed.load.enter();
            let (mesh, tls) = attempt(shared, &route.identity, &placed.instance, false).await?;
            Ok(Upstream { mesh, tls, _load: load })
        }
        Targets::AnyOf(instances) => any_of(shared, &route.identity, instances, flow).await,
    }
}

/// Tries instances until one takes the flow, within the time that one connection may take.
async fn any_of(
    shared: &Shared,
    identity: &Identity,
    instances: &[Placed],
    flow: &Flow,
) -> Result<Upstream, Reason> {
    let deadline = tokio::time::Instant::now() + shared.settings.connect_timeout;
    let datacenter = &identity.leaf.id.datacenter;
    let (mut tried, mut tries) = ([usize::MAX; MOST_TRIES], 0);
    loop {
        let next = balance::choose(instances, &tried[..tries], datacenter, now_ms(), rand::random());
        let Some(index) = next else { return Err(Reason::NoInstance(service_of(flow))) };
        (tried[tries], tries) = (index, tries + 1);
        let more = tries < MOST_TRIES.min(instances.len());
        let placed = &instances[index];
        let load = placed.load.enter();
        let until = if more { deadline.min(tokio::time::Instant::now() + PATIENCE) } else { deadline };
        let attempted = timeout_at(until, attempt(shared, identity, &placed.instance, more)).await;
        let reason = match attempted.unwrap_or(Err(Reason::ConnectTimeout)) {
            Ok((mesh, tls)) => {
                placed.load.succeeded();
                flow.set_upstream(placed.instance.mesh);
                return Ok(Upstream { mesh, tls, _load: load });
            }
            Err(reason) => reason,
        };
        placed.load.failed(now_ms());
        if !more || !is_the_instances_own(&reason) || tokio::time::Instant::now() >= deadline {
            flow.set_upstream(placed.instance.mesh);
            return Err(reason);
        }
        shared.failed_over();
        audit::failed_over(flow, placed.instance.mesh, &reason, &shared.refusal_log);
    }
}

/// Whether another instance may do better.
fn is_the_instances_own(reason: &Reason) -> bool {
    !matches!(reason, Reason::Peer(PeerError::Refused(_)) | Reason::RefusedByPeer(_) | Reason::Config(_))
}

fn service_of(flow: &Flow) -> crate::identity::ServiceName {
    flow.origin().expect("invariant: it has a route").destination.clone()
}

/// Milliseconds since some moment of this process.
fn now_ms() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
}

/// With `ready`, waits until the peer's daemon has its program on the line, if it can tell.
async fn attempt(
    shared: &Shared,
    identity: &Identity,
    instance: &Instance,
    ready: bool,
) -> Result<(TcpStream, rustls::Connection), Reason> {
    let mesh = dial(shared, instance).await?;
    let client = shared.tls.client(&identity.leaf, &identity.roots, instance).map_err(Reason::Config)?;
    let config = if ready { &client.ready } else { &client.config };
    // The name is for gateways to route by; the verifier compares SPIFFE IDs.
    let connecting = TlsConnector::from(config.clone()).connect(client.name.clone(), mesh);
    let mut stream = timeout(shared.settings.handshake_timeout, connecting)
        .await
        .map_err(|_| Reason::Peer(PeerError::Timeout))?
        .map_err(|e| Reason::Peer(PeerError::from_io(&e)))?;
    if ready && stream.get_ref().1.alpn_protocol() == Some(READY) {
        stream.read_u8().await.map_err(|e| match PeerError::from_io(&e) {
            refused @ PeerError::Refused(_) => Reason::Peer(refused),
            _ => Reason::NotReady,
        })?;
    }
    let (mesh, tls) = stream.into_inner();
    Ok((mesh, tls.into()))
}

async fn dial(shared: &Shared, instance: &Instance) -> Result<TcpStream, Reason> {
    let mesh = timeout(shared.settings.connect_timeout, TcpStream::connect(instance.mesh))
        .await
        .map_err(|_| Reason::ConnectTimeout)?
        .map_err(|e| Reason::Unreachable(e.kind()))?;
    socket::prepare(&mesh, shared.settings.keepalive).map_err(|e| Reason::Unreachable(e.kind()))?;
    Ok(mesh)
}
