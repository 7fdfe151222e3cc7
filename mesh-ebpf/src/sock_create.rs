//! `cgroup/sock_create`: a workload's first socket in a network namespace tells the daemon to listen there; and no
//! MPTCP, nor from a `mesh-only` workload anything else that no hook judges. The `connect()` of MPTCP goes past
//! `cgroup/connect4,6` (`mptcp_connect` calls the subflow's protocol directly, Linux 6.2 and later), so that a program that
//! asks for it would be neither captured nor denied.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_NOEXIST,
    helpers::generated::{bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_set_retval},
    programs::SockContext,
};
use mesh_common::{
    counter::Counter,
    event,
    map::NAMESPACE_SERVED,
    policy::{SETTINGS_MESH_ONLY, Settings},
};
use mesh_ebpf::{
    listed::{is_judged, may_have},
    verdict::Caller,
};

use crate::{caller, maps, report};

const PROCEED: i32 = 1;
const REFUSE: i32 = 0;
const IPPROTO_MPTCP: u32 = 262;
const EPROTONOSUPPORT: i32 = 93;
/// Nanoseconds between two events of one namespace; a denied `connect()` tells the daemon too.
const TELL_EVERY: u64 = 1_000_000_000;

#[inline(always)]
pub fn sock_create(ctx: &SockContext) -> i32 {
    let settings = maps::SETTINGS.get(0);
    // SAFETY: the kernel passes a valid context.
    if unsafe { (*ctx.sock).protocol } == IPPROTO_MPTCP {
        return refuse(settings);
    }
    // SAFETY: the kernel passes a valid context.
    let (kind, protocol) = unsafe { ((*ctx.sock).type_, (*ctx.sock).protocol) };
    if !is_judged(kind, protocol)
        && let Some(settings) = settings
        && settings.flags & SETTINGS_MESH_ONLY != 0
    {
        let caller = caller::caller(settings);
        if !may_have(caller, kind, protocol) {
            return deny(caller, protocol);
        }
    }
    // SAFETY: the helper takes the program's own context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if let Some(settings) = settings
        && netns != settings.host_netns
        && is_due(netns)
        && let Caller::Workload { .. } = caller::caller(settings)
    {
        let mut event = report::by_caller(event::EVENT_NAMESPACE, event::REASON_NONE);
        event.netns = netns;
        report::emit(&event);
    }
    PROCEED
}

/// Whether the daemon is to be told of a namespace, if it is a workload that is in it: once in [`TELL_EVERY`].
#[inline(always)]
fn is_due(netns: u64) -> bool {
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(at) = maps::NAMESPACES.get_ptr_mut(netns) else {
        // Never over what the daemon writes meanwhile. No room: told more often.
        let _ = maps::NAMESPACES.insert(netns, now, BPF_NOEXIST.into());
        return true;
    };
    // SAFETY: the entry stays readable while the program runs; the daemon replaces entries, so that what is written
    // here is lost where it did.
    unsafe {
        if *at == NAMESPACE_SERVED || now.saturating_sub(*at) < TELL_EVERY {
            return false;
        }
        *at = now;
    }
    true
}

/// Says what socket(2) says to who lacks the capability for it.
#[inline(always)]
fn deny(caller: Caller, protocol: u32) -> i32 {
    report::count(Counter::DeniedProtocol);
    let mut event = report::by_caller(event::EVENT_DENIED, event::REASON_PROTOCOL);
    event.protocol = protocol;
    if let Caller::Workload { service, .. } = caller {
        event.source = service;
    }
    report::emit(&event);
    REFUSE
}

/// Says what a kernel without MPTCP says, upon which programs take TCP.
#[inline(always)]
fn refuse(settings: Option<&Settings>) -> i32 {
    if let Some(settings) = settings
        && caller::caller(settings) == Caller::Exempt
    {
        return PROCEED;
    }
    report::count(Counter::DeniedMptcp);
    report::emit(&report::by_caller(event::EVENT_DENIED, event::REASON_MPTCP));
    // SAFETY: the helper takes a plain number.
    unsafe { bpf_set_retval(-EPROTONOSUPPORT) };
    REFUSE
}
