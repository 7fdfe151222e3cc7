//! Diverts workloads' queries for names to the daemon, and makes its answers come from the server that was asked.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_ns, programs::SockAddrContext};
use mesh_common::{
    addr::Endpoint,
    counter::Counter,
    dns::{DnsAlias, DnsRoute, may_be_alias},
    map::{LISTENER_DNS4, LISTENER_DNS6, ListenerKey},
    policy::{SETTINGS_DNS, SETTINGS_DNS_REFUSE, ServiceId, Settings},
};
use mesh_ebpf::{
    diversion::{self, Resolving, TRIES},
    verdict::{Caller, Target},
};

use crate::{connect, context, context::Family, maps, report};

/// `lo` is the first interface of each network namespace.
const LOOPBACK_INDEX: u32 = 1;

#[inline(always)]
fn resolving(settings: &Settings) -> Resolving {
    Resolving {
        enabled: settings.flags & SETTINGS_DNS != 0,
        refuse: settings.flags & SETTINGS_DNS_REFUSE != 0,
    }
}

/// Whose query a call is that goes to the daemon; `None`: it is none, or not to be diverted.
#[inline(always)]
pub fn asker(caller: Caller, remote: Endpoint, target: Target, settings: &Settings) -> Option<ServiceId> {
    diversion::diverted(caller, remote, target, resolving(settings))
}

/// What the daemon does not take passes, or is denied with a `REASON_*`, as it was told.
#[inline(always)]
pub fn missed(settings: &Settings) -> Result<(), u32> {
    report::count(Counter::DnsPassed);
    diversion::undivertable(resolving(settings))
}

/// Whether a query from this socket can reach the daemon, and the daemon the server.
#[inline(always)]
pub fn is_divertible(ctx: &SockAddrContext, server: &Endpoint) -> bool {
    // SAFETY: the kernel passes a valid context, whose socket is there; the verifier knows both.
    let device = unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() { 0 } else { (*sk).bound_dev_if }
    };
    (device == 0 || device == LOOPBACK_INDEX) && diversion::can_be_asked(&server.addr)
}

/// Rewrites a datagram's destination, or its socket's, to the alias of the server that it is for; false: the daemon is
/// not there, or there is no alias left.
#[inline(always)]
pub fn divert(
    ctx: &SockAddrContext,
    family: Family,
    server: Endpoint,
    service: ServiceId,
    mapped: bool,
) -> bool {
    if !is_divertible(ctx, &server) {
        return false;
    }
    let netns = context::netns_of(ctx);
    let v4 = server.addr.v4().is_some();
    let found = match alias(netns, v4, server, service) {
        // An IPv6 socket can be connected to an IPv4 address, of which there are more.
        None if mapped && !v4 => alias(netns, true, server, service),
        found => found,
    };
    let Some(found) = found else { return false };
    context::set_address(ctx, family, found);
    report::count(Counter::DnsDiverted);
    true
}

/// Returns the alias of `server` as `service` asks it, made if there is none yet.
#[inline(always)]
fn alias(netns: u64, v4: bool, server: Endpoint, service: ServiceId) -> Option<Endpoint> {
    let role = if v4 { LISTENER_DNS4 } else { LISTENER_DNS6 };
    let port = connect::listener_port(&ListenerKey { netns, role, pad: 0 })?;
    // SAFETY: the helper takes nothing.
    let used_ns = unsafe { bpf_ktime_get_ns() };
    let first = diversion::first_try(server, service);
    let mut key = DnsAlias { netns, at: server, pad: 0 };
    for attempt in 0..TRIES {
        key.at =
            if v4 { diversion::try4(first, attempt, port) } else { diversion::try6(first, attempt, port) };
        let Some(route) = maps::DNS_ROUTES.get_ptr_mut(key) else {
            let route = DnsRoute { server, service, used_ns };
            if maps::DNS_ROUTES.insert(key, route, BPF_NOEXIST.into()).is_ok() {
                return Some(key.at);
            }
            // Another CPU took it, or the map is full.
            continue;
        };
        // SAFETY: the entry stays readable while the program runs, and server and service of one never change.
        unsafe {
            if (*route).service == service && (*route).server == server {
                (*route).used_ns = used_ns;
                return Some(key.at);
            }
        }
    }
    None
}

/// Makes an answer of the daemon come from the server that was asked.
#[inline(always)]
pub fn restore(ctx: &SockAddrContext, family: Family) {
    let source = context::dialled(ctx, family);
    if !may_be_alias(&source.addr) {
        return;
    }
    let key = DnsAlias { netns: context::netns_of(ctx), at: source, pad: 0 };
    // SAFETY: the entry is copied at once; what identifies a server never changes.
    if let Some(route) = unsafe { maps::DNS_ROUTES.get(key) } {
        let server = route.server;
        context::set_address(ctx, family, server);
    }
}
