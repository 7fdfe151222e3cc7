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

/// Words as the context holds them (network order in memory) to an address.
#[inline(always)]
fn from_words(words: [u32; 4]) -> Addr {
    let [a, b, c, d] = words;
    let [a, b, c, d] = [a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes()];
    Addr::from_v6([
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
    ])
}

/// Returns the address the program passed to `connect()`; IPv4-mapped IPv6 is IPv4.
#[inline(always)]
pub fn dialled(ctx: &SockAddrContext, family: Family) -> Endpoint {
    // SAFETY: the kernel passes a valid context; each field is read with the width that the verifier allows.
    let raw = unsafe { &*ctx.sock_addr };
    let addr = match family {
        Family::V4 => Addr::from_v4(raw.user_ip4.to_ne_bytes()),
        Family::V6 => from_words([raw.user_ip6[0], raw.user_ip6[1], raw.user_ip6[2], raw.user_ip6[3]]),
    };
    // `user_port` is a `u32` whose first two bytes in memory are the port in network order.
    let [high, low, ..] = raw.user_port.to_ne_bytes();
    Endpoint::new(addr, Port::from_wire([high, low]))
}

/// Replaces the address that the call works with, or returns (`getpeername`).
#[inline(always)]
pub fn set_address(ctx: &SockAddrContext, family: Family, to: Endpoint) {
    let o = to.addr.octets();
    // SAFETY: as in `dialled`; the verifier allows writing these fields in these hooks.
    let raw = unsafe { &mut *ctx.sock_addr };
    match family {
        Family::V4 => raw.user_ip4 = u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        Family::V6 => {
            raw.user_ip6[0] = u32::from_ne_bytes([o[0], o[1], o[2], o[3]]);
            raw.user_ip6[1] = u32::from_ne_bytes([o[4], o[5], o[6], o[7]]);
            raw.user_ip6[2] = u32::from_ne_bytes([o[8], o[9], o[10], o[11]]);
            raw.user_ip6[3] = u32::from_ne_bytes([o[12], o[13], o[14], o[15]]);
        }
    }
    let [high, low] = to.port.wire();
    raw.user_port = u32::from_ne_bytes([high, low, 0, 0]);
}

#[inline(always)]
pub fn netns_of(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The two ends of a socket: (local, remote).
#[inline(always)]
pub fn ends(ctx: &SockOpsContext) -> (Endpoint, Endpoint) {
    // SAFETY: the kernel passes a valid context.
    let raw = unsafe { &*ctx.ops };
    // `local_port` is in host order; `remote_port` is a `u32` with the network-order port in its upper half as
    // stored in memory (`SOCK_OPS_GET_FIELD` of `skc_dport`, shifted by 16 on little endian).
    let local_port = Port::new(raw.local_port as u16);
    let [_, _, high, low] = raw.remote_port.to_ne_bytes();
    let remote_port = Port::from_wire([high, low]);
    let (local, remote) = if raw.family == AF_INET6 {
        (
            from_words([raw.local_ip6[0], raw.local_ip6[1], raw.local_ip6[2], raw.local_ip6[3]]),
            from_words([raw.remote_ip6[0], raw.remote_ip6[1], raw.remote_ip6[2], raw.remote_ip6[3]]),
        )
    } else {
        (Addr::from_v4(raw.local_ip4.to_ne_bytes()), Addr::from_v4(raw.remote_ip4.to_ne_bytes()))
    };
    (Endpoint::new(local, local_port), Endpoint::new(remote, remote_port))
}

/// The two ends of an incoming connection: (local, remote).
#[inline(always)]
pub fn lookup_ends(ctx: &SkLookupContext) -> (Endpoint, Endpoint) {
    // SAFETY: the kernel passes a valid context.
    let raw = unsafe { &*ctx.lookup };
    // Here `local_port` is a `u32` in host order and `remote_port` two bytes in network order.
    let local_port = Port::new(raw.local_port as u16);
    let remote_port = Port::from_wire(raw.remote_port.to_ne_bytes());
    let (local, remote) = if raw.family == AF_INET6 {
        (
            from_words([raw.local_ip6[0], raw.local_ip6[1], raw.local_ip6[2], raw.local_ip6[3]]),
            from_words([raw.remote_ip6[0], raw.remote_ip6[1], raw.remote_ip6[2], raw.remote_ip6[3]]),
        )
    } else {
        (Addr::from_v4(raw.local_ip4.to_ne_bytes()), Addr::from_v4(raw.remote_ip4.to_ne_bytes()))
    };
    (Endpoint::new(local, local_port), Endpoint::new(remote, remote_port))
}
