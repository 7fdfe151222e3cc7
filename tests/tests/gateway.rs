//! Services outside the mesh, reached through a host that offers them to it.

use std::net::SocketAddr;

use mesh_tests::{
    config::{Config, ControlPlane, Service},
    fixture::{Mesh, Scene, connect, is_reset, serve, share_ca},
    host::{Family, Host},
    meshnode::{Meshnode, UNMANAGED},
    net::Network,
    program::postgres::{Postgres, psql},
    require_consul, require_root, wait,
};
use serde_json::{Value, json};

/// A, whose `web` and `other` dial; B, the gateway of `billing` for `address`; and X, which runs no meshnode.
struct Outside {
    mesh: Mesh,
    x: Host,
}

const PORT: u16 = 7001;

fn section(address: &str) -> String {
    // Soon seen, so that no test waits for a check.
    format!(
        "[[gateway]]\nservice = \"billing\"\naddress = \"{address}\"\n[gateway.check]\ninterval = \"1s\"\n"
    )
}

fn scene(address: impl Fn(&Host) -> String) -> Outside {
    let net = Network::new();
    let (a, b, x) = (net.host("a"), net.host("b"), net.host("x"));
    let mut scene = Scene::new(&[]);
    scene.sections_on_b = section(&address(&x));
    Outside { mesh: scene.start_on(net, a, b), x }
}

impl Outside {
    fn at(&self, port: u16) -> String {
        SocketAddr::new(self.x.v4.into(), port).to_string()
    }

    #[track_caller]
    fn dial(&self, cgroup: &str, options: &[&str]) -> Value {
        connect(&self.mesh.a.host, cgroup, &self.at(PORT), options)
    }

    /// Waits until `web` gets `welcome` from X, by way of a gateway.
    #[track_caller]
    fn until_welcome(&self) {
        wait::until("a welcome through the gateway", || {
            let said = self.dial("web", &["--read", "7"]);
            if said["received"] == "welcome" { Ok(()) } else { Err(format!("{said}\n{}", self.mesh.logs())) }
        });
    }

    #[track_caller]
    fn until_denied(&self, cgroup: &str) {
        wait::until(&format!("{cgroup} to be denied"), || {
            let said = self.dial(cgroup, &["--wait", "50"]);
            if said["error"] == "EPERM" { Ok(()) } else { Err(format!("{said}\n{}", self.mesh.logs())) }
        });
    }

    /// Waits until status says of the gateway that it is `health`, and why, and returns all that it says.
    #[track_caller]
    fn until_health(&self, health: &str, why: &str) -> Value {
        let status = self.mesh.b.wait_status(health, |s| {
            s.entry("gateways", "service", "billing").is_some_and(|gateway| {
                gateway["health"] == health && gateway["reason"].as_str().unwrap_or("").contains(why)
            })
        });
        status.entry("gateways", "service", "billing").expect("just seen").clone()
    }
}

fn welcome(x: &Host) -> mesh_tests::process::Process {
    serve(x, UNMANAGED, PORT, &["greet", "welcome"])
}

#[test]
fn database_without_meshnode_is_reached_by_who_may_and_only_in_tls_as_far_as_the_gateway() {
    require_root!();
    let net = Network::new();
    let (a, b, x) = (net.host("a"), net.host("b"), net.host("x"));
    let _postgres = Postgres::start(&x, UNMANAGED, 5432);
    let mut scene = Scene::new(&[]);
    scene.sections_on_b = section(&format!("{}:5432", x.v4));
    let outside = Outside { mesh: scene.start_on(net, a, b), x };
    let (mesh, address) = (&outside.mesh, outside.x.v4.to_string());
    outside.until_health("passing", "");
    let row = psql(&address, "5432", "select 'a secret row of ' || 6 * 7");
    let host = &mesh.a.host;
    wait::until("the kernel to know of the database", || {
        let said = connect(host, "web", &outside.at(5432), &["--wait", "50"]);
        if said["error"] == "EPERM" { Ok(()) } else { Err(said.to_string()) }
    });
    mesh.a.intention("web", "billing", "allow");
    wait::until_true("psql", || host.run("web", &row).status.success());
    let capture = mesh.net.capture(host);
    assert_eq!(host.run("web", &row).ok(), "a secret row of 42\n");
    let trace = capture.stop();
    let mesh_port =
        mesh.b.status().entry("gateways", "service", "billing").expect("it is there")["mesh_port"]
            .as_u64()
            .and_then(|port| u16::try_from(port).ok())
            .expect("a port");
    trace.assert_secret(mesh_port, &["a secret row of", "postgres"]);
    trace.assert_tls13(mesh_port);
    assert_eq!(trace.bytes_at(5432), 0, "something went to the database itself");

    // The twin, and who is not in the mesh at all.
    assert_eq!(connect(host, "other", &outside.at(5432), &[])["error"], "EPERM");
    assert!(!host.run("other", &row).status.success());
    assert_eq!(host.run(UNMANAGED, &row).ok(), "a secret row of 42\n", "what is unmanaged is left alone");

    // A revoked intention cuts what is open.
    let mut held = host.spawn("web", &psql(&address, "5432", "select pg_sleep(600)"));
    mesh.a.wait_status("the flow", |s| s.flows("web", "billing").iter().any(|flow| flow["state"] == "mtls"));
    mesh.a.delete_intention("web", "billing");
    assert!(!held.wait().success(), "{}", held.log());
    wait::until_true("the record", || {
        let revoked = |s: &mesh_tests::status::Status| {
            s.recent("web", "billing").iter().any(|flow| flow["state"] == "revoked")
        };
        revoked(&mesh.a.status()) || revoked(&mesh.b.status())
    });
    wait::until_true("new ones to be denied", || {
        connect(host, "web", &outside.at(5432), &["--wait", "50"])["error"] == "EPERM"
    });
}

