//! Capture on the way out, between two hosts: what programs see, what the wire carries, what status says.
//!
//! Part of the set that `cargo xtask vm-test` runs on other kernels.

use mesh_tests::{
    fixture::{Scene, is_reset, serve},
    host::Family,
    program::postgres::{Postgres, psql},
    require_root,
};

const SECRET: &str = "a secret that must not be on the wire";

#[test]
fn psql_query_crosses_the_wire_in_tls13_over_ipv4() {
    psql_query_crosses_the_wire_in_tls13(Family::V4);
}

#[test]
fn psql_query_crosses_the_wire_in_tls13_over_ipv6() {
    psql_query_crosses_the_wire_in_tls13(Family::V6);
}

fn psql_query_crosses_the_wire_in_tls13(family: Family) {
    require_root!();
    let mesh = Scene::new(&[("db", 5432)]).family(family).start();
    let _db = Postgres::start(&mesh.b.host, "db", 5432);
    mesh.allow("web", "db", 5432);
    let capture = mesh.net.capture(&mesh.a.host);
    let address = mesh.b_address();

    let answer = mesh.a.host.run("web", &psql(&address, "5432", &format!("select '{SECRET}'"))).ok();
    assert_eq!(answer.trim(), SECRET);
    let refused = mesh.a.host.run("other", &psql(&address, "5432", &format!("select '{SECRET}'"))).fails();
    assert!(refused.contains("Operation not permitted"), "{refused}");

    let trace = capture.stop();
    let port = mesh.mesh_port("db");
    trace.assert_secret(port, &[SECRET, "postgres", "server_version"]);
    trace.assert_tls13(port);
    assert_eq!(trace.bytes_at(5432), 0, "something went to the program's own port");

    let of_psql = |f: &&serde_json::Value| f["program"] == "psql";
    // A denial is told by the kernel, and read a moment after.
    let status = mesh.a.wait_status("the flow of psql, and its denial", |s| {
        ["web", "other"].iter().all(|source| s.recent(source, "db").iter().any(of_psql))
    });
    let flow = status.recent("web", "db").into_iter().find(of_psql).unwrap();
    assert_eq!(flow["original_dst"], mesh.at(5432));
    assert_eq!(flow["state"], "closed");
    let denied = status.recent("other", "db").into_iter().find(of_psql).unwrap();
    assert_eq!(denied["state"], "denied");
    assert_eq!(denied["reason"], "intention");
    // The server's side names the caller as its certificate does.
    let status = mesh.b.wait_status("the flow at the other end", |s| {
        s.recent("web", "db").iter().any(|f| f["direction"] == "inbound" && f["state"] == "closed")
    });
    assert!(status.recent("other", "db").is_empty());
}

#[test]
fn program_sees_the_address_it_dialled_and_a_refusal_at_once() {
    require_root!();
    for family in [Family::V4, Family::V6] {
        let mesh = Scene::new(&[("echo", 7001)]).family(family).start();
        let _server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
        mesh.allow("web", "echo", 7001);
        let said = mesh.connect("web", 7001, &["--send", "hello", "--half-close"]);
        assert_eq!(said["peer"], mesh.at(7001));
        assert_eq!(said["received"], "hello");
        let said = mesh.connect("other", 7001, &["--send", "hello", "--half-close"]);
        assert_eq!(said["error"], "EPERM");
    }
}

