//! The data path's benchmark at a size that costs seconds, so that it keeps working: who is there is measured by every
//! measure, who is not is named. Figures are not judged here.

use std::time::Duration;

use mesh_bench::datapath::{Plan, chart, contestants::Contestant, measures::Pace, run};
use mesh_tests::require_root;

static NOBODY: Contestant = Contestant {
    name: "nobody",
    against: "plain",
    find: || Err("it was never written".to_owned()),
    start: |_| unreachable!("it is not there"),
};

#[test]
fn everybody_is_measured_or_named() {
    require_root!();
    let pace = Pace { warm: Duration::from_millis(20), time: Duration::from_millis(60), idle: 24 };
    let mut plan = Plan { rounds: 1, pace, ..Plan::new(true) };
    plan.contestants.push(&NOBODY);
    let report = run(&plan).unwrap();
    let (json, tables, chart) = (report.json(), report.tables(), chart::svg(&report));

    assert_eq!(json["contestants"]["nobody"]["skipped"], "it was never written");
    assert!(tables.contains("| SKIPPED: it was never written"), "{tables}");
    for Contestant { name, .. } in &plan.contestants {
        if json["contestants"][name]["skipped"].is_string() {
            continue;
        }
        let is_proxied = !name.starts_with("plain") && !name.ends_with("-local");
        let has_tls = is_proxied && *name != "relay";
        // Its CA does not know the load, nor does the load speak HTTP/2.
        let takes_load = has_tls && *name != "ztunnel";
        for measure in &plan.measures {
            let figure = &json["summary"][name][measure.name][measure.figure()]["median"];
            let is_due = match measure.name {
                "idle" => is_proxied,
                "handshake-16" => takes_load,
                _ => true,
            };
            assert_eq!(figure.is_number(), is_due, "{name} {}: {json:#}", measure.name);
            // So few idle connections may fit into memory that a proxy has anyway.
            assert!(!is_due || measure.name == "idle" || figure.as_f64() > Some(0.0), "{name}: {json:#}");
        }
        assert_eq!(json["contestants"][name]["handshake"].is_object(), has_tls, "{name}: {json:#}");
        let cpu = json["summary"][name]["connect-16"]["cpu_us_per_operation"]["median"].as_f64();
        assert_eq!(cpu > Some(0.0), !name.starts_with("plain"), "{name}: {cpu:?}");
        assert!(tables.contains(&format!("| {name} ")), "{tables}");
    }
    assert!(chart.starts_with("<svg ") && chart.contains(">meshnode</text>"), "{chart}");
    assert!(!json["targets"].as_array().unwrap().is_empty(), "{json:#}");
}

#[test]
fn unknown_names_are_refused_and_the_baseline_comes_along() {
    let mut plan = Plan::new(true);
    let error = plan.only(&["envoi".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("`envoi`") && error.contains("envoy"), "{error}");
    assert!(plan.measures(&["ping".to_owned()]).is_err());
    plan.only(&["meshnode-local".to_owned()]).unwrap();
    let names: Vec<_> = plan.contestants.iter().map(|contestant| contestant.name).collect();
    assert_eq!(names, ["plain-local", "meshnode-local"]);
}
