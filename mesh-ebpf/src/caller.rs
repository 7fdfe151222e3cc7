//! Who calls: the workload of the current task, by its cgroups.

use aya_ebpf::helpers::generated::bpf_get_current_ancestor_cgroup_id;
use mesh_common::policy::{self, Settings};
use mesh_ebpf::verdict::Caller;

use crate::maps;

/// Cgroups deeper than this below the root are not looked at: what is in them is its ancestor at this depth.
const MAX_DEPTH: i32 = 24;

/// The caller's workload: the deepest cgroup among the task's ancestors that has one.
#[inline(always)]
pub fn caller(settings: &Settings) -> Caller {
    let mut found = Caller::Unmanaged;
    let mut own = 0;
    for level in 0..MAX_DEPTH {
        // SAFETY: the helper takes a plain number. 0 means that the task is not that deep.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            break;
        }
        own = id;
        // SAFETY: the entry is copied at once; the daemon replaces entries, it does not edit them in place.
        if let Some(workload) = unsafe { maps::WORKLOADS.get(id) } {
            found = if workload.flags & policy::WORKLOAD_EXEMPT != 0 {
                Caller::Exempt
            } else {
                Caller::Workload {
                    service: workload.service,
                    mesh_only: workload.flags & policy::WORKLOAD_MESH_ONLY != 0,
                }
            };
        }
    }
    if found == Caller::Unmanaged && own > settings.classified_up_to { Caller::Unclassified } else { found }
}
