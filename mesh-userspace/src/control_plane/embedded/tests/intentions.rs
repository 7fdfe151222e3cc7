//! Intentions by the API.

use super::harness::Server;

async fn allowed(server: &Server, source: &str, destination: &str) -> bool {
    let path = format!("/v1/connect/intentions/check?source={source}&destination={destination}");
    server.get(&path).await.json()["Allowed"].as_bool().unwrap()
}

#[tokio::test]
async fn nothing_is_allowed_by_default_and_the_default_can_be_allow() {
    let server = Server::start().await;
    assert!(!allowed(&server, "web", "db").await);
    let open = Server::start_with(|dir| crate::control_plane::embedded::Settings {
        default_policy: crate::intention::Action::Allow,
        ..super::harness::settings(dir)
    })
    .await;
    assert!(allowed(&open, "web", "db").await);
}

#[tokio::test]
async fn exact_names_count_before_wildcards_and_destinations_before_sources() {
    let server = Server::start().await;
    server.intention("*", "db", "deny").await;
    server.intention("web", "db", "allow").await;
    server.intention("web", "*", "allow").await;
    server.intention("*", "*", "deny").await;
    assert!(allowed(&server, "web", "db").await);
    assert!(!allowed(&server, "other", "db").await);
    assert!(allowed(&server, "web", "cache").await);
    assert!(!allowed(&server, "other", "cache").await);
    let list = server.get("/v1/connect/intentions").await.json();
    let precedences: Vec<_> = list.as_array().unwrap().iter().map(|row| row["Precedence"].clone()).collect();
    assert_eq!(precedences, [9, 8, 6, 5]);
}

#[tokio::test]
async fn match_lists_what_may_decide_most_precise_first() {
    let server = Server::start().await;
    server.intention("*", "db", "deny").await;
    server.intention("web", "db", "allow").await;
    server.intention("web", "cache", "allow").await;
    let path = "/v1/connect/intentions/match?by=destination&name=db&name=cache";
    let found = server.get(path).await.json();
    let sources = |name: &str| -> Vec<String> {
        let rows = found[name].as_array().unwrap();
        rows.iter().map(|row| row["SourceName"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(sources("db"), ["web", "*"]);
    assert_eq!(sources("cache"), ["web"]);
    let by_source = server.get("/v1/connect/intentions/match?by=source&name=other").await.json();
    assert_eq!(by_source["other"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn an_intention_is_read_changed_and_deleted_by_its_id() {
    let server = Server::start().await;
    let id = server.intention("web", "db", "allow").await;
    let path = format!("/v1/connect/intentions/{id}");
    let first = server.get(&path).await.json();
    assert_eq!(first["Action"], "allow");
    server
        .put(&path, r#"{"SourceName":"web","DestinationName":"db","Action":"deny","Description":"why"}"#)
        .await;
    let second = server.get(&path).await.json();
    assert_eq!((&second["Action"], &second["Description"]), (&"deny".into(), &"why".into()));
    assert_eq!(second["CreateIndex"], first["CreateIndex"]);
    assert!(second["ModifyIndex"].as_u64() > first["ModifyIndex"].as_u64());
    assert!(!allowed(&server, "web", "db").await);
    // What a Go client read it can send back.
    server.put(&path, &second.to_string().replace(r#""deny""#, r#""allow""#)).await;
    assert!(allowed(&server, "web", "db").await);
    assert_eq!(server.send("DELETE", &path, "").await.status, 200);
    assert_eq!(server.get(&path).await.status, 404);
    assert!(!allowed(&server, "web", "db").await);
}

#[tokio::test]
async fn a_pair_has_one_intention() {
    let server = Server::start().await;
    let id = server.intention("web", "db", "allow").await;
    let other = server.intention("web", "cache", "allow").await;
    let body = r#"{"SourceName":"web","DestinationName":"db","Action":"deny"}"#;
    let answer = server.send("POST", "/v1/connect/intentions", body).await;
    assert_eq!(answer.status, 409);
    assert!(
        answer.text.contains("duplicate intention found") && answer.text.contains(&id),
        "{}",
        answer.text
    );
    let moved = server.send("PUT", &format!("/v1/connect/intentions/{other}"), body).await;
    assert_eq!(moved.status, 409, "{}", moved.text);
    assert!(allowed(&server, "web", "db").await && allowed(&server, "web", "cache").await);
}

#[tokio::test]
async fn exact_creates_changes_and_deletes_by_the_pair() {
    let server = Server::start().await;
    let path = "/v1/connect/intentions/exact?source=web&destination=db";
    assert_eq!(server.get(path).await.status, 404);
    server.put(path, r#"{"Action":"allow"}"#).await;
    let first = server.get(path).await.json();
    server.put(path, r#"{"SourceName":"web","DestinationName":"default/db","Action":"deny"}"#).await;
    let second = server.get(path).await.json();
    assert_eq!((&second["ID"], &second["Action"]), (&first["ID"], &"deny".into()));
    let other = r#"{"SourceName":"other","Action":"allow"}"#;
    assert_eq!(server.send("PUT", path, other).await.status, 400);
    assert_eq!(server.send("DELETE", path, "").await.text, "true");
    assert_eq!(server.get(path).await.status, 404);
}

#[tokio::test]
async fn what_is_not_there_cannot_be_changed_or_deleted() {
    let server = Server::start().await;
    let path = "/v1/connect/intentions/8f246b77-f3e1-4f88-9b48-8ec93abf3e05";
    let body = r#"{"SourceName":"web","DestinationName":"db","Action":"deny"}"#;
    for (method, body) in [("GET", ""), ("PUT", body), ("DELETE", "")] {
        assert_eq!(server.send(method, path, body).await.status, 404, "{method}");
        assert_eq!(server.send(method, "/v1/connect/intentions/nope", body).await.status, 400, "{method}");
    }
}

#[tokio::test]
async fn authorize_needs_the_trust_domain_a_service_and_an_allow() {
    let server = Server::start().await;
    server.intention("web", "db", "allow").await;
    let own = server.get("/v1/connect/ca/roots").await.json()["TrustDomain"].as_str().unwrap().to_owned();
    let ask = |domain: String, path: &'static str| {
        let uri = format!("spiffe://{domain}{path}");
        let body = format!(r#"{{"Target":"db","ClientCertURI":"{uri}","ClientCertSerial":"01"}}"#);
        let server = &server;
        async move { server.send("POST", "/v1/agent/connect/authorize", &body).await }
    };
    let web = "/ns/default/dc/dc1/svc/web";
    let answer = ask(own.clone(), web).await.json();
    assert_eq!(answer["Authorized"], true);
    assert!(
        answer["Reason"].as_str().unwrap().starts_with("Matched intention: ALLOW default/web => default/db")
    );
    assert_eq!(ask(own.clone(), "/ns/default/dc/dc1/svc/other").await.json()["Authorized"], false);
    assert_eq!(ask("other.consul".to_owned(), web).await.json()["Authorized"], false);
    assert_eq!(ask(own, "/ns/default/dc/dc1/agent/client/dc/dc1").await.status, 400);
}
