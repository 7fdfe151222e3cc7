//! Programs that dial by name: plain, `/etc/hosts` has it; in the mesh, the daemon answers, and it means the service.

use std::net::IpAddr;

use mesh_tests::{
    host::Family,
    program::{
        nginx::Nginx,
        postgres::{Postgres, psql},
        redis::Redis,
    },
    require_root,
    transparency::{Ends, Outcome, Report, Stage, stage::Proof},
    wait,
};

use crate::differences;

/// Where nobody answers queries: what is not found otherwise is not found.
const NO_RESOLVER: &str = "nameserver 127.0.0.53\n";

#[test]
fn programs_that_dial_by_name_do_what_they_do_on_plain_tcp() {
    require_root!();
    let services = [("site", 80), ("db", 5432), ("cache", 6379)];
    let stage = Stage::start(&services);
    let _servers = stage.both(|ends| {
        ends.a.resolv_conf(NO_RESOLVER);
        let page = "a page\n".repeat(10_000);
        let site = Nginx::start(ends.b, "site", 80, &[("page", &page)]);
        (site, Postgres::start(ends.b, "db", 5432), Redis::start(ends.b, "cache", 6379))
    });
    for (service, _) in services {
        for family in [Family::V4, Family::V6] {
            let plain = stage.plain();
            plain.a.name_address(&format!("{service}.mesh"), plain.b.ip(family));
        }
        stage.allow(service);
        until_named(&stage, service);
    }
    let mut report = Report::new(differences::NAMES);
    let mut compare = |case: &str, service: &str, run: &dyn Fn(Ends<'_>) -> Outcome, succeed: usize| {
        let said = stage.compare(&mut report, case, service, Proof::Wire, run);
        assert_eq!(said.count("exit status: 0"), succeed, "{case}: {said:#?}");
    };
    let curl = |ends: Ends<'_>, options: &[&str]| {
        Outcome::of(&ends.run(&[&["curl", "-sS", "--max-time", "60"], options].concat()))
    };
    compare(
        "names, curl",
        "site",
        &|ends| {
            let page = "http://site.mesh/page";
            let again = ["-w", "%{http_code} %{num_connects}\n", page, page];
            let peer = ["-4", "-w", "%{remote_ip}", "-o", "/dev/null", page];
            Outcome::default()
                .with_part("any family", curl(ends, &again))
                .with_part("IPv4", curl(ends, &[&["-4"], &again[..]].concat()))
                .with_part("IPv6", curl(ends, &[&["-6"], &again[..]].concat()))
                .with_part("peer", curl(ends, &peer))
                .with_part("a port that nobody has", curl(ends, &["http://site.mesh:81/page"]))
                .with_part("no such name", curl(ends, &["http://nothing.mesh/"]))
        },
        4,
    );
    compare(
        "names, psql",
        "db",
        &|ends| {
            let sql = |text: &str| Outcome::of(&ends.run(&psql("db.mesh", "5432", text)));
            Outcome::default()
                .with_part("rows", sql("SELECT n, md5(n::text) FROM generate_series(1, 5000) n"))
                .with_part("wrong", sql("SELECT * FROM nothing"))
        },
        1,
    );
    compare(
        "names, redis-cli",
        "cache",
        &|ends| {
            let commands = "SET k v\nGET k\nLPUSH l 1 2 3\nLRANGE l 0 -1\nNOSUCH\n";
            Outcome::of(&ends.a.run_with_input("web", &["redis-cli", "-h", "cache.mesh"], commands))
        },
        1,
    );
    let refused = stage.captured().a.run("other", &["curl", "-sS", "http://site.mesh/page"]).fails();
    assert!(refused.contains("Failed to connect") || refused.contains("Couldn't connect"), "{refused}");
    report.finish();
}

/// Waits until the client resolves the service's name to its virtual IPs.
#[track_caller]
fn until_named(stage: &Stage, service: &str) {
    let name = format!("{service}.mesh");
    let is_virtual = |text: &str| {
        text.parse().is_ok_and(|ip| match ip {
            IpAddr::V4(v4) => v4.octets()[..2] == [240, 240],
            IpAddr::V6(v6) => v6.segments()[0] == 0xfd6d,
        })
    };
    wait::until(&format!("{name} to resolve"), || {
        let said = stage.captured().run(&["getent", "ahosts", &name]);
        let addresses: Vec<&str> =
            said.stdout.lines().filter_map(|line| line.split_whitespace().next()).collect();
        let is_named = addresses.len() >= 2 && addresses.iter().all(|address| is_virtual(address));
        if is_named { Ok(()) } else { Err(said.to_string()) }
    });
}
