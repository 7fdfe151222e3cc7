//! What a program sees of a stream, captured and not: the table of `docs/compatibility.md`, row by row.

use std::time::Duration;

use mesh_tests::{
    config::Service,
    fixture::{Mesh, Scene, is_reset},
    meshnode::UNMANAGED,
    process::{Process, run},
    program::{compiled::source, listens},
    require_root, wait,
};
use serde_json::{Map, Value, json};

/// In the mesh, and the same program outside of it.
const STREAM: u16 = 7001;
const PLAIN: u16 = 7777;

/// What is not the same: case, observation, plain, captured. Reasons are in `docs/compatibility.md`.
fn differences(mesh: &Mesh) -> Vec<(&'static str, &'static str, Value, Value)> {
    vec![
        ("options", "local", json!(mesh.a.host.v4.to_string()), json!("127.0.0.1")),
        ("urgent_byte", "server", json!(["abcd", "eof"]), json!(["ab!cd", "eof"])),
    ]
}

struct Streams {
    mesh: Mesh,
    captured: Process,
    _plain: Process,
}

#[track_caller]
fn start() -> Streams {
    let mut scene = Scene::new(&[]);
    // A check is a connection, and would be among the reports.
    scene.on_b = vec![Service::server("stream", STREAM).with("[service.check]\ninterval = \"1h\"")];
    let mesh = scene.start();
    let serve = |cgroup: &str, port: u16| {
        let script = source("stream.py");
        let words = ["python3", script.to_str().expect("UTF-8"), "serve", &port.to_string()];
        let server = mesh.b.host.spawn(cgroup, &words);
        wait::until("the server", || listens(&mesh.b.host, port));
        server
    };
    let (captured, plain) = (serve("stream", STREAM), serve(UNMANAGED, PLAIN));
    mesh.allow("web", "stream", STREAM);
    Streams { mesh, captured, _plain: plain }
}

impl Streams {
    /// Runs every case in `web`.
    #[track_caller]
    fn observe(&self, port: u16) -> Map<String, Value> {
        let script = source("stream.py");
        let (ip, port) = (self.mesh.b_address(), port.to_string());
        let words = ["python3", script.to_str().expect("UTF-8"), "observe", &ip, &port];
        let mut command = self.mesh.a.host.command("web", &words);
        command.env("STREAM_LIMIT", (20 * wait::slowness()).to_string());
        let said = run(command, None, Duration::from_secs(120) * wait::slowness()).ok();
        let seen: Value = serde_json::from_str(&said).unwrap_or_else(|e| panic!("no JSON: {e}: {said}"));
        seen.as_object().expect("an object").clone()
    }
}

#[test]
fn captured_stream_is_a_plain_one_but_for_what_is_listed() {
    require_root!();
    let streams = start();
    let mut plain = streams.observe(PLAIN);
    let mut captured = streams.observe(STREAM);
    assert!(plain.len() > 15 && plain.values().all(|case| case["failed"].is_null()), "{plain:#?}");
    for (case, observation, in_plain, in_captured) in differences(&streams.mesh) {
        let take =
            |from: &mut Map<String, Value>| from[case].as_object_mut().and_then(|c| c.remove(observation));
        assert_eq!(take(&mut plain), Some(in_plain), "{case}: {observation}, plain");
        assert_eq!(take(&mut captured), Some(in_captured), "{case}: {observation}, captured");
    }
    for (case, seen) in &plain {
        assert_eq!(
            seen,
            &captured[case],
            "{case}: plain (left) and captured (right)\n{}",
            streams.mesh.logs()
        );
    }
    streams.mesh.a.wait_status("no flow", |s| s.all_flows().is_empty());
    streams.mesh.b.wait_status("no flow", |s| s.all_flows().is_empty());
}

/// Says what `web` sees: `error` of connect(2), or `end` of the stream.
#[track_caller]
fn outcome(mesh: &Mesh, port: u16) -> Value {
    mesh.connect("web", port, &["--send", "x", "--wait", "60000"])
}

