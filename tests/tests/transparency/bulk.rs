//! Much data, and many connections.

use mesh_tests::{
    fixture::serve,
    require_root,
    transparency::{Outcome, Report, Stage, size, stage::Proof},
};

#[test]
fn a_transfer_both_ways_at_once_arrives_byte_for_byte() {
    require_root!();
    let stage = Stage::start(&[("echo", 7000)]);
    let _servers = stage.both(|ends| serve(ends.b, "echo", 7000, &["echo"]));
    stage.allow("echo");
    let mut report = Report::new(&[]);
    let mebibytes: u64 = size(128, 1024);
    for (case, mebibytes, proof) in [
        ("transfer of 1 MiB both ways", 1, Proof::Wire),
        ("transfer both ways", mebibytes, Proof::Counted { flows: 1, bytes: mebibytes << 20 }),
    ] {
        let said = stage.compare(&mut report, case, "echo", proof, |ends| {
            let begin = std::time::Instant::now();
            let said = ends.a.probe("web", &["transfer", &ends.at(7000), &mebibytes.to_string()]);
            eprintln!("{case}: {mebibytes} MiB each way in {:?}", begin.elapsed());
            Outcome::of(&said)
        });
        assert_eq!(said.count("exit status: 0"), 1, "{said:#?}");
    }
    report.finish();
}

#[test]
fn ten_thousand_short_connections_all_succeed() {
    require_root!();
    let stage = Stage::start(&[("echo", 7000)]);
    let _servers = stage.both(|ends| serve(ends.b, "echo", 7000, &["echo"]));
    stage.allow("echo");
    let mut report = Report::new(&[]);
    let count: u64 = size(10_000, 50_000);
    let proof = Proof::Counted { flows: count, bytes: 10 };
    let said = stage.compare(&mut report, "short connections", "echo", proof, |ends| {
        let begin = std::time::Instant::now();
        let said = ends.a.probe("web", &["short", &ends.at(7000), &count.to_string(), "16"]);
        eprintln!("{count} short connections in {:?}", begin.elapsed());
        Outcome::of(&said)
    });
    assert_eq!(said.count("exit status: 0"), 1, "{said:#?}");
    stage.mesh.a.wait_status("no flow is left", |s| s.all_flows().is_empty());
    stage.mesh.b.wait_status("no flow is left", |s| s.all_flows().is_empty());
    report.finish();
}
