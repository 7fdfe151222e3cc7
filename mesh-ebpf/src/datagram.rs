//! UDP: `connect()` of a datagram socket, `sendmsg()` of one that is not connected, and what comes back.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::{dns::DNS_PORT, event, flow, flow::SocketState, policy};

use crate::{
    caller,
    connect::{self, Denial},
    context,
    context::Family,
    dns, maps,
};

const PROCEED: i32 = 1;
const EPERM: i32 = 0;

/// `SOCK_DGRAM` and `IPPROTO_UDP`.
const SOCK_DGRAM: u32 = 2;
const IPPROTO_UDP: u32 = 17;

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
    if remote.port.wire() != DNS_PORT.wire() {
        return Ok(());
    }
    // Nothing is known yet, so nothing is a workload.
    let Some(settings) = maps::SETTINGS.get(0) else { return Ok(()) };
    let caller = caller::caller(settings);
    let target = connect::target(remote, context::netns_of(ctx), settings);
    let Some(service) = dns::asker(caller, remote, target, settings) else { return Ok(()) };
    let refused = |reason| Denial { reason, source: service, destination: policy::NO_SERVICE, remote };
    if !dns::divert(ctx, family, remote, service, call == Call::Connect) {
        return dns::missed(settings).map_err(refused);
    }
    if call == Call::Connect {
        let origin = connect::origin(ctx, remote, service, policy::NO_SERVICE);
        let mut state = SocketState { origin, disposition: flow::SOCKET_DNS, flags: 0, device: 0, pad: 0 };
        connect::remember(ctx, &mut state).map_err(|()| refused(event::REASON_MAP_FULL))?;
    }
    Ok(())
}

/// `recvmsg()` that asks for the sender. The return value of these hooks must be 1 (`CGROUP_UDP*_RECVMSG`: range check
/// of the verifier).
#[inline(always)]
pub fn incoming(ctx: &SockAddrContext, family: Family) -> i32 {
    dns::restore(ctx, family);
    1
}