#[test]
fn program_that_does_not_run_is_refused_on_plain_tcp_and_a_reset_before_any_data_when_captured() {
    require_root!();
    let Streams { mesh, captured, _plain } = start();
    drop(captured);
    assert_eq!(outcome(&mesh, 7778)["error"], "ECONNREFUSED", "the twin");
    let said = outcome(&mesh, STREAM);
    assert!(is_reset(&said), "{said}");
    mesh.b.wait_status("the reason", |s| s.ended("inbound", "program-unreachable") > 0);
}

#[test]
fn remote_daemon_that_is_gone_is_a_reset_before_any_data() {
    require_root!();
    let Streams { mut mesh, captured: _captured, _plain } = start();
    mesh.b.kill9();
    let said = outcome(&mesh, STREAM);
    assert!(is_reset(&said), "{said}");
    mesh.a.wait_status("the reason", |s| s.ended("outbound", "unreachable") > 0);
}

#[test]
fn host_without_a_way_to_it_is_unreachable_on_plain_tcp_and_a_reset_before_any_data_when_captured() {
    require_root!();
    let Streams { mesh, captured: _captured, _plain } = start();
    // The routing table tells at once. A router's ICMP message is subject to its rate limit.
    mesh.a.host.run("", &["ip", "route", "add", "unreachable", &mesh.b_address()]).ok();
    assert_eq!(outcome(&mesh, PLAIN)["error"], "EHOSTUNREACH", "the twin");
    let said = outcome(&mesh, STREAM);
    assert!(is_reset(&said), "{said}");
    // On a connection that is there already the silence tells.
    mesh.a.wait_status("the reason", |s| {
        s.ended("outbound", "unreachable") + s.ended("outbound", "connect-timeout") > 0
    });
}

#[test]
fn black_hole_is_a_timeout_on_plain_tcp_and_a_reset_after_connect_timeout_when_captured() {
    require_root!();
    let Streams { mesh, captured: _captured, _plain } = start();
    let b = mesh.b_address();
    let mut ip = mesh.net.space().command("", "ip");
    ip.args(["route", "add", "blackhole", &format!("{b}/32")]);
    // A black hole of the routing table tells nobody, as a firewall that drops.
    run(ip, None, Duration::from_secs(60)).ok();
    let plain = outcome(&mesh, PLAIN);
    // The probe's own limit for connect(2): the kernel's is two minutes.
    assert!(plain["error"] == "EINPROGRESS" || plain["error"] == "TIMEOUT", "the twin: {plain}");
    let said = outcome(&mesh, STREAM);
    assert!(is_reset(&said), "{said}");
    mesh.a.wait_status("the reason", |s| s.ended("outbound", "connect-timeout") > 0);
}

#[test]
fn curl_and_psql_say_what_happened_before_any_data() {
    require_root!();
    let Streams { mesh, captured, _plain } = start();
    drop(captured);
    let said = |words: &[&str]| mesh.a.host.run("web", words).fails();
    let (captured, plain) = (format!("http://{}/", mesh.at(STREAM)), format!("http://{}/", mesh.at(7778)));
    let words = said(&["curl", "-sS", &plain]);
    assert!(words.contains("Failed to connect"), "the twin: {words}");
    let words = said(&["curl", "-sS", &captured]);
    // The reset may be there before curl looks whether it is connected, or between that and its asking for the peer.
    let said_so = ["Connection reset by peer", "Failed to connect", "getpeername() failed"];
    assert!(said_so.iter().any(|one| words.contains(one)), "{words}");
    let b = mesh.b_address();
    let psql = |port: &str| said(&["psql", "-h", &b, "-p", port, "-U", "postgres", "-c", "select 1"]);
    assert!(psql("7778").contains("Connection refused"), "the twin");
    let words = psql(&STREAM.to_string());
    assert!(
        words.contains("server closed the connection unexpectedly") || words.contains("reset by peer"),
        "{words}"
    );
}
