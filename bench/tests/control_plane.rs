//! The control plane's benchmark at a size that costs seconds, so that it keeps working: what it measures is there, and
//! is possible. Figures of time are not judged here.

use std::time::Duration;

use mesh_bench::{
    control_plane::{Plan, plan, run},
    shape::Shape,
};
use mesh_tests::{require_consul, require_root};
use serde_json::Value;

fn small(consul: bool) -> Plan {
    let shape = Shape { services: 24, instances: 2, nodes: 6, intentions: 3 };
    let window = Duration::from_millis(300);
    Plan { shape, watchers: 4, changes: 4, wakes: 2, upstreams: 3, window, ..plan(true, consul) }
}

fn assert_whole(report: &Value, queries: usize) {
    for (path, value) in mesh_bench::figures::lines(report) {
        assert!(!value.is_empty() && (value != "null" || path == "server_restart"), "{path}: {report:#}");
    }
    assert_eq!(report["verdict"]["change_to_verdict"]["count"], 4, "{report:#}");
    assert_eq!(report["watchers"]["queries"], 4 * queries, "{report:#}");
    assert!(report["node"]["bpf_maps_mib"].as_f64() > Some(0.1), "{report:#}");
}

#[test]
fn the_embedded_server_wakes_only_those_whom_a_change_concerns() {
    require_root!();
    let report = run(small(false)).unwrap();
    assert_whole(&report, 4 + 2 * 3);
    assert_eq!(report["wake"]["one_node_answers"], 1.0, "{report:#}");
    assert_eq!(report["wake"]["all_nodes_answers"], 4, "{report:#}");
}

#[test]
fn a_real_consul_is_measured_by_the_same_plan() {
    require_root!();
    require_consul!();
    assert_whole(&run(small(true)).unwrap(), 3 + 2 * 3);
}
