//! Queries for names that are diverted to the daemon: how it learns which server was asked, and by whom.
//!
//! A datagram carries nothing but its addresses, and a connected socket's run no hook, so the destination says it all:
//! an *alias* on loopback stands for one server asked by one workload in one network namespace.

use crate::{
    addr::{Addr, Endpoint, Port},
    contract,
    policy::ServiceId,
};

/// The port of the service that is diverted.
pub const DNS_PORT: Port = Port::new(53);

/// Key of `DNS_ROUTES`: what a program's call was rewritten to. For IPv4 servers an address in 127.77/16 and the port
/// of the namespace's DNS socket, for IPv6 servers `[::1]` and one of [`DNS_SLOTS`] ports.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DnsAlias {
    pub netns: u64,
    pub at: Endpoint,
    pub pad: u32,
}
contract!(DnsAlias, 32);

/// Value of `DNS_ROUTES`: what an alias stands for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DnsRoute {
    /// What the program asked.
    pub server: Endpoint,
    /// The workload that asked.
    pub service: ServiceId,
    /// `CLOCK_MONOTONIC` of the last call that was diverted to it.
    pub used_ns: u64,
}
contract!(DnsRoute, 32);

/// How many ports on `[::1]` a namespace's DNS sockets have: IPv6 has a single loopback address. They follow the port
/// of the namespace's TCP listener of the role `LISTENER_DNS6`, which is the first.
pub const DNS_SLOTS: u16 = 8;

/// The first two bytes of an alias of an IPv4 server.
pub const DNS_ALIAS4: [u8; 2] = [127, 77];

/// Returns the `n`th IPv4 alias.
#[inline(always)]
pub const fn alias4(n: u16, port: Port) -> Endpoint {
    let [high, low] = n.to_be_bytes();
    Endpoint::new(Addr::from_v4(u32::from_ne_bytes([DNS_ALIAS4[0], DNS_ALIAS4[1], high, low])), port)
}

/// Whether `addr` can be an alias.
#[inline(always)]
pub const fn may_be_alias(addr: &Addr) -> bool {
    match addr.v4() {
        Some(word) => {
            let [a, b, ..] = word.to_ne_bytes();
            a == DNS_ALIAS4[0] && b == DNS_ALIAS4[1]
        }
        None => addr.is_loopback(),
    }
}
