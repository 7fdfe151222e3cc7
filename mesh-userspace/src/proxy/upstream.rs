//! Getting a flow to an instance: a link that waits for one, or TCP and TLS; and, for a virtual IP, to the next instance
//! when one does not take it.
//!
//! | what goes wrong before a byte of the program was sent | dialled: an instance | dialled: a virtual IP |
//! |---|---|---|
//! | TCP or TLS fails, or takes too long | the flow ends | the next instance |
//! | the peer is not who the catalog says | the flow ends | the next instance; the audit log has it |
//! | the peer's daemon, a meshnode, cannot reach its program (it says so) | the flow ends | the next instance |
//! | the peer refuses this side | the flow ends | the flow ends: so would the others |

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{timeout, timeout_at},
};

use super::{
    Shared, audit,
    balance::{self, MOST_TRIES},
    decision::{Identity, Route, Targets},
    flow::Flow,
    link::{Link, Word},
    reason::Reason,
    socket,
};
use crate::{
    catalog::{Entered, Instance, Placed},
    tls::{Client, PeerError, handshake},
};

/// A link that no flow used for this long is asked first whether the peer is still there; its program's bytes follow
/// its answer.
const QUIET: Duration = Duration::from_secs(1);
/// How long one of several instances may take to take a flow.
const PATIENCE: Duration = Duration::from_secs(3);

/// A link that may carry the program's bytes.
pub(super) struct Upstream {
    pub(super) link: Box<Link>,
    /// What the first record is, if the flow is not opened yet.
    pub(super) word: Option<Word>,
    /// The link waited, and its peer was not asked whether it is there.
    pub(super) untried: bool,
    /// What the link was made with.
    pub(super) client: Arc<Client>,
    /// Counts the flow among those of the instance.
    pub(super) _load: Entered,
}

/// Returns a connection to what `route` leads to.
pub(super) async fn connect(shared: &Shared, route: &Route, flow: &Flow) -> Result<Upstream, Reason> {
    match &route.targets {
        Targets::One(placed) => {
            flow.set_upstream(placed.instance.mesh);
            let load = placed.load.enter();
            attempt(shared, &route.identity, &placed.instance, false, load).await
        }
        Targets::AnyOf(instances) => Box::pin(any_of(shared, &route.identity, instances, flow)).await,
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
        let until = if more { deadline.min(tokio::time::Instant::now() + PATIENCE) } else { deadline };
        let attempt = attempt(shared, identity, &placed.instance, more, placed.load.enter());
        let reason = match timeout_at(until, attempt).await.unwrap_or(Err(Reason::ConnectTimeout)) {
            Ok(upstream) => {
                placed.load.succeeded();
                flow.set_upstream(placed.instance.mesh);
                return Ok(upstream);
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

/// With `say`, a meshnode is asked to have its program on the line before anything is sent to it.
async fn attempt(
    shared: &Shared,
    identity: &Identity,
    instance: &Instance,
    say: bool,
    _load: Entered,
) -> Result<Upstream, Reason> {
    let client = shared.tls.client(&identity.leaf, &identity.roots, instance).map_err(Reason::Config)?;
    let open = async |link: &mut Link, late: Reason| {
        timeout(shared.settings.handshake_timeout, link.open()).await.unwrap_or(Err(late))
    };
    while let Some(mut link) = shared.pool.take(&client, instance.mesh) {
        if !say && link.used.elapsed() < QUIET {
            return Ok(Upstream { link, word: Some(Word::Open), untried: true, client, _load });
        }
        match open(&mut link, Reason::ConnectTimeout).await {
            Ok(()) => return Ok(Upstream { link, word: None, untried: false, client, _load }),
            // It had gone; nothing was lost with it.
            Err(Reason::PeerReset(_)) => {}
            Err(other) => return Err(other),
        }
    }
    // On the heap while it lasts: a flow has the room of the largest of what it ever waits for.
    let mut link = Box::pin(connect_anew(shared, &client, instance)).await?;
    if say && link.tls.is_meshnode {
        open(&mut link, Reason::NotReady).await?;
    }
    let word = (!say && link.tls.is_meshnode).then_some(Word::Open);
    Ok(Upstream { link, word, untried: false, client, _load })
}

async fn connect_anew(shared: &Shared, client: &Client, instance: &Instance) -> Result<Box<Link>, Reason> {
    let mesh = dial(shared, instance).await?;
    let config = if instance.meshnode { &client.meshnode } else { &client.config };
    // The name is for gateways to route by; the verifier compares SPIFFE IDs.
    let connecting = handshake::connect(config.clone(), client.name.clone(), &mesh);
    let tls = timeout(shared.settings.handshake_timeout, connecting)
        .await
        .map_err(|_| Reason::Peer(PeerError::Timeout))?
        .map_err(|e| Reason::Peer(PeerError::from_io(&e)))?;
    Link::new(mesh, tls)
}

async fn dial(shared: &Shared, instance: &Instance) -> Result<TcpStream, Reason> {
    let mesh = timeout(shared.settings.connect_timeout, TcpStream::connect(instance.mesh))
        .await
        .map_err(|_| Reason::ConnectTimeout)?
        .map_err(|e| Reason::Unreachable(e.kind()))?;
    socket::prepare(SockRef::from(&mesh), shared.settings.keepalive)
        .map_err(|e| Reason::Unreachable(e.kind()))?;
    Ok(mesh)
}
