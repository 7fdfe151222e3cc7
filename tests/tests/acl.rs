//! Identity rooted in tokens: what a token may not do is refused, and the refusal names what is missing; on the embedded
//! server and on a real Consul, by the real `consul` CLI, by `meshnode acl`, and by daemons that join with a token each.

use std::net::SocketAddr;

use mesh_tests::{
    config::{API_PORT, CA_FILE, Config, ControlPlane, Service, TOKEN_FILE},
    fixture::{Mesh, Scene, serve, share_ca},
    host::{Family, Host},
    meshnode::{Meshnode, make_private},
    net::Network,
    process::Output,
    program::consul::{self, run_cli},
    require_consul, wait,
};
use serde_json::{Value, json};

const DB: &str = "db";
const PORT: u16 = 5432;
/// The embedded server's socket that is root's.
const SOCKET: &str = "unix:///run/meshnode/api.sock";

/// What a node needs that runs `service`; see docs/operations.md.
fn rules(node: &str, service: &str) -> String {
    format!(
        "node \"{node}\" {{ policy = \"write\" }}\n\
         service \"{service}\" {{ policy = \"write\" }}\n\
         service \"{service}-sidecar-proxy\" {{ policy = \"write\" }}\n\
         {READ_ALL}"
    )
}

const READ_ALL: &str = "service_prefix \"\" { policy = \"read\" }\nnode_prefix \"\" { policy = \"read\" }\n";

/// Runs `consul WORDS…` with a token.
type Cli<'c> = &'c dyn Fn(&str, &[&str]) -> Output;

