//! Blocking queries: each read that takes `index` waits for its own change, and for nothing longer than asked.

use std::time::{Duration, Instant};

use mesh_tests::conformance::{
    Run,
    servers::{SIDES, Side},
    wire,
};
use serde_json::{Value, json};

use crate::catalog::{deregister_far, register_far};

/// A wait that ends long before this time was answered by the change.
const LONG: Duration = Duration::from_secs(5);

/// A read, and a write that changes what it says.
struct Watch {
    read: &'static str,
    method: &'static str,
    write: &'static str,
    body: Value,
}

fn watches() -> Vec<Watch> {
    let service = |body: Value| json!({"Node": "far", "SkipNodeUpdate": true, "Service": body});
    let put = |read, write, body| Watch { read, method: "PUT", write, body };
    let catalog = "/v1/catalog/register";
    vec![
        put("/v1/catalog/nodes", catalog, json!({"Node": "farther", "Address": "10.50.0.77"})),
        put("/v1/catalog/services", catalog, service(json!({"Service": "new"}))),
        put(
            "/v1/catalog/service/cache",
            catalog,
            service(json!({"ID": "cache-1", "Service": "cache", "Port": 1})),
        ),
        put(
            "/v1/catalog/connect/cache",
            catalog,
            service(json!({"Kind": "connect-proxy", "Service": "cache-sidecar-proxy", "Port": 2,
                "Proxy": {"DestinationServiceName": "cache"}})),
        ),
        put(
            "/v1/catalog/node/far",
            catalog,
            service(json!({"ID": "cache-1", "Service": "cache", "Port": 3})),
        ),
        put(
            "/v1/catalog/node-services/far",
            catalog,
            service(json!({"ID": "cache-1", "Service": "cache", "Port": 4})),
        ),
        put(
            "/v1/health/service/cache",
            catalog,
            service(json!({"ID": "cache-1", "Service": "cache", "Port": 5})),
        ),
        put(
            "/v1/health/connect/cache",
            catalog,
            service(json!({"Kind": "connect-proxy", "Service": "cache-sidecar-proxy", "Port": 6,
                "Proxy": {"DestinationServiceName": "cache"}})),
        ),
        put("/v1/health/checks/cache", catalog, check("critical")),
        put("/v1/health/node/far", catalog, check("passing")),
        put("/v1/health/state/any", catalog, check("warning")),
        Watch { method: "POST", ..put("/v1/connect/intentions", "/v1/connect/intentions", intention("a")) },
        Watch {
            method: "POST",
            ..put(
                "/v1/connect/intentions/match?by=destination&name=waited",
                "/v1/connect/intentions",
                intention("b"),
            )
        },
        Watch {
            method: "POST",
            ..put("/v1/connect/intentions/match?by=source&name=c", "/v1/connect/intentions", intention("c"))
        },
    ]
}

fn check(status: &str) -> Value {
    json!({"Node": "far", "SkipNodeUpdate": true,
           "Check": {"CheckID": "cache-up", "Name": "cache up", "ServiceID": "cache-1", "Status": status}})
}

fn intention(source: &str) -> Value {
    json!({"SourceName": source, "DestinationName": "waited", "Action": "allow"})
}

fn with(read: &str, query: &str) -> String {
    format!("{read}{}{query}", if read.contains('?') { '&' } else { '?' })
}

pub fn all(run: &mut Run<'_>) {
    register_far(run);
    for watch in watches() {
        let moved = SIDES.map(|side| a_change_answers(run, side, &watch));
        let [consul, embedded] = moved.map(|(woken, moved)| format!("answered {woken}, index moved {moved}"));
        run.compare("GET", watch.read, "wait/a change", [consul, embedded]);
        for side in SIDES {
            time_answers(run, side, watch.read);
        }
        run.get(watch.read);
        // Neither waits: no index, and index 0.
        run.get(&with(watch.read, "index=0&wait=50s"));
        run.get(&with(watch.read, "wait=50s"));
    }
    for node in ["far", "farther"] {
        run.put("/v1/catalog/deregister", &json!({"Node": node}));
    }
    deregister_far(run);
    for side in SIDES {
        an_index_of_the_future_does_not_hang(run, side);
        let list = run.one(side, "GET", "/v1/connect/intentions", &[], "").body;
        let list: Vec<Value> = serde_json::from_str(&list).expect("JSON");
        for row in list {
            let id = row["ID"].as_str().expect("an id");
            run.one(side, "DELETE", &format!("/v1/connect/intentions/{id}"), &[], "");
        }
        the_service_waits_by_hash(run, side);
    }
    run.get("/v1/connect/intentions");
    for query in ["index=minus-one", "index=-1", "index=1&wait=forever", "index=1&wait=-1s", "index=1&wait=1"]
    {
        run.get(&format!("/v1/catalog/nodes?{query}"));
    }
}

