//! Every map: who writes it, who reads it, how long an entry lives.
//!
//! Sizes are defaults; the daemon sets them from `[limits]` when it creates a map.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SkStorage, SockHash},
    macros::btf_map,
};
use mesh_common::{
    addr::{Addr, Endpoint},
    dns::{DnsAlias, DnsRoute},
    egress::{EgressRules, EgressSubject},
    event::{Event, Opened},
    flow::{DirectFlow, FlowKey, FlowRecord, SocketState},
    map::ListenerKey,
    policy::{
        Destination, HostAddrKey, Name, PolicyKey, Protected, ProtectedKey, ServiceId, Settings, Virtual,
        Workload,
    },
};

const LAZY: usize = BPF_F_NO_PREALLOC as usize;

/// Daemon → `connect`. Cgroup id → workload; lives as long as the cgroup.
#[btf_map]
pub static WORKLOADS: HashMap<u64, Workload, 16384, LAZY> = HashMap::new();

/// Daemon → `connect`. Address of an instance that is not in the caller's network namespace → service; lives as long as
/// the instance is in the catalog, or the container here.
#[btf_map]
pub static DESTINATIONS: HashMap<Endpoint, Destination, 262144, LAZY> = HashMap::new();

/// Daemon → `connect`. Virtual IP → service; lives as long as the service is known of.
#[btf_map]
pub static VIRTUALS: HashMap<Addr, Virtual, 262144, LAZY> = HashMap::new();

/// Daemon → `bind`, `connect`, `sk_lookup`. Port of a network namespace → service; lives as long as the configuration
/// names it, and a process of the service is in that namespace (the host's: always).
#[btf_map]
pub static PROTECTED: HashMap<ProtectedKey, Protected, 16384, LAZY> = HashMap::new();

/// Daemon → `connect`. Allowed pairs only: local workload → service.
#[btf_map]
pub static POLICY: HashMap<PolicyKey, u32, 262144, LAZY> = HashMap::new();

/// Daemon → `connect`, `sendmsg`. What a `mesh-only` workload may reach outside the mesh: networks as long as the
/// configuration has them, addresses of names until they are out of date.
#[btf_map]
pub static EGRESS: LpmTrie<EgressSubject, EgressRules, 65536> = LpmTrie::new();

/// Daemon → `connect`, `sk_lookup`. The own addresses of the host, and of each network namespace that `PROTECTED` has a
/// port of; loopback not included.
#[btf_map]
pub static HOST_ADDRS: HashMap<HostAddrKey, u32, 16384, LAZY> = HashMap::new();

/// Daemon → all. One entry.
#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

/// Daemon → daemon. Service id → name, so that a restarted daemon goes on with the ids that are in the other maps.
#[btf_map]
pub static NAMES: HashMap<ServiceId, Name, 65536, LAZY> = HashMap::new();

/// `connect` → `sock_ops`, `getpeername`. Storage on the connecting socket; the kernel frees it with the socket.
#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// `sock_ops` → daemon, which takes the entry out when it accepts the connection.
#[btf_map]
pub static FLOWS: HashMap<FlowKey, FlowRecord, 65536, LAZY> = HashMap::new();

/// `connect`, `sock_ops` → daemon. Socket cookie → direct flow; from `connect()` until the socket is closed.
/// Preallocated (168 bytes an entry): entries come and go with each connection, mostly on two processors, and allocating them was
/// a quarter of what the programs cost a connection.
#[btf_map]
pub static DIRECT: HashMap<u64, DirectFlow, 65536> = HashMap::new();

/// Daemon → `connect`, `sk_lookup`. The daemon's listening sockets; a closed one is not in it any more.
#[btf_map]
pub static LISTENERS: SockHash<ListenerKey, 4096> = SockHash::new();

/// Daemon, `sock_create` → `sock_create`. Cookie of a network namespace, other than the host's → `NAMESPACE_SERVED`, or
/// when it was last looked at; the daemon sweeps those.
#[btf_map]
pub static NAMESPACES: HashMap<u64, u64, 4096, LAZY> = HashMap::new();

/// `connect`, `sendmsg` → `recvmsg`, daemon, which removes what was long not used. What a query was rewritten to → the
/// server that was asked, and by whom.
#[btf_map]
pub static DNS_ROUTES: HashMap<DnsAlias, DnsRoute, 16384, LAZY> = HashMap::new();

/// All → daemon.
#[btf_map]
pub static EVENTS: RingBuf<Event, 1048576> = RingBuf::new();

/// `sock_ops` → `sock_ops`.
#[btf_map]
pub static OPENED: PerCpuArray<Opened, 1> = PerCpuArray::new();

/// All → daemon. Index: `mesh_common::counter::Counter`.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, 32> = PerCpuArray::new();
