//! Indices of the per-CPU array `COUNTERS`.

/// A counter the kernel side keeps. The discriminant is the index.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    Captured = 0,
    Direct = 1,
    DeniedIntention = 2,
    DeniedUnmanaged = 3,
    DeniedUnclassified = 4,
    DeniedNotSynced = 5,
    DeniedMeshOnly = 6,
    DeniedMapFull = 7,
    DeniedNoListener = 8,
    WouldDeny = 9,
    Guarded = 10,
    GuardPassed = 11,
    GuardDropped = 12,
    FlowLost = 13,
    /// Events that did not fit into the ring buffer.
    EventLost = 14,
    DeniedBind = 15,
    DeniedMptcp = 16,
    /// Queries for names, or their sockets' `connect()`, diverted to the daemon.
    DnsDiverted = 17,
    /// Queries for names that went past the daemon, because it could not take them.
    DnsPassed = 18,
    DeniedNoResolver = 19,
    RefusedNoInstance = 20,
    DeniedNoService = 21,
    DeniedBound = 22,
    DeniedProtocol = 24,
}

impl Counter {
    pub const ALL: [Self; 24] = [
        Self::Captured,
        Self::Direct,
        Self::DeniedIntention,
        Self::DeniedUnmanaged,
        Self::DeniedUnclassified,
        Self::DeniedNotSynced,
        Self::DeniedMeshOnly,
        Self::DeniedMapFull,
        Self::DeniedNoListener,
        Self::WouldDeny,
        Self::Guarded,
        Self::GuardPassed,
        Self::GuardDropped,
        Self::FlowLost,
        Self::EventLost,
        Self::DeniedBind,
        Self::DeniedMptcp,
        Self::DeniedBound,
        Self::DeniedProtocol,
        Self::DnsDiverted,
        Self::DnsPassed,
        Self::DeniedNoResolver,
        Self::RefusedNoInstance,
        Self::DeniedNoService,
    ];

    /// Returns the name that metrics and `status --json` use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Direct => "direct",
            Self::DeniedIntention => "denied_intention",
            Self::DeniedUnmanaged => "denied_unmanaged",
            Self::DeniedUnclassified => "denied_unclassified",
            Self::DeniedNotSynced => "denied_not_synced",
            Self::DeniedMeshOnly => "denied_mesh_only",
            Self::DeniedMapFull => "denied_map_full",
            Self::DeniedNoListener => "denied_no_listener",
            Self::WouldDeny => "would_deny",
            Self::Guarded => "guarded",
            Self::GuardPassed => "guard_passed",
            Self::GuardDropped => "guard_dropped",
            Self::FlowLost => "flow_lost",
            Self::EventLost => "event_lost",
            Self::DeniedBind => "denied_bind",
            Self::DeniedMptcp => "denied_mptcp",
            Self::DeniedBound => "denied_bound",
            Self::DeniedProtocol => "denied_protocol",
            Self::DnsDiverted => "dns_diverted",
            Self::DnsPassed => "dns_passed",
            Self::DeniedNoResolver => "denied_no_resolver",
            Self::RefusedNoInstance => "refused_no_instance",
            Self::DeniedNoService => "denied_no_service",
        }
    }
}
