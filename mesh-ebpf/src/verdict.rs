//! What `connect()` may do: from facts to a verdict. No maps, no context, no helpers.

use mesh_common::{
    event,
    policy::{NO_SERVICE, ServiceId},
};

/// Who calls `connect()`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// The daemon, or a cgroup that the configuration exempts.
    Exempt,
    /// A process that belongs to no workload.
    Unmanaged,
    /// A process in a cgroup that the daemon has not looked at yet: it may turn out to be a workload.
    Unclassified,
    Workload {
        service: ServiceId,
        mesh_only: bool,
    },
}

/// Where it connects to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Nothing that the mesh knows.
    Outside,
    /// An instance on another host.
    Remote { service: ServiceId },
    /// A protected port of this host.
    Local {
        service: ServiceId,
        permissive: bool,
        /// The caller is in the network namespace of the service, so that the kernel can connect the two.
        reachable: bool,
    },
    /// The virtual IP of a service, or of none that is known.
    Virtual {
        service: ServiceId,
        /// Some instance may take it.
        served: bool,
        /// One of them is this host's own, which the kernel can connect the caller to.
        local: bool,
    },
}

/// What the daemon told the kernel about its own state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mode {
    pub synced: bool,
    pub incomplete: bool,
    pub same_host_mtls: bool,
}

/// What happens to the connection. Numbers are `REASON_*` of [`event`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not the mesh's business.
    Pass,
    /// Denied by the rules, but let through because the destination is permissive.
    WouldDeny(u32),
    /// Connect the two processes without the proxy.
    Direct {
        source: ServiceId,
        destination: ServiceId,
    },
    /// Redirect to the outbound listener.
    Capture {
        source: ServiceId,
        destination: ServiceId,
    },
    Deny(u32),
}

/// Returns the verdict for `caller` connecting to `target`; `allowed` says whether an intention lets the caller's
/// service connect to the target's.
#[inline(always)]
pub fn decide(caller: Caller, target: Target, allowed: bool, mode: Mode) -> Verdict {
    match (caller, target) {
        (Caller::Exempt, _) => Verdict::Pass,

        (Caller::Unmanaged, Target::Outside | Target::Remote { .. }) => Verdict::Pass,
        (Caller::Unmanaged, Target::Local { permissive, .. }) => refuse(permissive, event::REASON_UNMANAGED),

        // A virtual IP leads nowhere but into the mesh.
        (Caller::Unmanaged, Target::Virtual { .. }) => Verdict::Deny(event::REASON_UNMANAGED),

        (Caller::Unclassified, Target::Outside) => Verdict::Pass,
        (Caller::Unclassified, Target::Remote { .. } | Target::Virtual { .. }) => {
            Verdict::Deny(event::REASON_UNCLASSIFIED)
        }
        (Caller::Unclassified, Target::Local { permissive, .. }) => {
            refuse(permissive, event::REASON_UNCLASSIFIED)
        }

        (Caller::Workload { .. }, _) if !mode.synced => Verdict::Deny(event::REASON_NOT_SYNCED),
        (Caller::Workload { .. }, Target::Outside) if mode.incomplete => {
            Verdict::Deny(event::REASON_MAP_FULL)
        }
        (Caller::Workload { mesh_only: true, .. }, Target::Outside) => Verdict::Deny(event::REASON_MESH_ONLY),
        (Caller::Workload { mesh_only: false, .. }, Target::Outside) => Verdict::Pass,

        (Caller::Workload { .. }, Target::Remote { .. }) if !allowed => {
            Verdict::Deny(event::REASON_INTENTION)
        }
        (Caller::Workload { service: source, .. }, Target::Remote { service: destination }) => {
            Verdict::Capture { source, destination }
        }
        (Caller::Workload { .. }, Target::Local { permissive, .. }) if !allowed => {
            refuse(permissive, event::REASON_INTENTION)
        }
        (Caller::Workload { service: source, .. }, Target::Local { service: destination, reachable, .. }) => {
            if reachable && !mode.same_host_mtls {
                Verdict::Direct { source, destination }
            } else {
                Verdict::Capture { source, destination }
            }
        }

        (Caller::Workload { .. }, Target::Virtual { service: NO_SERVICE, .. }) => {
            Verdict::Deny(if mode.incomplete { event::REASON_MAP_FULL } else { event::REASON_NO_SERVICE })
        }
        // Who may not call a service is not told whether it is there.
        (Caller::Workload { .. }, Target::Virtual { .. }) if !allowed => {
            Verdict::Deny(event::REASON_INTENTION)
        }
        (Caller::Workload { .. }, Target::Virtual { served: false, .. }) => {
            Verdict::Deny(event::REASON_NO_INSTANCE)
        }
        (Caller::Workload { service: source, .. }, Target::Virtual { service: destination, local, .. }) => {
            if local && !mode.same_host_mtls {
                Verdict::Direct { source, destination }
            } else {
                Verdict::Capture { source, destination }
            }
        }
    }
}

