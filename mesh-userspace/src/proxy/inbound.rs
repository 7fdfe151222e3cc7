//! From another host to a protected service of this one: authenticate, authorize, dial the program, copy.

use std::{
    io::{self, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use rustls::server::Acceptor;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};

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

/// A protected service of this host and its mesh port.
#[derive(Debug)]
pub struct InboundService {
    /// Which of the host's service instances it is; what [`ProxyHandle::set_inbound`](super::ProxyHandle::set_inbound)
    /// recognizes it by.
    pub id: String,
    pub name: ServiceName,
    /// Where the program listens.
    pub program: SocketAddr,
    /// The bound and listening mesh port. `None`: keep the one that the service has.
    pub listener: Option<std::net::TcpListener>,
}

/// What a mesh port leads to; a reload may change it under the running listener.
pub(super) struct Target {
    pub(super) name: ServiceName,
    pub(super) program: SocketAddr,
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
    let program = dial(shared, target, flow).await?;
    if tls.alpn_protocol() == Some(READY) {
        tls.writer().write_all(&[1]).map_err(|e| Reason::BrokenTls(e.to_string()))?;
    }
    shared.opened(flow, &tls);
    copy::copy(&program, &mesh, &mut tls, flow).await?;
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

async fn dial(shared: &Shared, target: &Target, flow: &Flow) -> Result<TcpStream, Reason> {
    flow.set_upstream(target.program);
    let program = timeout(shared.settings.connect_timeout, TcpStream::connect(target.program))
        .await
        .map_err(|_| Reason::ProgramTimeout)?
        .map_err(|e| Reason::ProgramUnreachable(e.kind()))?;
    socket::prepare(&program, shared.settings.keepalive).map_err(|e| Reason::ProgramUnreachable(e.kind()))?;
    Ok(program)
}