#[test]
fn the_gateways_own_workloads_reach_it_by_the_same_rules() {
    require_root!();
    let net = Network::new();
    let (a, b, x) = (net.host("a"), net.host("b"), net.host("x"));
    let _server = welcome(&x);
    let mut scene = Scene::new(&[]);
    scene.on_b = vec![Service::client("batch"), Service::client("cron")];
    scene.sections_on_b = section(&format!("{}:{PORT}", x.v4));
    let outside = Outside { mesh: scene.start_on(net, a, b), x };
    let (on, to) = (&outside.mesh.b.host, outside.at(PORT));
    outside.mesh.a.intention("batch", "billing", "allow");
    // Until the host has heard of its own gateway, they reach the service as they would without a mesh.
    wait::until("cron to be denied, and batch to be welcome with mTLS", || {
        let denied = connect(on, "cron", &to, &["--wait", "50"]);
        let said = connect(on, "batch", &to, &["--read", "7"]);
        let status = outside.mesh.b.status();
        let carried = status.recent("batch", "billing").iter().any(|flow| flow["state"] != "denied");
        let good = denied["error"] == "EPERM" && said["received"] == "welcome" && carried;
        if good { Ok(()) } else { Err(format!("{denied} {said}\n{}", outside.mesh.logs())) }
    });
}

#[test]
fn external_service_that_is_down_is_reset_with_a_reason_and_works_when_it_is_back() {
    require_root!();
    let outside = scene(|x| format!("{}:{PORT}", x.v4));
    outside.until_health("critical", "refused");
    outside.mesh.a.intention("web", "billing", "allow");
    // The first one may be reset for want of a certificate.
    wait::until("a reset with the reason", || {
        let said = outside.dial("web", &["--send", "x", "--read", "1"]);
        let status = outside.mesh.b.status();
        let told = status.recent("web", "billing").iter().any(|flow| {
            flow["reason"].as_str().is_some_and(|reason| reason.starts_with("program-unreachable"))
        });
        if is_reset(&said) && told { Ok(()) } else { Err(format!("{said}\n{}", outside.mesh.logs())) }
    });
    let _server = welcome(&outside.x);
    outside.until_health("passing", "");
    outside.until_welcome();
    outside.until_denied("other");
}

#[test]
fn second_gateway_takes_over_from_one_that_drains() {
    require_root!();
    let net = Network::new();
    let (a, b, x) = (net.host("a"), net.host("b"), net.host("x"));
    let c = net.host("c");
    let _server = welcome(&x);
    let mut scene = Scene::new(&[]);
    scene.sections_on_b = section(&format!("{}:{PORT}", x.v4));
    let mut outside = Outside { mesh: scene.start_on(net, a, b), x };
    share_ca(&outside.mesh.a, &c);
    let second = Meshnode::start(
        c,
        Config {
            node: "host-c".to_owned(),
            advertise: "10.77.4.1".parse().unwrap(),
            control_plane: ControlPlane::Remote { server: outside.mesh.a.host.ip(Family::V4) },
            services: Vec::new(),
            top: String::new(),
            sections: section(&outside.at(PORT)),
        },
    );
    outside.mesh.a.intention("web", "billing", "allow");
    outside.until_welcome();
    let registered = |node: &str| {
        let found = outside.mesh.a.get("/v1/health/connect/billing");
        found.as_array().is_some_and(|all| all.iter().any(|one| one["Node"]["Node"] == node))
    };
    wait::until_true("both to be registered", || registered("host-b") && registered("host-c"));
    outside.mesh.b.terminate();
    outside.until_welcome();
    second.wait_status("the second gateway's flow", |s| !s.recent("web", "billing").is_empty());
    outside.until_denied("other");
}

