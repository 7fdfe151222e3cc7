//! The agent's side: services with sidecars, checks and what becomes of them, other nodes.

use tokio::net::TcpListener;

use super::harness::Server;

const PATH: &str = "/v1/agent/service/register";

#[tokio::test]
async fn a_sidecar_gets_consuls_defaults_and_goes_with_its_service() {
    let server = Server::start().await;
    server
        .put(PATH, r#"{"Name":"web","ID":"web1","Port":80,"Tags":["x"],"Connect":{"SidecarService":{}}}"#)
        .await;
    server.put(PATH, r#"{"Name":"api","Port":81,"Connect":{"SidecarService":{}}}"#).await;
    let services = server.get("/v1/agent/services").await.json();
    let sidecar = &services["web1-sidecar-proxy"];
    assert_eq!((&sidecar["Service"], &sidecar["Port"]), (&"web-sidecar-proxy".into(), &21000.into()));
    assert_eq!(sidecar["Tags"][0], "x");
    assert_eq!(sidecar["Proxy"]["DestinationServiceID"], "web1");
    assert_eq!(sidecar["Proxy"]["LocalServicePort"], 80);
    assert_eq!(services["api-sidecar-proxy"]["Port"], 21001);
    let checks = server.get("/v1/agent/checks").await.json();
    assert_eq!(checks["service:web1-sidecar-proxy:1"]["Type"], "tcp");
    assert_eq!(checks["service:web1-sidecar-proxy:2"]["Name"], "Connect Sidecar Aliasing web1");
    // Registered anew it keeps its port.
    server.put(PATH, r#"{"Name":"web","ID":"web1","Port":82,"Connect":{"SidecarService":{}}}"#).await;
    assert_eq!(server.get("/v1/agent/service/web1-sidecar-proxy").await.json()["Port"], 21000);
    server.put("/v1/agent/service/deregister/web1", "").await;
    let services = server.get("/v1/agent/services").await.json();
    assert!(services.get("web1-sidecar-proxy").is_none() && services.get("api-sidecar-proxy").is_some());
}

#[tokio::test]
async fn a_ttl_check_that_nobody_reports_on_becomes_critical_and_a_report_keeps_it() {
    let server = Server::start().await;
    let checks = r#"{"Name":"db","Checks":[
        {"CheckID":"silent","TTL":"300ms","Status":"passing"},{"CheckID":"alive","TTL":"900ms"}]}"#;
    server.put(PATH, checks).await;
    server.put("/v1/agent/check/warn/silent?note=last+words", "").await;
    // Reported on for longer than its time to live; a stall of this machine between two reports proves nothing.
    let start = std::time::Instant::now();
    let mut longest = std::time::Duration::ZERO;
    while start.elapsed() < std::time::Duration::from_secs(2) {
        let before = std::time::Instant::now();
        server.put("/v1/agent/check/pass/alive", "").await;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        longest = longest.max(before.elapsed());
    }
    let checks = server.get("/v1/agent/checks").await.json();
    assert!(
        checks["alive"]["Status"] == "passing" || longest > std::time::Duration::from_millis(400),
        "{checks}"
    );
    let checks = server.until("/v1/agent/checks", |c| c["silent"]["Status"] == "critical").await;
    let output = checks["silent"]["Output"].as_str().unwrap();
    assert!(output.starts_with("TTL expired") && output.ends_with("last words"), "{output}");
    server.put("/v1/agent/check/update/silent", r#"{"Status":"passing","Output":"back"}"#).await;
    server
        .until("/v1/agent/checks", |c| c["silent"]["Output"].as_str().is_some_and(|o| o.contains("back")))
        .await;
}

#[tokio::test]
async fn a_tcp_check_follows_the_port() {
    let server = Server::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let body = format!(r#"{{"Name":"db","Check":{{"CheckID":"c","TCP":"{address}","Interval":"1s"}}}}"#);
    server.put(PATH, &body).await;
    assert_eq!(server.get("/v1/agent/checks").await.json()["c"]["Status"], "critical");
    server.until("/v1/agent/checks", |c| c["c"]["Status"] == "passing").await;
    drop(listener);
    server.until("/v1/agent/checks", |c| c["c"]["Status"] == "critical").await;
}

#[tokio::test]
async fn an_alias_has_the_worst_status_of_what_it_stands_for() {
    let server = Server::start().await;
    server.put(PATH, r#"{"Name":"db","Check":{"CheckID":"c","TTL":"1h","Status":"passing"}}"#).await;
    server.put(PATH, r#"{"Name":"front","Check":{"CheckID":"alias","Name":"a","AliasService":"db"}}"#).await;
    let status = |wanted: &'static str| {
        let server = &server;
        async move {
            let checks = server.get("/v1/agent/checks").await.json();
            assert_eq!(checks["alias"]["Status"], wanted);
        }
    };
    status("passing").await;
    server.put("/v1/agent/check/fail/c", "").await;
    status("critical").await;
    server.put("/v1/agent/check/pass/c", "").await;
    status("passing").await;
    server.put("/v1/agent/check/warn/c", "").await;
    status("warning").await;
    server.put("/v1/agent/service/deregister/db", "").await;
    status("passing").await;
}

#[tokio::test]
async fn a_service_that_was_critical_for_too_long_is_deregistered_with_its_sidecar() {
    let server = Server::start().await;
    let body = r#"{"Name":"db","Port":1,"Connect":{"SidecarService":{}},
        "Check":{"CheckID":"c","TTL":"200ms","Status":"passing","DeregisterCriticalServiceAfter":"300ms"}}"#;
    server.put(PATH, body).await;
    server.put(PATH, r#"{"Name":"stays","Check":{"CheckID":"k","TTL":"200ms"}}"#).await;
    let services = server.until("/v1/agent/services", |services| services.get("db").is_none()).await;
    assert!(services.get("db-sidecar-proxy").is_none() && services.get("stays").is_some());
    assert!(server.get("/v1/agent/checks").await.json().get("c").is_none());
}

#[tokio::test]
async fn a_service_registered_anew_keeps_its_checks_status_and_can_drop_checks() {
    let server = Server::start().await;
    let body = r#"{"Name":"db","Check":{"CheckID":"c","TTL":"1h"}}"#;
    server.put(PATH, body).await;
    server.put("/v1/agent/check/pass/c", "").await;
    server.put("/v1/agent/check/register", r#"{"Name":"more","ServiceID":"db","TTL":"1h"}"#).await;
    server.put(PATH, body).await;
    let checks = server.get("/v1/agent/checks").await.json();
    assert_eq!(checks["c"]["Status"], "passing");
    assert!(checks.get("more").is_some());
    server.put(&format!("{PATH}?replace-existing-checks=true"), body).await;
    assert!(server.get("/v1/agent/checks").await.json().get("more").is_none());
}

#[tokio::test]
async fn reports_are_for_ttl_checks_that_are_there() {
    let server = Server::start().await;
    server.put(PATH, r#"{"Name":"db","Check":{"CheckID":"t","TCP":"127.0.0.1:1","Interval":"10s"}}"#).await;
    assert_eq!(server.send("PUT", "/v1/agent/check/pass/nope", "").await.status, 404);
    assert_eq!(server.send("PUT", "/v1/agent/check/pass/t", "").await.status, 400);
    let bogus = server.send("PUT", "/v1/agent/check/update/t", r#"{"Status":"bogus"}"#).await;
    assert!(bogus.status == 400 && bogus.text.contains("bogus"), "{}", bogus.text);
}

#[tokio::test]
async fn maintenance_takes_a_service_out_and_puts_it_back() {
    let server = Server::start().await;
    server.put(PATH, r#"{"Name":"db"}"#).await;
    server.put("/v1/agent/service/maintenance/db?enable=true&reason=why", "").await;
    assert_eq!(server.get("/v1/health/service/db?passing").await.text, "[]");
    assert_eq!(server.get("/v1/agent/health/service/id/db").await.status, 503);
    server.put("/v1/agent/service/maintenance/db?enable=false", "").await;
    assert_eq!(server.get("/v1/agent/health/service/id/db").await.status, 200);
    assert_eq!(server.get("/v1/agent/health/service/name/nope").await.status, 404);
}

#[tokio::test]
async fn another_host_can_use_this_server_as_its_agent() {
    let server = Server::start().await;
    let other = "mesh-node=host-b&mesh-address=10.77.0.2";
    let body =
        r#"{"Name":"db","Port":5432,"Connect":{"SidecarService":{}},"Check":{"CheckID":"c","TTL":"1h"}}"#;
    let unknown = server.send("PUT", &format!("{PATH}?mesh-node=host-b"), body).await;
    assert!(unknown.status == 400 && unknown.text.contains("mesh-address"), "{}", unknown.text);
    server.put(&format!("{PATH}?{other}"), body).await;
    assert_eq!(server.get("/v1/agent/services").await.text, "{}");
    let services = server.get("/v1/agent/services?mesh-node=host-b").await.json();
    assert_eq!(services.as_object().unwrap().len(), 2);
    let entry = &server.get("/v1/catalog/service/db").await.json()[0];
    assert_eq!((&entry["Node"], &entry["Address"]), (&"host-b".into(), &"10.77.0.2".into()));
    // The same id on this server's own node is another check.
    assert_eq!(server.send("PUT", "/v1/agent/check/pass/c", "").await.status, 404);
    server.put("/v1/agent/check/pass/c?mesh-node=host-b", "").await;
    let loopback = r#"{"Name":"x","Check":{"TCP":"127.0.0.1:1","Interval":"10s"}}"#;
    assert_eq!(server.send("PUT", &format!("{PATH}?{other}"), loopback).await.status, 400);
    // It moved to another address.
    server.put(&format!("{PATH}?mesh-node=host-b&mesh-address=10.77.0.3"), body).await;
    assert_eq!(server.get("/v1/catalog/service/db").await.json()[0]["Address"], "10.77.0.3");
    server.put("/v1/agent/service/deregister/db?mesh-node=host-b", "").await;
    assert_eq!(server.get("/v1/agent/services?mesh-node=host-b").await.text, "{}");
}
