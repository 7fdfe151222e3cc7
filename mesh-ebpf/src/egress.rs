//! What leaves the mesh from a `mesh-only` workload: the look-up in its list.

use aya_ebpf::btf_maps::lpm_trie::Key;
use mesh_common::{
    addr::Endpoint,
    egress::{EGRESS_ADDRESS_BITS, EgressSubject},
    policy::ServiceId,
};
use mesh_ebpf::listed;

use crate::maps;

/// Whether the list of the workload `service` has `remote` for the protocol (an `EGRESS_*` bit). What is not in the
/// map, for whatever reason, is not listed.
#[inline(always)]
pub fn lists(service: ServiceId, remote: Endpoint, protocol: u16) -> bool {
    let key = Key::new(EGRESS_ADDRESS_BITS, EgressSubject { service, addr: remote.addr });
    maps::EGRESS.get(&key).is_some_and(|rules| listed::lets(rules, remote.port, protocol))
}
