//! `cgroup/getpeername4,6`: a program sees the address that it dialled, not where the connection was led instead.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::flow::{SOCKET_CAPTURED, SOCKET_DNS, SOCKET_FLAG_VIRTUAL};

use crate::{context, context::Family, maps};

/// The return value of these hooks must be 1 (`CGROUP_INET*_GETPEERNAME`: range check of the verifier).
#[inline(always)]
pub fn peername(ctx: &SockAddrContext, family: Family) -> i32 {
    // SAFETY: the look-up does not create; the pointer is checked below.
    let state = unsafe { maps::SOCKETS.get_ptr_mut(ctx) };
    if state.is_null() {
        return 1;
    }
    // SAFETY: not null, and valid as long as the socket, which the call holds.
    let state = unsafe { *state };
    let captured = matches!(state.disposition, SOCKET_CAPTURED | SOCKET_DNS);
    if captured || state.flags & SOCKET_FLAG_VIRTUAL != 0 {
        context::set_address(ctx, family, state.origin.original_dst);
    }
    1
}
