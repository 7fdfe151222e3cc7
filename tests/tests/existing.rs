//! Connections from before the daemon: they go on, `status` lists them as uncaptured, and `meshnode cut` ends them.

use mesh_tests::{
    config::{Config, ControlPlane, Service},
    fixture::{connect, serve},
    host::{Family, Host},
    meshnode::Meshnode,
    net::Network,
    process::Process,
    require_root, wait,
};
use serde_json::Value;

/// A connection that stays until it is cut, or killed.
#[track_caller]
fn hold(host: &Host, cgroup: &str, to: &str) -> Process {
    let mut process = host.spawn_probe(cgroup, &["connect", to, "--wait", "120000", "--read", "7"]);
    let own = format!("pid={},", process.pid());
    wait::until("the connection", || {
        let table = host.run("", &["ss", "-Htnp", "state", "established"]).ok();
        if process.ended().is_none() && table.contains(&own) { Ok(()) } else { Err(table) }
    });
    process
}

/// Lists the uncaptured connections as (direction, source, destination).
fn uncaptured(status: &mesh_tests::status::Status) -> Vec<(String, String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> = status
        .list("uncaptured")
        .iter()
        .map(|u| (text(&u["direction"]), text(&u["source"]), text(&u["destination"])))
        .collect();
    all.sort();
    all
}

fn entry(direction: &str, source: &str, destination: &str) -> (String, String, String) {
    (direction.to_owned(), source.to_owned(), destination.to_owned())
}

#[test]
fn connections_from_before_are_listed_at_both_ends_go_on_and_can_be_cut() {
    require_root!();
    let net = Network::new();
    let (a, b) = (net.host("a"), net.host("b"));
    let _server = serve(&b, "db", 5432, &["echo"]);
    let to = format!("{}:5432", b.v4);
    a.space().cgroup().child("unmanaged");
    let mut web = hold(&a, "web", &to);
    let mut nobody = hold(&a, "unmanaged", &to);
    let mut local = hold(&b, "batch", "127.0.0.1:5432");

    let scene = mesh_tests::fixture::Scene::new(&[("db", 5432)]);
    let mut on_b = scene.on_b.clone();
    on_b.push(Service::client("batch"));
    let mesh = mesh_tests::fixture::Scene { on_b, ..scene }.start_on(net, a, b);
    mesh.allow("web", "db", 5432);

    // The one of nobody at A is not the mesh's business there; at B it is, as everything that is dialled around it.
    let at_a = mesh.a.wait_status("what A lists", |s| uncaptured(s).len() == 1);
    assert_eq!(uncaptured(&at_a), [entry("outbound", "web", "db")]);
    let at_b = mesh.b.wait_status("what B lists", |s| uncaptured(s).len() == 3);
    assert_eq!(
        uncaptured(&at_b),
        [entry("inbound", "", "db"), entry("inbound", "", "db"), entry("local", "batch", "db")]
    );
    assert!(at_a.list("uncaptured")[0]["cgroup"].as_str().is_some_and(|c| c.ends_with("web")));
    assert_eq!(mesh.a.cli(&["status", "--check"]).status.code(), Some(3));
    for process in [&mut web, &mut nobody, &mut local] {
        assert!(process.ended().is_none(), "it goes on");
    }

    // What is captured now is not among them.
    let mut captured = mesh.a.host.spawn_probe("web", &["connect", &to, "--wait", "120000"]);
    mesh.a.wait_status("the captured flow", |s| s.flows("web", "db").len() == 1);
    let said = mesh.a.cli(&["cut"]).ok();
    assert!(said.starts_with("cut web → db  "), "{said}");
    web.wait();
    assert!(captured.ended().is_none(), "a captured flow is not cut");
    assert!(nobody.ended().is_none(), "what is nobody's at A is not cut there");
    mesh.a.wait_status("nothing left at A", |s| uncaptured(s).is_empty());
    assert!(mesh.a.cli(&["cut"]).ok().contains("no connection is uncaptured"));

    let said = mesh.b.cli(&["cut", "--service", "batch"]).ok();
    assert!(said.starts_with("cut batch → db  ") && said.lines().count() == 1, "{said}");
    local.wait();
    mesh.b.cli(&["cut"]).ok();
    nobody.wait();
    mesh.b.wait_status("nothing left", |s| uncaptured(s).is_empty());
    assert_eq!(mesh.b.cli(&["status", "--check"]).status.code(), Some(0));
}

#[test]
fn direct_flows_are_not_uncaptured() {
    one_hosts_flow_is_not_uncaptured("");
}

#[test]
fn proxied_flows_and_the_daemons_own_connections_are_not_uncaptured() {
    one_hosts_flow_is_not_uncaptured("same_host = \"mtls\"");
}

#[track_caller]
fn one_hosts_flow_is_not_uncaptured(top: &str) {
    require_root!();
    let net = Network::new();
    let host = net.host("a");
    let config = Config {
        node: "host-a".to_owned(),
        advertise: host.ip(Family::V4),
        control_plane: ControlPlane::Embedded { lines: String::new() },
        services: vec![Service::client("web"), Service::server("db", 5432)],
        top: top.to_owned(),
        sections: String::new(),
    };
    let node = Meshnode::start(host, config);
    let _server = serve(&node.host, "db", 5432, &["banner", "welcome"]);
    node.intention("web", "db", "allow");
    wait::until("web to reach db", || {
        let said = connect(&node.host, "web", "127.0.0.1:5432", &["--read", "7"]);
        if said["received"] == "welcome" { Ok(()) } else { Err(said.to_string()) }
    });
    let _live = node.host.spawn_probe("web", &["connect", "127.0.0.1:5432", "--wait", "60000"]);
    let status = node.wait_status("the live flow, and nothing uncaptured", |s| {
        !s.flows("web", "db").is_empty() && uncaptured(s).is_empty()
    });
    assert!(status.list("degraded").iter().all(|line| !line.to_string().contains("cannot be listed")));
}
