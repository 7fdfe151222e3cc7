//! What a `mesh-only` workload may reach outside the mesh all the same.

use crate::{addr::Addr, contract, policy::ServiceId};

/// The data of a key of `EGRESS`, a trie of prefixes: all bits of the workload, then those of the network.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct EgressSubject {
    pub service: ServiceId,
    pub addr: Addr,
}
contract!(EgressSubject, 20);

/// Bits of the prefix that are the workload's.
pub const EGRESS_SERVICE_BITS: u32 = 32;
/// Bits of a whole key: of one address.
pub const EGRESS_ADDRESS_BITS: u32 = EGRESS_SERVICE_BITS + 128;
/// An IPv4 network's prefix begins after those of IPv4-mapped IPv6.
pub const EGRESS_V4_BITS: u32 = EGRESS_SERVICE_BITS + 96;

/// Port ranges that a list may have.
pub const EGRESS_RANGES: usize = 32;

/// Value of `EGRESS`: what is allowed at the network, what wider networks allow included, since only the narrowest
/// that has the address is found.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EgressRules(pub [EgressRange; EGRESS_RANGES]);
contract!(EgressRules, 256);

/// Ports from `first` to `last`; those after the last range that is used are zero. In the order of the host's bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct EgressRange {
    pub first: u16,
    pub last: u16,
    /// `EGRESS_*` bits.
    pub protocols: u16,
    pub pad: u16,
}
contract!(EgressRange, 8);

pub const EGRESS_TCP: u16 = 1;
pub const EGRESS_UDP: u16 = 1 << 1;
