//! Metrics in the OpenMetrics text format, made from the status report, so that both always say the same.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode as encode_text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};

use super::{AttachmentState, StatusReport};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Named {
    name: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfService {
    service: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfState {
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OfHook {
    program: String,
    hook: String,
}

type Values<L> = Family<L, Gauge>;

/// Returns `report` as metrics, all of them named `meshnode_…`. Labels are names that the configuration or the catalog fixes, so their
/// number does not grow with traffic.
pub fn encode(report: &StatusReport) -> String {
    let mut registry = Registry::with_prefix("meshnode");
    let version = Named { name: report.version.clone() };
    registry.register("build", "The daemon's version", Info::new(version));
    gauge(&mut registry, "uptime_seconds", "Seconds since the daemon started", report.uptime_s);
    gauge(&mut registry, "draining", "1 while the daemon takes no new flows", report.draining.into());
    gauge(
        &mut registry,
        "degraded",
        "Things that this host lacks; status names them",
        count(&report.degraded),
    );
    gauge(
        &mut registry,
        "uncaptured_connections",
        "Connections in clear from before the daemon knew of them",
        count(&report.uncaptured),
    );
    events(&mut registry, report);
    flows(&mut registry, report);
    services(&mut registry, report);

    let fast = Values::<Named>::default();
    for path in &report.fast_paths {
        fast.get_or_create(&Named { name: path.name.clone() }).set(path.on.into());
    }
    registry.register("fast_path", "1 if this host uses the fast path; status says why not", fast);

    let attached = Values::<OfHook>::default();
    for attachment in &report.attachments {
        let labels = OfHook { program: attachment.program.clone(), hook: attachment.hook.clone() };
        attached.get_or_create(&labels).set((attachment.state == AttachmentState::Attached).into());
    }
    registry.register("attached", "1 if the kernel has the program at its hook", attached);

    let plane = &report.control_plane;
    gauge(
        &mut registry,
        "control_plane_connected",
        "1 while the control plane answers",
        plane.connected.into(),
    );
    gauge(&mut registry, "control_plane_index", "The highest index seen", plane.index);
    gauge(
        &mut registry,
        "control_plane_from_cache",
        "1 while the disk cache is served",
        plane.from_cache.into(),
    );
    let stale = plane.stale_since.and_then(|since| since.0.elapsed().ok()).unwrap_or_default();
    gauge(
        &mut registry,
        "control_plane_stale_seconds",
        "For how long the control plane has not answered",
        stale.as_secs(),
    );

    let mut text = String::new();
    encode_text(&mut text, &registry).expect("invariant: a String takes every write");
    text
}

fn gauge(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<u64, AtomicU64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn count<T>(list: &[T]) -> u64 {
    u64::try_from(list.len()).unwrap_or(u64::MAX)
}

fn events(registry: &mut Registry, report: &StatusReport) {
    let events = Family::<Named, Counter>::default();
    for (name, value) in &report.counters {
        events.get_or_create(&Named { name: name.clone() }).inc_by(*value);
    }
    registry.register("events", "What the kernel side and the proxy counted, by name", events);
}

fn flows(registry: &mut Registry, report: &StatusReport) {
    let flows = Values::<OfState>::default();
    for flow in &report.flows {
        flows.get_or_create(&OfState { state: flow.state.as_str().to_lowercase() }).inc();
    }
    registry.register("flows", "Live flows", flows);
}

fn services(registry: &mut Registry, report: &StatusReport) {
    let of = |service: &str| OfService { service: service.to_owned() };
    let (processes, healthy) = (Values::<OfService>::default(), Values::<OfService>::default());
    let (left, failing) = (Values::<OfService>::default(), Values::<OfService>::default());
    for workload in report.workloads.iter().filter(|workload| !workload.exempt) {
        let value = i64::try_from(workload.processes).unwrap_or(i64::MAX);
        processes.get_or_create(&of(&workload.service)).inc_by(value);
    }
    for service in &report.services {
        healthy.get_or_create(&of(&service.name)).set((service.health == "passing").into());
    }
    for gateway in &report.gateways {
        healthy.get_or_create(&of(&gateway.service)).set((gateway.health == "passing").into());
    }
    let (instances, serving) = (Values::<OfService>::default(), Values::<OfService>::default());
    for service in &report.virtual_services {
        let value = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        instances.get_or_create(&of(&service.service)).set(value(service.instances));
        serving.get_or_create(&of(&service.service)).set(value(service.healthy));
    }
    registry.register("service_instances", "Known instances of a service that has a virtual IP", instances);
    registry.register("service_healthy_instances", "Those of them whose checks pass", serving);
    for certificate in &report.certificates {
        left.get_or_create(&of(&certificate.service)).set(certificate.seconds_left);
        failing.get_or_create(&of(&certificate.service)).set(certificate.renewal_error.is_some().into());
    }
    registry.register("workload_processes", "Processes of a workload", processes);
    registry.register("service_passing", "1 if the service's health check passes", healthy);
    registry.register("certificate_seconds_left", "Seconds until the service's certificate expires", left);
    registry.register(
        "certificate_renewal_failing",
        "1 while the service's certificate cannot be renewed",
        failing,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::{Attachment, CertificateStatus, Timestamp},
        fast_path::FastPath,
    };

    #[test]
    fn metrics_say_what_the_report_says() {
        let attachment = |program: &str, state| Attachment {
            program: program.into(),
            hook: format!("cgroup/{program}"),
            target: "/".into(),
            expected_prog_id: None,
            state,
            detail: String::new(),
        };
        let report = StatusReport {
            version: "1.2.3".into(),
            uptime_s: 5,
            attachments: vec![
                attachment("connect4", AttachmentState::Attached),
                attachment("connect6", AttachmentState::Foreign),
            ],
            certificates: vec![CertificateStatus {
                service: "db".into(),
                spiffe_id: String::new(),
                serial: String::new(),
                not_after: Timestamp(std::time::SystemTime::UNIX_EPOCH),
                seconds_left: -7,
                late: true,
                renewal_error: Some("no".into()),
            }],
            counters: [("captured".to_owned(), 3)].into(),
            fast_paths: vec![FastPath::on("pool", ""), FastPath::off("sockmap", "")],
            ..StatusReport::default()
        };
        let text = encode(&report);
        for line in [
            "meshnode_build_info{name=\"1.2.3\"} 1",
            "meshnode_uptime_seconds 5",
            "meshnode_events_total{name=\"captured\"} 3",
            "meshnode_attached{program=\"connect4\",hook=\"cgroup/connect4\"} 1",
            "meshnode_attached{program=\"connect6\",hook=\"cgroup/connect6\"} 0",
            "meshnode_certificate_seconds_left{service=\"db\"} -7",
            "meshnode_certificate_renewal_failing{service=\"db\"} 1",
            "meshnode_fast_path{name=\"pool\"} 1",
            "meshnode_fast_path{name=\"sockmap\"} 0",
            "meshnode_control_plane_stale_seconds 0",
            "meshnode_control_plane_connected 0",
            "# EOF",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }
}
