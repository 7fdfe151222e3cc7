//! Bad input to the embedded server's API: each is a 4xx that names the field, and the store is as before.

use mesh_tests::{
    config::{API_PORT, CA_FILE, Config, ControlPlane},
    host::Host,
    meshnode::Meshnode,
    net::Network,
    require_root,
};
use serde_json::{Value, json};

fn server() -> (Network, Meshnode) {
    let net = Network::new();
    let host = net.host("a");
    let config = Config {
        node: "host-a".to_owned(),
        advertise: host.v4.into(),
        control_plane: ControlPlane::Embedded { lines: String::new() },
        services: Vec::new(),
        top: String::new(),
        sections: String::new(),
    };
    let node = Meshnode::start(host, config);
    (net, node)
}

/// Everything that the API lists.
#[track_caller]
fn everything(node: &Meshnode) -> Vec<Value> {
    [
        "/v1/catalog/services",
        "/v1/agent/services",
        "/v1/connect/intentions",
        "/v1/connect/ca/roots",
        "/v1/agent/checks",
    ]
    .map(|path| node.get(path))
    .into()
}

/// Asserts that the call is refused with a status in the 400s, names `field`, and changes nothing.
#[track_caller]
fn is_refused(node: &Meshnode, method: &str, path: &str, body: &str, field: &str) {
    let before = everything(node);
    let (code, said) = node.api(method, path, Some(body));
    let shown: String = body.chars().take(200).collect();
    assert!((400..500).contains(&code), "{method} {path} {shown}: {code} {said}");
    // In Consul's own words it is `Missing service name`, where there are such.
    let named = said.to_lowercase().contains(&field.to_lowercase());
    assert!(named, "{method} {path} {shown}: `{field}` is not named: {said}");
    assert_eq!(everything(node), before, "{method} {path} {shown}: the store has changed");
}

const REGISTER: &str = "/v1/agent/service/register";
const INTENTIONS: &str = "/v1/connect/intentions";

#[test]
fn good_input_is_taken() {
    require_root!();
    let (_net, node) = server();
    let (code, said) = node.api("PUT", REGISTER, Some(r#"{"Name":"api","Port":8080}"#));
    assert_eq!(code, 200, "{said}");
    let intention = r#"{"SourceName":"web","DestinationName":"api","SourceType":"consul","Action":"allow"}"#;
    let (code, said) = node.api("POST", INTENTIONS, Some(intention));
    assert_eq!(code, 200, "{said}");
    assert_eq!(node.get("/v1/connect/intentions/check?source=web&destination=api"), json!({"Allowed": true}));
}

#[test]
fn bad_json_is_refused() {
    require_root!();
    let (_net, node) = server();
    for body in ["", "{", "[]", "null", "\"x\"", "{\"Name\":}", "{\"Name\":\"a\"} {}", "\u{0}"] {
        is_refused(&node, "PUT", REGISTER, body, "");
        is_refused(&node, "POST", INTENTIONS, body, "");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    is_refused(&node, "PUT", REGISTER, &deep, "");
}

#[test]
fn unknown_field_is_named() {
    require_root!();
    let (_net, node) = server();
    is_refused(&node, "PUT", REGISTER, r#"{"Name":"api","Prot":1}"#, "Prot");
    is_refused(
        &node,
        "POST",
        INTENTIONS,
        r#"{"SourceName":"web","DestinationName":"api","Action":"allow","Akshon":1}"#,
        "Akshon",
    );
}

#[test]
fn wrong_types_and_bad_names_are_named() {
    require_root!();
    let (_net, node) = server();
    let long = "x".repeat(64);
    for name in ["", "a/b", "-a", "a b", "*", "..", "ü", &long] {
        is_refused(&node, "PUT", REGISTER, &json!({"Name": name, "Port": 1}).to_string(), "Name");
    }
    for (body, field) in [
        (json!({"Name": "api", "Port": "80"}), "Port"),
        (json!({"Name": "api", "Port": -1}), "Port"),
        (json!({"Name": "api", "Port": 65536}), "Port"),
        (json!({"Name": "api", "Port": 1.5}), "Port"),
        (json!({"Name": "api", "Address": "not an address!"}), "Address"),
        (json!({"Name": "api", "Kind": "gateway-of-sorts"}), "Kind"),
        (json!({"Name": "api", "Check": {"TTL": "soon"}}), "TTL"),
        (json!({"Name": 5}), "Name"),
    ] {
        is_refused(&node, "PUT", REGISTER, &body.to_string(), field);
    }
    for (body, field) in [
        (json!({"SourceName": "web", "DestinationName": "a/b", "Action": "allow"}), "DestinationName"),
        (json!({"SourceName": "", "DestinationName": "api", "Action": "allow"}), "SourceName"),
        (json!({"SourceName": "web", "DestinationName": "api", "Action": "perhaps"}), "Action"),
        (json!({"SourceName": "web", "DestinationName": "api"}), "Action"),
    ] {
        is_refused(&node, "POST", INTENTIONS, &body.to_string(), field);
    }
}

#[test]
fn oversized_body_is_refused() {
    require_root!();
    let (_net, node) = server();
    // Too long by its very end: of a longer one the server answers and closes before curl has sent all, which is an error to
    // curl (55) if it sends once more before it looks.
    let body = json!({"Name": "api", "Meta": {"k": "x".repeat(512 << 10)}}).to_string();
    let before = everything(&node);
    let (code, said) = node.api("PUT", REGISTER, Some(&body));
    assert_eq!(code, 413, "{said}");
    assert_eq!(everything(&node), before);
}

#[test]
fn bad_paths_queries_and_requests_for_certificates_are_refused() {
    require_root!();
    let (_net, node) = server();
    is_refused(&node, "PUT", "/v1/connect/ca/sign/a%2Fb", "", "");
    is_refused(&node, "PUT", "/v1/connect/ca/sign/web", "no request", "PEM");
    is_refused(&node, "GET", "/v1/health/service/web?index=minus-one", "", "index");
    is_refused(&node, "GET", "/v1/health/service/web?index=1&wait=forever", "", "wait");
    is_refused(&node, "GET", "/v1/connect/intentions/match?by=colour&name=web", "", "by");
    is_refused(&node, "GET", "/v1/no/such/path", "", "");
    is_refused(&node, "DELETE", "/v1/catalog/services", "", "");
}

#[test]
fn other_hosts_need_the_token_and_tls() {
    require_root!();
    let (net, node) = server();
    let client: Host = net.host("b");
    mesh_tests::fixture::share_ca(&node, &client);
    let url = format!("https://{}:{API_PORT}/v1/catalog/services", node.host.v4);
    let code = |more: &[&str]| {
        let words =
            [&["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert", CA_FILE, &url], more]
                .concat();
        client.run("", &words)
    };
    let token = format!("X-Consul-Token: {}", mesh_tests::config::TOKEN);
    assert_eq!(code(&["-H", &token]).ok(), "200");
    assert_eq!(code(&[]).ok(), "403");
    assert_eq!(code(&["-H", "X-Consul-Token: guessed"]).ok(), "403");
    let plain = url.replace("https", "http");
    let words = ["curl", "-sS", "-H", &token, &plain, "-w", "%{http_code}"];
    let said = client.run("", &words);
    assert!(!said.status.success() || !said.stdout.ends_with("200"), "{said}");
}
