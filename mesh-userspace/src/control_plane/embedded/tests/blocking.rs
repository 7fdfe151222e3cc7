//! Blocking queries: woken at once by what concerns them, and by nothing else.

use std::time::Duration;

use tokio::time::timeout;

use super::harness::{Answer, SOON, Server};

/// Something that must not happen is waited for this long.
const A_WHILE: Duration = Duration::from_millis(300);

/// Waits on `path` from its current index and makes a change. Returns the answer if one came in `patience`.
async fn after(server: &Server, path: &str, change: impl Future, patience: Duration) -> Option<Answer> {
    let index = server.get(path).await.index();
    let sign = if path.contains('?') { '&' } else { '?' };
    let waiting = format!("{path}{sign}index={index}&wait=60s");
    let mut watch = Box::pin(server.get(&waiting));
    assert!(timeout(Duration::from_millis(50), &mut watch).await.is_err(), "{path} did not wait");
    change.await;
    let answer = timeout(patience, &mut watch).await.ok()?;
    assert!(answer.index() > index, "{path}");
    Some(answer)
}

async fn wakes(server: &Server, path: &str, change: impl Future) -> bool {
    after(server, path, change, SOON).await.is_some()
}

async fn sleeps(server: &Server, path: &str, change: impl Future) -> bool {
    after(server, path, change, A_WHILE).await.is_none()
}

const DB: &str = r#"{"Name":"db","Port":5432,"Check":{"CheckID":"c","TTL":"1h","Status":"passing"}}"#;
const PROXY: &str = r#"{"Name":"db-proxy","Kind":"connect-proxy","Port":21000,
    "Proxy":{"DestinationServiceName":"db"}}"#;

