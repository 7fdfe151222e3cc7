//! Caller and server on one host: connected by the kernel, which is the default, and through the proxy.

use mesh_tests::{
    fixture::serve,
    program::redis::Redis,
    require_root,
    transparency::{Outcome, Report, SameHost, redis_suite, same_host::Path, size},
};

use crate::http;

const PATHS: [(&str, Path); 2] =
    [("one host, direct", Path::Direct), ("one host, same_host = \"mtls\"", Path::Mtls)];

#[test]
fn curl_transfers_on_one_host_as_on_plain_tcp() {
    require_root!();
    for (case, path) in PATHS {
        let hosts = SameHost::start(&[("site", 80)], path);
        let _servers = hosts.both(|ends| http::serve(ends, "site", 80, "", ""));
        hosts.allow("site", 80);
        let mut report = Report::new(&[]);
        let said = hosts.compare(&mut report, case, 8, |ends| {
            http::transfers(ends, "site", 80, "http://", &["--http1.1"])
        });
        assert_eq!(said.count("exit status: 0"), 8, "{said:#?}");
        report.finish();
    }
}

#[test]
fn redis_own_suite_ends_on_one_host_as_on_plain_tcp() {
    require_root!();
    let hosts = SameHost::start(&[("cache", 6379)], Path::Direct);
    let _servers = hosts.both(|ends| Redis::start(ends.b, "cache", 6379));
    hosts.allow("cache", 6379);
    let units = ["unit/printver", "unit/protocol", "unit/keyspace", "unit/multi", "unit/quit", "unit/pubsub"];
    let mut report = Report::new(&[]);
    let said = hosts.compare(&mut report, "Redis' own suite, one host, direct", 20, |ends| {
        redis_suite::run_units(ends, 6379, &units)
    });
    assert_eq!(said.count("exit status: 0"), 1, "{said:#?}");
    assert!(said.count("ok") > 80, "only {} tests ran: {said:#?}", said.count("ok"));
    report.finish();
}

#[test]
fn much_data_and_many_connections_on_one_host_are_as_on_plain_tcp() {
    require_root!();
    for (case, path) in PATHS {
        let hosts = SameHost::start(&[("echo", 7000)], path);
        let _servers = hosts.both(|ends| serve(ends.b, "echo", 7000, &["echo"]));
        hosts.allow("echo", 7000);
        let mut report = Report::new(&[]);
        let (mebibytes, count): (u64, u64) = size((32, 2000), (256, 10_000));
        let said = hosts.compare(&mut report, case, 1 + count, |ends| {
            let at = ends.at(7000);
            let probe = |words: &[&str]| Outcome::of(&ends.a.probe("web", words));
            Outcome::default()
                .with_part("transfer", probe(&["transfer", &at, &mebibytes.to_string()]))
                .with_part("short connections", probe(&["short", &at, &count.to_string(), "16"]))
        });
        assert_eq!(said.count("exit status: 0"), 2, "{said:#?}");
        hosts.node.wait_status("no flow is left", |s| s.all_flows().is_empty());
        report.finish();
    }
}
