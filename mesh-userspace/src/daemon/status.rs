//! The status report: what the kernel, the proxy and the control-plane client say right now, in one shape.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use super::{Daemon, clear, direct, namespaces::Guarded, virtual_ips};
use crate::{
    admin::{
        Attachment, AttachmentState, CertificateStatus, ControlPlaneStatus, ExemptStatus, FlowDirection,
        FlowState, FlowStatus, GatewayStatus, ListenerStatus, MOST_ALLOWED, ServiceStatus, StatusReport,
        Timestamp, UncapturedStatus, WorkloadStatus,
    },
    config::{Config, Egress, SameHost},
    control_plane::{Health, late_at},
    datapath::{
        direct::Direct,
        engine::WorkloadCgroup,
        events::{Kind, Report},
        load::AttachState,
        uncaptured::{End, Uncaptured},
    },
    fast_path::FastPath,
    identity::ServiceName,
    proxy::{Direction, FlowReport, FlowState as ProxyState},
    state::Mesh,
};

/// Returns the report of now.
pub fn report(daemon: &Daemon) -> StatusReport {
    let now = SystemTime::now();
    let config = daemon.config();
    let (live, ended) = daemon.proxy().flows().report(now);
    let listeners = daemon.listeners();
    let guarded = guarded(daemon);
    // Neither the lists of sockets nor that of listeners are made with the engine locked: those take long, this a lock.
    let visitor = daemon.visitor.as_ref();
    let (host, mut direct_flows) = {
        let engine = daemon.kernel.lock();
        (engine.host_netns(), engine.direct_flows())
    };
    direct::count(visitor, &daemon.namespaces, host, &mut direct_flows);
    let (connections, listed) = match clear::connections(visitor, &daemon.namespaces) {
        Ok(all) => (all, None),
        Err(error) => {
            (Vec::new(), Some(format!("connections from before the daemon cannot be listed: {error}")))
        }
    };
    let mesh = std::sync::Arc::clone(&daemon.mesh.load());
    let engine = daemon.kernel.lock();
    let cgroups = engine.workloads(&daemon.governed);
    let mut flows: Vec<FlowStatus> = live.iter().map(flow).collect();
    flows.extend(direct_flows.iter().map(direct_flow));
    StatusReport {
        version: env!("CARGO_PKG_VERSION").into(),
        node: config.node.clone(),
        datacenter: datacenter(daemon, &config),
        pid: std::process::id(),
        uptime_s: daemon.started.elapsed().as_secs(),
        draining: daemon.is_draining(),
        attachments: engine
            .attachments()
            .into_iter()
            .map(|a| attachment(daemon, a))
            .chain(guarded.iter().cloned())
            .collect(),
        workloads: workloads(&config, &cgroups, &daemon.mesh.load()),
        services: services(daemon, &config),
        gateways: gateways(daemon),
        virtual_services: virtual_ips::services(&mesh),
        flows,
        uncaptured: engine.uncaptured(connections).iter().map(|one| uncaptured_status(daemon, one)).collect(),
        recent: recent(&ended, &daemon.recent.list(), now),
        certificates: certificates(daemon, now),
        control_plane: control_plane(daemon),
        counters: counters(daemon, &engine.counters()),
        fast_paths: fast_paths(daemon, &config, engine.connects_one_host()),
        listeners: listeners.into_iter().map(|(role, address)| ListenerStatus { role, address }).collect(),
        degraded: engine
            .degraded()
            .into_iter()
            .chain(listed)
            .chain(guarded.iter().filter(|a| a.state != AttachmentState::Attached).map(|a| {
                format!(
                    "ports in {} are not guarded ({}): whoever can route there reaches them in clear",
                    a.target, a.detail
                )
            }))
            .chain(virtual_ips::degraded(&mesh))
            .chain(daemon.embedded().and_then(|embedded| embedded.ca_warning()))
            .collect(),
        exempt: exempt(daemon, &config, &cgroups),
    }
}

fn fast_paths(daemon: &Daemon, config: &Config, direct: bool) -> Vec<FastPath> {
    const DIRECT: &str = "same-host direct";
    const POOL: &str = "pool";
    let direct = match (direct, config.same_host) {
        (true, _) => FastPath::on(DIRECT, "the kernel connects workloads of this host"),
        (false, SameHost::Mtls) => FastPath::off(DIRECT, "same_host = \"mtls\""),
        (false, SameHost::Direct) => {
            FastPath::off(DIRECT, "the kernel could not cut such flows (CONFIG_INET_DIAG_DESTROY)")
        }
    };
    let pool = if config.proxy.pool {
        FastPath::on(POOL, "connections between meshnodes carry one flow after another")
    } else {
        FastPath::off(POOL, "proxy.pool = false: each flow is a TLS connection of its own")
    };
    [direct, pool].into_iter().chain(daemon.probed.list()).collect()
}

