//! `sock_ops`: binds a captured connection to its original destination once it has a source port, and follows
//! direct flows until they end.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_ESTABLISHED,
        BPF_TCP_FIN_WAIT1,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sk_storage_get},
    programs::SockOpsContext,
};
use mesh_common::{
    counter::Counter,
    event,
    flow::{self, DirectFlow, FlowKey, FlowRecord, SocketState},
    policy::{POLICY_ALLOW, PolicyKey},
};

use crate::{context, maps, report};

#[inline(always)]
pub fn sock_ops(ctx: &SockOpsContext) {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ctx),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx),
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == BPF_TCP_CLOSE => closed(ctx),
        _ => {}
    }
}

/// What `connect()` decided for this socket.
#[inline(always)]
fn state_of(ctx: &SockOpsContext) -> Option<SocketState> {
    // SAFETY: the kernel passes a valid context; the verifier checks the null tests.
    unsafe {
        let sk = (*ctx.ops).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let state: *const SocketState = bpf_sk_storage_get(
            (&raw const maps::SOCKETS).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            0,
        )
        .cast();
        if state.is_null() { None } else { Some(*state) }
    }
}

#[inline(always)]
fn cookie_of(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn netns_of(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// `tcp_connect()` calls this before it sends the SYN: the source port is known.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) {
    let Some(state) = state_of(ctx) else { return };
    let _ = ctx.set_cb_flags(ctx.cb_flags() as i32 | BPF_SOCK_OPS_STATE_CB_FLAG as i32);
    if state.disposition != flow::SOCKET_DIRECT {
        return;
    }
    let (local, remote) = context::ends(ctx);
    // Also when the entry is gone: with TCP_FASTOPEN_CONNECT the SYN may come long after connect(), past the sweep. Replaced as a
    // whole, not written into: the daemon may be reading, or removing, what is there.
    let flow = DirectFlow {
        origin: state.origin,
        netns: netns_of(ctx),
        local,
        remote,
        state: flow::DIRECT_CONNECTING,
        pad: 0,
    };
    if maps::DIRECT.insert(cookie_of(ctx), flow, BPF_ANY.into()).is_err() {
        report::count(Counter::FlowLost);
        emit(ctx, event::EVENT_DIRECT_LOST, &state, 0);
    }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

/// `tcp_finish_connect()` calls this before the ACK that lets the listener's `accept()` return.
#[inline(always)]
fn established(ctx: &SockOpsContext) {
    let (local, remote) = context::ends(ctx);
    let key = FlowKey::new(netns_of(ctx), local, remote.port);
    let Some(state) = state_of(ctx) else {
        // A record that nobody took must not lend its identity to a later connection between the same ends.
        // Looked for first: removing takes a lock, and there is hardly ever one.
        // SAFETY: nothing is read of the entry.
        if remote.addr.is_loopback() && unsafe { maps::FLOWS.get(key) }.is_some() {
            let _ = maps::FLOWS.remove(key);
        }
        return;
    };
    if state.disposition == flow::SOCKET_DIRECT {
        opened(ctx, &state);
        return;
    }
    let record = FlowRecord { origin: state.origin, cookie: cookie_of(ctx) };
    if maps::FLOWS.insert(key, record, BPF_ANY.into()).is_err() {
        report::count(Counter::FlowLost);
        emit(ctx, event::EVENT_FLOW_LOST, &state, 0);
    }
}

/// Tells of a direct flow, unless so many were told of just now that the daemon would write no line of it. One that is not
/// allowed any more is always told of: its `connect()` read the policy just before a change, or was long ago
/// (TCP_FASTOPEN_CONNECT), and the daemon has looked through `DIRECT` for what to cut before it was there.
#[inline(always)]
fn opened(ctx: &SockOpsContext, state: &SocketState) {
    let key = PolicyKey { source: state.origin.source, destination: state.origin.destination };
    let mut untold = 0;
    // SAFETY: the entry is read at once.
    if unsafe { maps::POLICY.get(key) }.is_some_and(|v| *v == POLICY_ALLOW)
        && let Some(lately) = maps::OPENED.get_ptr_mut(0)
    {
        // SAFETY: it is this processor's own; softirqs that come between each other can miscount by one.
        match unsafe { (*lately).admit(now()) } {
            Some(left_out) => untold = left_out,
            None => return,
        }
    }
    emit(ctx, event::EVENT_DIRECT_OPENED, state, untold);
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) {
    let Some(state) = state_of(ctx) else { return };
    if state.disposition == flow::SOCKET_DIRECT {
        let _ = maps::DIRECT.remove(cookie_of(ctx));
        emit(ctx, event::EVENT_DIRECT_CLOSED, &state, 0);
    } else if is_abort(ctx.arg(0)) {
        forget(ctx);
    }
}

/// Whether a socket that was in state `old` ended by a reset: in order it passes through FIN_WAIT2 or LAST_ACK. One that
/// sent its bytes and a FIN is still to be accepted, and its record to be taken.
#[inline(always)]
fn is_abort(old: u32) -> bool {
    matches!(old, BPF_TCP_ESTABLISHED | BPF_TCP_CLOSE_WAIT | BPF_TCP_FIN_WAIT1)
}

/// `accept()` may never return a connection that was reset: its record goes, if nobody took it and it is its own.
#[inline(always)]
fn forget(ctx: &SockOpsContext) {
    let (local, remote) = context::ends(ctx);
    let key = FlowKey::new(netns_of(ctx), local, remote.port);
    // SAFETY: the entry is read at once.
    if unsafe { maps::FLOWS.get(key) }.is_some_and(|record| record.cookie == cookie_of(ctx)) {
        let _ = maps::FLOWS.remove(key);
    }
}

#[inline(always)]
fn emit(ctx: &SockOpsContext, kind: u32, state: &SocketState, untold: u32) {
    let (local, remote) = context::ends(ctx);
    let mut event = report::blank(kind);
    event.untold = untold;
    event.source = state.origin.source;
    event.destination = state.origin.destination;
    event.pid = state.origin.pid;
    event.comm = state.origin.comm;
    event.local = local;
    event.remote = if kind == event::EVENT_DIRECT_LOST { remote } else { state.origin.original_dst };
    event.netns = netns_of(ctx);
    event.cookie = cookie_of(ctx);
    // SAFETY: the kernel passes a valid context.
    unsafe {
        // The SYN counts as one acknowledged byte (`tcp_snd_una_update`).
        event.bytes_sent = (*ctx.ops).bytes_acked.saturating_sub(1);
        event.bytes_received = (*ctx.ops).bytes_received;
    }
    report::emit(&event);
}
