//! Reading and writing the contexts: byte orders and widths are settled here, once.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::bpf_get_netns_cookie,
    programs::{SkLookupContext, SockAddrContext, SockOpsContext},
};
use mesh_common::addr::{Addr, Endpoint, Port};

/// `AF_INET` and `AF_INET6` (`include/linux/socket.h`), which the bindings lack.
pub const AF_INET: u32 = 2;
pub const AF_INET6: u32 = 10;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Reads a context's field once, with its own width, at a constant offset: the verifier refuses a context pointer
/// that was computed ("dereference of modified ctx ptr"), which the compiler makes of two plain reads in branches.
macro_rules! field {
    ($ctx:expr, $($path:tt)+) => {
        // SAFETY: the kernel passes a valid context to the program, and the field is in it.
        unsafe { (&raw const (*$ctx).$($path)+).read_volatile() }
    };
}

/// The four words of an IPv6 address of a context.
macro_rules! words {
    ($ctx:expr, $name:ident) => {
        [field!($ctx, $name[0]), field!($ctx, $name[1]), field!($ctx, $name[2]), field!($ctx, $name[3])]
    };
}

/// Returns the address the program passed to `connect()`; IPv4-mapped IPv6 is IPv4.
#[inline(always)]
pub fn dialled(ctx: &SockAddrContext, family: Family) -> Endpoint {
    let raw = ctx.sock_addr;
    let addr = match family {
        Family::V4 => Addr::from_v4(field!(raw, user_ip4)),
        Family::V6 => Addr::from_v6(words!(raw, user_ip6)),
    };
    // `user_port` is a `u32` whose first two bytes in memory are the port in network order.
    let [high, low, ..] = field!(raw, user_port).to_ne_bytes();
    Endpoint::new(addr, Port::from_wire(u16::from_ne_bytes([high, low])))
}

/// Replaces the address that the call works with, or returns (`getpeername`).
#[inline(always)]
pub fn set_address(ctx: &SockAddrContext, family: Family, to: Endpoint) {
    let [a, b, c, d] = to.addr.words();
    // SAFETY: the kernel passes a valid context; the verifier allows writing these fields in these hooks.
    unsafe {
        let raw = ctx.sock_addr;
        match family {
            Family::V4 => (&raw mut (*raw).user_ip4).write_volatile(d),
            Family::V6 => {
                (&raw mut (*raw).user_ip6[0]).write_volatile(a);
                (&raw mut (*raw).user_ip6[1]).write_volatile(b);
                (&raw mut (*raw).user_ip6[2]).write_volatile(c);
                (&raw mut (*raw).user_ip6[3]).write_volatile(d);
            }
        }
        (&raw mut (*raw).user_port).write_volatile(u32::from(to.port.wire()));
    }
}

/// Returns the source address that the program bound the socket to; unspecified when it did not.
#[inline(always)]
pub fn bound_source(ctx: &SockAddrContext, family: Family) -> Addr {
    // SAFETY: the kernel passes a valid context, whose socket is never null.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    match family {
        Family::V4 => Addr::from_v4(field!(sk, src_ip4)),
        Family::V6 => Addr::from_v6(words!(sk, src_ip6)),
    }
}

/// Returns the index of the device that the socket is bound to, or 0.
#[inline(always)]
pub fn bound_device(ctx: &SockAddrContext) -> u32 {
    // SAFETY: as in `bound_source`.
    let sk = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    field!(sk, bound_dev_if)
}

#[inline(always)]
pub fn netns_of(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The two ends of a socket: (local, remote).
#[inline(always)]
pub fn ends(ctx: &SockOpsContext) -> (Endpoint, Endpoint) {
    let raw = ctx.ops;
    let v6 = field!(raw, family) == AF_INET6;
    let local4 = field!(raw, local_ip4);
    let remote4 = field!(raw, remote_ip4);
    let local6 = words!(raw, local_ip6);
    let remote6 = words!(raw, remote_ip6);
    // `local_port` is in host order; `remote_port` has the port in network order in its upper half
    // (`sock_ops_convert_ctx_access` shifts `skc_dport` left by 16 on little endian).
    let local_port = Port::new(field!(raw, local_port) as u16);
    let remote_port = Port::from_wire((field!(raw, remote_port) >> 16) as u16);
    (
        Endpoint::new(pick(v6, local4, local6), local_port),
        Endpoint::new(pick(v6, remote4, remote6), remote_port),
    )
}

#[inline(always)]
fn pick(v6: bool, four: u32, six: [u32; 4]) -> Addr {
    if v6 { Addr::from_v6(six) } else { Addr::from_v4(four) }
}

/// The two ends of an incoming connection: (local, remote).
#[inline(always)]
pub fn lookup_ends(ctx: &SkLookupContext) -> (Endpoint, Endpoint) {
    let raw = ctx.lookup;
    let v6 = field!(raw, family) == AF_INET6;
    let local4 = field!(raw, local_ip4);
    let remote4 = field!(raw, remote_ip4);
    let local6 = words!(raw, local_ip6);
    let remote6 = words!(raw, remote_ip6);
    // Here `local_port` is a `u32` in host order and `remote_port` two bytes in network order.
    let local_port = Port::new(field!(raw, local_port) as u16);
    let remote_port = Port::from_wire(field!(raw, remote_port));
    (
        Endpoint::new(pick(v6, local4, local6), local_port),
        Endpoint::new(pick(v6, remote4, remote6), remote_port),
    )
}
