//! Redis under its own test suite, MariaDB (the server speaks first), PostgreSQL under load.

use mesh_tests::{
    program::{
        mariadb,
        postgres::{self, Postgres},
        redis::Redis,
    },
    require_root,
    transparency::{Outcome, Report, Stage, is_full, redis_suite, stage::Proof},
};

use crate::differences;

/// The files of Redis' suite that are quick.
const QUICK: &[&str] = &[
    "unit/printver",
    "unit/protocol",
    "unit/keyspace",
    "unit/type/string",
    "unit/type/incr",
    "unit/type/hash",
    "unit/multi",
    "unit/quit",
    "unit/pubsub",
];

/// Those that add minutes.
const SLOW: &[&str] = &[
    "unit/scan",
    "unit/type/set",
    "unit/bitops",
    "unit/geo",
    "unit/info-command",
    "unit/type/list",
    "unit/type/stream",
    "unit/type/list-2",
    "unit/type/zset",
    "unit/type/stream-cgroups",
    "unit/sort",
    "unit/expire",
    "unit/other",
    "unit/pubsubshard",
    "unit/scripting",
    "unit/functions",
    "unit/introspection",
    "unit/introspection-2",
    "unit/bitfield",
    "unit/hyperloglog",
    "unit/tracking",
];

#[test]
fn redis_own_suite_ends_as_on_plain_tcp() {
    require_root!();
    let stage = Stage::start(&[("cache", 6379)]);
    let _servers = stage.both(|ends| Redis::start(ends.b, "cache", 6379));
    stage.allow("cache");
    let units = if is_full() { [QUICK, SLOW].concat() } else { QUICK.to_vec() };
    let mut report = Report::new(&[]);
    let proof = Proof::Counted { flows: 20, bytes: 1 << 16 };
    let said = stage.compare(&mut report, "Redis' own suite", "cache", proof, |ends| {
        redis_suite::run_units(ends, 6379, &units)
    });
    eprintln!("Redis' own suite: {} tests ok", said.count("ok"));
    assert_eq!(said.count("exit status: 0"), 1, "{said:#?}");
    assert!(said.count("ok") > 150, "only {} tests ran: {said:#?}", said.count("ok"));
    report.finish();
}

#[test]
fn mariadb_works_as_on_plain_tcp() {
    require_root!();
    let stage = Stage::start(&[("shop", 3306)]);
    let _servers = stage.both(|ends| mariadb::start(ends.b, "shop", 3306));
    stage.allow("shop");
    let mut report = Report::new(differences::MARIADB);
    let said = stage.compare(&mut report, "MariaDB", "shop", Proof::Wire, |ends| {
        let address = ends.address();
        let sql = |text: &str, database: &str| {
            let mut words = mariadb::client("mariadb", &address, "3306");
            words.extend(["-N", "-B", "--skip-ssl", "-e", text, database]);
            Outcome::of(&ends.run(&words))
        };
        let fill = "CREATE TABLE t (id INT PRIMARY KEY AUTO_INCREMENT, v LONGTEXT); \
            INSERT INTO t (v) SELECT REPEAT(CHAR(65 + seq % 26), seq * 50) FROM seq_1_to_500;";
        let mut slap = mariadb::client("mariadb-slap", &address, "3306");
        slap.extend(["--skip-ssl", "--concurrency=8", "--iterations=1", "--number-of-queries=800"]);
        slap.extend(["--auto-generate-sql", "--auto-generate-sql-load-type=mixed", "--create-schema=slap"]);
        let mut dump = mariadb::client("mariadb-dump", &address, "3306");
        dump.extend(["--skip-ssl", "--skip-dump-date", "--compact", "shop"]);
        Outcome::default()
            .with_part("fill", sql(fill, "shop"))
            .with_part("read", sql("SELECT COUNT(*), SUM(LENGTH(v)), MD5(GROUP_CONCAT(v)) FROM t", "shop"))
            .with_part("whole", sql("SELECT * FROM t", "shop"))
            .with_part("dump", Outcome::of(&ends.run(&dump)))
            .with_part("load", Outcome::default().with("exit code", ends.run(&slap).status))
            .with_part("wrong", sql("SELECT * FROM nothing", "shop"))
            .with_part("who", sql("SELECT SUBSTRING_INDEX(USER(), '@', -1)", "shop"))
    });
    assert_eq!(said.count("exit status: 0"), 6, "{said:#?}");
    report.finish();
}

#[test]
fn postgresql_works_as_on_plain_tcp() {
    require_root!();
    let stage = Stage::start(&[("db", 5432)]);
    let _servers = stage.both(|ends| Postgres::start(ends.b, "db", 5432));
    stage.allow("db");
    let mut report = Report::new(differences::POSTGRESQL);
    let said = stage.compare(&mut report, "PostgreSQL", "db", Proof::Wire, |ends| {
        let address = ends.address();
        let bench = postgres::binary("pgbench");
        let base = [bench.as_str(), "-h", &address, "-p", "5432", "-U", "postgres"];
        let bench = |more: &[&str]| ends.run(&[&base[..], more, &["postgres"]].concat());
        let sql = |text: &str| Outcome::of(&ends.run(&postgres::psql(&address, "5432", text)));
        let init = bench(&["-i", "-s", "1", "-q"]);
        let load = bench(&["-c", "4", "-t", "100", "-n"]);
        let counts =
            load.stdout.lines().filter(|l| l.starts_with("number of")).collect::<Vec<_>>().join("\n");
        Outcome::default()
            .with("init: exit code", init.status)
            .with("load: exit code", load.status)
            .with("load: counts", counts)
            .with_part("sum", sql("SELECT COUNT(*) FROM pgbench_history"))
            .with_part(
                "whole",
                sql("SELECT aid, bid, md5(aid::text) FROM pgbench_accounts ORDER BY aid LIMIT 20000"),
            )
            .with_part("wrong", sql("SELECT * FROM nothing"))
            .with_part("who", sql("SELECT inet_client_addr()"))
    });
    assert_eq!(said.count("exit status: 0"), 5, "{said:#?}");
    report.finish();
}
