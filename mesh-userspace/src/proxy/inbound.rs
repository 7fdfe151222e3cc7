//! From another host to a protected service of this one, or to a service outside the mesh for which this host is the
//! gateway: authenticate, authorize, dial the program, copy.

use std::{
    fmt,
    future::{Future, pending},
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use futures_util::{FutureExt as _, future::BoxFuture};
use socket2::SockRef;
use tokio::{net::TcpStream, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    copy::{self, Role, Start},
    decision,
    endpoint::{self, Secured},
    flow::{Direction, Flow, FlowStart, Origin},
    link::{Beginning, Link, Refusal, Word},
    reason::Reason,
    socket,
};
use crate::{
    identity::{Roots, ServiceName},
    tls::{Accepting, ExternalError, ExternalSession, ExternalTls, Peer, PeerError, handshake},
};

/// A service that this host takes mTLS for, and its mesh port.
#[derive(Debug)]
pub struct InboundService {
    /// Which of the host's service instances it is; what [`ProxyHandle::set_inbound`](super::ProxyHandle::set_inbound)
    /// recognizes it by.
    pub id: String,
    pub name: ServiceName,
    /// What serves it.
    pub program: Program,
    /// The bound and listening mesh port. `None`: keep the one that the service has.
    pub listener: Option<std::net::TcpListener>,
}

/// What a mesh port's connections end at.
#[derive(Clone, Debug)]
pub enum Program {
    /// A program in the host's network namespace.
    Here(SocketAddr),
    /// One of the programs that are wherever this finds them.
    Wherever(Arc<dyn Dial>),
    /// A service outside the mesh, for which this host is the gateway.
    External(External),
}

/// The way to programs.
pub trait Dial: Send + Sync + fmt::Debug {
    /// Where they are said to listen.
    fn address(&self) -> SocketAddr;

    /// Connects to one of them, [so](socket::connect_local).
    fn dial(&self) -> BoxFuture<'_, io::Result<Reached>>;
}

/// A connection to a program.
#[derive(Debug)]
pub struct Reached {
    pub stream: TcpStream,
    pub at: SocketAddr,
    /// Cancelled when the program, and all that could answer on its network, has ended. `None`: its network is the host's.
    pub gone: Option<CancellationToken>,
}

impl Reached {
    /// One that no network namespace's end takes away.
    fn lasting(stream: TcpStream, at: SocketAddr) -> Self {
        Self { stream, at, gone: None }
    }
}

/// A service outside the mesh.
#[derive(Clone, Debug)]
pub struct External {
    /// As it is configured.
    pub address: Arc<str>,
    /// What that means now, to be dialled in this order; empty while a name does not resolve.
    pub found: Arc<ArcSwap<Vec<SocketAddr>>>,
    /// `None`: it is spoken to in clear.
    pub tls: Option<Arc<ExternalTls>>,
}

impl External {
    /// Whether there is somebody at `address` whom a flow could be given to; why not, in words.
    pub async fn answers(&self, address: SocketAddr) -> Result<(), String> {
        let stream = TcpStream::connect(address).await.map_err(|error| format!("tcp {address}: {error}"))?;
        let Some(tls) = &self.tls else { return Ok(()) };
        let session = tls.connect(&stream).await.map_err(|error| format!("tls {address}: {error}"))?;
        endpoint::is_let_in(&stream, session).await.map_err(|reason| format!("tls {address}: {reason}"))
    }
}

impl From<SocketAddr> for Program {
    fn from(program: SocketAddr) -> Self {
        Self::Here(program)
    }
}

impl From<External> for Program {
    fn from(external: External) -> Self {
        Self::External(external)
    }
}

/// What a mesh port leads to; a reload may change it under the running listener.
pub(super) struct Target {
    pub(super) name: ServiceName,
    pub(super) program: Program,
}

/// Serves one connection to a mesh port: one flow, or, between meshnodes, one after another until `stop`.
pub(super) async fn serve(
    shared: Arc<Shared>,
    target: Arc<ArcSwap<Target>>,
    stop: CancellationToken,
    mesh: TcpStream,
    peer: SocketAddr,
) {
    let dialled = mesh.local_addr().ok().map(socket::canonical);
    let open = |target: &Target| {
        shared.flows.open(FlowStart {
            direction: Direction::Inbound,
            peer,
            destination: Some(target.name.clone()),
            dialled,
        })
    };
    let mut to = target.load_full();
    let mut flow = open(&to);
    // On the heap while it lasts, and so are others below: a flow has the room of the largest of what it ever waits for.
    let authenticated = Box::pin(async {
        tokio::select! {
            biased;
            reason = flow.was_cut() => Err(reason),
            caller = authenticate(&shared, &to, mesh) => caller,
        }
    });
    let mut caller = match authenticated.await {
        Ok(caller) => caller,
        Err(reason) => return shared.end(flow, Err(reason)),
    };
    loop {
        let outcome = tokio::select! {
            biased;
            reason = flow.was_cut() => Err(reason),
            outcome = carry(&shared, &to, &mut caller, &flow) => outcome,
        };
        let goes_on = outcome.is_ok() && caller.link.tls.is_meshnode;
        if let Err(reason) = &outcome
            && let Some(refusal) = refusal(reason)
        {
            caller.refuse(refusal).await;
        }
        shared.end(flow, outcome);
        if !goes_on {
            return;
        }
        caller.next = tokio::select! {
            () = stop.cancelled() => return,
            next = shared.workers.uncounted(caller.link.next_flow()) => match next {
                Ok(next) if caller.link.begin().is_ok() => Some(next),
                // The caller has no further use for it.
                _ => return,
            },
        };
        let now = target.load_full();
        if now.name != to.name {
            // It authenticated this host as another service.
            return;
        }
        to = now;
        flow = open(&to);
    }
}

/// An authenticated peer.
struct Caller {
    link: Box<Link>,
    peer: Arc<Peer>,
    /// What its chain was verified against, and when.
    roots: Arc<Roots>,
    verified: Instant,
    /// The flow that it has opened; `None`: it has not been waited for yet.
    next: Option<Beginning>,
}

/// A caller is verified again this long after it was, when it opens a flow: its certificate may have expired.
const VERIFIED: Duration = Duration::from_mins(1);

impl Caller {
    /// Verifies it again where that may have another outcome by now.
    fn verify(&mut self, accepting: &Accepting) -> Result<(), Reason> {
        if !Arc::ptr_eq(&self.roots, accepting.roots()) || self.verified.elapsed() > VERIFIED {
            self.peer = accepting.verify(&self.peer.chain).map_err(Reason::Peer)?;
            (self.roots, self.verified) = (accepting.roots().clone(), Instant::now());
        }
        Ok(())
    }

    async fn refuse(&mut self, refusal: Refusal) {
        if self.link.tls.is_meshnode {
            self.link.refuse(refusal).await;
        }
    }
}

/// What a caller is told, of a flow of which nothing was delivered.
fn refusal(reason: &Reason) -> Option<Refusal> {
    match reason {
        Reason::NotAllowed { .. } | Reason::HttpPermissions { .. } | Reason::OtherNamespace(_) => {
            Some(Refusal::NotAllowed)
        }
        Reason::ProgramUnreachable(_)
        | Reason::ProgramTimeout
        | Reason::ExternalUnresolved(_)
        | Reason::NotSynced
        | Reason::NoLeaf(_)
        | Reason::LeafExpired(_) => Some(Refusal::NotHere),
        // These two end a flow that was under way.
        Reason::ExternalTls(ExternalError::Truncated | ExternalError::Broken(_)) => None,
        Reason::ExternalTls(_) => Some(Refusal::NotHere),
        _ => None,
    }
}

async fn carry(shared: &Shared, target: &Target, caller: &mut Caller, flow: &Flow) -> Result<(), Reason> {
    let origin = flow.set_origin(Origin {
        source: caller.peer.id.service.clone(),
        destination: target.name.clone(),
        original_dst: None,
        program: String::new(),
        pid: 0,
        cookie: 0,
    });
    if caller.link.tls.is_meshnode && caller.next.is_none() {
        caller.next = Some(caller.link.next_flow().await?);
    }
    let Beginning { say, first } = caller.next.take().unwrap_or_default();
    caller.verify(&*accepting(shared, target)?)?;
    shared.with_mesh(|mesh| {
        decision::same_namespace(mesh, &caller.peer.id, &target.name)?;
        decision::authorize(mesh, &origin.source, &target.name)
    })?;
    let (Reached { stream: program, gone, .. }, tls) = dial(shared, target, flow).await?;
    if say {
        caller.link.say(Word::Opened, &[]).await?;
    }
    shared.opened(flow, &caller.link.tls);
    let start = Start { role: Role::Server, word: None, first, trial: None };
    let copied = async {
        match tls {
            None => copy::copy(&program, &mut caller.link, flow, start).await,
            Some(tls) => {
                let secured = Secured::new(&program, *tls)?;
                Box::pin(copy::copy(secured, &mut caller.link, flow, start)).await
            }
        }
    };
    let gone = async {
        match &gone {
            Some(gone) => gone.cancelled().await,
            None => pending().await,
        }
    };
    tokio::select! {
        copied = copied => copied?,
        () = gone => return Err(Reason::ProgramReset(io::ErrorKind::ConnectionReset)),
    }
    socket::close_cleanly(&program).map_err(|e| Reason::ProgramReset(e.kind()))?;
    if caller.link.tls.is_meshnode && !caller.link.settled {
        caller.link.say(Word::Done, &[]).await?;
    }
    caller.link.may_close();
    Ok(())
}

/// What this host proves itself with to callers of the service.
fn accepting(shared: &Shared, target: &Target) -> Result<Arc<Accepting>, Reason> {
    let identity = shared.with_mesh(|mesh| {
        if !mesh.is_synced() {
            return Err(Reason::NotSynced);
        }
        decision::identity(mesh, &target.name, SystemTime::now())
    })?;
    shared.tls.server(&identity.leaf, &identity.roots).map_err(Reason::Config)
}

async fn authenticate(shared: &Shared, target: &Target, mesh: TcpStream) -> Result<Caller, Reason> {
    let accepting = accepting(shared, target)?;
    let (tls, chain) = timeout(shared.settings.handshake_timeout, handshake::accept(&accepting, &mesh))
        .await
        .map_err(|_| Reason::Peer(PeerError::Timeout))?
        .map_err(|e| Reason::Peer(PeerError::from_io(&e)))?;
    let peer = accepting.verify(&chain).map_err(Reason::Peer)?;
    let (roots, verified) = (accepting.roots().clone(), Instant::now());
    Ok(Caller { link: Link::new(mesh, tls)?, peer, roots, verified, next: None })
}

/// A connection to what serves it, and the TLS on it where that is outside the mesh.
type Dialled = (Reached, Option<Box<ExternalSession>>);

async fn dial(shared: &Shared, target: &Target, flow: &Flow) -> Result<Dialled, Reason> {
    let patience = shared.settings.connect_timeout;
    let reached = match &target.program {
        Program::Here(at) => {
            flow.set_upstream(*at);
            Reached::lasting(within(patience, socket::dial_local(*at)).await?, *at)
        }
        Program::Wherever(programs) => {
            let outcome = within(patience, programs.dial()).await;
            flow.set_upstream(outcome.as_ref().map_or(programs.address(), |reached| reached.at));
            outcome?
        }
        Program::External(external) => {
            let (reached, tls) = Box::pin(dial_external(shared, external, flow)).await?;
            socket::prepare(SockRef::from(&reached.stream), shared.settings.keepalive)
                .map_err(|e| Reason::ProgramUnreachable(e.kind()))?;
            return Ok((reached, tls));
        }
    };
    Ok((reached, None))
}

/// Dials the addresses one after the other, those that answered the last check first; all of them get the time of one.
async fn dial_external(shared: &Shared, external: &External, flow: &Flow) -> Result<Dialled, Reason> {
    let addresses = external.found.load_full();
    let mut failed = Reason::ExternalUnresolved(external.address.clone());
    let patience =
        shared.settings.connect_timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    for (nth, address) in addresses.iter().enumerate() {
        match connect_external(*address, external, patience).await {
            Ok((stream, tls)) => {
                flow.set_upstream(*address);
                return Ok((Reached::lasting(stream, *address), tls));
            }
            Err(reason) if nth == 0 => failed = reason,
            Err(_) => {}
        }
    }
    if let Some(first) = addresses.first() {
        flow.set_upstream(*first);
    }
    Err(failed)
}

/// Connects, and makes TLS of it where the service has that: each within `patience`.
async fn connect_external(
    address: SocketAddr,
    external: &External,
    patience: Duration,
) -> Result<(TcpStream, Option<Box<ExternalSession>>), Reason> {
    let stream = within(patience, TcpStream::connect(address)).await?;
    let Some(tls) = &external.tls else { return Ok((stream, None)) };
    let secured = timeout(patience, tls.connect(&stream)).await.unwrap_or(Err(ExternalError::Timeout));
    Ok((stream, Some(Box::new(secured.map_err(Reason::ExternalTls)?))))
}

/// Not `async`: that would have room for what it waits for twice.
fn within<T>(
    patience: Duration,
    connecting: impl Future<Output = io::Result<T>>,
) -> impl Future<Output = Result<T, Reason>> {
    timeout(patience, connecting).map(|outcome| {
        outcome.map_err(|_| Reason::ProgramTimeout)?.map_err(|e| Reason::ProgramUnreachable(e.kind()))
    })
}
