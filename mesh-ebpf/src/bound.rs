//! What a program bound its socket to before `connect()`: with some of it the listener on loopback is out of reach, and the
//! program would wait for minutes.

use aya_ebpf::{EbpfContext as _, helpers::generated::bpf_setsockopt, programs::SockAddrContext};
use mesh_common::{event, policy::HostAddrKey};

use crate::{context, context::Family, maps};

/// asm-generic/socket.h.
const SOL_SOCKET: i32 = 1;
const SO_BINDTOIFINDEX: i32 = 62;

/// Refuses a source address that is not the host's (`IP_TRANSPARENT`, `IP_FREEBIND`): the listener's answers would leave the
/// host. Of another namespace's addresses nothing is known.
#[inline(always)]
pub fn check_source(ctx: &SockAddrContext, family: Family, netns: u64, home: bool) -> Result<(), u32> {
    let own = HostAddrKey { netns, addr: context::bound_source(ctx, family) };
    // Not bound: unspecified, which counts as loopback.
    // SAFETY: the entry is not read.
    if !home || own.addr.is_loopback() || unsafe { maps::HOST_ADDRS.get(own) }.is_some() {
        return Ok(());
    }
    Err(event::REASON_SOURCE)
}

/// Frees the socket from the device that it is bound to (`SO_BINDTODEVICE`, a link-local source): loopback is not behind
/// it. Returns the device's index for [`restore_device`], 0 if there was none.
#[inline(always)]
pub fn release_device(ctx: &SockAddrContext) -> Result<u32, u32> {
    let device = context::bound_device(ctx);
    if device != 0 && !bind_to(ctx, 0) {
        // `sock_bindtoindex_locked` asks for `CAP_NET_RAW` of the caller.
        return Err(event::REASON_DEVICE);
    }
    Ok(device)
}

/// Binds the socket to `device` again, unless the program has bound it anew meanwhile.
#[inline(always)]
pub fn restore_device(ctx: &SockAddrContext, device: u32) {
    if device != 0 && context::bound_device(ctx) == 0 {
        // A device that is gone is none to be bound to, as the kernel says to the program itself.
        let _ = bind_to(ctx, device);
    }
}

#[inline(always)]
fn bind_to(ctx: &SockAddrContext, mut device: u32) -> bool {
    // SAFETY: the helper takes the program's own context, and four bytes that live through the call.
    let ret = unsafe {
        bpf_setsockopt(
            ctx.as_ptr(),
            SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw mut device).cast(),
            size_of::<u32>() as i32,
        )
    };
    ret == 0
}
