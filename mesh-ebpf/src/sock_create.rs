//! `cgroup/sock_create`: no MPTCP. Its `connect()` goes past `cgroup/connect4,6` (`mptcp_connect` calls the subflow's
//! protocol directly, Linux 6.2 and later), so that a program that asks for it would be neither captured nor denied.

use aya_ebpf::{helpers::generated::bpf_set_retval, programs::SockContext};
use mesh_common::{counter::Counter, event};
use mesh_ebpf::verdict::Caller;

use crate::{caller, maps, report};

const PROCEED: i32 = 1;
const REFUSE: i32 = 0;
const IPPROTO_MPTCP: u32 = 262;
const EPROTONOSUPPORT: i32 = 93;

/// What a kernel without MPTCP says, upon which programs take TCP.
#[inline(always)]
pub fn sock_create(ctx: &SockContext) -> i32 {
    // SAFETY: the kernel passes a valid context.
    if unsafe { (*ctx.sock).protocol } != IPPROTO_MPTCP {
        return PROCEED;
    }
    if let Some(settings) = maps::SETTINGS.get(0)
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
