//! The benchmark of connect(2) at a size that costs seconds: each kind of program passes the hooks that it is to pass.

use mesh_bench::hooks::{Plan, run};
use mesh_tests::require_root;

#[test]
fn programs_of_the_kernel_run_for_those_that_are_governed_alone() {
    require_root!();
    let found = run(Plan { rounds: 1, connections: 40 }).unwrap();
    let runs =
        |kind: &str| found.json["kinds"][kind]["programs"]["mesh_connect4"]["runs_per_connection"].as_f64();
    for outside in ["outside", "outside-served"] {
        assert_eq!(runs(outside), None, "{:#}", found.json);
    }
    for governed in ["not-captured", "workload-passthrough", "workload-direct", "workload-captured"] {
        // The daemon connects, too.
        assert!(runs(governed) >= Some(1.0), "{governed}: {:#}", found.json);
        assert!(found.table.contains(governed), "{}", found.table);
    }
}
