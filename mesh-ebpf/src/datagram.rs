//! UDP: `connect()` of a datagram socket, `sendmsg()` of one that is not connected, and what comes back.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    addr::Endpoint,
    dns::DNS_PORT,
    egress::EGRESS_UDP,
    event, flow,
    flow::SocketState,
    policy::{self, SETTINGS_MESH_ONLY, Settings},
};
use mesh_ebpf::{
    listed::{IPPROTO_UDP, SOCK_DGRAM},
    verdict::Caller,
};

use crate::{
    caller,
    connect::{self, Denial},
    context,
    context::Family,
    dns, egress, maps,
};

const PROCEED: i32 = 1;
const EPERM: i32 = 0;

/// Which call the hook was run by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Connect,
    Send,
}

#[inline(always)]
pub fn is_datagram(ctx: &SockAddrContext) -> bool {
    // SAFETY: the kernel passes a valid context.
    let (kind, protocol) = unsafe { ((*ctx.sock_addr).type_, (*ctx.sock_addr).protocol) };
    kind == SOCK_DGRAM && protocol == IPPROTO_UDP
}

/// `connect()` of a datagram socket, `sendmsg()` with a destination.
#[inline(always)]
pub fn outgoing(ctx: &SockAddrContext, family: Family, call: Call) -> i32 {
    match try_outgoing(ctx, family, call) {
        Ok(()) => PROCEED,
        Err(denial) => {
            connect::deny(ctx, &denial);
            EPERM
        }
    }
}

#[inline(always)]
fn try_outgoing(ctx: &SockAddrContext, family: Family, call: Call) -> Result<(), Denial> {
    let remote = context::dialled(ctx, family);
    if call == Call::Connect {
        // What an earlier connect() on this socket left.
        // SAFETY: `sk` is the context's own socket.
        let _ = unsafe { maps::SOCKETS.delete((*ctx.sock_addr).__bindgen_anon_1.sk) };
    }
    // Nothing is known yet, so nothing is a workload.
    let Some(settings) = maps::SETTINGS.get(0) else { return Ok(()) };
    let query = remote.port.wire() == DNS_PORT.wire();
    if !query && settings.flags & SETTINGS_MESH_ONLY == 0 {
        return Ok(());
    }
    let caller = caller::caller(settings);
    if query && try_divert(ctx, family, call, remote, caller, settings)? {
        return Ok(());
    }
    try_leave(ctx, caller, remote)
}

/// Whether it is a query that now goes to the daemon.
#[inline(always)]
fn try_divert(
    ctx: &SockAddrContext,
    family: Family,
    call: Call,
    remote: Endpoint,
    caller: Caller,
    settings: &Settings,
) -> Result<bool, Denial> {
    let target = connect::target(remote, context::netns_of(ctx), settings);
    let Some(service) = dns::asker(caller, remote, target, settings) else { return Ok(false) };
    let refused = |reason| Denial { reason, source: service, destination: policy::NO_SERVICE, remote };
    if !dns::divert(ctx, family, remote, service, call == Call::Connect) {
        return dns::missed(settings).map(|()| false).map_err(refused);
    }
    if call == Call::Connect {
        let origin = connect::origin(ctx, remote, service, policy::NO_SERVICE);
        let mut state = SocketState { origin, disposition: flow::SOCKET_DNS, flags: 0, device: 0, pad: 0 };
        connect::remember(ctx, &mut state).map_err(|()| refused(event::REASON_MAP_FULL))?;
    }
    Ok(true)
}

/// The mesh carries no datagrams: whatever a `mesh-only` workload sends leaves it.
#[inline(always)]
fn try_leave(ctx: &SockAddrContext, caller: Caller, remote: Endpoint) -> Result<(), Denial> {
    let Caller::Workload { service, mesh_only: true } = caller else { return Ok(()) };
    let refused = |reason| Err(Denial { reason, source: service, destination: policy::NO_SERVICE, remote });
    if !is_datagram(ctx) {
        return refused(event::REASON_PROTOCOL);
    }
    if egress::lists(service, remote, EGRESS_UDP) { Ok(()) } else { refused(event::REASON_MESH_ONLY) }
}

/// `recvmsg()` that asks for the sender. The return value of these hooks must be 1 (`CGROUP_UDP*_RECVMSG`: range check
/// of the verifier).
#[inline(always)]
pub fn incoming(ctx: &SockAddrContext, family: Family) -> i32 {
    dns::restore(ctx, family);
    1
}