#[test]
fn half_close_reset_and_server_first_are_as_on_plain_tcp() {
    require_root!();
    let ports = [("count", 7002), ("reset", 7003), ("banner", 7004), ("greet", 7005)];
    let mesh = Scene::new(&ports).start();
    let _servers = ports.map(|(what, port)| {
        let text = matches!(what, "banner" | "greet").then_some("server speaks first");
        serve(&mesh.b.host, what, port, &[Some(what), text].into_iter().flatten().collect::<Vec<_>>())
    });
    for (service, port) in ports {
        mesh.allow("web", service, port);
    }
    // The answer comes after this end has closed its direction, and counts what was sent before.
    let said = mesh.connect("web", 7002, &["--send", "12345", "--half-close"]);
    assert_eq!((&said["received"], &said["end"]), (&"5".into(), &"eof".into()), "{said}");
    let said = mesh.connect("web", 7003, &["--send", "x"]);
    assert_eq!(said["end"], "ECONNRESET", "the server's reset must arrive as one: {said}");
    let said = mesh.connect("web", 7004, &["--read", "19"]);
    assert_eq!(said["received"], "server speaks first", "the client sent nothing: {said}");
    let said = mesh.connect("web", 7005, &[]);
    assert_eq!((&said["received"], &said["end"]), (&"server speaks first".into(), &"eof".into()), "{said}");
    // A reset by the client ends the flow on both hosts.
    mesh.connect("web", 7004, &["--read", "19", "--reset"]);
    mesh.a.wait_status("no flow", |s| s.all_flows().is_empty());
    mesh.b.wait_status("no flow", |s| s.all_flows().is_empty());
}

#[test]
fn program_that_is_not_running_is_a_reset_with_its_reason_in_status() {
    require_root!();
    let mesh = Scene::new(&[("db", 5432)]).start();
    let server = serve(&mesh.b.host, "db", 5432, &["echo"]);
    mesh.allow("web", "db", 5432);
    drop(server);
    let said = mesh.connect("web", 5432, &["--send", "x"]);
    // Until the health check notices, the upstream refuses; then there is no instance to go to.
    assert!(is_reset(&said) || said["error"] == "ECONNREFUSED" || said["error"] == "EPERM", "{said}");
    mesh.b.wait_status("the reason", |s| s.ended("inbound", "program-unreachable") > 0);
}

#[test]
fn what_is_not_in_the_mesh_passes_unless_the_workload_is_mesh_only() {
    require_root!();
    let mut scene = Scene::new(&[("db", 5432)]);
    scene.on_a[1] = scene.on_a[1].clone().with("egress = \"mesh-only\"");
    let mesh = scene.start();
    let _server = serve(&mesh.b.host, "bare", 7777, &["greet", "from outside the mesh"]);
    mesh.a.wait_status("a synced daemon", |s| s.0["control_plane"]["connected"] == true);
    let said = mesh.connect("web", 7777, &[]);
    assert_eq!(said["received"], "from outside the mesh", "{said}");
    let said = mesh.connect("other", 7777, &[]);
    assert_eq!(said["error"], "EPERM", "{said}");
    mesh.a.wait_status("the count", |s| s.counter("denied_mesh_only") > 0);
}

#[test]
fn hybrid_hosts_are_governed_like_unified_ones() {
    require_root!();
    let mut scene = Scene::new(&[("echo", 7001)]);
    scene.options.hybrid = true;
    let mesh = scene.start();
    let _server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
    mesh.allow("web", "echo", 7001);
    let said = mesh.connect("web", 7001, &["--send", "hello", "--half-close"]);
    assert_eq!(said["received"], "hello", "{said}");
    assert_eq!(mesh.connect("other", 7001, &[])["error"], "EPERM");
}

#[test]
fn every_hook_is_attached_where_the_kernel_says() {
    require_root!();
    let mesh = Scene::new(&[("db", 5432)]).start();
    for node in [&mesh.a, &mesh.b] {
        let status = node.status();
        for hook in ["connect4", "connect6", "getpeername4", "getpeername6"] {
            let entry = status.entry("attachments", "hook", &format!("cgroup/{hook}"));
            assert!(entry.is_some_and(|a| a["state"] == "attached"), "{hook}: {:#}", status.0["attachments"]);
        }
        assert!(status.list("attachments").iter().all(|a| a["state"] == "attached"), "{:#}", status.0);
    }
}
