//! Services and callers on one host: connected by the kernel, or refused by it.
//!
//! Part of the set that `cargo xtask vm-test` runs on other kernels.

use mesh_tests::{
    config::{Config, ControlPlane, Service},
    fixture::{connect, serve},
    host::Host,
    meshnode::{Meshnode, UNMANAGED},
    net::Network,
    process::Process,
    program::postgres::{Postgres, psql},
    require_root, wait,
};

fn one_host(top: &str) -> (Network, Meshnode) {
    let net = Network::new();
    let host = net.host("a");
    let config = config(&host, top);
    let node = Meshnode::start(host, config);
    (net, node)
}

fn config(host: &Host, top: &str) -> Config {
    Config {
        node: "host-a".to_owned(),
        advertise: host.v4.into(),
        control_plane: ControlPlane::Embedded { lines: String::new() },
        services: vec![Service::server("db", 5432), Service::client("web"), Service::client("other")],
        top: top.to_owned(),
        sections: String::new(),
    }
}

#[track_caller]
fn until_welcome(node: &Meshnode, cgroup: &str, to: &str) {
    wait::until("the intention to act", || {
        let said = connect(&node.host, cgroup, to, &["--read", "7"]);
        if said["received"] == "welcome" { Ok(()) } else { Err(format!("{said}\n{}", node.log())) }
    });
}

#[test]
fn allowed_flow_is_direct_on_every_address_of_the_host() {
    require_root!();
    let (net, node) = one_host("");
    let _server = serve(&node.host, "db", 5432, &["banner", "welcome"]);
    node.intention("web", "db", "allow");
    let addresses = [
        "127.0.0.1:5432".to_owned(),
        "[::1]:5432".to_owned(),
        format!("{}:5432", node.host.v4),
        format!("[{}]:5432", node.host.v6),
    ];
    for to in &addresses {
        until_welcome(&node, "web", to);
        let said = connect(&node.host, "web", to, &["--read", "7"]);
        assert_eq!(said["peer"], *to, "{said}");
        assert_eq!(connect(&node.host, "other", to, &[])["error"], "EPERM", "{to}");
        assert_eq!(connect(&node.host, UNMANAGED, to, &[])["error"], "EPERM", "{to}");
        assert_eq!(connect(&node.host, "", to, &[])["error"], "EPERM", "{to}");
    }
    let status = node.wait_status("the counters", |s| s.counter("direct") >= addresses.len() as u64);
    assert_eq!(status.counter("captured"), 0);
    drop(net);
}

#[test]
fn direct_flow_is_in_status_while_it_lives_and_its_bytes_after() {
    require_root!();
    let (_net, node) = one_host("");
    let _server = serve(&node.host, "db", 5432, &["banner", "welcome"]);
    node.intention("web", "db", "allow");
    until_welcome(&node, "web", "127.0.0.1:5432");
    node.wait_status("no live flow", |s| s.flows("web", "db").is_empty());
    let mut holder = node.host.spawn_probe(
        "web",
        &["connect", "127.0.0.1:5432", "--send", "12345", "--read", "12", "--wait", "60000"],
    );
    // It has read all 12 bytes and ended: the counters are final. Its twin stays.
    holder.wait();
    node.wait_status("the end of the first flow", |s| s.flows("web", "db").is_empty());
    let mut live = node.host.spawn_probe("web", &["connect", "127.0.0.1:5432", "--wait", "60000"]);
    let status = node.wait_status("the live flow", |s| s.flows("web", "db").len() == 1);
    let flow = status.flows("web", "db")[0];
    assert_eq!(flow["state"], "direct");
    assert_eq!(flow["direction"], "local");
    assert_eq!(flow["program"], "probe");
    assert_eq!(flow["pid"], live.pid());
    assert_eq!(flow["original_dst"], "127.0.0.1:5432");
    live.signal(nix::sys::signal::Signal::SIGKILL);
    node.wait_status("its end", |s| s.flows("web", "db").is_empty());
    // The kernel counts a FIN as a byte of the stream.
    let about =
        |value: &serde_json::Value, bytes| value.as_u64().is_some_and(|v| v == bytes || v == bytes + 1);
    let ended = node.wait_status("the final counters", |s| {
        s.recent("web", "db").iter().any(|f| about(&f["bytes_sent"], 5) && about(&f["bytes_received"], 12))
    });
    // Denied are the attempts from before the intention acted.
    let mut flows = ended.recent("web", "db");
    flows.retain(|f| f["state"] != "denied");
    assert!(flows.iter().all(|f| f["state"] == "closed" || f["state"] == "failed"), "{flows:#?}");
}

#[test]
fn psql_on_the_same_host_queries_directly() {
    require_root!();
    let (_net, node) = one_host("");
    let _db = Postgres::start(&node.host, "db", 5432);
    node.intention("web", "db", "allow");
    wait::until("the intention to act", || {
        let said = node.host.run("web", &psql("127.0.0.1", "5432", "select 6 * 7"));
        if said.stdout == "42\n" { Ok(()) } else { Err(said.to_string()) }
    });
    let refused = node.host.run(UNMANAGED, &psql("127.0.0.1", "5432", "select 6 * 7")).fails();
    assert!(refused.contains("Operation not permitted"), "{refused}");
    assert_eq!(node.status().counter("captured"), 0);
}

#[test]
fn same_host_flow_goes_through_mtls_when_configured() {
    require_root!();
    let (_net, node) = one_host("same_host = \"mtls\"");
    let _server = serve(&node.host, "db", 5432, &["banner", "welcome"]);
    node.intention("web", "db", "allow");
    until_welcome(&node, "web", "127.0.0.1:5432");
    let mut live = node.host.spawn_probe("web", &["connect", "127.0.0.1:5432", "--wait", "60000"]);
    // A flow is listed from its first moment, when it is still connecting.
    let status = node.wait_status("both ends of the flow", |s| {
        let flows = s.flows("web", "db");
        flows.len() == 2 && flows.iter().all(|f| f["state"] == "mtls")
    });
    assert_eq!(status.counter("direct"), 0);
    assert_eq!(connect(&node.host, "other", "127.0.0.1:5432", &[])["error"], "EPERM");
    assert!(live.ended().is_none());
}

#[test]
fn exempt_cgroup_reaches_the_port_and_is_listed() {
    require_root!();
    let net = Network::new();
    let host = net.host("a");
    let mut config = config(&host, "");
    config.sections = "[[exempt]]\ncgroup = \"/prober\"\nreason = \"health checks\"\n".to_owned();
    host.space().cgroup().child("prober");
    let node = Meshnode::start(host, config);
    let _server: Process = serve(&node.host, "db", 5432, &["banner", "welcome"]);
    until_welcome(&node, "prober", "127.0.0.1:5432");
    assert_eq!(connect(&node.host, UNMANAGED, "127.0.0.1:5432", &[])["error"], "EPERM");
    let status = node.status();
    let listed = status.entry("exempt", "selector", "/prober").expect("the exemption is listed");
    assert_eq!(listed["reason"], "health checks");
}
