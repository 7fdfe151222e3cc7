//! What the daemon tells the kernel: who is who, what is where, what may connect.

use crate::{
    addr::{Addr, AddrRange, Endpoint, Port},
    contract,
};

/// A service name's number on this host; the map `NAMES` says which name. 0 is no service.
///
/// A workload is bound to one service name, so its identity is a `ServiceId` too.
pub type ServiceId = u32;

pub const NO_SERVICE: ServiceId = 0;

/// The longest service name, in bytes.
pub const NAME_LEN: usize = 128;

/// Value of `NAMES`: a service name, padded with zero bytes.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Name(pub [u8; NAME_LEN]);
contract!(Name, 128);

/// Value of `WORKLOADS` (key: cgroup id, `u64`): what the processes of that cgroup subtree are.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workload {
    pub service: ServiceId,
    /// `WORKLOAD_*` bits.
    pub flags: u32,
}
contract!(Workload, 8);

/// The processes are not subject to the mesh: the daemon itself, and what the configuration lists as exempt.
pub const WORKLOAD_EXEMPT: u32 = 1;
/// The workload may reach mesh destinations only (`egress = "mesh-only"`).
pub const WORKLOAD_MESH_ONLY: u32 = 1 << 1;

/// Value of `DESTINATIONS` (key: [`crate::addr::Endpoint`]): the service whose instance listens there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    pub service: ServiceId,
    /// `DESTINATION_*` bits.
    pub flags: u32,
}
contract!(Destination, 8);

/// The instance is one of this host: what `PROTECTED` says to those in its network namespace, said to all others.
pub const DESTINATION_HERE: u32 = 1;
/// Of an instance of this host: its guard lets through what it would have denied.
pub const DESTINATION_PERMISSIVE: u32 = 1 << 1;

/// Value of `VIRTUALS` (key: [`crate::addr::Addr`]): the service that an address means, whatever the port.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Virtual {
    pub service: ServiceId,
    /// `VIRTUAL_*` bits.
    pub flags: u32,
    /// Where this host's own healthy instance listens, in the host's network namespace, with `VIRTUAL_LOCAL`.
    pub local: Endpoint,
}
contract!(Virtual, 28);

/// An instance may take connections: one whose checks pass, or one that nobody can say anything of at present.
pub const VIRTUAL_SERVED: u32 = 1;
/// One of the instances is this host's own, and `local` is of the address's family.
pub const VIRTUAL_LOCAL: u32 = 1 << 1;

/// Key of `PROTECTED`: a port of a network namespace that belongs to a service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ProtectedKey {
    pub netns: u64,
    pub port: Port,
    pub pad: [u16; 3],
}
contract!(ProtectedKey, 16);

impl ProtectedKey {
    #[inline(always)]
    pub const fn new(netns: u64, port: Port) -> Self {
        Self { netns, port, pad: [0; 3] }
    }
}

/// Key of `HOST_ADDRS`: an address of a network namespace whose ports are protected.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct HostAddrKey {
    pub netns: u64,
    pub addr: Addr,
}
contract!(HostAddrKey, 24);

/// Value of `PROTECTED`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Protected {
    pub service: ServiceId,
    /// Whose programs listen there: the service, or the one that its programs are known as.
    pub listener: ServiceId,
    /// `PROTECTED_*` bits.
    pub flags: u32,
}
contract!(Protected, 12);

/// The guard counts what it would have denied, and lets it through.
pub const PROTECTED_PERMISSIVE: u32 = 1;
/// The service's programs are in other network namespaces: the port here is the one that the service is announced at.
pub const PROTECTED_ELSEWHERE: u32 = 1 << 1;

/// Key of `POLICY`: may `source` connect to `destination`? Only allowed pairs are in the map, so that a missing
/// entry, for whatever reason, denies.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PolicyKey {
    pub source: ServiceId,
    pub destination: ServiceId,
}
contract!(PolicyKey, 8);

/// The only value that `POLICY` holds.
pub const POLICY_ALLOW: u32 = 1;

/// The single value of `SETTINGS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `SETTINGS_*` bits.
    pub flags: u32,
    pub pad: u32,
    /// Cgroups with an id above this one have not been matched with the selectors yet. Ids of cgroups only grow
    /// (`kernfs_new_node`: `idr_alloc_cyclic` plus a generation in the upper half).
    pub classified_up_to: u64,
    /// The host's own network namespace.
    pub host_netns: u64,
    /// What virtual IPs are taken from: an address in one of these that `VIRTUALS` lacks means nothing.
    pub virtual4: AddrRange,
    pub virtual6: AddrRange,
}
contract!(Settings, 88);

/// Catalog and intentions were read at least once (from the control plane, or from the disk cache).
pub const SETTINGS_SYNCED: u32 = 1;
/// A map did not take all that it should hold: what is not known to be outside the mesh is denied.
pub const SETTINGS_INCOMPLETE: u32 = 1 << 1;
/// Some workload is `mesh-only`: datagrams are looked at.
pub const SETTINGS_MESH_ONLY: u32 = 1 << 8;
/// Allowed flows to a service of this host go through the proxy too (`same_host = "mtls"`).
pub const SETTINGS_SAME_HOST_MTLS: u32 = 1 << 2;
/// Workloads' queries for names go to the daemon.
pub const SETTINGS_DNS: u32 = 1 << 3;
/// They are denied when the daemon cannot take them (`dns.when_down = "refuse"`); else they go where they were meant to.
pub const SETTINGS_DNS_REFUSE: u32 = 1 << 4;
