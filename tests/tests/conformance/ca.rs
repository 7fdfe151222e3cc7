//! Roots, leafs, the CA's configuration, and whom a service lets in.

use mesh_tests::conformance::{Run, servers::SIDES};
use serde_json::{Value, json};

const CONFIGURATION: &str = "/v1/connect/ca/configuration";

pub fn roots_and_configuration(run: &mut Run<'_>) {
    run.get("/v1/connect/ca/roots");
    run.get("/v1/agent/connect/ca/roots");
    run.get(CONFIGURATION);
    run.get("/v1/connect/ca/roots?pem=true");
    run.put(CONFIGURATION, &json!({"Provider": "nobody", "Config": {}}));
    run.put(CONFIGURATION, &json!({}));
    run.put(CONFIGURATION, &json!({"Provider": "consul", "Config": {"LeafCertTTL": "soon"}}));
    run.put(CONFIGURATION, &json!({"Provider": "consul", "Config": {"LeafCertTTL": "1s"}}));
    run.get("/v1/connect/ca/roots");
}

pub fn leafs(run: &mut Run<'_>) {
    let answers = run.get("/v1/agent/connect/ca/leaf/web");
    for (answer, side) in answers.iter().zip(SIDES) {
        let leaf: Value = serde_json::from_str(&answer.body).expect("JSON");
        let text = |name: &str| leaf[name].as_str().unwrap_or_default().to_owned();
        assert!(text("CertPEM").starts_with("-----BEGIN CERTIFICATE-----"), "{side:?}: {leaf}");
        assert!(text("PrivateKeyPEM").contains("PRIVATE KEY-----"), "{side:?}: {leaf}");
        assert!(text("ServiceURI").ends_with("/ns/default/dc/dc1/svc/web"), "{side:?}: {leaf}");
        assert!(text("ValidAfter") < text("ValidBefore"), "{side:?}: {leaf}");
    }
    run.get("/v1/agent/connect/ca/leaf/web?pretty");
    run.get("/v1/agent/connect/ca/leaf/");
}

pub fn authorize(run: &mut Run<'_>) {
    const AUTHORIZE: &str = "/v1/agent/connect/authorize";
    let domains = run.both("GET", "/v1/connect/ca/roots", &[], "");
    run.name("domain", &domains, "/TrustDomain");
    let uri = |service: &str| format!("spiffe://{{domain}}/ns/default/dc/dc1/svc/{service}");
    let ask = |target: &str, uri: &str| json!({"Target": target, "ClientCertURI": uri, "ClientCertSerial": "04:00:01"});
    run.post(AUTHORIZE, &ask("db", &uri("web")));
    let answers = run.post(
        "/v1/connect/intentions",
        &json!({"SourceName": "web", "DestinationName": "db", "Action": "deny"}),
    );
    run.name("web-db", &answers, "/ID");
    // Consul's agent caches the intentions of a destination, and hears of changes.
    for side in SIDES {
        mesh_tests::wait::until_true("the new intention", || {
            let said = run.one(side, "POST", AUTHORIZE, &[], &ask("db", &uri("web")).to_string());
            said.body.contains("false")
        });
    }
    run.post(AUTHORIZE, &ask("db", &uri("web")));
    run.post(AUTHORIZE, &ask("db", &uri("app")));
    run.post(AUTHORIZE, &ask("db", "spiffe://elsewhere.consul/ns/default/dc/dc1/svc/app"));
    run.post(AUTHORIZE, &ask("db", "spiffe://{domain}/ns/default/dc/dc9/svc/app"));
    run.post(AUTHORIZE, &ask("db", "http://web"));
    run.post(AUTHORIZE, &ask("db", ""));
    run.post(AUTHORIZE, &ask("", &uri("web")));
    run.post(AUTHORIZE, &json!({}));
    run.delete("/v1/connect/intentions/{web-db}");
}
