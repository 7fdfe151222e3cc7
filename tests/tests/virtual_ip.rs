//! Virtual IPs on the host that dials: what the kernel decides by itself.
//!
//! Part of the set that `cargo xtask vm-test` runs on other kernels.

use std::net::{IpAddr, SocketAddr};

use mesh_tests::{
    config::{CONFIG, Config, ControlPlane, STATE_DIR, Service},
    fixture::{connect, serve},
    host::Host,
    meshnode::{Meshnode, UNMANAGED},
    net::Network,
    process::Process,
    program::postgres::{Postgres, psql},
    require_root, wait,
};
use serde_json::Value;

fn config(host: &Host) -> Config {
    let check = "[service.check]\ninterval = \"1s\"";
    Config {
        node: "host-a".to_owned(),
        advertise: host.v4.into(),
        control_plane: ControlPlane::Embedded { lines: String::new() },
        services: vec![
            Service::server("db", 5432).with(check),
            Service::client("web"),
            Service::client("other"),
        ],
        top: String::new(),
        sections: String::new(),
    }
}

/// `web` may call `db`, whose program is not started, and `ghost`, of which there is none.
fn one_host() -> (Network, Meshnode) {
    let net = Network::new();
    let host = net.host("a");
    let config = config(&host);
    let node = Meshnode::start(host, config);
    node.intention("web", "db", "allow");
    node.intention("web", "ghost", "allow");
    (net, node)
}

/// The virtual IPs of `service`, IPv4 first, once `healthy` instances serve it.
#[track_caller]
fn virtual_ips(node: &Meshnode, service: &str, healthy: u64) -> [IpAddr; 2] {
    let status = node.wait_status("the virtual IPs", |s| {
        s.entry("virtual_services", "service", service).is_some_and(|s| s["healthy"] == healthy)
    });
    let entry = status.entry("virtual_services", "service", service).expect("just seen");
    ["virtual_ipv4", "virtual_ipv6"]
        .map(|key| entry[key].as_str().expect("an address").parse().expect("an IP"))
}

fn at(ip: IpAddr, port: u16) -> String {
    SocketAddr::new(ip, port).to_string()
}

#[track_caller]
fn until(node: &Meshnode, cgroup: &str, to: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    wait::until(what, || {
        let said = connect(&node.host, cgroup, to, &["--read", "7", "--wait", "2000"]);
        if holds(&said) { Ok(said) } else { Err(format!("{said}\n{:#}\n{}", node.status().0, node.log())) }
    })
}

fn with_server() -> (Network, Meshnode, Process, [IpAddr; 2]) {
    let (net, node) = one_host();
    let server = serve(&node.host, "db", 5432, &["banner", "welcome"]);
    let ips = virtual_ips(&node, "db", 1);
    until(&node, "web", &at(ips[0], 5432), "the intention to act", |said| said["received"] == "welcome");
    (net, node, server, ips)
}

#[test]
fn virtual_ip_leads_directly_to_the_own_host_and_the_program_sees_what_it_dialled() {
    require_root!();
    let (_net, node, _server, [v4, v6]) = with_server();
    let before = node.status().counter("direct");
    for port in [5432, 80] {
        let said = connect(&node.host, "web", &at(v4, port), &["--read", "7"]);
        assert_eq!(
            (said["received"].as_str(), &said["peer"]),
            (Some("welcome"), &at(v4, port).into()),
            "{said}"
        );
    }
    // A socket for both families, dialling IPv4.
    let IpAddr::V4(four) = v4 else { panic!("IPv4 first") };
    let mapped = at(four.to_ipv6_mapped().into(), 5432);
    let said = connect(&node.host, "web", &mapped, &["--read", "7"]);
    assert_eq!(
        (said["received"].as_str(), &said["peer"]),
        (Some("welcome"), &mapped.as_str().into()),
        "{said}"
    );
    let status = node.wait_status("the counter", |s| s.counter("direct") >= before + 3);
    assert_eq!(status.counter("captured"), 0);

    // The program is dialled at an IPv4 address: only the proxy gets there from IPv6.
    let said = connect(&node.host, "web", &at(v6, 5432), &["--read", "7"]);
    assert_eq!((said["received"].as_str(), &said["peer"]), (Some("welcome"), &at(v6, 5432).into()), "{said}");
    assert!(node.status().counter("captured") > 0);
}

#[test]
fn who_may_not_call_the_service_is_denied_its_virtual_ip() {
    require_root!();
    let (_net, node, _server, ips) = with_server();
    for to in ips.map(|ip| at(ip, 5432)) {
        for cgroup in ["other", UNMANAGED, ""] {
            assert_eq!(connect(&node.host, cgroup, &to, &[])["error"], "EPERM", "{cgroup} {to}");
        }
    }
    node.wait_status("both reasons", |s| {
        s.counter("denied_intention") >= 2 && s.counter("denied_unmanaged") >= 4
    });
    node.intention("web", "db", "deny");
    until(&node, "web", &at(ips[0], 5432), "the change to act", |said| said["error"] == "EPERM");
}