#[track_caller]
fn json_of(output: Output) -> Value {
    let text = output.ok();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[track_caller]
fn refused(output: Output) -> String {
    assert!(!output.status.success(), "it must be refused: {output}");
    output.to_string()
}

/// Makes a policy and a token with it; returns the accessor id and the secret.
#[track_caller]
fn token(cli: Cli<'_>, management: &str, name: &str, rules: &str) -> (String, String) {
    cli(management, &["acl", "policy", "create", "-name", name, "-rules", rules]).ok();
    let made = cli(management, &["acl", "token", "create", "-policy-name", name, "-format", "json"]);
    let made = json_of(made);
    let text = |field: &str| made[field].as_str().expect("a token").to_owned();
    (text("AccessorID"), text("SecretID"))
}

/// The same for both servers: what a token allows works, and what it does not allow is refused.
fn consuls_cli_is_let_do_what_its_token_allows(cli: Cli<'_>, management: &str, host: &Host) {
    let again = refused(cli(management, &["acl", "bootstrap"]));
    assert!(again.contains("ACL bootstrap no longer allowed"), "{again}");
    let policy = "service \"web\" { policy = \"write\" }\nservice \"db\" { policy = \"read\" }";
    let (accessor, web) = token(cli, management, "web", policy);
    let read = cli(management, &["acl", "policy", "read", "-name", "web"]).ok();
    assert!(read.contains("service \"db\" { policy = \"read\" }"), "{read}");
    assert!(cli(management, &["acl", "policy", "list"]).ok().contains("global-management"));
    assert!(cli(management, &["acl", "token", "list"]).ok().contains(&accessor));
    assert!(cli(&web, &["acl", "token", "read", "-self"]).ok().contains(&accessor));
    assert!(refused(cli(&web, &["acl", "token", "list"])).contains("Permission denied"));

    let service = |name: &str| {
        let file = format!("/tmp/{name}.json");
        host.write(&file, &json!({"service": {"name": name, "port": 1}}).to_string());
        file
    };
    cli(&web, &["services", "register", &service("web")]).ok();
    let said = refused(cli(&web, &["services", "register", &service("db")]));
    assert!(
        said.contains("Permission denied") && said.contains("service:write") && said.contains("db"),
        "{said}"
    );
    cli(management, &["services", "register", &service("db")]).ok();
    cli(management, &["services", "register", &service("api")]).ok();
    wait::until("the catalog", || {
        let all = cli(management, &["catalog", "services"]).ok();
        if ["api", "db", "web"].iter().all(|name| all.contains(name)) { Ok(()) } else { Err(all) }
    });
    let seen = cli(&web, &["catalog", "services"]).ok();
    let seen: Vec<&str> = seen.lines().collect();
    assert_eq!(seen, ["db", "web"]);
    assert_eq!(cli("", &["catalog", "services"]).ok().trim(), "", "the anonymous token sees nothing");

    for (source, destination) in [("x", "db"), ("x", "web"), ("x", "*")] {
        let said = refused(cli(&web, &["intention", "create", source, destination]));
        assert!(said.contains("Permission denied"), "{said}");
    }
    let (_, writer) =
        token(cli, management, "writer", "service \"db\" { policy = \"read\" intentions = \"write\" }");
    cli(&writer, &["intention", "create", "x", "db"]).ok();
    assert!(refused(cli(&writer, &["intention", "create", "x", "api"])).contains("Permission denied"));
    assert!(cli(&web, &["intention", "check", "x", "db"]).ok().contains("Allowed"));
    assert!(refused(cli(&web, &["intention", "check", "x", "api"])).contains("Permission denied"));
    assert!(refused(cli(&web, &["connect", "ca", "get-config"])).contains("Permission denied"));
    cli(management, &["connect", "ca", "get-config"]).ok();

    cli(management, &["acl", "token", "delete", "-id", &accessor]).ok();
    wait::until("the deleted token to be refused", || {
        let said = cli(&web, &["services", "register", &service("web")]);
        if !said.status.success() && said.to_string().contains("ACL not found") {
            Ok(())
        } else {
            Err(said.to_string())
        }
    });
}

fn embedded(host: &Host) -> Config {
    Config {
        node: format!("host-{}", host.name),
        advertise: host.ip(Family::V4),
        control_plane: ControlPlane::Embedded { lines: "acl = true\n".to_owned() },
        services: vec![Service::client("web")],
        top: String::new(),
        sections: String::new(),
    }
}

#[test]
fn the_consul_cli_finds_its_acls_in_the_embedded_server() {
    require_consul!();
    let net = Network::new();
    let a = net.host("a");
    let config = embedded(&a);
    let a = Meshnode::start(a, config);
    let cli = |token: &str, words: &[&str]| run_cli(&a.host, consul::API, token, words);
    assert!(refused(cli("", &["acl", "bootstrap"])).contains("unix socket"), "a local user is not root");
    let made = json_of(run_cli(&a.host, SOCKET, "", &["acl", "bootstrap", "-format", "json"]));
    let management = made["SecretID"].as_str().expect("a token").to_owned();
    consuls_cli_is_let_do_what_its_token_allows(&cli, &management, &a.host);
    // The daemon's own work needs no token.
    a.wait_status("its own control plane", |s| s.0["control_plane"]["connected"] == true);
}

#[test]
fn a_real_consul_lets_its_cli_do_the_same() {
    require_consul!();
    let net = Network::new();
    let a = net.host("a");
    let mut server = consul::Consul::start(&a, consul::Role::server().with(acls()));
    server.token = MANAGEMENT.to_owned();
    let cli = |token: &str, words: &[&str]| run_cli(&a, consul::API, token, words);
    server.wait_acls(&a);
    consuls_cli_is_let_do_what_its_token_allows(&cli, MANAGEMENT, &a);
}

const MANAGEMENT: &str = "5b8b2c9e-5a3e-4a5e-9d3e-2f8f2d6a7c10";

/// Consul's ACLs with default deny; what agents do for themselves, they do as management.
fn acls() -> Value {
    json!({"acl": {
        "enabled": true, "default_policy": "deny", "policy_ttl": "1s", "token_ttl": "1s",
        "tokens": {"master": MANAGEMENT, "agent": MANAGEMENT},
    }})
}

/// Gives the daemon of `node` another token; it reads the file again.
#[track_caller]
fn give(node: &Meshnode, secret: &str) {
    node.host.write(TOKEN_FILE, secret);
    make_private(&node.host, TOKEN_FILE);
}

#[track_caller]
fn wait_error(node: &Meshnode, what: &str, words: &[&str]) {
    node.wait_status(what, |s| {
        let said = s.0["control_plane"]["last_error"].as_str().unwrap_or_default();
        words.iter().all(|word| said.contains(word))
    });
}

#[track_caller]
fn doctor_says(node: &Meshnode, words: &[&str]) {
    let found = node.cli(&["doctor", "--json"]);
    let findings: Value = serde_json::from_str(&found.stdout).unwrap_or_else(|e| panic!("{e}: {found}"));
    let token = findings.as_array().into_iter().flatten().find(|f| f["check"] == "token");
    let said = token.expect("doctor looks at the token")["detail"].as_str().unwrap_or_default().to_owned();
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
}

/// The daemon of B has a token that may read everything and register nothing: it says so; with the rest of the rules
/// it works, without a restart.
#[track_caller]
fn joins_once_its_policy_grants_it(mesh: &Mesh, cli: Cli<'_>, management: &str) {
    let (_, secret) = token(cli, management, "host-b", READ_ALL);
    give(&mesh.b, &secret);
    let needs = "registering \"db\" needs service \"db\" { policy = \"write\" }";
    wait_error(&mesh.b, "B to name what it lacks", &["/v1/agent/service/register is forbidden", needs]);
    mesh.b.wait_log("B's log to name it, too", |line| {
        line.contains(&needs.replace('"', "\\\"")) || line.contains(needs)
    });
    doctor_says(&mesh.b, &["lacks service \"db\" { policy = \"write\" }", "service \"db-sidecar-proxy\""]);
    let catalog = cli(management, &["catalog", "services"]).ok();
    assert!(!catalog.contains(DB), "{catalog}");

    cli(management, &["acl", "policy", "update", "-name", "host-b", "-rules", &rules("host-b", DB)]).ok();
    // What was refused is asked for again with growing pauses, of half a minute at most.
    wait::until_within(wait::patience() * 3, "nothing to complain of", || {
        let plane = mesh.b.status().0["control_plane"].clone();
        if plane["last_error"].is_null() { Ok(()) } else { Err(plane.to_string()) }
    });
    mesh.until_connects("web", PORT);
    doctor_says(&mesh.b, &["grants all"]);
}

#[test]
fn nodes_join_an_embedded_server_with_a_token_each() {
    require_consul!();
    let net = Network::new();
    let (a, b) = (net.host("a"), net.host("b"));
    let config = embedded(&a);
    let a = Meshnode::start(a, config);
    let made = json_of(a.cli(&["acl", "bootstrap", "--json"]));
    let management = made["SecretID"].as_str().expect("a token").to_owned();
    share_ca(&a, &b);
    let config = Config {
        node: "host-b".to_owned(),
        advertise: b.ip(Family::V4),
        control_plane: ControlPlane::Remote { server: a.host.ip(Family::V4) },
        services: vec![Service::server(DB, PORT)],
        top: String::new(),
        sections: String::new(),
    };
    let b = Meshnode::start(b, config);
    // What opened the server before it had ACLs opens nothing any more.
    wait_error(&b, "B's token to be unknown", &["ACL not found", "knows no such token"]);
    let mesh = Mesh { a, b, net, family: Family::V4 };
    let _server = serve(&mesh.b.host, DB, PORT, &["banner", "welcome"]);
    mesh.a.intention("web", DB, "allow");
    let cli = |token: &str, words: &[&str]| run_cli(&mesh.a.host, consul::API, token, words);
    joins_once_its_policy_grants_it(&mesh, &cli, &management);

    // B's token is B's: it takes no certificate of another service, and registers on no other node.
    let secret = mesh.b.host.read(TOKEN_FILE);
    let at = format!("https://{}", SocketAddr::new(mesh.a.host.ip(Family::V4), API_PORT));
    let ask = |path: &str, body: &str| {
        let (url, header) = (format!("{at}{path}"), format!("X-Consul-Token: {}", secret.trim()));
        let words = ["curl", "-sS", "--cacert", CA_FILE, "-H", &header, "-X", "PUT", "-d", body, &url];
        mesh.b.host.run("", &words).ok()
    };
    let said = ask("/v1/connect/ca/sign/web", "csr");
    assert!(said.contains("lacks permission 'service:write' on \"web\""), "{said}");
    let said = ask(
        "/v1/agent/service/register?mesh-node=host-z&mesh-address=10.9.9.9",
        "{\"Name\":\"db\",\"Port\":1}",
    );
    assert!(said.contains("lacks permission 'node:write' on \"host-z\""), "{said}");

    // Without a token B is out, and what runs goes on.
    let own = json_of(mesh.a.cli(&["acl", "token", "list", "--json"]));
    let own = own.as_array().into_iter().flatten().find(|t| t["Policies"][0]["Name"] == "host-b");
    let accessor = own.expect("B's token")["AccessorID"].as_str().expect("an id").to_owned();
    mesh.a.cli(&["acl", "token", "delete", "--id", &accessor]).ok();
    wait_error(&mesh.b, "B's token to be refused", &["ACL not found"]);
    mesh.until_connects("web", PORT);
}

#[test]
fn a_daemon_tells_which_permission_a_real_consul_wants() {
    require_consul!();
    let mut scene = Scene::new(&[(DB, PORT)]);
    scene.on_a = vec![Service::client("web")];
    scene.consul = format!("token_file = \"{TOKEN_FILE}\"\n");
    let mut consul_mesh = scene.start_with_consul(&acls());
    consul_mesh.server.token = MANAGEMENT.to_owned();
    let mesh = &consul_mesh.mesh;
    consul_mesh.server.wait_acls(&mesh.a.host);
    wait_error(&mesh.b, "B's token to be unknown", &["ACL not found", "knows no such token"]);
    let _server = serve(&mesh.b.host, DB, PORT, &["banner", "welcome"]);
    let cli = |token: &str, words: &[&str]| run_cli(&mesh.a.host, consul::API, token, words);
    let (_, secret) = token(&cli, MANAGEMENT, "host-a", &rules("host-a", "web"));
    give(&mesh.a, &secret);
    cli(MANAGEMENT, &["intention", "create", "-allow", "web", DB]).ok();
    joins_once_its_policy_grants_it(mesh, &cli, MANAGEMENT);
}