/// Whether a `connect()` that is denied for `reason` fails as one does that nobody answers (`ECONNREFUSED`), and not as
/// one that a rule forbids (`EPERM`).
#[inline(always)]
pub fn is_refusal(reason: u32) -> bool {
    reason == event::REASON_NO_INSTANCE
}

/// What happens to a `bind()` to a port that belongs to `service`, whose programs are known as `listener`.
///
/// A cgroup that is not scanned yet is let through, and counted: it is most likely the service itself that just
/// started, and a database that cannot start because the daemon is down would be an outage made by the mesh.
#[inline(always)]
pub fn decide_bind(caller: Caller, service: ServiceId, listener: ServiceId, permissive: bool) -> Verdict {
    match caller {
        Caller::Exempt => Verdict::Pass,
        Caller::Workload { service: own, .. } if own == service || own == listener => Verdict::Pass,
        Caller::Workload { .. } | Caller::Unmanaged => refuse(permissive, event::REASON_BIND),
        Caller::Unclassified => Verdict::WouldDeny(event::REASON_UNCLASSIFIED),
    }
}

#[inline(always)]
fn refuse(permissive: bool, reason: u32) -> Verdict {
    if permissive { Verdict::WouldDeny(reason) } else { Verdict::Deny(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIVE: Mode = Mode { synced: true, incomplete: false, same_host_mtls: false };
    const WEB: Caller = Caller::Workload { service: 1, mesh_only: false };
    const REMOTE: Target = Target::Remote { service: 2 };

    fn local(permissive: bool) -> Target {
        Target::Local { service: 2, permissive, reachable: true }
    }

    #[test]
    fn allowed_remote_is_captured_and_forbidden_is_denied() {
        assert_eq!(decide(WEB, REMOTE, true, LIVE), Verdict::Capture { source: 1, destination: 2 });
        assert_eq!(decide(WEB, REMOTE, false, LIVE), Verdict::Deny(event::REASON_INTENTION));
    }

    #[test]
    fn allowed_local_is_direct_and_forbidden_is_denied_unless_permissive() {
        assert_eq!(decide(WEB, local(false), true, LIVE), Verdict::Direct { source: 1, destination: 2 });
        assert_eq!(decide(WEB, local(false), false, LIVE), Verdict::Deny(event::REASON_INTENTION));
        assert_eq!(decide(WEB, local(true), false, LIVE), Verdict::WouldDeny(event::REASON_INTENTION));
    }

    #[test]
    fn local_from_another_namespace_or_by_configuration_goes_through_the_proxy() {
        let elsewhere = Target::Local { service: 2, permissive: false, reachable: false };
        assert_eq!(decide(WEB, elsewhere, true, LIVE), Verdict::Capture { source: 1, destination: 2 });
        let mtls = Mode { same_host_mtls: true, ..LIVE };
        assert_eq!(decide(WEB, local(false), true, mtls), Verdict::Capture { source: 1, destination: 2 });
    }

    const VIRTUAL: Target = Target::Virtual { service: 2, served: true, local: false };

    #[test]
    fn a_virtual_ip_is_decided_by_policy_first_then_by_who_serves_it() {
        assert_eq!(decide(WEB, VIRTUAL, true, LIVE), Verdict::Capture { source: 1, destination: 2 });
        assert_eq!(decide(WEB, VIRTUAL, false, LIVE), Verdict::Deny(event::REASON_INTENTION));
        let unserved = Target::Virtual { service: 2, served: false, local: false };
        assert_eq!(decide(WEB, unserved, true, LIVE), Verdict::Deny(event::REASON_NO_INSTANCE));
        assert_eq!(decide(WEB, unserved, false, LIVE), Verdict::Deny(event::REASON_INTENTION));
        assert!(is_refusal(event::REASON_NO_INSTANCE) && !is_refusal(event::REASON_INTENTION));
    }

    #[test]
    fn a_virtual_ip_leads_to_this_hosts_own_instance_unless_that_is_not_to_be_direct() {
        let local = Target::Virtual { service: 2, served: true, local: true };
        assert_eq!(decide(WEB, local, true, LIVE), Verdict::Direct { source: 1, destination: 2 });
        assert_eq!(decide(WEB, local, false, LIVE), Verdict::Deny(event::REASON_INTENTION));
        let mtls = Mode { same_host_mtls: true, ..LIVE };
        assert_eq!(decide(WEB, local, true, mtls), Verdict::Capture { source: 1, destination: 2 });
    }

    #[test]
    fn a_virtual_ip_never_leads_out_of_the_mesh() {
        let nothing = Target::Virtual { service: NO_SERVICE, served: false, local: false };
        assert_eq!(decide(WEB, nothing, false, LIVE), Verdict::Deny(event::REASON_NO_SERVICE));
        let full = Mode { incomplete: true, ..LIVE };
        assert_eq!(decide(WEB, nothing, false, full), Verdict::Deny(event::REASON_MAP_FULL));
        for target in [VIRTUAL, nothing] {
            assert_eq!(decide(Caller::Unmanaged, target, true, LIVE), Verdict::Deny(event::REASON_UNMANAGED));
            let unclassified = decide(Caller::Unclassified, target, true, LIVE);
            assert_eq!(unclassified, Verdict::Deny(event::REASON_UNCLASSIFIED));
            let cold = Mode { synced: false, ..LIVE };
            assert_eq!(decide(WEB, target, true, cold), Verdict::Deny(event::REASON_NOT_SYNCED));
            assert_eq!(decide(Caller::Exempt, target, false, LIVE), Verdict::Pass);
        }
    }

    #[test]
    fn unmanaged_reaches_everything_but_protected_ports_of_this_host() {
        assert_eq!(
            decide(Caller::Unmanaged, local(false), true, LIVE),
            Verdict::Deny(event::REASON_UNMANAGED)
        );
        assert_eq!(
            decide(Caller::Unmanaged, local(true), false, LIVE),
            Verdict::WouldDeny(event::REASON_UNMANAGED)
        );
        assert_eq!(decide(Caller::Unmanaged, REMOTE, false, LIVE), Verdict::Pass);
        assert_eq!(decide(Caller::Unmanaged, Target::Outside, false, LIVE), Verdict::Pass);
    }

    #[test]
    fn unclassified_never_reaches_the_mesh_in_clear() {
        assert_eq!(
            decide(Caller::Unclassified, REMOTE, true, LIVE),
            Verdict::Deny(event::REASON_UNCLASSIFIED)
        );
        assert_eq!(
            decide(Caller::Unclassified, local(false), true, LIVE),
            Verdict::Deny(event::REASON_UNCLASSIFIED)
        );
        assert_eq!(decide(Caller::Unclassified, Target::Outside, false, LIVE), Verdict::Pass);
    }

    #[test]
    fn before_the_first_sync_a_workload_reaches_nothing() {
        let cold = Mode { synced: false, ..LIVE };
        for target in [Target::Outside, REMOTE, local(false), local(true)] {
            assert_eq!(decide(WEB, target, true, cold), Verdict::Deny(event::REASON_NOT_SYNCED));
        }
        assert_eq!(decide(Caller::Unmanaged, Target::Outside, false, cold), Verdict::Pass);
    }

    #[test]
    fn an_incomplete_map_denies_what_is_not_known_to_be_outside() {
        let full = Mode { incomplete: true, ..LIVE };
        assert_eq!(decide(WEB, Target::Outside, false, full), Verdict::Deny(event::REASON_MAP_FULL));
        assert_eq!(decide(WEB, REMOTE, true, full), Verdict::Capture { source: 1, destination: 2 });
    }

    #[test]
    fn mesh_only_reaches_the_mesh_and_nothing_else() {
        let caller = Caller::Workload { service: 1, mesh_only: true };
        assert_eq!(decide(caller, Target::Outside, false, LIVE), Verdict::Deny(event::REASON_MESH_ONLY));
        assert_eq!(decide(caller, REMOTE, true, LIVE), Verdict::Capture { source: 1, destination: 2 });
        assert_eq!(decide(WEB, Target::Outside, false, LIVE), Verdict::Pass);
    }

    #[test]
    fn a_protected_port_is_bound_by_its_service_and_by_nobody_else() {
        assert_eq!(decide_bind(WEB, 1, 1, false), Verdict::Pass);
        assert_eq!(decide_bind(WEB, 2, 1, false), Verdict::Pass, "a second port of the same programs");
        assert_eq!(decide_bind(WEB, 1, 2, false), Verdict::Pass, "started as the second service itself");
        assert_eq!(decide_bind(Caller::Exempt, 1, 1, false), Verdict::Pass);
        assert_eq!(decide_bind(WEB, 2, 2, false), Verdict::Deny(event::REASON_BIND));
        assert_eq!(decide_bind(Caller::Unmanaged, 1, 1, false), Verdict::Deny(event::REASON_BIND));
        assert_eq!(decide_bind(Caller::Unmanaged, 1, 1, true), Verdict::WouldDeny(event::REASON_BIND));
    }

    #[test]
    fn a_service_that_just_started_may_bind_before_its_cgroup_is_scanned() {
        assert_eq!(
            decide_bind(Caller::Unclassified, 1, 1, false),
            Verdict::WouldDeny(event::REASON_UNCLASSIFIED)
        );
    }

    #[test]
    fn exempt_is_never_touched() {
        for target in [Target::Outside, REMOTE, local(false)] {
            assert_eq!(decide(Caller::Exempt, target, false, LIVE), Verdict::Pass);
        }
    }
}