#[test]
fn name_that_does_not_resolve_says_so_and_is_offered_when_it_does_wherever_it_moves() {
    require_root!();
    let outside = scene(|_| format!("billing.test:{PORT}"));
    let critical = outside.until_health("critical", "cannot resolve billing.test");
    assert_eq!(critical["resolved"], json!([]));
    let _server = welcome(&outside.x);
    let hosts = outside.mesh.b.host.read("/etc/hosts");
    outside.mesh.b.host.name_address("billing.test", outside.x.v4.into());
    let passing = outside.until_health("passing", "");
    assert_eq!(passing["resolved"], json!([outside.at(PORT)]));
    outside.until_denied("web");
    outside.mesh.a.intention("web", "billing", "allow");
    outside.until_welcome();
    outside.until_denied("other");
    // It moves to the other family.
    outside.mesh.b.host.write("/etc/hosts", &format!("{hosts}{} billing.test\n", outside.x.v6));
    let moved = SocketAddr::new(outside.x.v6.into(), PORT).to_string();
    outside.mesh.b.wait_status("the move", |s| {
        s.entry("gateways", "service", "billing").is_some_and(|gateway| gateway["resolved"] == json!([moved]))
    });
    wait::until("a welcome at the new address", || {
        let said = connect(&outside.mesh.a.host, "web", &moved, &["--read", "7"]);
        let denied = connect(&outside.mesh.a.host, "other", &moved, &["--wait", "50"]);
        let good = said["received"] == "welcome" && denied["error"] == "EPERM";
        if good { Ok(()) } else { Err(format!("{said} {denied}\n{}", outside.mesh.logs())) }
    });
}

#[test]
fn gateways_come_and_go_with_a_reload() {
    require_root!();
    let mut outside = scene(|x| format!("{}:{PORT}", x.v4));
    let _server = welcome(&outside.x);
    outside.mesh.a.intention("web", "billing", "allow");
    outside.until_welcome();
    let before = std::mem::take(&mut outside.mesh.b.config.sections);
    outside.mesh.b.config.sections =
        "[[gateway]]\nservice = \"billing\"\naddress = \"127.0.0.1:5432\"\n".to_owned();
    outside.mesh.b.write_config();
    let refused = outside.mesh.b.cli(&["reload"]).fails();
    assert!(refused.contains("a program of this host is a [[service]]"), "{refused}");
    outside.until_welcome();
    outside.mesh.b.config.sections = String::new();
    outside.mesh.b.write_config();
    outside.mesh.b.cli(&["reload"]).ok();
    let status = outside.mesh.b.status();
    assert!(status.list("gateways").is_empty());
    let gone = outside.mesh.a.get("/v1/health/connect/billing");
    wait::until_true("it to be deregistered", || {
        gone == json!([]) || outside.mesh.a.get("/v1/health/connect/billing") == json!([])
    });
    outside.mesh.b.config.sections = before;
    outside.mesh.b.write_config();
    outside.mesh.b.cli(&["reload"]).ok();
    outside.until_welcome();
}

#[test]
fn works_with_a_real_consul() {
    require_root!();
    require_consul!();
    let mut scene = Scene::new(&[]);
    // The third host of the network that is made with the agents.
    scene.sections_on_b = section(&format!("10.77.3.1:{PORT}"));
    let both = scene.start_with_consul(&json!({}));
    both.server.intention(&both.mesh.a.host, "*", "*", "deny");
    let x = both.mesh.net.host("x");
    assert_eq!(x.v4.to_string(), "10.77.3.1");
    let _server = welcome(&x);
    let (host, to) = (&both.mesh.a.host, format!("{}:{PORT}", x.v4));
    wait::until_true("web to be denied", || connect(host, "web", &to, &["--wait", "50"])["error"] == "EPERM");
    both.server.intention(host, "web", "billing", "allow");
    wait::until("web to be welcome", || {
        let said = connect(host, "web", &to, &["--read", "7"]);
        if said["received"] == "welcome" { Ok(()) } else { Err(format!("{said}\n{}", both.mesh.logs())) }
    });
    assert_eq!(connect(host, "other", &to, &[])["error"], "EPERM");
}