/// Returns the datacenter as configured, else that of the certificates, which a Consul agent's CA gave.
fn datacenter(daemon: &Daemon, config: &Config) -> String {
    let of_leaf = || daemon.mesh.load().leafs.values().next().map(|leaf| leaf.id.datacenter.clone());
    config.datacenter.clone().or_else(of_leaf).unwrap_or_else(|| config.datacenter().to_owned())
}

/// One uncaptured connection in the report's words.
pub fn uncaptured_status(daemon: &Daemon, one: &Uncaptured) -> UncapturedStatus {
    let text = |name: &Option<ServiceName>| name.as_ref().map_or_else(String::new, ToString::to_string);
    UncapturedStatus {
        direction: match one.end {
            End::Outbound => FlowDirection::Outbound,
            End::Inbound => FlowDirection::Inbound,
            End::Local => FlowDirection::Local,
        },
        source: text(&one.source),
        destination: text(&one.destination),
        cgroup: one.cgroup.as_deref().map_or_else(String::new, |path| daemon.governed.relative(path)),
        local: one.local,
        remote: one.remote,
        namespace: one.namespace().map(|namespace| namespace.inode),
    }
}

fn attachment(
    daemon: &Daemon,
    (program, hook, state, detail): (&'static str, &'static str, AttachState, String),
) -> Attachment {
    Attachment {
        program: program.into(),
        hook: hook.into(),
        target: if hook == "sk_lookup" {
            "the host's network namespace".into()
        } else {
            daemon.governed.path().display().to_string()
        },
        expected_prog_id: detail.strip_prefix("program ").and_then(|id| id.parse().ok()),
        state: match state {
            AttachState::Attached => AttachmentState::Attached,
            AttachState::Missing => AttachmentState::Missing,
            AttachState::Foreign => AttachmentState::Foreign,
        },
        detail,
    }
}

/// The guards of other network namespaces than the host's.
fn guarded(daemon: &Daemon) -> Vec<Attachment> {
    let each = daemon.namespaces.guarded().into_iter().map(|Guarded { inode, services, program }| {
        let (state, detail) = match program {
            Ok(program) => daemon.guards.verify(inode, program),
            Err(why) => (AttachState::Missing, why),
        };
        let services: Vec<_> = services.iter().map(ToString::to_string).collect();
        Attachment {
            target: format!("net:[{inode}] ({})", services.join(", ")),
            ..attachment(daemon, ("mesh_guard", "sk_lookup", state, detail))
        }
    });
    each.collect()
}

fn workloads(config: &Config, cgroups: &[WorkloadCgroup], mesh: &Mesh) -> Vec<WorkloadStatus> {
    let callable: BTreeSet<&ServiceName> =
        mesh.catalog.iter().flat_map(|c| c.instances().map(|i| &i.service)).collect();
    config
        .services
        .iter()
        .map(|service| {
            let own: Vec<_> = cgroups.iter().filter(|c| c.service.as_ref() == Some(&service.name)).collect();
            WorkloadStatus {
                service: service.name.to_string(),
                cgroups: own.iter().map(|c| c.cgroup.clone()).collect(),
                processes: own.iter().map(|c| c.processes as u64).sum(),
                egress: if service.egress == Egress::MeshOnly { "mesh-only" } else { "passthrough" }.into(),
                egress_allow: service.egress_allow.iter().map(ToString::to_string).collect(),
                exempt: false,
                allowed: allowed(mesh, &callable, &service.name),
            }
        })
        .collect()
}

fn allowed(mesh: &Mesh, callable: &BTreeSet<&ServiceName>, source: &ServiceName) -> Vec<String> {
    let Some(intentions) = mesh.intentions.as_ref() else { return Vec::new() };
    let may = callable.iter().filter(|destination| intentions.allows(source, destination));
    may.take(MOST_ALLOWED).map(ToString::to_string).collect()
}

fn exempt(daemon: &Daemon, config: &Config, cgroups: &[WorkloadCgroup]) -> Vec<ExemptStatus> {
    let status = |selector: String, reason: String, matches: &dyn Fn(&str) -> bool| {
        let own: Vec<_> = cgroups.iter().filter(|c| c.service.is_none() && matches(&c.cgroup)).collect();
        ExemptStatus {
            selector,
            reason,
            cgroups: own.iter().map(|c| c.cgroup.clone()).collect(),
            processes: own.iter().map(|c| c.processes as u64).sum(),
        }
    };
    let itself =
        status(daemon.own_cgroup.clone(), "the daemon itself".into(), &|path| path == daemon.own_cgroup);
    let configured = config
        .exempt
        .iter()
        .map(|e| status(e.selector.to_string(), e.reason.clone(), &|path| e.selector.matches(path)));
    std::iter::once(itself).chain(configured).collect()
}

