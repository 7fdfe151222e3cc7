//! What people read, from reports built here.

use std::time::{Duration, SystemTime};

use super::*;
use crate::{
    admin::{
        Attachment, AttachmentState, CertificateStatus, ControlPlaneStatus, ExemptStatus, ServiceStatus,
        Timestamp, WorkloadStatus,
    },
    cli::status::{only, problems},
    fast_path::FastPath,
};

fn moment(seconds: u64) -> Timestamp {
    Timestamp(SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + seconds))
}

fn flow(program: &str, source: &str, destination: &str, state: FlowState) -> FlowStatus {
    FlowStatus {
        id: 1,
        direction: FlowDirection::Outbound,
        program: program.into(),
        pid: 1234,
        source: source.into(),
        destination: destination.into(),
        original_dst: Some("10.0.0.2:5432".parse().unwrap()),
        instance: Some("10.0.0.2:21000".parse().unwrap()),
        state,
        tls: None,
        bytes_sent: 1229,
        bytes_received: 3_565_158,
        age_s: 12,
        reason: None,
    }
}

fn attachment(state: AttachmentState) -> Attachment {
    Attachment {
        program: "connect4".into(),
        hook: "cgroup/connect4".into(),
        target: "/sys/fs/cgroup".into(),
        expected_prog_id: Some(7),
        state,
        detail: String::new(),
    }
}

fn fixture() -> StatusReport {
    let denied = FlowStatus {
        reason: Some("no intention allows batch → db".into()),
        instance: None,
        bytes_sent: 0,
        bytes_received: 0,
        ..flow("psql", "batch", "db", FlowState::Denied)
    };
    StatusReport {
        version: "0.1.0".into(),
        node: "host-a".into(),
        datacenter: "dc1".into(),
        pid: 4242,
        uptime_s: 11_520,
        attachments: vec![attachment(AttachmentState::Attached)],
        workloads: vec![WorkloadStatus {
            service: "web".into(),
            cgroups: vec!["/system.slice/nginx.service".into(), "/system.slice/php.service".into()],
            processes: 9,
            egress: "passthrough".into(),
            egress_allow: Vec::new(),
            exempt: false,
            allowed: vec!["db".into()],
        }],
        services: vec![ServiceStatus {
            name: "db".into(),
            port: 5432,
            address: "127.0.0.1".parse().unwrap(),
            guard: "strict".into(),
            mesh_port: Some(21000),
            health: "passing".into(),
        }],
        flows: vec![
            flow("curl", "web", "db", FlowState::Mtls),
            FlowStatus {
                direction: FlowDirection::Inbound,
                instance: Some("10.0.0.9:40000".parse().unwrap()),
                pid: 0,
                ..flow("", "shop", "db", FlowState::Mtls)
            },
        ],
        recent: vec![denied],
        certificates: vec![CertificateStatus {
            service: "web".into(),
            spiffe_id: "spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/web"
                .into(),
            serial: "0a:0b".into(),
            not_after: moment(3600),
            seconds_left: 3600,
            late: false,
            renewal_error: None,
        }],
        control_plane: ControlPlaneStatus {
            kind: "embedded".into(),
            address: "http://127.0.0.1:8500".into(),
            connected: true,
            since: Some(moment(0)),
            index: 42,
            ..ControlPlaneStatus::default()
        },
        counters: [("captured".to_owned(), 3), ("direct".to_owned(), 0), ("denied_intention".to_owned(), 1)]
            .into(),
        fast_paths: vec![FastPath::on("same-host direct", ""), FastPath::off("pool", "proxy.pool = false")],
        exempt: vec![ExemptStatus {
            selector: "/system.slice/node-exporter.service".into(),
            reason: "metrics scraper".into(),
            cgroups: vec![],
            processes: 1,
        }],
        ..StatusReport::default()
    }
}

