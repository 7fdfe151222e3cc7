//! A small selection for other kernels: what the kernel side does of capture, with small programs.

use mesh_tests::{
    fixture::serve,
    program::{nginx::Nginx, redis::Redis},
    require_root,
    transparency::{Outcome, Report, Stage, stage::Proof},
};

#[test]
fn programs_of_every_day_do_what_they_do_on_plain_tcp() {
    require_root!();
    let stage = Stage::start(&[("echo", 7000), ("site", 80), ("cache", 6379)]);
    let _servers = stage.both(|ends| {
        let echo = serve(ends.b, "echo", 7000, &["echo"]);
        let site = Nginx::start(ends.b, "site", 80, &[("page", &"a page\n".repeat(10_000))]);
        (echo, site, Redis::start(ends.b, "cache", 6379))
    });
    let mut report = Report::new(&[]);
    let mut compare =
        |case: &str, service: &str, run: &dyn Fn(mesh_tests::transparency::Ends<'_>) -> Outcome| {
            let said = stage.compare(&mut report, case, service, Proof::Wire, run);
            assert!(said.count("exit status: 0") > 0, "{case}: {said:#?}");
        };
    for service in ["echo", "site", "cache"] {
        stage.allow(service);
    }
    compare("transfer", "echo", &|ends| {
        Outcome::of(&ends.a.probe("web", &["transfer", &ends.at(7000), "4"]))
    });
    compare("short connections", "echo", &|ends| {
        Outcome::of(&ends.a.probe("web", &["short", &ends.at(7000), "200", "8"]))
    });
    compare("curl", "site", &|ends| {
        let url = format!("http://{}/page", ends.at(80));
        Outcome::of(&ends.run(&[
            "curl",
            "-sS",
            "--max-time",
            "60",
            "-w",
            "%{http_code} %{remote_ip}",
            &url,
            &url,
        ]))
    });
    compare("redis-cli", "cache", &|ends| {
        let commands = "SET k v\nGET k\nLPUSH l 1 2 3\nLRANGE l 0 -1\nMULTI\nINCR n\nINCR n\nEXEC\nNOSUCH\n";
        let words = ["redis-cli", "-h", &ends.address()];
        Outcome::of(&ends.a.run_with_input("web", &words, commands))
    });
    report.finish();
}