fn services(daemon: &Daemon, config: &Config) -> Vec<ServiceStatus> {
    let running = daemon.services();
    config
        .services
        .iter()
        .filter_map(|service| {
            let protected = service.protected.as_ref()?;
            let of = running.get(&service.name);
            Some(ServiceStatus {
                name: service.name.to_string(),
                port: protected.port,
                address: protected.address,
                guard: protected.guard.as_str().into(),
                mesh_port: of.map(|r| r.mesh_port),
                health: match of.map(|r| r.health.borrow().clone()) {
                    Some(Health::Passing) => "passing".into(),
                    Some(Health::Critical(_)) => "critical".into(),
                    None => "unknown".into(),
                },
            })
        })
        .collect()
}

fn gateways(daemon: &Daemon) -> Vec<GatewayStatus> {
    let running = daemon.gateways();
    let mut all: Vec<_> = running
        .iter()
        .map(|gateway| {
            let (health, reason) = match &*gateway.health.borrow() {
                Health::Passing => ("passing", None),
                Health::Critical(why) => ("critical", Some(why.clone())),
            };
            GatewayStatus {
                service: gateway.config.service.to_string(),
                address: gateway.config.address.to_string(),
                resolved: gateway.addresses.borrow().clone(),
                mesh_port: gateway.mesh_port,
                tls: gateway.tls_name(),
                health: health.into(),
                reason,
            }
        })
        .collect();
    all.sort_by(|a, b| a.service.cmp(&b.service));
    all
}

fn flow(report: &FlowReport) -> FlowStatus {
    let outbound = report.direction == Direction::Outbound;
    let (sent, received) =
        if outbound { (report.bytes_out, report.bytes_in) } else { (report.bytes_in, report.bytes_out) };
    let text = |name: &Option<crate::identity::ServiceName>| {
        name.as_ref().map(ToString::to_string).unwrap_or_default()
    };
    FlowStatus {
        id: report.id,
        direction: if outbound { FlowDirection::Outbound } else { FlowDirection::Inbound },
        program: report.program.clone(),
        pid: report.pid,
        source: text(&report.source),
        destination: text(&report.destination),
        original_dst: report.original_dst,
        instance: if outbound { report.upstream } else { Some(report.peer) },
        state: match (report.state, report.reason.as_deref()) {
            (ProxyState::Connecting, _) => FlowState::Connecting,
            (ProxyState::Open, _) => FlowState::Mtls,
            (ProxyState::Closed, Some("finished")) => FlowState::Closed,
            (ProxyState::Closed, Some("revoked" | "identity-gone")) => FlowState::Revoked,
            (ProxyState::Closed, Some("guarded")) => FlowState::Guarded,
            (
                ProxyState::Closed,
                Some("not-allowed" | "http-permissions" | "not-captured" | "not-synced"),
            ) => FlowState::Denied,
            (ProxyState::Closed, _) => FlowState::Failed,
        },
        tls: report.tls.clone(),
        bytes_sent: sent,
        bytes_received: received,
        age_s: report.age_ms / 1000,
        reason: match (&report.reason, &report.detail) {
            (Some(name), Some(detail)) => Some(format!("{name}: {detail}")),
            (name, _) => name.clone(),
        },
    }
}

fn direct_flow(direct: &Direct) -> FlowStatus {
    FlowStatus {
        id: direct.cookie,
        direction: FlowDirection::Local,
        program: direct.program.clone(),
        pid: direct.pid,
        source: direct.source.to_string(),
        destination: direct.destination.to_string(),
        original_dst: Some(direct.original_dst),
        instance: Some(direct.remote),
        state: FlowState::Direct,
        tls: None,
        bytes_sent: direct.bytes.sent,
        bytes_received: direct.bytes.received,
        age_s: direct.age.as_secs(),
        reason: None,
    }
}

/// What is over, the newest first: flows of the proxy, and what the kernel decided on its own.
fn recent(ended: &[FlowReport], events: &[Report], now: SystemTime) -> Vec<FlowStatus> {
    let mut all: Vec<(u64, FlowStatus)> = ended
        .iter()
        .map(|report| {
            let ended_ms = report.opened_ms + report.age_ms;
            (ended_ms, FlowStatus { age_s: since(now, ended_ms), ..flow(report) })
        })
        .collect();
    all.extend(events.iter().filter_map(|event| {
        let at = millis(event.at);
        Some((at, FlowStatus { age_s: since(now, at), ..kernel_event(event)? }))
    }));
    all.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
    all.into_iter().map(|(_, flow)| flow).collect()
}

