//! What outlives a restart, and many writers at once.

use std::{collections::HashSet, sync::Arc, time::Duration};

use super::harness::{Server, settings};
use crate::control_plane::embedded::Settings;

#[tokio::test]
async fn everything_but_leafs_outlives_a_restart() {
    let mut server = Server::start().await;
    let body = r#"{"Name":"db","Port":5432,"Tags":["a"],"Check":{"TTL":"1h","Status":"passing"},
        "Connect":{"SidecarService":{}}}"#;
    server.put("/v1/agent/service/register", body).await;
    server.intention("web", "db", "allow").await;
    let paths = [
        "/v1/agent/services",
        "/v1/catalog/nodes",
        "/v1/connect/intentions",
        "/v1/connect/ca/roots",
        "/v1/connect/ca/configuration",
        "/v1/health/checks/db",
    ];
    let mut before = Vec::new();
    for path in paths {
        before.push(server.get(path).await.text);
    }
    server.restart().await;
    for (path, before) in paths.iter().zip(before) {
        assert_eq!(server.get(path).await.text, before, "{path}");
    }
}

#[tokio::test]
async fn an_index_never_goes_backwards_over_a_restart() {
    let mut server = Server::start().await;
    for n in 0..5 {
        server.intention(&format!("web{n}"), "db", "allow").await;
    }
    let paths =
        ["/v1/connect/intentions", "/v1/catalog/nodes", "/v1/health/service/none", "/v1/connect/ca/roots"];
    let mut before = Vec::new();
    for path in paths {
        before.push(server.get(path).await.index());
    }
    server.restart().await;
    for (path, before) in paths.iter().zip(&before) {
        assert!(server.get(path).await.index() >= *before, "{path}");
    }
    let last = server.get(paths[0]).await.index();
    server.intention("web", "db", "deny").await;
    assert!(server.get(paths[0]).await.index() > last);
}

#[tokio::test]
async fn a_sidecar_still_goes_with_its_service_after_a_restart() {
    let mut server = Server::start().await;
    let body = r#"{"Name":"db","Port":5432,"Connect":{"SidecarService":{}}}"#;
    server.put("/v1/agent/service/register", body).await;
    server.restart().await;
    server.put("/v1/agent/service/deregister/db", "").await;
    assert_eq!(server.get("/v1/agent/services").await.text, "{}");
}

#[tokio::test]
async fn a_renamed_host_leaves_nothing_behind_under_its_old_name() {
    let mut server = Server::start().await;
    server.put("/v1/agent/service/register", r#"{"Name":"db","Port":5432}"#).await;
    let renamed = Settings { node: "host-b".to_owned(), ..settings(server.dir.path()) };
    server.try_restart(renamed).await.unwrap();
    let nodes = server.get("/v1/catalog/nodes").await.json();
    assert_eq!(nodes.as_array().unwrap().len(), 1);
    assert_eq!(nodes[0]["Node"], "host-b");
    assert_eq!(server.get("/v1/catalog/service/db").await.text, "[]");
}

#[tokio::test]
async fn a_leaf_lifetime_set_by_the_api_stands_until_the_file_names_another() {
    let mut server = Server::start().await;
    let path = "/v1/connect/ca/configuration";
    server.put(path, r#"{"Provider":"consul","Config":{"LeafCertTTL":"2h"}}"#).await;
    server.restart().await;
    assert_eq!(server.get(path).await.json()["Config"]["LeafCertTTL"], "2h");
    let leaf_ttl = Duration::from_secs(3600);
    server.try_restart(Settings { leaf_ttl, ..settings(server.dir.path()) }).await.unwrap();
    assert_eq!(server.get(path).await.json()["Config"]["LeafCertTTL"], "1h");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_writers_lose_nothing_and_get_their_own_indexes() {
    const WRITERS: usize = 100;
    let mut server = Server::start().await;
    {
        let shared = Arc::new(&server);
        let writes = (0..WRITERS).map(|n| {
            let server = shared.clone();
            async move { server.intention(&format!("web{n}"), "db", "allow").await }
        });
        let ids: HashSet<_> = futures_util::future::join_all(writes).await.into_iter().collect();
        assert_eq!(ids.len(), WRITERS);
    }
    let indexes = |list: serde_json::Value| -> HashSet<u64> {
        list.as_array().unwrap().iter().map(|row| row["ModifyIndex"].as_u64().unwrap()).collect()
    };
    assert_eq!(indexes(server.get("/v1/connect/intentions").await.json()).len(), WRITERS);
    server.restart().await;
    assert_eq!(indexes(server.get("/v1/connect/intentions").await.json()).len(), WRITERS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_create_the_same_intention_one_succeeds() {
    let server = Server::start().await;
    let body = r#"{"SourceName":"web","DestinationName":"db","Action":"allow"}"#;
    let tries = (0..20).map(|_| server.send("POST", "/v1/connect/intentions", body));
    let answers = futures_util::future::join_all(tries).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 409).count(), 19);
}
