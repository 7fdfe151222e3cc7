//! The client against a real Consul agent.

mod broken_answers;
mod embedded_server;
mod local_use;

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::{
    ApiAccess, ApiError, Client, Health, Settings, Sync, TokenSource,
    testing::{Consul, db, eventually, free_port, local, web},
};
use crate::{
    intention::Action,
    state::{Mesh, MeshState},
};

fn decision(mesh: &Mesh, source: &str, destination: &str) -> Option<Action> {
    let intentions = mesh.intentions.as_ref()?;
    Some(intentions.decide(&source.parse().unwrap(), &destination.parse().unwrap()).action)
}

fn mesh_end(mesh: &Mesh, address: &str) -> Option<SocketAddr> {
    Some(mesh.catalog.as_ref()?.instance_at(address.parse().unwrap())?.mesh)
}

async fn create_intention(client: &Client, source: &str, destination: &str, action: &str) -> String {
    let body = json!({"SourceName": source, "DestinationName": destination, "SourceType": "consul", "Action": action});
    let created: super::api::Created = client.post("/v1/connect/intentions", &body).await.unwrap();
    created.id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn local_service_is_registered_reported_and_taken_back() {
    let Some(consul) = Consul::start(json!({})).await else { return };
    let client = consul.client("");
    let state = MeshState::default();
    let (health, service) = db(21000);
    let services = local(&[service]);
    let sync = Sync::start(consul.settings(), state.clone(), services.subscribe()).unwrap();

    eventually("the instance is in the catalog with its mTLS end", async || {
        mesh_end(&state.load(), "10.77.0.1:5432") == Some("10.77.0.1:21000".parse().unwrap())
    })
    .await;
    let passing = async || {
        let ends: Vec<Value> = client.get("/v1/health/connect/db?passing").await.unwrap();
        ends.len()
    };
    eventually("consul finds it passing", async || passing().await == 1).await;
    health.send(Health::Critical("connection refused".to_owned())).unwrap();
    eventually("consul finds it critical", async || passing().await == 0).await;
    assert!(
        mesh_end(&state.load(), "10.77.0.1:5432").is_some(),
        "an ill instance must not be dialled in clear"
    );
    health.send(Health::Passing).unwrap();
    eventually("consul finds it passing again", async || passing().await == 1).await;

    // Somebody deregisters it behind our back: the next change or heartbeat notices.
    client.put::<()>("/v1/agent/service/deregister/db-sidecar-proxy", &()).await.unwrap();
    eventually("it is gone", async || mesh_end(&state.load(), "10.77.0.1:5432").is_none()).await;
    health.send(Health::Passing).unwrap();
    eventually("it is registered again", async || mesh_end(&state.load(), "10.77.0.1:5432").is_some()).await;

    assert!(sync.status().connected && sync.status().last_error.is_none(), "{:?}", sync.status());
    sync.shutdown(true).await;
    let left: serde_json::Map<String, Value> = client.get("/v1/agent/services").await.unwrap();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_that_left_the_configuration_is_deregistered_also_by_the_next_daemon() {
    let Some(consul) = Consul::start(json!({})).await else { return };
    let client = consul.client("");
    let count =
        async || client.get::<serde_json::Map<String, Value>>("/v1/agent/services").await.unwrap().len();
    let (_health, service) = db(21000);
    let services = local(std::slice::from_ref(&service));
    let sync = Sync::start(consul.settings(), MeshState::default(), services.subscribe()).unwrap();
    eventually("registered", async || count().await == 2).await;
    services.send(Default::default()).unwrap();
    eventually("deregistered", async || count().await == 0).await;
    services.send(std::sync::Arc::new(vec![service])).unwrap();
    eventually("registered", async || count().await == 2).await;
    sync.shutdown(false).await;
    assert_eq!(count().await, 2);

    let services = local(&[]);
    let _sync = Sync::start(consul.settings(), MeshState::default(), services.subscribe()).unwrap();
    eventually("the next daemon deregisters what it does not have", async || count().await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_service_appears_moves_and_disappears() {
    let Some(consul) = Consul::start(json!({})).await else { return };
    let client = consul.client("");
    let state = MeshState::default();
    let _sync = Sync::start(consul.settings(), state.clone(), local(&[]).subscribe()).unwrap();
    let register = async |port: u16, mesh_port: u16| {
        // As Consul's own sidecar registration does it.
        let body = json!({
            "Name": "cache", "Port": port, "Address": "10.77.0.2",
            "Connect": {"SidecarService": {"Port": mesh_port, "Checks": []}},
        });
        client.put::<()>("/v1/agent/service/register", &body).await.unwrap();
    };
    let at = |port: u16, mesh_port: u16| {
        let state = state.clone();
        async move || {
            mesh_end(&state.load(), &format!("10.77.0.2:{port}"))
                == Some(format!("10.77.0.2:{mesh_port}").parse().unwrap())
        }
    };
    register(6379, 21001).await;
    eventually("it appears", at(6379, 21001)).await;
    register(6379, 21002).await;
    eventually("its mTLS end moves", at(6379, 21002)).await;
    register(6380, 21002).await;
    eventually("it moves itself", at(6380, 21002)).await;
    assert!(mesh_end(&state.load(), "10.77.0.2:6379").is_none());
    client.put::<()>("/v1/agent/service/deregister/cache", &()).await.unwrap();
    eventually("it disappears", async || mesh_end(&state.load(), "10.77.0.2:6380").is_none()).await;
    assert!(state.load().catalog.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_services_than_an_agent_takes_connections_all_arrive() {
    // Consul refuses the 201st connection from one address.
    const SERVICES: u16 = 120;
    let Some(consul) = Consul::start(json!({})).await else { return };
    let client = consul.client("");
    for n in 0..SERVICES {
        let body = json!({
            "Name": format!("s{n}"), "Port": 10_000 + n, "Address": "10.77.0.2",
            "Connect": {"SidecarService": {"Port": 30_000 + n, "Checks": []}},
        });
        client.put::<()>("/v1/agent/service/register", &body).await.unwrap();
    }
    eventually("the agent has told the servers of all", async || {
        let listed: Value = client.get("/v1/catalog/services").await.unwrap();
        (0..SERVICES).all(|n| listed.get(format!("s{n}-sidecar-proxy")).is_some())
    })
    .await;
    let state = MeshState::default();
    let sync = Sync::start(consul.settings(), state.clone(), local(&[]).subscribe()).unwrap();
    let count = || state.load().catalog.as_ref().map(|catalog| catalog.instances().count());
    eventually("all are there", async || count().is_some()).await;
    assert_eq!(count(), Some(SERVICES.into()), "never a part of them");
    client.put::<()>("/v1/agent/service/deregister/s7", &()).await.unwrap();
    eventually("one leaves", async || count() == Some(usize::from(SERVICES) - 1)).await;
    assert!(sync.status().connected && sync.status().last_error.is_none(), "{:?}", sync.status());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn intentions_and_default_policy_reach_the_state() {
    let Some(consul) = Consul::start(json!({})).await else { return };
    let client = consul.client("");
    let state = MeshState::default();
    let services = local(&[web()]);
    let _sync = Sync::start(consul.settings(), state.clone(), services.subscribe()).unwrap();
    // Consul without ACLs allows what no intention denies.
    eventually("the default is read", async || decision(&state.load(), "web", "db") == Some(Action::Allow))
        .await;
    create_intention(&client, "*", "db", "deny").await;
    eventually("the deny arrives", async || decision(&state.load(), "web", "db") == Some(Action::Deny)).await;
    let allow = create_intention(&client, "web", "db", "allow").await;
    eventually("the allow arrives", async || decision(&state.load(), "web", "db") == Some(Action::Allow))
        .await;
    assert_eq!(decision(&state.load(), "cron", "db"), Some(Action::Deny), "nobody here is `cron` or `db`");
    client.delete(&format!("/v1/connect/intentions/{allow}")).await.unwrap();
    eventually("the revocation arrives", async || decision(&state.load(), "web", "db") == Some(Action::Deny))
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaf_and_roots_come_from_the_agent() {
    let Some(consul) = Consul::start(json!({})).await else { return };
    let state = MeshState::default();
    let (_health, service) = db(21000);
    let services = local(std::slice::from_ref(&service));
    let _sync = Sync::start(consul.settings(), state.clone(), services.subscribe()).unwrap();
    eventually("leaf and roots are there", async || {
        let mesh = state.load();
        mesh.leafs.contains_key(&service.name) && mesh.roots.is_some()
    })
    .await;
    let mesh = state.load();
    let (leaf, roots) = (&mesh.leafs[&service.name], mesh.roots.as_ref().unwrap());
    assert_eq!(leaf.id.trust_domain, roots.trust_domain);
    let mut store = rustls::RootCertStore::empty();
    roots.certs.iter().for_each(|cert| store.add(cert.clone()).unwrap());
    assert!(leaf.not_before < leaf.not_after);
    services.send(Default::default()).unwrap();
    eventually("the leaf leaves with its service", async || state.load().leafs.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_agent_stops_nothing_and_is_regained_with_all_registrations() {
    let Some(mut consul) = Consul::start(json!({})).await else { return };
    let state = MeshState::default();
    let (_health, service) = db(21000);
    let services = local(&[service]);
    let sync = Sync::start(consul.settings(), state.clone(), services.subscribe()).unwrap();
    create_intention(&consul.client(""), "web", "db", "deny").await;
    let synced = || {
        let mesh = state.load();
        mesh_end(&mesh, "10.77.0.1:5432").is_some()
            && decision(&mesh, "web", "db") == Some(Action::Deny)
            && mesh.leafs.len() == 1
    };
    eventually("everything is there", async || synced() && sync.status().connected).await;
    let domain = state.load().roots.as_ref().unwrap().trust_domain.clone();

    consul.kill();
    eventually("the loss is noticed", async || state.load().stale_since.is_some()).await;
    let status = sync.status();
    assert!(!status.connected && status.last_error.unwrap().contains("is a Consul agent running there?"));
    assert!(synced(), "the last known state keeps serving");

    // An agent in development mode forgets everything: other roots, no intention, no registration.
    consul.restart().await;
    eventually("it is regained", async || {
        let mesh = state.load();
        mesh.stale_since.is_none() && mesh.roots.as_ref().is_some_and(|roots| roots.trust_domain != domain)
    })
    .await;
    eventually("the deny is gone with its agent", async || {
        decision(&state.load(), "web", "db") == Some(Action::Allow)
    })
    .await;
    eventually("the service is registered again", async || {
        let ends: Vec<Value> =
            consul.client("").get("/v1/health/connect/db?passing").await.unwrap_or_default();
        ends.len() == 1 && mesh_end(&state.load(), "10.77.0.1:5432").is_some()
    })
    .await;
    eventually("its leaf is of the new trust domain", async || {
        state.load().leafs.values().all(|leaf| leaf.id.trust_domain != domain)
    })
    .await;
    // Each part is answered again in its own time.
    eventually("nothing fails any more", async || {
        sync.status().connected && sync.status().last_error.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_during_an_outage_serves_from_disk() {
    let Some(mut consul) = Consul::start(json!({})).await else { return };
    let (_health, service) = db(21000);
    let services = local(std::slice::from_ref(&service));
    create_intention(&consul.client(""), "web", "db", "deny").await;
    let first = MeshState::default();
    let sync = Sync::start(consul.settings(), first.clone(), services.subscribe()).unwrap();
    let full = |mesh: &Mesh| {
        mesh_end(mesh, "10.77.0.1:5432").is_some()
            && decision(mesh, "web", "db") == Some(Action::Deny)
            && decision(mesh, "cron", "db") == Some(Action::Allow)
            && mesh.leafs.contains_key(&service.name)
            && mesh.roots.is_some()
    };
    eventually("everything is there", async || full(&first.load())).await;
    sync.shutdown(false).await;
    consul.kill();

    let second = MeshState::default();
    let sync = Sync::start(consul.settings(), second.clone(), services.subscribe()).unwrap();
    let mesh = second.load();
    assert!(full(&mesh) && mesh.stale_since.is_some(), "all of it is there at once");
    assert_eq!(mesh.leafs[&service.name].serial, first.load().leafs[&service.name].serial);
    assert!(sync.status().from_disk_cache && !sync.status().connected);
    drop(sync);

    // Its twin: another control plane's cache says nothing about this one.
    let other = Settings { datacenter: "dc2".to_owned(), ..consul.settings() };
    let third = MeshState::default();
    let _sync = Sync::start(other, third.clone(), services.subscribe()).unwrap();
    assert!(third.load().roots.is_none() && third.load().leafs.is_empty() && !third.load().is_synced());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_that_sees_too_little_never_makes_an_empty_mesh() {
    let acl = json!({"acl": {"enabled": true, "default_policy": "deny", "tokens": {"master": "root-token"}}});
    let Some(consul) = Consul::start(acl).await else { return };
    let (_health, service) = db(21000);
    let services = local(&[service]);

    // Consul answers an anonymous caller with 200 and empty lists.
    let state = MeshState::default();
    let sync = Sync::start(consul.settings(), state.clone(), services.subscribe()).unwrap();
    eventually("the refusal is noticed", async || {
        sync.status().last_error.is_some() && !sync.status().connected
    })
    .await;
    let error = consul.client("").get::<Value>("/v1/agent/self").await.unwrap_err();
    assert!(matches!(error, ApiError::Forbidden { with_token: false, .. }), "{error}");
    assert!(state.load().catalog.is_none() && state.load().intentions.is_none());
    drop(sync);

    let mut with_token = consul.settings();
    with_token.access.token = Some(TokenSource::value("root-token").unwrap());
    let sync = Sync::start(with_token, state.clone(), services.subscribe()).unwrap();
    eventually("with a good token it syncs", async || {
        mesh_end(&state.load(), "10.77.0.1:5432").is_some() && decision(&state.load(), "web", "db").is_some()
    })
    .await;
    assert_eq!(
        decision(&state.load(), "web", "db"),
        Some(Action::Deny),
        "the default policy is that of the ACLs"
    );
    create_intention(&consul.client("root-token"), "web", "db", "allow").await;
    eventually("an allow arrives", async || decision(&state.load(), "web", "db") == Some(Action::Allow))
        .await;
    drop(sync);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_name_cause_and_next_step() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = Client::new(&super::testing::settings(&format!("http://{nobody}"))).unwrap();
    let error = refused.get::<Value>("/v1/agent/self").await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("http://{nobody} refuses connections: is a Consul agent running"))
    );
    let no_socket = Client::new(&super::testing::settings("unix:///nonexistent/api.sock")).unwrap();
    let error = no_socket.get::<Value>("/v1/agent/self").await.unwrap_err();
    assert!(matches!(error, ApiError::NoSocket { .. }), "{error}");

    let Some(consul) = Consul::start(json!({})).await else { return };
    let error = consul.client("").get::<Value>("/v1/agent/service/nope").await.unwrap_err();
    assert_eq!(error.to_string(), "/v1/agent/service/nope is not there: unknown service ID: nope");
    let error = consul.client("").get::<Vec<u8>>("/v1/agent/services").await.unwrap_err();
    assert!(matches!(error, ApiError::Malformed { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unix_socket_works_as_tcp_does() {
    let dir = tempfile::tempdir().unwrap();
    let socket = format!("unix://{}", dir.path().join("api.sock").display());
    let Some(consul) = Consul::start(json!({"addresses": {"http": format!("127.0.0.1 {socket}")}})).await
    else {
        return;
    };
    let access = ApiAccess::anonymous(socket.parse().unwrap());
    let settings = Settings { access, ..consul.settings() };
    let state = MeshState::default();
    let _sync = Sync::start(settings, state.clone(), local(&[]).subscribe()).unwrap();
    eventually("it syncs", async || state.load().is_synced() && state.load().roots.is_some()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn https_is_verified_against_the_ca_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::default();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let issue = |name: &str, san: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new([san.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(path(&format!("{name}.pem")), cert.pem()).unwrap();
        std::fs::write(path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    };
    issue("server", "127.0.0.1");
    issue("client", "client.example");
    std::fs::write(path("ca.pem"), ca_cert.pem()).unwrap();
    let port = free_port();
    let config = json!({
        "ports": {"https": port}, "ca_file": path("ca.pem"), "cert_file": path("server.pem"), "key_file": path("server.key"),
        "verify_incoming_https": true,
    });
    let Some(_consul) = Consul::start(config).await else { return };
    let good = ApiAccess {
        address: format!("https://127.0.0.1:{port}").parse().unwrap(),
        ca_file: Some(path("ca.pem")),
        client_cert: Some(super::ClientCert { cert_file: path("client.pem"), key_file: path("client.key") }),
        ..ApiAccess::anonymous("http://127.0.0.1:1".parse().unwrap())
    };
    let ask = async |access: &ApiAccess| Client::open(access.clone())?.get::<Value>("/v1/agent/self").await;
    ask(&good).await.unwrap();
    let anonymous = ApiAccess { client_cert: None, ..good.clone() };
    ask(&anonymous).await.unwrap_err();
    let wrong_ca = ApiAccess { ca_file: Some(path("client.pem")), ..good.clone() };
    let error = ask(&wrong_ca).await.unwrap_err();
    assert!(matches!(error, ApiError::Tls { .. }) && error.to_string().contains("ca_file"), "{error}");
    let wrong_name =
        ApiAccess { address: format!("https://localhost:{port}").parse().unwrap(), ..good.clone() };
    assert!(matches!(ask(&wrong_name).await, Err(ApiError::Tls { .. })));
    let plain = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = plain.local_addr().unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = plain.accept().unwrap();
        let _ =
            std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
    });
    let no_tls = ApiAccess { address: format!("https://{at}").parse().unwrap(), ..good.clone() };
    let error = ask(&no_tls).await.unwrap_err();
    assert!(error.to_string().contains("does not speak TLS"), "{error}");
    let no_file = ApiAccess { ca_file: Some(path("nope.pem")), ..good };
    assert!(matches!(ask(&no_file).await, Err(ApiError::TlsSetup(_))));
}