#[test]
fn direct_flow_to_a_virtual_ip_is_in_status_with_both_addresses_and_is_cut_when_revoked() {
    require_root!();
    let (_net, node, _server, [v4, _]) = with_server();
    let to = at(v4, 5432);
    let mut live = node.host.spawn_probe("web", &["connect", &to, "--wait", "60000"]);
    let status = node.wait_status("the live flow", |s| s.flows("web", "db").len() == 1);
    let flow = status.flows("web", "db")[0];
    assert_eq!((&flow["state"], &flow["original_dst"]), (&"direct".into(), &to.as_str().into()), "{flow}");
    assert_eq!(flow["instance"], "127.0.0.1:5432");
    node.intention("web", "db", "deny");
    live.wait();
    node.wait_status("its end", |s| {
        s.flows("web", "db").is_empty() && s.recent("web", "db").iter().any(|f| f["state"] == "revoked")
    });
}

#[test]
fn service_without_a_healthy_instance_refuses_in_connect_itself() {
    require_root!();
    let (_net, node) = one_host();
    let [ghost, _] = virtual_ips(&node, "ghost", 0);
    let refused = |said: &Value| said["error"] == "ECONNREFUSED";
    until(&node, "web", &at(ghost, 80), "the refusal of a service without instances", refused);
    assert_eq!(connect(&node.host, "other", &at(ghost, 80), &[])["error"], "EPERM");
    let status = node.wait_status("the event", |s| {
        s.recent("web", "ghost").iter().any(|flow| flow["reason"] == "no-healthy-instance")
    });
    assert!(status.counter("refused_no_instance") > 0);

    // Its program was never started: the check says so.
    for ip in virtual_ips(&node, "db", 0) {
        until(&node, "web", &at(ip, 5432), "the refusal of an ill service", refused);
    }
    let server = serve(&node.host, "db", 5432, &["banner", "welcome"]);
    let [db, _] = virtual_ips(&node, "db", 1);
    until(&node, "web", &at(db, 5432), "the service", |said| said["received"] == "welcome");
    drop(server);
    until(&node, "web", &at(db, 5432), "the refusal after it ended", refused);
}

#[test]
fn address_of_the_range_that_means_nothing_never_leaves_the_host() {
    require_root!();
    let (_net, node) = one_host();
    node.wait_status("the control plane", |s| s.0["control_plane"]["connected"] == true);
    for to in ["240.240.0.0:80", "[fd6d:6573:6800::]:80"] {
        until(&node, "web", to, "the denial", |said| said["error"] == "EPERM");
    }
    node.wait_status("the reason", |s| s.counter("denied_no_service") >= 2);
}

#[test]
fn virtual_ips_stay_over_a_restart() {
    require_root!();
    let (_net, mut node) = one_host();
    let ips = virtual_ips(&node, "ghost", 0);
    node.delete_intention("web", "ghost");
    node.wait_status("the deletion", |s| s.0["control_plane"]["connected"] == true);
    node.terminate();
    assert!(node.host.read(&format!("{STATE_DIR}/control-plane/virtual-ips.json")).contains("ghost"));
    node.run();
    assert_eq!(virtual_ips(&node, "ghost", 0), ips, "also of a service that nobody speaks of any more");
}

#[test]
fn range_that_overlaps_a_network_of_the_host_is_refused_with_the_way_out() {
    require_root!();
    let net = Network::new();
    let host = net.host("a");
    let config = config(&host);
    let mut node = Meshnode::prepare(host, config);
    let text = node.config.to_string().replace("[address]\n", "[address]\nvirtual_ipv4 = \"10.76.0.0/15\"\n");
    assert!(text.contains("10.76.0.0/15"));
    // Its own address in the range is a mistake of the configuration; a network of its interfaces, of the host's.
    let own = format!("advertise = \"{}\"", node.host.v4);
    node.host.write(CONFIG, &text);
    let checked = node.cli(&["config", "check", CONFIG]).fails();
    assert!(checked.contains("address.advertise") && checked.contains("address.virtual_ipv4"), "{checked}");
    node.host.write(CONFIG, &text.replace(&own, &format!("advertise = \"{}\"", node.host.v6)));
    node.cli(&["config", "check", CONFIG]).ok();
    let doctor = node.cli(&["doctor"]).fails();
    assert!(doctor.contains("overlaps 10.77.1.0/24"), "{doctor}");
    node.launch();
    let status = node.daemon().wait();
    let log = node.log();
    assert!(!status.success() && log.contains("overlaps 10.77.1.0/24") && log.contains("\"off\""), "{log}");
}

#[test]
fn psql_through_a_virtual_ip() {
    require_root!();
    let (_net, node) = one_host();
    let _db = Postgres::start(&node.host, "db", 5432);
    let ips = virtual_ips(&node, "db", 1);
    for ip in ips.map(|ip| ip.to_string()) {
        wait::until("the query", || {
            let said = node.host.run("web", &psql(&ip, "5432", "select 6 * 7"));
            if said.stdout == "42\n" { Ok(()) } else { Err(said.to_string()) }
        });
        let refused = node.host.run("other", &psql(&ip, "5432", "select 6 * 7")).fails();
        assert!(refused.contains("Operation not permitted"), "{refused}");
    }
}