#[tokio::test]
async fn a_read_is_woken_by_a_change_of_its_own_table_and_by_no_other() {
    let server = Server::start().await;
    server.put("/v1/agent/service/register", DB).await;
    let catalog = |n: u16| {
        let body =
            format!(r#"{{"Name":"db","Port":{n},"Tags":["t{n}"],"Check":{{"CheckID":"c","TTL":"1h"}}}}"#);
        let server = &server;
        async move { drop(server.put("/v1/agent/service/register", &body).await) }
    };
    for (n, path) in [
        "/v1/catalog/services",
        "/v1/catalog/service/db",
        "/v1/health/service/db",
        "/v1/catalog/node/host-a",
        "/v1/agent/services",
        "/v1/health/state/any",
    ]
    .into_iter()
    .enumerate()
    {
        assert!(wakes(&server, path, catalog(1000 + n as u16)).await, "{path}");
        let source = format!("web{n}");
        assert!(sleeps(&server, path, server.intention(&source, "db", "deny")).await, "{path}");
    }
    for path in ["/v1/connect/intentions", "/v1/connect/intentions/match?by=destination&name=db"] {
        let source = format!("by-{}", path.len());
        assert!(wakes(&server, path, server.intention(&source, "db", "deny")).await, "{path}");
        assert!(sleeps(&server, path, catalog(2000 + path.len() as u16)).await, "{path}");
    }
    assert!(sleeps(&server, "/v1/connect/ca/roots", catalog(3000)).await);
}

#[tokio::test]
async fn a_match_is_woken_by_intentions_of_its_names_and_wildcards_and_by_no_other() {
    let server = Server::start().await;
    let by_source = "/v1/connect/intentions/match?by=source&name=web&name=api";
    let by_destination = "/v1/connect/intentions/match?by=destination&name=db";
    assert!(wakes(&server, by_source, server.intention("api", "db", "allow")).await);
    assert!(wakes(&server, by_destination, server.intention("web", "db", "allow")).await);
    for path in [by_source, by_destination] {
        let source = format!("other{}", path.len());
        assert!(sleeps(&server, path, server.intention(&source, "cache", "allow")).await, "{path}");
    }
    assert!(sleeps(&server, by_source, server.intention("other", "db", "deny")).await);
    assert!(sleeps(&server, by_destination, server.intention("web", "cache", "deny")).await);
    assert!(wakes(&server, by_source, server.intention("*", "mail", "deny")).await);
    assert!(wakes(&server, by_destination, server.intention("web", "*", "deny")).await);
    let exact = "/v1/connect/intentions/exact?source=web&destination=db";
    assert!(sleeps(&server, by_source, server.put("/v1/agent/service/register", DB)).await);
    assert!(wakes(&server, by_source, server.put(exact, r#"{"Action":"deny"}"#)).await);
    assert!(wakes(&server, by_destination, server.send("DELETE", exact, "")).await);
}

#[tokio::test]
async fn the_list_of_services_is_woken_by_new_names_and_tags_and_not_by_another_instance() {
    let server = Server::start().await;
    server.put("/v1/agent/service/register", DB).await;
    let list = "/v1/catalog/services";
    let register = |body: &'static str| server.put("/v1/agent/service/register", body);
    assert!(sleeps(&server, list, register(r#"{"Name":"db","ID":"db2","Port":1}"#)).await);
    assert!(sleeps(&server, list, register(r#"{"Name":"db","ID":"db2","Port":2}"#)).await);
    assert!(wakes(&server, list, register(r#"{"Name":"db","ID":"db2","Tags":["new"]}"#)).await);
    assert_eq!(server.get(list).await.json()["db"], serde_json::json!(["new"]));
    assert!(wakes(&server, list, server.put("/v1/agent/service/deregister/db2", "")).await);
    assert!(wakes(&server, list, server.put("/v1/agent/service/deregister/db", "")).await);
    assert!(server.get(list).await.json().as_object().unwrap().is_empty());
}

#[tokio::test]
async fn a_service_is_woken_by_its_own_instances_checks_and_node_only() {
    let server = Server::start().await;
    server.put("/v1/agent/service/register", DB).await;
    server.put("/v1/agent/service/register", PROXY).await;
    let health = "/v1/health/service/db";
    let connect = "/v1/health/connect/db";
    assert!(wakes(&server, health, server.put("/v1/agent/check/fail/c", "")).await);
    assert!(
        wakes(&server, health, server.put("/v1/agent/service/register", r#"{"Name":"db","ID":"db2"}"#)).await
    );
    assert!(sleeps(&server, health, server.put("/v1/agent/service/register", r#"{"Name":"other"}"#)).await);
    assert!(wakes(&server, health, server.put("/v1/agent/service/deregister/db2", "")).await);
    assert!(sleeps(&server, connect, server.put("/v1/agent/check/pass/c", "")).await);
    let check = r#"{"Name":"px","ServiceID":"db-proxy","TTL":"1h"}"#;
    assert!(wakes(&server, connect, server.put("/v1/agent/check/register", check)).await);
    let of_node = r#"{"Name":"disk","TTL":"1h"}"#;
    assert!(wakes(&server, connect, server.put("/v1/agent/check/register", of_node)).await);
    assert!(wakes(&server, health, server.put("/v1/agent/check/deregister/disk", "")).await);
}

#[tokio::test]
async fn a_service_that_is_not_there_yet_can_be_waited_for() {
    let server = Server::start().await;
    let register = server.put("/v1/agent/service/register", DB);
    assert!(wakes(&server, "/v1/health/service/db", register).await);
}

#[tokio::test]
async fn a_report_that_says_nothing_new_wakes_nobody() {
    let server = Server::start().await;
    server.put("/v1/agent/service/register", DB).await;
    assert!(sleeps(&server, "/v1/health/service/db", server.put("/v1/agent/check/pass/c", "")).await);
    assert!(sleeps(&server, "/v1/health/service/db", server.put("/v1/agent/service/register", DB)).await);
}

#[tokio::test]
async fn a_wait_ends_when_its_time_is_up_with_the_same_index() {
    let server = Server::start().await;
    let index = server.get("/v1/catalog/nodes").await.index();
    let path = format!("/v1/catalog/nodes?index={index}&wait=100ms");
    let answer = timeout(SOON, server.get(&path)).await.unwrap();
    assert_eq!((answer.status, answer.index()), (200, index));
}

#[tokio::test]
async fn an_index_of_another_store_is_answered_at_once() {
    let server = Server::start().await;
    let answer = timeout(SOON, server.get("/v1/catalog/nodes?index=99999999&wait=10m")).await.unwrap();
    assert!(answer.index() < 99_999_999);
}

#[tokio::test]
async fn an_agents_service_is_waited_for_by_its_hash() {
    let server = Server::start().await;
    server.put("/v1/agent/service/register", DB).await;
    let first = server.get("/v1/agent/service/db").await;
    let hash = first.hash.clone().unwrap();
    assert_eq!(first.json_hash(), hash);
    let path = format!("/v1/agent/service/db?hash={hash}&wait=60s");
    let mut watch = Box::pin(server.get(&path));
    // Another service of the node moves the same topic, and is no change of this one.
    server.put("/v1/agent/service/register", r#"{"Name":"other"}"#).await;
    assert!(timeout(A_WHILE, &mut watch).await.is_err());
    server.put("/v1/agent/service/register", r#"{"Name":"db","Port":5433}"#).await;
    let second = timeout(SOON, watch).await.unwrap();
    assert_ne!(second.hash.unwrap(), hash);
}

#[tokio::test]
async fn who_waits_when_the_server_stops_is_answered() {
    let mut server = Server::start().await;
    let index = server.get("/v1/catalog/nodes").await.index();
    let socket = server.dir.path().join("api.sock");
    let watch = tokio::spawn(async move {
        let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let path = format!("/v1/catalog/nodes?index={index}&wait=10m");
        super::harness::send(stream, "GET", &path, "", None).await
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    timeout(SOON, server.stop()).await.unwrap();
    assert_eq!(timeout(SOON, watch).await.unwrap().unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_watchers_are_all_woken_by_one_change() {
    const WATCHERS: usize = 1000;
    let server = std::sync::Arc::new(Server::start().await);
    let index = server.get("/v1/connect/intentions").await.index();
    let path = format!("/v1/connect/intentions?index={index}&wait=10m");
    let mut watches = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS {
        let (server, path) = (server.clone(), path.clone());
        watches.spawn(async move { server.get(&path).await });
    }
    tokio::time::sleep(A_WHILE).await;
    assert!(watches.try_join_next().is_none());
    server.intention("web", "db", "allow").await;
    for answer in timeout(SOON, watches.join_all()).await.unwrap() {
        assert_eq!(answer.json().as_array().unwrap().len(), 1);
    }
}