#[test]
fn a_report_reads_as_documented() {
    let expected = "\
meshnode 0.1.0  host-a (dc1)  pid 4242  up 3h12m
kernel         1 of 1 programs attached, asked just now
control plane  embedded http://127.0.0.1:8500  connected since 2023-11-14T22:13:20Z, index 42
fast paths     same-host direct
               off: pool: proxy.pool = false

WORKLOADS (1)
  SERVICE  CGROUP                       PROCESSES  EGRESS
  web      /system.slice/nginx.service          9  passthrough
           /system.slice/php.service

SERVICES (1)
  SERVICE  PROTECTED       GUARD   MESH PORT  HEALTH
  db       127.0.0.1:5432  strict  21000      passing

FLOWS (2)
  PROGRAM     FLOW       DIALLED        PATH                 STATE  BYTES              AGE
  curl[1234]  web → db   10.0.0.2:5432  via 10.0.0.2:21000   mTLS   1.2 KiB↑ 3.4 MiB↓  12s
  (inbound)   shop → db  10.0.0.2:5432  from 10.0.0.9:40000  mTLS   1.2 KiB↑ 3.4 MiB↓  12s

RECENT (1)
  PROGRAM     FLOW        DIALLED        STATE   BYTES      ENDED  REASON
  psql[1234]  batch → db  10.0.0.2:5432  denied  0 B↑ 0 B↓    12s  no intention allows batch → db

CERTIFICATES (1)
  SERVICE  LEFT   NOT AFTER             RENEWAL  SERIAL  SPIFFE ID
  web      1h00m  2023-11-14T23:13:20Z  in time  0a:0b   \
spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/web

EXEMPT (1)
  SELECTOR                             PROCESSES  REASON
  /system.slice/node-exporter.service          1  metrics scraper

COUNTERS
  captured 3   denied_intention 1
";
    assert_eq!(report(&fixture(), Style::default()), expected);
}

#[test]
fn a_report_fits_100_columns() {
    let text = report(&fixture(), Style { colours: false, width: Some(100) });
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn an_empty_report_says_what_is_not_there() {
    let text = report(&StatusReport::default(), Style::default());
    assert!(text.contains("no process of this host is in the mesh"), "{text}");
    assert!(text.contains("no flow is live"), "{text}");
    assert!(!text.contains("CERTIFICATES"), "{text}");
}

#[test]
fn what_is_wrong_is_said_at_the_top_and_what_is_well_is_not() {
    assert!(problems(&fixture()).is_empty());
    let mut bad = fixture();
    bad.attachments = vec![attachment(AttachmentState::Missing), attachment(AttachmentState::Foreign)];
    bad.control_plane.connected = false;
    bad.control_plane.stale_since = Some(moment(5));
    bad.control_plane.last_error = Some("connection refused".into());
    bad.certificates[0].seconds_left = -1;
    bad.degraded = vec!["no SOCK_DESTROY: revoked direct flows end only when they end".into()];
    let text = report(&bad, Style::default());
    for line in [
        "kernel         0 of 2 programs attached",
        "no answer since 2023-11-14T22:13:25Z",
        "problem: connect4 is not attached at /sys/fs/cgroup (cgroup/connect4)",
        "problem: connect4 is replaced by another program",
        "problem: the control plane does not answer: connection refused",
        "problem: the certificate of web has expired",
        "degraded: no SOCK_DESTROY",
        "web      expired",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn one_services_report_has_nothing_of_others() {
    let report = only(fixture(), "web");
    assert_eq!((report.workloads.len(), report.services.len(), report.certificates.len()), (1, 0, 1));
    assert_eq!((report.flows.len(), report.recent.len()), (1, 0));
}

#[test]
fn a_programs_name_cannot_steer_the_terminal() {
    let mut report_ = fixture();
    report_.flows[0].program = "\x1b]0;x\x07".into();
    report_.node = "a\x1b[31m".into();
    assert!(!report(&report_, Style::default()).contains('\x1b'));
}

#[test]
fn tls12_is_named_and_tls13_is_not() {
    let mut report_ = fixture();
    report_.flows[0].tls = Some("TLS 1.3".into());
    assert!(!report(&report_, Style::default()).contains("mTLS 1."));
    report_.flows[0].tls = Some("TLS 1.2".into());
    assert!(report(&report_, Style::default()).contains(" mTLS 1.2 "));
}

#[test]
fn colours_mark_good_and_bad() {
    let text = report(&fixture(), Style { colours: true, width: None });
    assert!(text.contains("\x1b[32mmTLS\x1b[0m") && text.contains("\x1b[31mdenied\x1b[0m"), "{text:?}");
}
