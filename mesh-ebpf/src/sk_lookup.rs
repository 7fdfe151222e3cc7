//! `sk_lookup`: the guard of protected ports against connections that did not pass a `connect()` hook of this host.

use aya_ebpf::{
    bindings::sk_action::{SK_DROP, SK_PASS},
    programs::SkLookupContext,
};
use mesh_common::{
    addr::{Addr, Endpoint},
    counter::Counter,
    event,
    map::{LISTENER_GUARD4, LISTENER_GUARD6, ListenerKey},
    policy::{HostAddrKey, PROTECTED_PERMISSIVE, ProtectedKey, ServiceId},
};

use crate::{context, maps, report};

const IPPROTO_TCP: u32 = 6;

/// The cookie of the network namespace that the program is attached to, which the hook does not tell; the daemon sets it
/// when it loads the program, once for each namespace.
#[unsafe(no_mangle)]
pub static GUARDED_NETNS: u64 = 0;

#[inline(always)]
pub fn guard(ctx: &SkLookupContext) -> u32 {
    // SAFETY: the kernel passes a valid context.
    let (protocol, family) = unsafe { ((*ctx.lookup).protocol, (*ctx.lookup).family) };
    if protocol != IPPROTO_TCP {
        return SK_PASS;
    }
    let (local, remote) = context::lookup_ends(ctx);
    // SAFETY: a static is readable; it is not the value that the compiler sees.
    let netns = unsafe { (&raw const GUARDED_NETNS).read_volatile() };
    // SAFETY: the entry is copied at once; the daemon replaces entries, it does not edit them in place.
    let Some(protected) = (unsafe { maps::PROTECTED.get(ProtectedKey::new(netns, local.port)) }) else {
        return SK_PASS;
    };
    // What comes from an address of this namespace passed `connect()` here, which decided it, provided that it knew the
    // destination as its own. The interface cannot tell: for a packet to an own address it is the one that has the
    // address (`ip_route_output_key_hash_rcu` sets `rt_iif`), as for one from outside. From outside nobody completes a
    // handshake with such a source: IPv4 drops it as a martian, and the answer goes to this host.
    if is_own(netns, local.addr) && is_own(netns, remote.addr) {
        return SK_PASS;
    }
    let service = protected.service;
    if protected.flags & PROTECTED_PERMISSIVE != 0 {
        report::count(Counter::GuardPassed);
        emit(event::EVENT_GUARD_PASSED, service, local, remote);
        return SK_PASS;
    }
    report::count(Counter::Guarded);
    emit(event::EVENT_GUARDED, service, local, remote);
    let role = if family == context::AF_INET { LISTENER_GUARD4 } else { LISTENER_GUARD6 };
    let key = ListenerKey { netns, role, pad: 0 };
    if maps::LISTENERS.redirect_sk_lookup(ctx, key, 0).is_err() {
        report::count(Counter::GuardDropped);
        return SK_DROP;
    }
    SK_PASS
}

#[inline(always)]
fn is_own(netns: u64, addr: Addr) -> bool {
    // SAFETY: as in `guard`.
    addr.is_loopback() || unsafe { maps::HOST_ADDRS.get(HostAddrKey { netns, addr }) }.is_some()
}

#[inline(always)]
fn emit(kind: u32, destination: ServiceId, local: Endpoint, remote: Endpoint) {
    let mut event = report::blank(kind);
    event.destination = destination;
    event.local = local;
    event.remote = remote;
    report::emit(&event);
}
