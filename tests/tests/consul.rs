//! A real Consul as the control plane: its server and client agents, its CLI, its CA.

use std::net::Ipv4Addr;

use mesh_tests::{
    config::{Config, ControlPlane, Service, TOKEN_FILE},
    fixture::{Scene, connect, serve},
    host::Host,
    meshnode::{Meshnode, make_private},
    net::Network,
    pki::Authority,
    program::consul::{Consul, Role},
    require_consul, require_root, wait,
};
use serde_json::{Value, json};

const ROOT_TOKEN: &str = "root-token";

/// An agent with ACLs, which besides its usual port serves https to holders of a certificate, and a unix socket.
struct Agent {
    consul: Consul,
    socket: String,
    /// CA, certificate and key of a client, as paths.
    ca: String,
    cert: String,
    key: String,
    /// The secret of a token that has no more than Consul's own identities of `web` and `db`.
    token: String,
}

impl Agent {
    fn start(host: &Host) -> Self {
        let authority = Authority::rogue();
        let identity = authority.issue_at(Ipv4Addr::LOCALHOST.into());
        let path = |name: &str| host.space().scratch().join(name).to_str().expect("UTF-8").to_owned();
        let file = |name: &str, text: &str| {
            std::fs::write(path(name), text).expect("scratch is ours");
            path(name)
        };
        let (ca, cert, key) = (
            file("ca.pem", &authority.cert),
            file("own.pem", &identity.cert),
            file("own.key", &identity.key),
        );
        let socket = format!("unix://{}", path("api.sock"));
        let role = Role::server().with(json!({
            "ports": {"https": 8501},
            "addresses": {"http": format!("127.0.0.1 {socket}"), "https": "127.0.0.1"},
            "ca_file": ca, "cert_file": cert, "key_file": key, "verify_incoming_https": true,
            "acl": {"enabled": true, "default_policy": "deny", "tokens": {"master": ROOT_TOKEN, "agent": ROOT_TOKEN}},
        }));
        let mut consul = Consul::start(host, role);
        consul.token = ROOT_TOKEN.to_owned();
        let identities = json!({"ServiceIdentities": [{"ServiceName": "web"}, {"ServiceName": "db"}]});
        let made = wait::until("ACLs", || {
            let (code, said) = consul.api(host, "PUT", "/v1/acl/token", Some(&identities.to_string()));
            if code == 200 { Ok(said) } else { Err(said) }
        });
        let made: Value = serde_json::from_str(&made).expect("JSON");
        let token = made["SecretID"].as_str().expect("a secret").to_owned();
        Self { consul, socket, ca, cert, key, token }
    }
}

fn one_host(address: Ipv4Addr, lines: String) -> Config {
    Config {
        node: "host-a".to_owned(),
        advertise: address.into(),
        control_plane: ControlPlane::Consul { lines },
        services: vec![Service::server("db", 5432), Service::client("web")],
        top: String::new(),
        sections: String::new(),
    }
}

#[test]
fn each_way_to_an_agent_works_with_what_it_demands_and_with_no_more_than_service_identities() {
    require_root!();
    require_consul!();
    let net = Network::new();
    let host = net.host("a");
    let agent = Agent::start(&host);
    let Agent { consul, socket, ca, cert, key, token } = &agent;
    consul.intention(&host, "web", "db", "allow");
    let https =
        format!("address = \"https://127.0.0.1:8501\"\nca_file = \"{ca}\"\ntoken_file = \"{TOKEN_FILE}\"\n");
    let with_cert = format!("{https}cert_file = \"{cert}\"\nkey_file = \"{key}\"\n");
    let config = one_host(host.v4, with_cert);
    let mut node = Meshnode::prepare(host, config);
    node.host.write(TOKEN_FILE, token);
    make_private(&node.host, TOKEN_FILE);
    let _server = serve(&node.host, "db", 5432, &["banner", "welcome"]);
    for lines in [None, Some(format!("address = \"{socket}\"\ntoken = \"{token}\"\n"))] {
        if let Some(lines) = lines {
            node.config.control_plane = ControlPlane::Consul { lines };
            node.write_config();
        }
        node.run();
        wait::until("the intention to act", || {
            let said = connect(&node.host, "web", "127.0.0.1:5432", &["--read", "7"]);
            if said["received"] == "welcome" { Ok(()) } else { Err(format!("{said}\n{}", node.log())) }
        });
        node.wait_status("no complaint", |s| {
            let plane = &s.0["control_plane"];
            plane["connected"] == true && plane["last_error"].is_null() && plane["unwatched_services"] == 0
        });
        wait::until("the service to pass in the catalog", || {
            let passing = consul.get(&node.host, "/v1/health/connect/db?passing");
            if passing.as_array().map(Vec::len) == Some(1) { Ok(()) } else { Err(passing.to_string()) }
        });
        node.terminate();
    }
    // Its twin: who has no certificate is not served.
    node.config.control_plane = ControlPlane::Consul { lines: https };
    node.write_config();
    node.run();
    node.wait_status("the refusal", |s| {
        s.0["control_plane"]["connected"] == false && s.0["control_plane"]["last_error"].is_string()
    });
}

#[test]
fn two_hosts_talk_under_consuls_intentions_and_certificates() {
    require_root!();
    require_consul!();
    let consul = Scene::new(&[("db", 5432)]).start_with_consul(&json!({"acl": {"enabled": false}}));
    let _server = serve(&consul.mesh.b.host, "db", 5432, &["banner", "welcome"]);
    let a = &consul.mesh.a.host;
    consul.server.intention(a, "*", "*", "deny");
    consul.mesh.until_denied("web", 5432);
    consul.allow("web", "db", 5432);
    assert_eq!(consul.mesh.connect("other", 5432, &[])["error"], "EPERM");
    consul.server.delete_intention(a, "web", "db");
    consul.mesh.until_denied("web", 5432);
    let services = consul.server.cli(a, &["catalog", "services"]).ok();
    assert!(services.contains("db-sidecar-proxy"), "{services}");
}
