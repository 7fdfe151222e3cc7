//! A virtual IP with instances on two hosts: shared between them, and no error seen when one of them fails.

use std::net::{IpAddr, SocketAddr};

use mesh_tests::{
    config::{Config, ControlPlane, Service},
    fixture::{connect, is_reset, serve, share_ca},
    host::{Family, Host},
    meshnode::Meshnode,
    net::Network,
    process::Process,
    require_root, wait,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// `web` on A; `db` on B and C, B with the control plane. Each server says its host's name first, then echoes.
struct Three {
    a: Meshnode,
    b: Meshnode,
    c: Meshnode,
    on_b: Process,
    on_c: Process,
    v4: String,
    v6: String,
    _net: Network,
}

/// What is asked and answered on each connection: both ends speak at once.
const ASKED: &str = "hello";

fn config(host: &Host, control_plane: ControlPlane, services: Vec<Service>) -> Config {
    Config {
        node: format!("host-{}", host.name),
        advertise: host.ip(Family::V4),
        control_plane,
        services,
        top: String::new(),
        sections: String::new(),
    }
}

impl Three {
    /// Health checks are rare: what fails is found by dialling.
    #[track_caller]
    fn start() -> Self {
        let net = Network::new();
        let (a, b, c) = (net.host("a"), net.host("b"), net.host("c"));
        let on_b = serve(&b, "db", 5432, &["banner", "i-am-b"]);
        let on_c = serve(&c, "db", 5432, &["banner", "i-am-c"]);
        let server = b.ip(Family::V4);
        let db = || vec![Service::server("db", 5432).with("[service.check]\ninterval = \"1h\"")];
        let b_config = config(&b, ControlPlane::Embedded { lines: String::new() }, db());
        let c_config = config(&c, ControlPlane::Remote { server }, db());
        let workloads = vec![Service::client("web"), Service::client("other")];
        let a_config = config(&a, ControlPlane::Remote { server }, workloads);
        let b = Meshnode::start(b, b_config);
        share_ca(&b, &a);
        share_ca(&b, &c);
        let c = Meshnode::start(c, c_config);
        let a = Meshnode::start(a, a_config);
        b.intention("web", "db", "allow");
        let status = a.wait_status("both instances", |s| {
            s.entry("virtual_services", "service", "db").is_some_and(|db| db["healthy"] == 2)
        });
        let entry = status.entry("virtual_services", "service", "db").expect("just seen");
        let at = |key: &str| {
            let ip: IpAddr = entry[key].as_str().expect("an address").parse().expect("an IP");
            SocketAddr::new(ip, 5432).to_string()
        };
        let (v4, v6) = (at("virtual_ipv4"), at("virtual_ipv6"));
        let three = Self { a, b, c, on_b, on_c, v4, v6, _net: net };
        wait::until("both instances to answer", || {
            let said = [three.dial(&three.at(&three.b)), three.dial(&three.at(&three.c))];
            match said.iter().all(|said| said["end"] == "enough") {
                true => Ok(()),
                false => Err(format!("{said:?}\n{}", three.logs())),
            }
        });
        three
    }

    /// Where programs dial the instance of `node` itself.
    fn at(&self, node: &Meshnode) -> String {
        SocketAddr::new(node.host.ip(Family::V4), 5432).to_string()
    }

    fn dial(&self, to: &str) -> Value {
        connect(&self.a.host, "web", to, &["--send", ASKED, "--read", "11", "--wait", "20000"])
    }

    /// Dials and returns who answered (`i-am-b`, `i-am-c`).
    #[track_caller]
    fn ask(&self, to: &str) -> String {
        let said = self.dial(to);
        assert_eq!(said["end"], "enough", "{said}\n{}", self.logs());
        assert_eq!(said["peer"], to);
        let received = said["received"].as_str().expect("text");
        received.strip_suffix(ASKED).unwrap_or_else(|| panic!("{said}")).to_owned()
    }

    /// Dials the virtual IP until a flow failed over; every one of them must have been answered by `by`.
    #[track_caller]
    fn answered_while_failing_over(&self, by: &str) {
        let before = self.a.status().counter("outbound_failovers");
        wait::until("a failover", || {
            for to in [&self.v4, &self.v6] {
                assert_eq!(self.ask(to), by);
            }
            let now = self.a.status().counter("outbound_failovers");
            if now > before { Ok(()) } else { Err(format!("{now} failovers")) }
        });
    }

    fn logs(&self) -> String {
        format!("--- a\n{}\n--- b\n{}\n--- c\n{}", self.a.log(), self.b.log(), self.c.log())
    }
}

#[test]
fn live_flows_are_shared_evenly_and_an_instances_own_address_means_that_instance() {
    require_root!();
    let three = Three::start();
    three.a.wait_status("no live flow", |s| s.flows("web", "db").is_empty());
    let mut live = Vec::new();
    for count in 1..=4 {
        let to = if count % 2 == 0 { &three.v4 } else { &three.v6 };
        live.push(three.a.host.spawn_probe("web", &["connect", to, "--wait", "120000"]));
        three.a.wait_status("the flow", |s| {
            s.flows("web", "db").iter().filter(|flow| flow["state"] == "mtls").count() == count
        });
    }
    let status = three.a.status();
    let on = |node: &Meshnode| {
        let host = node.host.v4.to_string();
        let at = |flow: &&&Value| flow["instance"].as_str().is_some_and(|at| at.starts_with(&host));
        status.flows("web", "db").iter().filter(at).count()
    };
    assert_eq!((on(&three.b), on(&three.c)), (2, 2), "{:#}", status.0["flows"]);
    let dialled = |flow: &&Value| {
        flow["original_dst"] == three.v4.as_str() || flow["original_dst"] == three.v6.as_str()
    };
    assert!(status.flows("web", "db").iter().all(dialled), "{:#}", status.0["flows"]);
    for (node, name) in [(&three.b, "i-am-b"), (&three.c, "i-am-c")] {
        for _ in 0..4 {
            assert_eq!(three.ask(&three.at(node)), name);
        }
    }
    for to in [&three.v4, &three.v6] {
        assert_eq!(connect(&three.a.host, "other", to, &[])["error"], "EPERM");
    }
    live.iter_mut().for_each(|one| one.signal(Signal::SIGKILL));
}

#[test]
fn killed_program_is_not_noticed_through_the_virtual_ip() {
    require_root!();
    let mut three = Three::start();
    // The daemon checks a service's health anew when the last of its processes has gone: another one stays.
    let _stays = three.c.host.spawn("db", &["sleep", "600"]);
    three.on_c.signal(Signal::SIGKILL);
    three.on_c.wait();
    three.answered_while_failing_over("i-am-b");
    // Its own address is that instance and no other.
    let said = three.dial(&three.at(&three.c));
    assert_ne!(said["end"], "enough", "{said}");
    assert_eq!(said["received"].as_str().unwrap_or_default(), "", "{said}");
}

#[test]
fn killed_daemon_is_not_noticed_through_the_virtual_ip() {
    require_root!();
    let mut three = Three::start();
    three.c.kill9();
    three.answered_while_failing_over("i-am-b");
}

#[test]
fn host_that_is_cut_off_is_not_noticed_through_the_virtual_ip() {
    require_root!();
    let three = Three::start();
    three.c.host.run("", &["ip", "link", "set", "eth0", "down"]).ok();
    three.answered_while_failing_over("i-am-b");
}

#[test]
fn lost_control_plane_and_an_instance_with_it_are_not_noticed_through_the_virtual_ip() {
    require_root!();
    let mut three = Three::start();
    three.b.kill9();
    three.answered_while_failing_over("i-am-c");
    let stale = three.a.wait_status("the outage", |s| s.0["control_plane"]["connected"] == false);
    assert_eq!(stale.entry("virtual_services", "service", "db").expect("it is known")["instances"], 2);
    for to in [&three.v4, &three.v6] {
        assert_eq!(three.ask(to), "i-am-c");
        assert_eq!(connect(&three.a.host, "other", to, &[])["error"], "EPERM");
    }
    // With nobody left the connection ends; it is no hang, and no other service's answer.
    three.on_c.signal(Signal::SIGKILL);
    three.on_c.wait();
    let said = three.dial(&three.v4);
    let ended = said["ok"] == true && said["received"] == "" && said["end"] != "TIMEOUT";
    assert!(ended || is_reset(&said), "{said}");
    assert!(three.on_b.ended().is_none());
}
