//! Entries of the BPF programs; each file beside this one is a hook.

#![no_std]
#![no_main]

mod bind;
mod bound;
mod caller;
mod connect;
mod context;
mod datagram;
mod dns;
mod egress;
mod maps;
mod peername;
mod report;
mod sk_lookup;
mod sock_create;
mod sock_ops;

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, sk_lookup as sk_lookup_program, sock_ops as sock_ops_program},
    programs::{SkLookupContext, SockAddrContext, SockContext, SockOpsContext},
};

/// `cgroup/connect4`: 1 lets the call proceed, 0 makes it fail with `EPERM`.
#[cgroup_sock_addr(connect4)]
pub fn mesh_connect4(ctx: SockAddrContext) -> i32 {
    if datagram::is_datagram(&ctx) {
        return datagram::outgoing(&ctx, context::Family::V4, datagram::Call::Connect);
    }
    connect::connect(&ctx, context::Family::V4)
}

#[cgroup_sock_addr(connect6)]
pub fn mesh_connect6(ctx: SockAddrContext) -> i32 {
    if datagram::is_datagram(&ctx) {
        return datagram::outgoing(&ctx, context::Family::V6, datagram::Call::Connect);
    }
    connect::connect(&ctx, context::Family::V6)
}

/// `cgroup/sendmsg4`: as `connect4`, for datagrams of a socket that is not connected.
#[cgroup_sock_addr(sendmsg4)]
pub fn mesh_sendmsg4(ctx: SockAddrContext) -> i32 {
    datagram::outgoing(&ctx, context::Family::V4, datagram::Call::Send)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn mesh_sendmsg6(ctx: SockAddrContext) -> i32 {
    datagram::outgoing(&ctx, context::Family::V6, datagram::Call::Send)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn mesh_recvmsg4(ctx: SockAddrContext) -> i32 {
    datagram::incoming(&ctx, context::Family::V4)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn mesh_recvmsg6(ctx: SockAddrContext) -> i32 {
    datagram::incoming(&ctx, context::Family::V6)
}

/// `cgroup/bind4`: as `connect4`.
#[cgroup_sock_addr(bind4)]
pub fn mesh_bind4(ctx: SockAddrContext) -> i32 {
    bind::bind(&ctx, context::Family::V4)
}

#[cgroup_sock_addr(bind6)]
pub fn mesh_bind6(ctx: SockAddrContext) -> i32 {
    bind::bind(&ctx, context::Family::V6)
}

#[cgroup_sock(sock_create)]
pub fn mesh_sock_create(ctx: SockContext) -> i32 {
    sock_create::sock_create(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub fn mesh_peername4(ctx: SockAddrContext) -> i32 {
    peername::peername(&ctx, context::Family::V4)
}

#[cgroup_sock_addr(getpeername6)]
pub fn mesh_peername6(ctx: SockAddrContext) -> i32 {
    peername::peername(&ctx, context::Family::V6)
}

#[sock_ops_program]
pub fn mesh_sock_ops(ctx: SockOpsContext) -> u32 {
    sock_ops::sock_ops(&ctx);
    1
}

#[sk_lookup_program]
pub fn mesh_guard(ctx: SkLookupContext) -> u32 {
    sk_lookup::guard(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never linked: the verifier refuses a program that could get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
