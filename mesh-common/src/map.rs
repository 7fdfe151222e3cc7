//! Names and sizes of the maps, and the keys that are about sockets.
//!
//! A name is cut at 15 characters by the kernel (`BPF_OBJ_NAME_LEN`), so none is longer.

use crate::contract;

pub const WORKLOADS: &str = "WORKLOADS";
pub const DESTINATIONS: &str = "DESTINATIONS";
pub const VIRTUALS: &str = "VIRTUALS";
pub const PROTECTED: &str = "PROTECTED";
pub const POLICY: &str = "POLICY";
pub const HOST_ADDRS: &str = "HOST_ADDRS";
pub const SETTINGS: &str = "SETTINGS";
pub const NAMES: &str = "NAMES";
pub const SOCKETS: &str = "SOCKETS";
pub const FLOWS: &str = "FLOWS";
pub const DIRECT: &str = "DIRECT";
pub const LISTENERS: &str = "LISTENERS";
pub const NAMESPACES: &str = "NAMESPACES";
pub const EGRESS: &str = "EGRESS";
pub const DNS_ROUTES: &str = "DNS_ROUTES";
pub const EVENTS: &str = "EVENTS";
pub const OPENED: &str = "OPENED";
pub const COUNTERS: &str = "COUNTERS";

/// Value of `NAMESPACES`: the daemon listens there. Any other is a time, `CLOCK_MONOTONIC` in nanoseconds.
pub const NAMESPACE_SERVED: u64 = u64::MAX;

/// Key of `LISTENERS`, a `SOCKHASH` of the daemon's listening sockets. A socket leaves it when it is closed, so an
/// absent entry means that the daemon does not listen, whatever else listens on that port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ListenerKey {
    pub netns: u64,
    /// `LISTENER_*`.
    pub role: u32,
    pub pad: u32,
}
contract!(ListenerKey, 16);

pub const LISTENER_OUTBOUND4: u32 = 1;
pub const LISTENER_OUTBOUND6: u32 = 2;
pub const LISTENER_GUARD4: u32 = 3;
pub const LISTENER_GUARD6: u32 = 4;
/// Takes queries for names over TCP; that it listens says that the daemon's UDP socket of the same port answers.
pub const LISTENER_DNS4: u32 = 5;
pub const LISTENER_DNS6: u32 = 6;
