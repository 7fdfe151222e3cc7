//! What the kernel tells the daemon of one flow.

use crate::{
    addr::{Endpoint, Port},
    contract,
    policy::ServiceId,
};

/// The length of a task's command name, its terminating zero included (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;

/// Who opened a flow, and what for.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// What the program dialled.
    pub original_dst: Endpoint,
    /// The process (thread group) that called `connect()`.
    pub pid: u32,
    pub source: ServiceId,
    pub destination: ServiceId,
    pub comm: [u8; COMM_LEN],
    /// `CLOCK_MONOTONIC` (`bpf_ktime_get_ns`) at `connect()`.
    pub opened_ns: u64,
}
contract!(Origin, 56);

/// Value of `SOCKETS`, the kernel's storage on the connecting socket itself; it dies with the socket.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketState {
    pub origin: Origin,
    /// `SOCKET_*`: what `connect()` decided.
    pub disposition: u32,
    /// `SOCKET_FLAG_*` bits.
    pub flags: u32,
    /// The index of the device that the program had bound it to, and capture freed it from; 0 for none.
    pub device: u32,
    pub pad: u32,
}
contract!(SocketState, 72);

/// The socket's connection was redirected to the outbound listener.
pub const SOCKET_CAPTURED: u32 = 1;
/// The socket connects directly to an allowed service of this host.
pub const SOCKET_DIRECT: u32 = 2;
/// The UDP socket is connected to an alias of the server that it asks for names.
pub const SOCKET_DNS: u32 = 3;

/// A direct connection leads elsewhere than to what the program dialled: a virtual IP.
pub const SOCKET_FLAG_VIRTUAL: u32 = 1;

/// Key of `FLOWS`: a captured connection as the listener that it was redirected to sees it. Connections to other listeners
/// may come from the same address and port at the same time.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    pub netns: u64,
    /// The connecting end.
    pub peer: Endpoint,
    /// The listener's port; its address is loopback of the peer's family.
    pub listener: Port,
    pad: u16,
}
contract!(FlowKey, 32);

impl FlowKey {
    #[inline(always)]
    pub const fn new(netns: u64, peer: Endpoint, listener: Port) -> Self {
        Self { netns, peer, listener, pad: 0 }
    }
}

/// Value of `FLOWS`: written by `sock_ops` before the listener's `accept()` can return, taken once by the proxy.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FlowRecord {
    pub origin: Origin,
    /// Socket cookie of the connecting socket.
    pub cookie: u64,
}
contract!(FlowRecord, 64);

/// Value of `DIRECT` (key: socket cookie, `u64`): a flow that the kernel connected without the proxy.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirectFlow {
    pub origin: Origin,
    pub netns: u64,
    /// The connecting end; unspecified until the socket has a source port.
    pub local: Endpoint,
    /// The end it connects to.
    pub remote: Endpoint,
    /// `DIRECT_*`.
    pub state: u32,
    pub pad: u32,
}
contract!(DirectFlow, 112);

/// `connect()` was allowed; the kernel has not sent a SYN yet.
pub const DIRECT_ALLOWED: u32 = 0;
/// The SYN is about to be sent, or was: there is a socket to destroy.
pub const DIRECT_CONNECTING: u32 = 1;

/// An entry that is still `DIRECT_ALLOWED` this long after `connect()` is dead, and the daemon removes it.
pub const STILLBORN_NS: u64 = 10_000_000_000;
