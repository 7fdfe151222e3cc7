//! Who calls: the workload of the current task, by its cgroups.

use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id};
use mesh_common::policy::{self, Settings, Workload};
use mesh_ebpf::verdict::Caller;

use crate::maps;

/// Between a process's own cgroup and this depth below the root, cgroups are not looked at.
const MAX_DEPTH: i32 = 24;

/// No workload, and not exempt.
const NOTHING: Workload = Workload { service: policy::NO_SERVICE, flags: 0 };

/// The caller's workload: the deepest cgroup among the task's ancestors that has one.
#[inline(always)]
pub fn caller(settings: &Settings) -> Caller {
    // SAFETY: the helper takes nothing.
    let own = unsafe { bpf_get_current_cgroup_id() };
    // Most workloads' processes are in the very cgroup that was selected: one look-up instead of one for each level.
    let mut found = workload(own).unwrap_or(NOTHING);
    if found == NOTHING {
        for level in 0..MAX_DEPTH {
            // SAFETY: the helper takes a plain number. 0 means that the task is not that deep.
            let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
            if id == own || id == 0 {
                break;
            }
            found = workload(id).unwrap_or(found);
        }
    }
    if found.flags & policy::WORKLOAD_EXEMPT != 0 {
        Caller::Exempt
    } else if found.service != policy::NO_SERVICE {
        Caller::Workload { service: found.service, mesh_only: found.flags & policy::WORKLOAD_MESH_ONLY != 0 }
    } else if own > settings.classified_up_to {
        Caller::Unclassified
    } else {
        Caller::Unmanaged
    }
}

/// What the cgroup `id` is, if it is anything.
#[inline(always)]
fn workload(id: u64) -> Option<Workload> {
    // SAFETY: the entry is copied at once; the daemon replaces entries, it does not edit them in place.
    unsafe { maps::WORKLOADS.get(id) }.copied()
}
