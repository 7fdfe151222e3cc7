//! ACLs over HTTP: bootstrap, policies and tokens, and what each request needs.

use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{Answer, Server, exposed, settings};
use crate::control_plane::embedded::Settings;

async fn server() -> Server {
    Server::start_with(|dir| Settings { acl: true, ..settings(dir) }).await
}

/// Makes a token with these rules, through root's socket; returns its accessor and its secret.
async fn token(server: &Server, name: &str, rules: &str) -> (String, String) {
    let policy = json!({ "Name": name, "Rules": rules });
    server.put("/v1/acl/policy", &policy.to_string()).await;
    let token = json!({ "Policies": [{ "Name": name }] });
    let made = server.put("/v1/acl/token", &token.to_string()).await.json();
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    (text("AccessorID"), text("SecretID"))
}

async fn ask(server: &Server, token: &str, method: &str, path: &str, body: &str) -> Answer {
    server.send_tcp(method, path, body, Some(token).filter(|token| !token.is_empty())).await
}

const WEB: &str = r#"
    service "web" { policy = "write" }
    service "web-sidecar-proxy" { policy = "write" }
    service "db" { policy = "read" }
    node_prefix "" { policy = "read" }
"#;

#[tokio::test]
async fn without_acls_their_endpoints_say_that_they_are_off() {
    let server = Server::start().await;
    for (method, path) in
        [("PUT", "/v1/acl/bootstrap"), ("GET", "/v1/acl/tokens"), ("GET", "/v1/acl/token/self")]
    {
        let answer = server.send(method, path, "").await;
        assert_eq!((answer.status, &*answer.text), (401, "ACL support disabled"), "{path}");
    }
}

#[tokio::test]
async fn bootstrap_makes_a_management_token_once_and_only_for_root() {
    let mut server = server().await;
    let refused = ask(&server, "", "PUT", "/v1/acl/bootstrap", "").await;
    assert_eq!(refused.status, 403, "{}", refused.text);
    assert!(refused.text.contains("unix socket"), "{}", refused.text);
    let made = server.put("/v1/acl/bootstrap", "").await.json();
    assert_eq!(made["Policies"][0]["Name"], "global-management");
    assert_eq!(made["ID"], made["SecretID"]);
    let secret = made["SecretID"].as_str().unwrap();
    for token in ["", secret] {
        let again = ask(&server, token, "PUT", "/v1/acl/bootstrap", "").await;
        assert_eq!(again.status, 403);
        let said = "Permission denied: ACL bootstrap no longer allowed (reset index: ";
        assert!(again.text.starts_with(said), "{}", again.text);
    }
    // Over a restart, too; and the token opens everything.
    let settings = Settings { acl: true, ..settings(server.dir.path()) };
    server.try_restart(settings).await.unwrap();
    assert_eq!(server.send("PUT", "/v1/acl/bootstrap", "").await.status, 403);
    for path in ["/v1/acl/tokens", "/v1/agent/self", "/v1/connect/ca/configuration"] {
        assert_eq!(ask(&server, secret, "GET", path, "").await.status, 200, "{path}");
        assert_eq!(ask(&server, "", "GET", path, "").await.status, 403, "{path}");
    }
}

#[tokio::test]
async fn a_token_is_taken_from_where_consul_takes_it() {
    let server = server().await;
    let (accessor, secret) = token(&server, "web", WEB).await;
    let own = ask(&server, &secret, "GET", "/v1/acl/token/self", "").await.json();
    assert_eq!(own["AccessorID"], *accessor);
    let own = ask(&server, "", "GET", &format!("/v1/acl/token/self?token={secret}"), "").await.json();
    assert_eq!(own["AccessorID"], *accessor);
    let anonymous = ask(&server, "", "GET", "/v1/acl/token/self", "").await.json();
    assert_eq!(anonymous["AccessorID"], "00000000-0000-0000-0000-000000000002");
    let unknown = ask(&server, "no-such-token", "GET", "/v1/catalog/services", "").await;
    assert_eq!((unknown.status, &*unknown.text), (403, "ACL not found"));
    // A token on root's socket counts as that token, so that root can try it.
    let refused = server.get(&format!("/v1/acl/tokens?token={secret}")).await;
    assert_eq!(refused.status, 403, "{}", refused.text);
    // The loopback port's own token stays root's.
    assert_eq!(ask(&server, &server.token(), "GET", "/v1/acl/tokens", "").await.status, 200);
}