/// A write of what the read depends on answers the read that waits. Returns whether it did, and whether the index then
/// was a later one.
fn a_change_answers(run: &Run<'_>, side: Side, watch: &Watch) -> (bool, bool) {
    let Some(index) = run.one(side, "GET", watch.read, &[], "").index() else {
        run.one(side, watch.method, watch.write, &[], &watch.body.to_string());
        return (false, false);
    };
    let path = with(watch.read, &format!("index={index}&wait={}s", LONG.as_secs()));
    std::thread::scope(|scope| {
        let socket = run.servers.socket(side);
        let waiting = scope.spawn(|| {
            let start = Instant::now();
            (wire::request(socket, "GET", &path, &[], ""), start.elapsed())
        });
        std::thread::sleep(Duration::from_millis(30));
        let written = run.one(side, watch.method, watch.write, &[], &watch.body.to_string());
        assert_eq!(written.status, 200, "{side:?}: {}: {}", watch.write, written.body);
        let (answer, took) = waiting.join().expect("the reader does not panic");
        let later = answer.index().unwrap_or_default();
        assert!(later >= index, "{side:?}: {path} answered with the index {later}");
        (took < LONG, later > index)
    })
}

/// Without a change the time that was asked for ends the wait, and the index is what it was. Consul wakes some reads
/// for changes beside theirs, so that a wait may be shorter than asked.
fn time_answers(run: &Run<'_>, side: Side, read: &str) {
    if run.one(side, "GET", read, &[], "").index().is_none() {
        return;
    }
    mesh_tests::wait::until(&format!("{read} to wait on {side:?}"), || {
        let index = run.one(side, "GET", read, &[], "").index().expect("an index");
        let start = Instant::now();
        let answer = run.one(side, "GET", &with(read, &format!("index={index}&wait=60ms")), &[], "");
        let (took, then) = (start.elapsed(), answer.index().expect("an index"));
        if took >= Duration::from_millis(60) && then == index {
            return Ok(());
        }
        Err(format!("the index {then} after {index} in {took:?}"))
    });
}

/// An index that was never given (of a server before a restore, say): answered within the time asked for, with the
/// index that there is.
fn an_index_of_the_future_does_not_hang(run: &Run<'_>, side: Side) {
    let now = run.one(side, "GET", "/v1/catalog/nodes", &[], "").index().expect("an index");
    let path = format!("/v1/catalog/nodes?index={}&wait=100ms", now + 1_000_000);
    let answer = run.one(side, "GET", &path, &[], "");
    assert_eq!((answer.status, answer.index()), (200, Some(now)), "{side:?}");
}

/// `/v1/agent/service/:id` waits by the hash of what it says.
fn the_service_waits_by_hash(run: &Run<'_>, side: Side) {
    let register = |port: u16| {
        let body = json!({"Name": "hashed", "Port": port}).to_string();
        assert_eq!(run.one(side, "PUT", "/v1/agent/service/register", &[], &body).status, 200);
    };
    register(1);
    let first = run.one(side, "GET", "/v1/agent/service/hashed", &[], "");
    let hash = first.header("x-consul-contenthash").expect("a hash").to_owned();
    assert!(first.body.contains(&hash), "{side:?}: {}", first.body);
    let start = Instant::now();
    let same = run.one(side, "GET", &format!("/v1/agent/service/hashed?hash={hash}&wait=60ms"), &[], "");
    assert!(start.elapsed() >= Duration::from_millis(60), "{side:?} did not wait");
    assert_eq!(same.header("x-consul-contenthash"), Some(&*hash), "{side:?}");
    std::thread::scope(|scope| {
        let path = format!("/v1/agent/service/hashed?hash={hash}&wait=30s");
        let socket = run.servers.socket(side);
        let waiting = scope.spawn(move || wire::request(socket, "GET", &path, &[], ""));
        std::thread::sleep(Duration::from_millis(30));
        register(2);
        let answer = waiting.join().expect("the reader does not panic");
        assert_ne!(answer.header("x-consul-contenthash"), Some(&*hash), "{side:?}");
        assert!(answer.body.contains("\"Port\":2"), "{side:?}: {}", answer.body);
    });
    run.one(side, "PUT", "/v1/agent/service/deregister/hashed", &[], "");
}
