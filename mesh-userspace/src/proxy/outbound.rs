//! From a program of this host to another host: who it is, where to, dial, authenticate, copy.
//!
//! The instance is dialled as soon as the connection is accepted, never after the program's first byte, so that
//! protocols in which the server speaks first work.

use std::{io, net::SocketAddr, sync::Arc, time::SystemTime};

use tokio::net::TcpStream;

use super::{
    Shared,
    copy::{self, Role, Start},
    decision,
    flow::{Direction, Flow, FlowStart, Origin},
    reason::Reason,
    socket,
    upstream::{self, Upstream},
};
use crate::identity::ServiceName;

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
    /// Takes the record of the connection from `peer` to the listener with the port `listener`, in the network namespace
    /// with the cookie `netns`: a second call finds none. `None`: the kernel did not put that connection here.
    fn take(&self, netns: u64, peer: SocketAddr, listener: u16) -> io::Result<Option<CapturedFlow>>;
}

/// An outbound listener: its network namespace and its port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) netns: u64,
    pub(super) port: u16,
}

/// Serves one connection to the outbound listener at `place`.
pub(super) async fn serve(shared: Arc<Shared>, program: TcpStream, place: Place, peer: SocketAddr) {
    let start = FlowStart { direction: Direction::Outbound, peer, destination: None, dialled: None };
    let flow = shared.flows.open(start);
    let outcome = tokio::select! {
        biased;
        reason = flow.was_cut() => Err(reason),
        outcome = carry(&shared, program, place, &flow) => outcome,
    };
    shared.end(flow, outcome);
}

async fn carry(shared: &Shared, program: TcpStream, place: Place, flow: &Flow) -> Result<(), Reason> {
    let CapturedFlow { original_dst, source, destination, pid, program: name, cookie } =
        match shared.captured.take(place.netns, flow.start.peer, place.port) {
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
    let Upstream { mut link, word, untried, client, _load } = upstream::connect(shared, &route, flow).await?;
    shared.opened(flow, &link.tls);
    let trial = untried.then_some(shared.settings.connect_timeout);
    copy::copy(&program, &mut link, flow, Start { role: Role::Caller, word, first: None, trial }).await?;
    socket::close_cleanly(&program).map_err(|e| Reason::ProgramReset(e.kind()))?;
    link.may_close();
    if link.tls.is_meshnode {
        shared.pool.put(client, flow.upstream().expect("invariant: it has carried bytes"), link);
    }
    Ok(())
}
