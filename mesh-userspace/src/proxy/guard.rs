//! The guard: connections that `sk_lookup` steered away from a protected port. They are noted and reset.

use std::{
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use super::{
    Shared, audit,
    flow::{Direction, FlowStart},
    reason::Reason,
    socket,
};

/// Resets a connection that went around the mesh. The local address is the one that was dialled: steering a
/// connection to another listener does not change it.
pub(super) fn refuse(shared: &Shared, stream: TcpStream, peer: SocketAddr) {
    let dialled = stream.local_addr().ok().map(socket::canonical);
    drop(stream);
    match shared.guard_log.permit(Instant::now()) {
        // Somebody scanning the port must not push everything else out of `status` and the log.
        None => shared.flows.ended().count(Direction::Inbound, &Reason::Guarded),
        Some(unlogged) => {
            let start = FlowStart { direction: Direction::Inbound, peer, destination: None, dialled };
            let flow = shared.flows.open(start);
            audit::refused(&flow, &Reason::Guarded, unlogged);
            flow.end(Reason::Guarded);
        }
    }
}