/// Each with what a token that has it, and one that has it not, are answered.
#[tokio::test]
async fn every_change_needs_its_permission_and_the_refusal_names_it() {
    let server = server().await;
    let (accessor, web) = token(&server, "web", WEB).await;
    let (_, db) =
        token(&server, "db", r#"service "db" { policy = "write" intentions = "write" } operator = "write""#)
            .await;
    server
        .put("/v1/agent/service/register", r#"{"Name":"db","Port":1,"Check":{"CheckID":"c","TTL":"60s"}}"#)
        .await;
    let intention = |destination: &str| {
        format!(r#"{{"SourceName":"x","DestinationName":"{destination}","Action":"allow"}}"#)
    };
    let proxy = r#"{"Name":"web-sidecar-proxy","Kind":"connect-proxy","Port":3,"Proxy":{"DestinationServiceName":"db"}}"#;
    let steal = r#"{"Name":"web","ID":"db","Port":1}"#;
    let check = r#"{"Name":"web","Port":1,"Check":{"CheckID":"c","TTL":"60s"}}"#;
    for (method, path, body, lacks) in [
        ("PUT", "/v1/agent/service/register", r#"{"Name":"db","Port":1}"#, r#"'service:write' on "db""#),
        ("PUT", "/v1/agent/service/register", proxy, r#"'service:write' on "db""#),
        ("PUT", "/v1/agent/service/register", steal, r#"'service:write' on "db""#),
        ("PUT", "/v1/agent/service/register", check, r#"'service:write' on "db""#),
        ("PUT", "/v1/agent/service/deregister/db", "", r#"'service:write' on "db""#),
        ("PUT", "/v1/agent/service/maintenance/db?enable=true", "", r#"'service:write' on "db""#),
        ("PUT", "/v1/agent/check/pass/c", "", r#"'service:write' on "db""#),
        ("PUT", "/v1/agent/check/deregister/c", "", r#"'service:write' on "db""#),
        ("PUT", "/v1/agent/check/register", r#"{"Name":"n","TTL":"9s"}"#, r#"'node:write' on "host-a""#),
        (
            "PUT",
            "/v1/agent/service/register?mesh-node=host-z&mesh-address=10.9.9.9",
            r#"{"Name":"web","Port":1}"#,
            r#"'node:write' on "host-z""#,
        ),
        ("PUT", "/v1/catalog/register", r#"{"Node":"n","Address":"10.0.0.9"}"#, r#"'node:write' on "n""#),
        (
            "PUT",
            "/v1/catalog/register",
            r#"{"Node":"host-a","SkipNodeUpdate":true,"Service":{"Service":"db"}}"#,
            r#"'service:write' on "db""#,
        ),
        (
            "PUT",
            "/v1/catalog/deregister",
            r#"{"Node":"host-a","ServiceID":"db"}"#,
            r#"'service:write' on "db""#,
        ),
        ("GET", "/v1/agent/connect/ca/leaf/db", "", r#"'service:write' on "db""#),
        ("PUT", "/v1/connect/ca/sign/db", "csr", r#"'service:write' on "db""#),
        (
            "POST",
            "/v1/agent/connect/authorize",
            r#"{"Target":"db","ClientCertURI":"spiffe://x/ns/default/dc/dc1/svc/web"}"#,
            r#"'service:write' on "db""#,
        ),
        ("POST", "/v1/connect/intentions", &intention("db"), r#"'intention:write' on "db""#),
        ("POST", "/v1/connect/intentions", &intention("web"), r#"'intention:write' on "web""#),
        ("POST", "/v1/connect/intentions", &intention("*"), r#"'intention:write' on "*""#),
        (
            "PUT",
            "/v1/connect/intentions/exact?source=x&destination=db",
            r#"{"Action":"deny"}"#,
            "'intention:write'",
        ),
        ("DELETE", "/v1/connect/intentions/exact?source=x&destination=db", "", "'intention:write'"),
        ("GET", "/v1/connect/intentions/match?by=destination&name=api", "", r#"'intention:read' on "api""#),
        ("GET", "/v1/connect/intentions/check?source=web&destination=api", "", r#"'service:read' on "api""#),
        ("GET", "/v1/connect/ca/configuration", "", "'operator:read'"),
        ("PUT", "/v1/connect/ca/configuration", r#"{"Provider":"consul"}"#, "'operator:write'"),
        ("GET", "/v1/agent/self", "", r#"'agent:read' on "host-a""#),
        ("PUT", "/v1/some/change", "", "'operator:write'"),
        ("GET", "/v1/acl/tokens", "", "'acl:read'"),
        ("PUT", "/v1/acl/policy", r#"{"Name":"x"}"#, "'acl:write'"),
        ("PUT", "/v1/acl/token", "{}", "'acl:write'"),
    ] {
        let answer = ask(&server, &web, method, path, body).await;
        let who = format!("Permission denied: token with AccessorID '{accessor}' lacks permission ");
        assert_eq!(answer.status, 403, "{method} {path} {body}: {}", answer.text);
        assert!(
            answer.text.starts_with(&who) && answer.text.contains(lacks),
            "{method} {path}: {}",
            answer.text
        );
        let anonymous = ask(&server, "", method, path, body).await;
        assert_eq!(anonymous.status, 403, "{method} {path}: {}", anonymous.text);
        assert!(anonymous.text.starts_with("Permission denied: anonymous token lacks"), "{}", anonymous.text);
    }
    assert_eq!(server.get("/v1/connect/intentions").await.json(), json!([]), "nothing of it was done");
    let services = server.get("/v1/agent/services").await.json();
    assert_eq!(services.as_object().unwrap().keys().collect::<Vec<_>>(), ["db"]);

    // What the tokens do have works.
    let web_proxy = r#"{"Name":"web","Port":2,"Connect":{"SidecarService":{}}}"#;
    for (token, method, path, body) in [
        (&web, "PUT", "/v1/agent/service/register", web_proxy),
        (&web, "GET", "/v1/agent/connect/ca/leaf/web", ""),
        (&web, "GET", "/v1/connect/intentions/match?by=source&name=web", ""),
        (&web, "GET", "/v1/connect/intentions/check?source=x&destination=db", ""),
        (&web, "PUT", "/v1/agent/service/deregister/web", ""),
        (&db, "PUT", "/v1/agent/check/pass/c", ""),
        (&db, "POST", "/v1/connect/intentions", &intention("db")),
        (&db, "GET", "/v1/connect/ca/configuration", ""),
        (&db, "DELETE", "/v1/connect/intentions/exact?source=x&destination=db", ""),
    ] {
        let answer = ask(&server, token, method, path, body).await;
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text);
    }
}

#[tokio::test]
async fn reads_leave_out_what_the_token_may_not_see() {
    let server = server().await;
    let (_, web) = token(&server, "web", WEB).await;
    let (_, blind) = token(&server, "blind", r#"service_prefix "" { policy = "read" }"#).await;
    for name in ["web", "db", "api"] {
        let body =
            format!(r#"{{"Name":"{name}","Port":1,"Connect":{{"Native":true}},"Check":{{"TTL":"60s"}}}}"#);
        server.put("/v1/agent/service/register", &body).await;
    }
    server.intention("web", "db", "allow").await;
    server.intention("x", "api", "allow").await;
    let names = |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let get = async |token: &str, path: &str| ask(&server, token, "GET", path, "").await.json();
    assert_eq!(names(&get(&web, "/v1/catalog/services").await), ["db", "web"]);
    assert_eq!(names(&get(&web, "/v1/agent/services").await), ["db", "web"]);
    assert_eq!(get(&web, "/v1/catalog/node-services/host-a").await["Services"].as_array().unwrap().len(), 2);
    assert_eq!(get(&web, "/v1/health/state/any").await.as_array().unwrap().len(), 2);
    for path in [
        "/v1/health/service",
        "/v1/health/connect",
        "/v1/catalog/service",
        "/v1/catalog/connect",
        "/v1/health/checks",
    ] {
        for (token, name, seen) in
            [(&web, "db", 1), (&web, "api", 0), (&blind, "db", 0), (&String::new(), "db", 0)]
        {
            let found = get(token, &format!("{path}/{name}")).await;
            assert_eq!(found.as_array().unwrap().len(), seen, "{path}/{name}: {found}");
        }
    }
    assert_eq!(get(&blind, "/v1/catalog/nodes").await, json!([]));
    assert_eq!(get(&blind, "/v1/catalog/node/host-a").await, Value::Null);
    assert_eq!(get(&blind, "/v1/agent/members").await, json!([]));
    // Either end makes an intention visible.
    let intentions = get(&web, "/v1/connect/intentions").await;
    assert_eq!(intentions.as_array().unwrap().len(), 1);
    assert_eq!(intentions[0]["DestinationName"], "db");
    // For everybody: the roots, and who leads.
    for path in
        ["/v1/agent/connect/ca/roots", "/v1/connect/ca/roots", "/v1/status/leader", "/v1/catalog/datacenters"]
    {
        assert_eq!(ask(&server, "", "GET", path, "").await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_changed_policy_and_a_deleted_token_reach_whoever_waits() {
    let server = server().await;
    let (accessor, secret) = token(&server, "web", WEB).await;
    server.put("/v1/agent/service/register", r#"{"Name":"api","Port":1}"#).await;
    let first = ask(&server, &secret, "GET", "/v1/health/service/api", "").await;
    assert_eq!(first.json(), json!([]));
    let waits = format!("/v1/health/service/api?index={}&wait=60s", first.index());
    let leaf_index = ask(&server, &secret, "GET", "/v1/agent/connect/ca/leaf/web", "").await.index();
    let leaf = format!("/v1/agent/connect/ca/leaf/web?index={leaf_index}&wait=60s");

    // Somebody else's token does not wake it; more rights do.
    let wider = json!({ "Name": "web", "Rules": format!("{WEB} service \"api\" {{ policy = \"read\" }}") });
    let id = server.get("/v1/acl/policy/name/web").await.json()["ID"].as_str().unwrap().to_owned();
    let change = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        token(&server, "other", "").await;
        server.put(&format!("/v1/acl/policy/{id}"), &wider.to_string()).await;
    };
    let (answer, ()) = tokio::join!(ask(&server, &secret, "GET", &waits, ""), change);
    assert_eq!(answer.json().as_array().unwrap().len(), 1, "{}", answer.text);
    assert!(answer.index() > first.index());

    let waits = format!("/v1/health/service/api?index={}&wait=60s", answer.index());
    let delete = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let gone = server.send("DELETE", &format!("/v1/acl/token/{accessor}"), "").await;
        assert_eq!(gone.status, 200);
    };
    let (read, leaf, ()) = tokio::join!(
        ask(&server, &secret, "GET", &waits, ""),
        ask(&server, &secret, "GET", &leaf, ""),
        delete
    );
    for answer in [read, leaf, ask(&server, &secret, "GET", "/v1/acl/token/self", "").await] {
        assert_eq!((answer.status, &*answer.text), (403, "ACL not found"));
    }
}

#[tokio::test]
async fn policies_and_tokens_are_checked_kept_and_deleted() {
    let mut server = server().await;
    let (accessor, secret) = token(&server, "web", WEB).await;
    for (path, body, wanted) in [
        ("/v1/acl/policy", r#"{"Name":"web"}"#, "already exists"),
        ("/v1/acl/policy", r#"{"Name":""}"#, "no Name is set"),
        ("/v1/acl/policy", r#"{"Name":"a b"}"#, "invalid Name"),
        ("/v1/acl/policy", r#"{"Name":"x","Rules":"bad"}"#, "Failed to parse ACL rules: At 1:4"),
        ("/v1/acl/policy", r#"{"Name":"x","Foo":1}"#, "unknown field"),
        ("/v1/acl/policy", r#"{"Name":"x","Datacenters":["dc9"]}"#, "Datacenters: this server's is `dc1`"),
        (
            "/v1/acl/policy/00000000-0000-0000-0000-000000000001",
            r#"{"Name":"global-management"}"#,
            "not permitted",
        ),
        ("/v1/acl/policy/00000000-0000-0000-0000-000000000009", r#"{"Name":"x"}"#, "cannot find policy"),
        ("/v1/acl/token", r#"{"Policies":[{"Name":"nope"}]}"#, "No such ACL policy with name \"nope\""),
        ("/v1/acl/token", r#"{"SecretID":"short"}"#, "SecretID is not a valid UUID"),
        ("/v1/acl/token", r#"{"Roles":[{"Name":"r"}]}"#, "Roles: not supported"),
        ("/v1/acl/token", r#"{"ExpirationTTL":"10s"}"#, "less than 1m0s"),
        (
            "/v1/acl/token",
            r#"{"ServiceIdentities":[{"ServiceName":"a\" {"}]}"#,
            "ServiceIdentities.ServiceName",
        ),
    ] {
        let answer = server.send("PUT", path, body).await;
        assert_eq!(answer.status, 400, "{path} {body}: {}", answer.text);
        assert!(answer.text.contains(wanted), "{path} {body}: {}", answer.text);
    }
    for path in [
        "/v1/acl/policy/00000000-0000-0000-0000-000000000001",
        "/v1/acl/token/00000000-0000-0000-0000-000000000002",
    ] {
        let answer = server.send("DELETE", path, "").await;
        assert_eq!(answer.status, 400, "{}", answer.text);
    }
    let restarted = Settings { acl: true, ..settings(server.dir.path()) };
    server.try_restart(restarted).await.unwrap();
    let listed = server.get("/v1/acl/tokens").await;
    assert!(!listed.text.contains(&secret), "a list shows no secrets");
    let read = server.get(&format!("/v1/acl/token/{accessor}")).await.json();
    assert_eq!((&read["SecretID"], &read["Policies"][0]["Name"]), (&json!(secret), &json!("web")));
    let (_, reader) = token(&server, "reader", r#"acl = "read""#).await;
    let hidden = ask(&server, &reader, "GET", &format!("/v1/acl/token/{accessor}"), "").await.json();
    assert_eq!(hidden["SecretID"], "<hidden>");

    // Without its policy the token grants nothing, at once.
    assert_eq!(ask(&server, &secret, "GET", "/v1/agent/connect/ca/leaf/web", "").await.status, 200);
    let id = read["Policies"][0]["ID"].as_str().unwrap();
    assert_eq!(server.send("DELETE", &format!("/v1/acl/policy/{id}"), "").await.status, 200);
    assert_eq!(ask(&server, &secret, "GET", "/v1/agent/connect/ca/leaf/web", "").await.status, 403);
    // Identities stand for policies.
    let identity = r#"{"ServiceIdentities":[{"ServiceName":"web"}],"NodeIdentities":[{"NodeName":"host-z","Datacenter":"dc1"}]}"#;
    let made = server.put("/v1/acl/token", identity).await.json();
    let secret = made["SecretID"].as_str().unwrap();
    let register = "/v1/agent/service/register?mesh-node=host-z&mesh-address=10.9.9.9";
    let body = r#"{"Name":"web","Port":2,"Connect":{"SidecarService":{}}}"#;
    assert_eq!(ask(&server, secret, "PUT", register, body).await.status, 200);
    assert_eq!(ask(&server, secret, "PUT", register, r#"{"Name":"db","Port":2}"#).await.status, 403);
}

#[tokio::test]
async fn a_token_is_asked_what_it_may_do() {
    let server = server().await;
    let (_, web) = token(&server, "web", WEB).await;
    let questions = r#"[{"Resource":"service","Access":"write","Segment":"web"},
        {"Resource":"service","Access":"write","Segment":"db"},{"Resource":"operator","Access":"read"}]"#;
    let answer = ask(&server, &web, "POST", "/v1/internal/acl/authorize", questions).await.json();
    let allowed: Vec<_> = answer.as_array().unwrap().iter().map(|a| a["Allow"].as_bool().unwrap()).collect();
    assert_eq!(allowed, [true, false, false]);
    let bad = r#"[{"Resource":"servce","Access":"write"}]"#;
    let answer = ask(&server, &web, "POST", "/v1/internal/acl/authorize", bad).await;
    assert_eq!(answer.status, 400);
    assert!(answer.text.contains("Invalid ACL resource requested: \"servce\""), "{}", answer.text);
}

#[tokio::test]
async fn the_door_for_other_hosts_takes_acl_tokens_and_not_its_old_one() {
    let server = Server::start_with(|dir| Settings { acl: true, ..exposed(dir) }).await;
    let (_, web) = token(&server, "web", WEB).await;
    server.put("/v1/agent/service/register", r#"{"Name":"web","Port":1}"#).await;
    let roots = std::fs::read_to_string(server.dir.path().join("state/api-ca.pem")).unwrap();
    let ask = |token: String| {
        let (server, roots) = (&server, &roots);
        async move {
            super::auth::send_tls(server, roots, "host-a", Some(&*token).filter(|t| !t.is_empty()))
                .await
                .unwrap()
        }
    };
    let seen = ask(web).await;
    assert_eq!((seen.status, seen.json().as_array().unwrap().len()), (200, 1));
    let anonymous = ask(String::new()).await;
    assert_eq!((anonymous.status, anonymous.json()), (200, json!([])));
    for other in [super::harness::EXPOSE_TOKEN.to_owned(), server.token()] {
        assert_eq!(ask(other).await.status, 403);
    }
}
