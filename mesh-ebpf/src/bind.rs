//! `cgroup/bind4,6`: a protected port belongs to its service. Another program that listened there would be handed the
//! service's connections, under the service's identity.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::{
    counter::Counter,
    event,
    policy::{self, PROTECTED_PERMISSIVE, ProtectedKey},
};
use mesh_ebpf::verdict::{Caller, Verdict, decide_bind};

use crate::{caller, context, context::Family, maps, report};

const PROCEED: i32 = 1;
const EPERM: i32 = 0;
const IPPROTO_TCP: u32 = 6;

#[inline(always)]
pub fn bind(ctx: &SockAddrContext, family: Family) -> i32 {
    // SAFETY: the kernel passes a valid context.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_TCP {
        return PROCEED;
    }
    let local = context::dialled(ctx, family);
    // The same port of another namespace is another place.
    let netns = context::netns_of(ctx);
    // SAFETY: the entry is copied at once; the daemon replaces entries, it does not edit them in place.
    let Some(protected) = (unsafe { maps::PROTECTED.get(ProtectedKey::new(netns, local.port)) }) else {
        return PROCEED;
    };
    let Some(settings) = maps::SETTINGS.get(0) else { return EPERM };
    let caller = caller::caller(settings);
    let permissive = protected.flags & PROTECTED_PERMISSIVE != 0;
    let (kind, counter, reason) = match decide_bind(caller, protected.service, protected.listener, permissive)
    {
        Verdict::Deny(reason) => (event::EVENT_DENIED, Counter::DeniedBind, reason),
        Verdict::WouldDeny(reason) => (event::EVENT_WOULD_DENY, Counter::WouldDeny, reason),
        Verdict::Pass | Verdict::Direct { .. } | Verdict::Capture { .. } => return PROCEED,
    };
    let denied = kind == event::EVENT_DENIED;
    report::count(counter);
    let mut event = report::by_caller(kind, reason);
    event.source = if let Caller::Workload { service, .. } = caller { service } else { policy::NO_SERVICE };
    event.destination = protected.service;
    event.remote = local;
    event.netns = netns;
    report::emit(&event);
    if denied { EPERM } else { PROCEED }
}
