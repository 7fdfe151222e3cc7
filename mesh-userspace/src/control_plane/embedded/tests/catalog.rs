//! Catalog and health.

use super::harness::Server;

#[tokio::test]
async fn what_is_registered_in_the_catalog_is_listed_with_its_node_and_checks() {
    let server = Server::start().await;
    let body = r#"{"Node":"ext","Address":"10.9.9.9","NodeMeta":{"k":"v"},
        "Service":{"ID":"s1","Service":"search","Port":443,"Tags":["a"]},
        "Check":{"Name":"alive","Status":"passing"},
        "Checks":[{"CheckID":"c2","ServiceID":"s1","Status":"warning"}]}"#;
    assert_eq!(server.put("/v1/catalog/register", body).await.text, "true");
    let entry = &server.get("/v1/catalog/service/search").await.json()[0];
    assert_eq!((&entry["Node"], &entry["Address"]), (&"ext".into(), &"10.9.9.9".into()));
    assert_eq!((&entry["ServiceID"], &entry["ServicePort"]), (&"s1".into(), &443.into()));
    let health = &server.get("/v1/health/service/search").await.json()[0];
    assert_eq!(health["Checks"].as_array().unwrap().len(), 2);
    assert_eq!(health["Node"]["Meta"]["k"], "v");
    assert_eq!(server.get("/v1/health/service/search?passing").await.text, "[]");
    assert_eq!(server.get("/v1/catalog/service/search?tag=a").await.json().as_array().unwrap().len(), 1);
    assert_eq!(server.get("/v1/catalog/service/search?tag=b").await.text, "[]");
    assert_eq!(server.get("/v1/catalog/nodes?node-meta=k:v").await.json().as_array().unwrap().len(), 1);
    assert_eq!(server.get("/v1/health/state/warning").await.json()[0]["CheckID"], "c2");
    assert_eq!(server.get("/v1/catalog/services").await.text, r#"{"search":["a"]}"#);
}

#[tokio::test]
async fn deregistering_takes_a_check_a_service_or_the_whole_node() {
    let server = Server::start().await;
    let body = r#"{"Node":"ext","Address":"10.9.9.9","Service":{"Service":"search"},
        "Checks":[{"CheckID":"c","ServiceID":"search","Status":"critical"}]}"#;
    server.put("/v1/catalog/register", body).await;
    server.put("/v1/catalog/deregister", r#"{"Node":"ext","CheckID":"c"}"#).await;
    assert_eq!(server.get("/v1/health/node/ext").await.text, "[]");
    server.put("/v1/catalog/register", body).await;
    server.put("/v1/catalog/deregister", r#"{"Node":"ext","ServiceID":"search"}"#).await;
    assert_eq!(server.get("/v1/catalog/service/search").await.text, "[]");
    assert_eq!(server.get("/v1/health/node/ext").await.text, "[]");
    server.put("/v1/catalog/deregister", r#"{"Node":"ext"}"#).await;
    assert_eq!(server.get("/v1/catalog/node/ext").await.text, "null");
    server.put("/v1/catalog/deregister", r#"{"Node":"never-there"}"#).await;
}

#[tokio::test]
async fn the_servers_own_node_stays() {
    let server = Server::start().await;
    assert_eq!(server.send("PUT", "/v1/catalog/deregister", r#"{"Node":"host-a"}"#).await.status, 400);
    let moved = r#"{"Node":"host-a","Address":"10.6.6.6"}"#;
    assert_eq!(server.send("PUT", "/v1/catalog/register", moved).await.status, 400);
    assert_eq!(server.get("/v1/catalog/nodes").await.json()[0]["Address"], "10.77.0.1");
}

#[tokio::test]
async fn connect_lists_proxies_and_native_instances_and_not_programs() {
    let server = Server::start().await;
    for body in [
        r#"{"Name":"db","Port":5432}"#,
        r#"{"Name":"db-proxy","Kind":"connect-proxy","Port":21000,"Proxy":{"DestinationServiceName":"db"}}"#,
        r#"{"Name":"db","ID":"db-native","Port":5433,"Connect":{"Native":true}}"#,
        r#"{"Name":"web-proxy","Kind":"connect-proxy","Port":21001,"Proxy":{"DestinationServiceName":"web"}}"#,
    ] {
        server.put("/v1/agent/service/register", body).await;
    }
    let found = server.get("/v1/catalog/connect/db").await.json();
    let ids: Vec<_> = found.as_array().unwrap().iter().map(|e| e["ServiceID"].as_str().unwrap()).collect();
    assert_eq!(ids, ["db-native", "db-proxy"]);
    assert_eq!(server.get("/v1/health/connect/db").await.json().as_array().unwrap().len(), 2);
    // A proxy that changes sides is found at the new one only.
    let turned =
        r#"{"Name":"db-proxy","Kind":"connect-proxy","Port":21000,"Proxy":{"DestinationServiceName":"web"}}"#;
    server.put("/v1/agent/service/register", turned).await;
    assert_eq!(server.get("/v1/catalog/connect/db").await.json().as_array().unwrap().len(), 1);
    assert_eq!(server.get("/v1/catalog/connect/web").await.json().as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn another_datacenter_and_what_is_not_served_are_refused() {
    let server = Server::start().await;
    assert_eq!(server.get("/v1/catalog/nodes?dc=dc1").await.status, 200);
    assert_eq!(server.get("/v1/catalog/nodes?dc=dc2").await.status, 400);
    assert_eq!(server.get("/v1/kv/some/key").await.status, 404);
    let answer = server.send("POST", "/v1/catalog/nodes", "").await;
    assert_eq!((answer.status, answer.text.as_str()), (405, "method POST not allowed"));
    assert_eq!(server.get("/v1/status/leader").await.text, r#""10.77.0.1:8300""#);
    let own = server.get("/v1/agent/self").await.json();
    assert_eq!((&own["Config"]["Datacenter"], &own["Config"]["NodeName"]), (&"dc1".into(), &"host-a".into()));
}