fn millis(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

fn since(now: SystemTime, at_ms: u64) -> u64 {
    millis(now).saturating_sub(at_ms) / 1000
}

fn kernel_event(event: &Report) -> Option<FlowStatus> {
    let (state, direction) = match event.kind {
        Kind::Denied => (FlowState::Denied, FlowDirection::Outbound),
        Kind::WouldDeny => (FlowState::Passed, FlowDirection::Outbound),
        Kind::GuardPassed => (FlowState::Passed, FlowDirection::Inbound),
        Kind::DirectClosed => (FlowState::Closed, FlowDirection::Local),
        Kind::DirectRevoked => (FlowState::Revoked, FlowDirection::Local),
        Kind::FlowLost => (FlowState::Failed, FlowDirection::Outbound),
        Kind::DirectLost => (FlowState::Failed, FlowDirection::Local),
        // The proxy's record of the same connection says more; an opened flow is not over.
        Kind::Guarded | Kind::DirectOpened | Kind::Namespace => return None,
    };
    let inbound = direction == FlowDirection::Inbound;
    let text = |name: &Option<crate::identity::ServiceName>| {
        name.as_ref().map(ToString::to_string).unwrap_or_default()
    };
    Some(FlowStatus {
        id: event.cookie,
        direction,
        program: event.program.clone(),
        pid: event.pid,
        source: text(&event.source),
        destination: text(&event.destination),
        original_dst: Some(if inbound { event.local } else { event.remote }),
        instance: inbound.then_some(event.remote),
        state,
        tls: None,
        bytes_sent: event.bytes_sent,
        bytes_received: event.bytes_received,
        age_s: 0,
        reason: match event.kind {
            Kind::DirectClosed => None,
            Kind::DirectRevoked => Some("revoked".into()),
            Kind::FlowLost | Kind::DirectLost => Some("map-full".into()),
            Kind::GuardPassed => Some("guard".into()),
            _ => Some(match &event.detail {
                Some(detail) => format!("{}: {detail}", event.reason),
                None => event.reason.into(),
            }),
        },
    })
}

fn certificates(daemon: &Daemon, now: SystemTime) -> Vec<CertificateStatus> {
    let mesh = daemon.mesh.load();
    let plane = daemon.sync_status();
    let mut all: Vec<_> = mesh
        .leafs
        .iter()
        .map(|(service, leaf)| CertificateStatus {
            service: service.to_string(),
            spiffe_id: leaf.id.to_string(),
            serial: leaf.serial.clone(),
            not_after: Timestamp(leaf.not_after),
            seconds_left: match leaf.not_after.duration_since(now) {
                Ok(left) => seconds(left),
                Err(over) => -seconds(over.duration()),
            },
            late: late_at(leaf) <= now,
            renewal_error: plane
                .as_ref()
                .and_then(|plane| plane.why_not_renewed(service, late_at(leaf) <= now)),
        })
        .collect();
    all.sort_by(|a, b| a.service.cmp(&b.service));
    all
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

fn control_plane(daemon: &Daemon) -> ControlPlaneStatus {
    let Some(status) = daemon.sync_status() else { return ControlPlaneStatus::default() };
    let watched = daemon.watched().unwrap_or_default();
    ControlPlaneStatus {
        kind: status.kind.to_string(),
        address: status.address,
        connected: status.connected,
        since: status.connected_since.filter(|_| status.connected).map(Timestamp),
        stale_since: status.stale_since.map(Timestamp),
        last_error: status.last_error,
        index: status.index,
        from_cache: status.from_disk_cache,
        unsynced: !daemon.mesh.load().is_synced(),
        watched_services: watched.services,
        unwatched_services: watched.unwatched,
    }
}

/// Kernel counters by their names; those of the proxy as `outbound_REASON` and `inbound_REASON`.
fn counters(daemon: &Daemon, kernel: &[(mesh_common::counter::Counter, u64)]) -> BTreeMap<String, u64> {
    let mut all: BTreeMap<String, u64> =
        kernel.iter().map(|(c, value)| (c.name().to_owned(), *value)).collect();
    for count in daemon.proxy().refusals().snapshot() {
        let direction = if count.direction == Direction::Outbound { "outbound" } else { "inbound" };
        all.insert(format!("{direction}_{}", count.reason.replace('-', "_")), count.count);
    }
    for (name, value) in daemon.dns.iter().flat_map(|dns| dns.counters().list()) {
        all.insert(name.into(), value);
    }
    all.insert("flows_opened".into(), daemon.proxy().flows().opened());
    all.insert("outbound_failovers".into(), daemon.proxy().failovers());
    all.insert("flows_live".into(), daemon.proxy().flows().live());
    all.insert("log_lines_dropped".into(), daemon.telemetry.dropped());
    all.insert("connections_waiting".into(), daemon.proxy().waiting());
    all
}
