//! The benchmarks of curves, of decisions and of idle connections at a size that costs seconds: each level is measured.

use std::time::Duration;

use mesh_bench::{datapath::Plan, held, policy, scale::run};
use mesh_tests::require_root;

#[test]
fn each_level_of_flows_and_of_intentions_is_measured() {
    require_root!();
    let mut plan = Plan { rounds: 1, ..Plan::new(true) };
    plan.pace.time = Duration::from_millis(60);
    let scale = run(plan, 2).unwrap();
    let (json, tables) = (scale.json(), scale.tables());
    for measure in ["ping-1", "connect-16+10"] {
        let rate = &json["flows"]["summary"]["meshnode"][measure]["per_s"]["median"];
        assert!(rate.as_f64() > Some(0.0), "{json:#}");
    }
    assert_eq!(json["intentions"][1]["intentions"], 1_000, "{json:#}");
    let rate = &json["intentions"][1]["report"]["summary"]["meshnode"]["connect-16"]["per_s"]["median"];
    assert!(rate.as_f64() > Some(0.0), "{json:#}");
    for row in
        ["meshnode ping per_s", "meshnode connect-1 p50_us", "meshnode connect-16 cpu_us_per_operation"]
    {
        assert!(tables.contains(row), "{tables}");
    }
}

#[test]
fn decisions_are_the_intentions_at_each_level() {
    let found = policy::run(true).unwrap();
    for level in ["10", "1000", "50000"] {
        assert!(found.json["decision"][level]["named"]["median_ns"].as_f64() > Some(0.0), "{:#}", found.json);
    }
}

#[test]
fn idle_connections_are_held_and_answer_at_the_end() {
    require_root!();
    let found = held::run(60).unwrap();
    assert_eq!(found.json["pairs_of_daemons"], 1, "{:#}", found.json);
    assert!(found.json["opened_per_s"].as_f64() > Some(0.0), "{:#}", found.json);
}
