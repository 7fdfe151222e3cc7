//! From a program of this host to another host: who it is, where to, dial, authenticate, copy.
//!
//! The instance is dialled as soon as the connection is accepted, never after the program's first byte, so that
//! protocols in which the server speaks first work.

use std::{io, net::SocketAddr, sync::Arc, time::SystemTime};

use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{
    Shared, copy,
    decision::{self, Route},
    flow::{Direction, Flow, FlowStart, Origin},
    reason::Reason,
    socket,
};
use crate::{identity::ServiceName, tls::PeerError};

/// What the kernel recorded of a connection that it redirected to the outbound listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedFlow {
    /// What the program dialled.
    pub original_dst: SocketAddr,
    pub source: ServiceName,
    pub destination: ServiceName,
    pub pid: u32,
    /// The program's command name.
    pub program: String,
    /// The socket's cookie.
    pub cookie: u64,
}

/// Where the kernel's records are read.
pub trait CapturedFlows: Send + Sync {
    /// Takes the record of the connection whose connecting end is `peer` in the network namespace with the cookie
    /// `netns`: a second call finds none. `None`: the kernel did not put that connection here.
    fn take(&self, netns: u64, peer: SocketAddr) -> io::Result<Option<CapturedFlow>>;
}

/// Serves one connection to an outbound listener in the network namespace `netns`.
pub(super) async fn serve(shared: Arc<Shared>, program: TcpStream, netns: u64, peer: SocketAddr) {
    let start = FlowStart { direction: Direction::Outbound, peer, destination: None, dialled: None };
    let flow = shared.flows.open(start);
    let outcome = tokio::select! {
        biased;
        reason = flow.was_cut() => Err(reason),
        outcome = carry(&shared, program, netns, &flow) => outcome,
    };
    shared.end(flow, outcome);
}

async fn carry(shared: &Shared, program: TcpStream, netns: u64, flow: &Flow) -> Result<(), Reason> {
    let CapturedFlow { original_dst, source, destination, pid, program: name, cookie } =
        match shared.captured.take(netns, flow.start.peer) {
            Ok(Some(captured)) => captured,
            Ok(None) => return Err(Reason::NotCaptured),
            Err(error) => return Err(Reason::Lookup(error.kind())),
        };
    let origin = flow.set_origin(Origin {
        source,
        destination,
        original_dst: Some(original_dst),
        program: name,
        pid,
        cookie,
    });
    let route = shared.with_mesh(|mesh| decision::route(mesh, origin, original_dst, SystemTime::now()))?;
    socket::prepare(&program, shared.settings.keepalive).map_err(|e| Reason::ProgramReset(e.kind()))?;
    let mesh = dial(shared, &route, flow).await?;
    let (mesh, mut tls) = handshake(shared, &route, mesh).await?;
    shared.opened(flow, &tls);
    copy::copy(&program, &mesh, &mut tls, flow).await?;
    socket::close_cleanly(&program, &mesh)
}

async fn dial(shared: &Shared, route: &Route, flow: &Flow) -> Result<TcpStream, Reason> {
    let address = route.instance.mesh;
    flow.set_upstream(address);
    let mesh = timeout(shared.settings.connect_timeout, TcpStream::connect(address))
        .await
        .map_err(|_| Reason::ConnectTimeout)?
        .map_err(|e| Reason::Unreachable(e.kind()))?;
    socket::prepare(&mesh, shared.settings.keepalive).map_err(|e| Reason::Unreachable(e.kind()))?;
    Ok(mesh)
}

async fn handshake(
    shared: &Shared,
    route: &Route,
    mesh: TcpStream,
) -> Result<(TcpStream, rustls::Connection), Reason> {
    let Route { identity, instance } = route;
    let client = shared.tls.client(&identity.leaf, &identity.roots, instance).map_err(Reason::Config)?;
    // The name is for gateways to route by; the verifier compares SPIFFE IDs.
    let connecting = TlsConnector::from(client.config.clone()).connect(client.name.clone(), mesh);
    let stream = timeout(shared.settings.handshake_timeout, connecting)
        .await
        .map_err(|_| Reason::Peer(PeerError::Timeout))?
        .map_err(|e| Reason::Peer(PeerError::from_io(&e)))?;
    let (mesh, tls) = stream.into_inner();
    Ok((mesh, tls.into()))
}
