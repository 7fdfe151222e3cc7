//! From another host to a protected service of this one, or to a service outside the mesh for which this host is the
//! gateway: authenticate, authorize, dial the program, copy.

use std::{
    fmt,
    io::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use rustls::server::Acceptor;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{
    Shared, copy, decision,
    flow::{Direction, Flow, FlowStart, Origin},
    reason::Reason,
    socket,
};
use crate::{
    identity::ServiceName,
    tls::{self, Accepting, PeerError, READY},
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

/// A service outside the mesh.
#[derive(Clone, Debug)]
pub struct External {
    /// As it is configured.
    pub address: Arc<str>,
    /// What that means now, to be dialled in this order; empty while a name does not resolve.
    pub found: Arc<ArcSwap<Vec<SocketAddr>>>,
}

/// The way to programs.
pub trait Dial: Send + Sync + fmt::Debug {
    /// Where they are said to listen.
    fn address(&self) -> SocketAddr;

    /// Connects to one of them.
    fn dial(&self) -> BoxFuture<'_, io::Result<Reached>>;
}

/// A connection to a program.
#[derive(Debug)]
pub struct Reached {
    pub stream: TcpStream,
    pub at: SocketAddr,
    /// Cancelled when the program, and all that could answer on its network, has ended.
    pub gone: CancellationToken,
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

/// Serves one connection to a mesh port.
pub(super) async fn serve(
    shared: Arc<Shared>,
    target: Arc<ArcSwap<Target>>,
    mesh: TcpStream,
    peer: SocketAddr,
) {
    let target = target.load_full();
    let flow = shared.flows.open(FlowStart {
        direction: Direction::Inbound,
        peer,
        destination: Some(target.name.clone()),
        dialled: mesh.local_addr().ok().map(socket::canonical),
    });
    let outcome = tokio::select! {
        biased;
        reason = flow.was_cut() => Err(reason),
        outcome = carry(&shared, &target, mesh, &flow) => outcome,
    };
    shared.end(flow, outcome);
}

async fn carry(shared: &Shared, target: &Target, mesh: TcpStream, flow: &Flow) -> Result<(), Reason> {
    let (mesh, mut tls) = handshake(shared, target, mesh).await?;
    let peer = tls::peer_id(&tls).map_err(Reason::Peer)?;
    shared.with_mesh(|mesh| decision::same_namespace(mesh, &peer, &target.name))?;
    let origin = flow.set_origin(Origin {
        source: peer.service,
        destination: target.name.clone(),
        original_dst: None,
        program: String::new(),
        pid: 0,
        cookie: 0,
    });
    shared.with_mesh(|mesh| decision::authorize(mesh, &origin.source, &target.name))?;
    let Reached { stream: program, gone, .. } = dial(shared, target, flow).await?;
    if tls.alpn_protocol() == Some(READY) {
        tls.writer().write_all(&[1]).map_err(|e| Reason::BrokenTls(e.to_string()))?;
    }
    shared.opened(flow, &tls);
    tokio::select! {
        copied = copy::copy(&program, &mesh, &mut tls, flow) => copied?,
        () = gone.cancelled() => return Err(Reason::ProgramReset(io::ErrorKind::ConnectionReset)),
    }
    socket::close_cleanly(&program, &mesh)
}

async fn handshake(
    shared: &Shared,
    target: &Target,
    mesh: TcpStream,
) -> Result<(TcpStream, rustls::Connection), Reason> {
    let identity = shared.with_mesh(|mesh| {
        if !mesh.is_synced() {
            return Err(Reason::NotSynced);
        }
        decision::identity(mesh, &target.name, SystemTime::now())
    })?;
    let accepting = shared.tls.server(&identity.leaf, &identity.roots).map_err(Reason::Config)?;
    socket::prepare(&mesh, shared.settings.keepalive).map_err(|e| Reason::PeerReset(e.kind()))?;
    let stream = timeout(shared.settings.handshake_timeout, accept(&accepting, mesh))
        .await
        .map_err(|_| Reason::Peer(PeerError::Timeout))?
        .map_err(|e| Reason::Peer(PeerError::from_io(&e)))?;
    let (mesh, tls) = stream.into_inner();
    Ok((mesh, tls.into()))
}

/// A client that does not offer [`READY`] may offer others' protocols, which must not matter.
async fn accept(accepting: &Accepting, mesh: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), mesh).await?;
    let ready = hello.client_hello().alpn().is_some_and(|mut offered| offered.any(|one| one == READY));
    hello.into_stream(if ready { accepting.ready.clone() } else { accepting.config.clone() }).await
}

async fn dial(shared: &Shared, target: &Target, flow: &Flow) -> Result<Reached, Reason> {
    let patience = shared.settings.connect_timeout;
    let reached = match &target.program {
        Program::Here(at) => {
            flow.set_upstream(*at);
            Reached { stream: connect(*at, patience).await?, at: *at, gone: CancellationToken::new() }
        }
        Program::Wherever(programs) => {
            let outcome = timeout(patience, programs.dial())
                .await
                .map_err(|_| Reason::ProgramTimeout)
                .and_then(|dialled| dialled.map_err(|e: io::Error| Reason::ProgramUnreachable(e.kind())));
            flow.set_upstream(outcome.as_ref().map_or(programs.address(), |reached| reached.at));
            outcome?
        }
        Program::External(external) => dial_external(shared, external, flow).await?,
    };
    socket::prepare(&reached.stream, shared.settings.keepalive)
        .map_err(|e| Reason::ProgramUnreachable(e.kind()))?;
    Ok(reached)
}

/// Dials the addresses one after the other, those that answered the last check first; all of them get the time of one.
async fn dial_external(shared: &Shared, external: &External, flow: &Flow) -> Result<Reached, Reason> {
    let addresses = external.found.load_full();
    let mut failed = Reason::ExternalUnresolved(external.address.clone());
    let patience =
        shared.settings.connect_timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
    for (nth, address) in addresses.iter().enumerate() {
        match connect(*address, patience).await {
            Ok(stream) => {
                flow.set_upstream(*address);
                return Ok(Reached { stream, at: *address, gone: CancellationToken::new() });
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

async fn connect(address: SocketAddr, patience: Duration) -> Result<TcpStream, Reason> {
    timeout(patience, TcpStream::connect(address))
        .await
        .map_err(|_| Reason::ProgramTimeout)?
        .map_err(|e| Reason::ProgramUnreachable(e.kind()))
}
