//! The client against the embedded server: kinds `embedded` (unix socket, own node) and `remote` (TLS, another node).

use std::{path::Path, time::Duration};

use rustls::pki_types::UnixTime;
use serde_json::Value;

use super::{
    super::{
        Client, Kind, Settings, Sync, TokenSource,
        embedded::{self, Embedded, Expose},
        testing::{db, eventually, local, settings},
    },
    create_intention, decision, mesh_end,
};
use crate::{
    intention::Action,
    state::{Mesh, MeshState},
};

const TOKEN: &str = "a-token-for-the-tests-only";

async fn start(dir: &Path) -> Embedded {
    let settings = embedded::Settings {
        node: "host-a".to_owned(),
        node_address: "10.77.0.1".parse().unwrap(),
        datacenter: "dc1".to_owned(),
        state_dir: dir.join("server"),
        default_policy: Action::Deny,
        leaf_ttl: Duration::from_secs(3600),
        acl: false,
        trust_domain: None,
        listen_tcp: None,
        unix_socket: Some(dir.join("api.sock")),
        ca: None,
        expose: Some(Expose {
            listen: "127.0.0.1:0".parse().unwrap(),
            cert_file: None,
            key_file: None,
            token: TOKEN.to_owned(),
        }),
    };
    Embedded::start(settings).await.unwrap()
}

/// As the daemon on the server's own host.
fn own(dir: &Path) -> Settings {
    Settings {
        kind: Kind::Embedded,
        state_dir: dir.join("client"),
        ..settings(&format!("unix://{}", dir.join("api.sock").display()))
    }
}

/// As the daemon of `host-b`.
fn other(dir: &Path, server: &Embedded) -> Settings {
    let mut settings = Settings {
        kind: Kind::Remote,
        node: "host-b".to_owned(),
        node_address: "10.77.0.2".parse().unwrap(),
        state_dir: dir.join("other-client"),
        ..settings(&format!("https://{}", server.expose_addr().unwrap()))
    };
    settings.access.ca_file = Some(dir.join("server/api-ca.pem"));
    settings.access.token = Some(TokenSource::value(TOKEN).unwrap());
    settings
}

/// Both the chain and the name of the one leaf hold.
fn leaf_verifies(mesh: &Mesh) -> bool {
    let (Some(roots), Some(leaf)) = (&mesh.roots, mesh.leafs.values().next()) else { return false };
    let anchors: Vec<_> =
        roots.certs.iter().map(|cert| webpki::anchor_from_trusted_cert(cert).unwrap()).collect();
    let cert = webpki::EndEntityCert::try_from(&leaf.key.cert[0]).unwrap();
    let verified = cert.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        &leaf.key.cert[1..],
        UnixTime::now(),
        webpki::KeyUsage::client_auth(),
        None,
        None,
    );
    verified.is_ok() && leaf.id.trust_domain == roots.trust_domain
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_service_gets_a_leaf_by_csr_and_is_registered() {
    let dir = tempfile::tempdir().unwrap();
    let _server = start(dir.path()).await;
    let (state, (_health, service)) = (MeshState::default(), db(21000));
    let services = local(&[service]);
    let sync = Sync::start(own(dir.path()), state.clone(), services.subscribe()).unwrap();
    eventually("registered and certified", async || {
        mesh_end(&state.load(), "10.77.0.1:5432").is_some() && leaf_verifies(&state.load())
    })
    .await;
    let client = sync.client();
    let entries: Vec<Value> = client.get("/v1/health/connect/db?passing").await.unwrap();
    assert_eq!(entries[0]["Node"]["Node"], "host-a");
    eventually("the default policy is the server's", async || {
        let decided = decision(&state.load(), "web", "db");
        assert_ne!(decided, Some(Action::Allow), "nobody said so");
        decided == Some(Action::Deny)
    })
    .await;
    let id = create_intention(&client, "web", "db", "allow").await;
    eventually("the allow arrives", async || decision(&state.load(), "web", "db") == Some(Action::Allow))
        .await;
    client.delete(&format!("/v1/connect/intentions/{id}")).await.unwrap();
    eventually("the revocation arrives", async || decision(&state.load(), "web", "db") == Some(Action::Deny))
        .await;
    sync.shutdown(true).await;
    let left: Value = Client::new(&own(dir.path())).unwrap().get("/v1/agent/services").await.unwrap();
    assert_eq!(left, serde_json::json!({}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn service_of_another_host_is_registered_on_that_host() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (near, far) = (MeshState::default(), MeshState::default());
    let (_health, service) = db(21000);
    let services = local(&[service]);
    let _near = Sync::start(own(dir.path()), near.clone(), local(&[]).subscribe()).unwrap();
    let far_sync = Sync::start(other(dir.path(), &server), far.clone(), services.subscribe()).unwrap();
    eventually("the far host's service is seen by both", async || {
        [&near, &far].iter().all(|state| mesh_end(&state.load(), "10.77.0.1:5432").is_some())
    })
    .await;
    let address = "10.77.0.1:5432".parse().unwrap();
    assert_eq!(near.load().catalog.as_ref().unwrap().instance_at(address).unwrap().node, "host-b");
    eventually("its leaf verifies there", async || leaf_verifies(&far.load())).await;
    assert_eq!(near.load().roots, far.load().roots);
    far_sync.shutdown(true).await;
    eventually("it leaves", async || mesh_end(&near.load(), "10.77.0.1:5432").is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remote_without_the_token_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let mut without = other(dir.path(), &server);
    without.access.token = None;
    let error = Client::new(&without).unwrap().get::<Value>("/v1/catalog/services").await.unwrap_err();
    assert!(error.to_string().contains("set control_plane.token"), "{error}");
    let state = MeshState::default();
    let sync = Sync::start(without, state.clone(), local(&[]).subscribe()).unwrap();
    eventually("the refusal shows", async || sync.status().last_error.is_some()).await;
    assert!(!state.load().is_synced() && state.load().roots.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_comes_back_with_a_new_root_renews_the_leaf() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (state, (_health, service)) = (MeshState::default(), db(21000));
    let services = local(&[service]);
    let _sync = Sync::start(own(dir.path()), state.clone(), services.subscribe()).unwrap();
    let whole = || mesh_end(&state.load(), "10.77.0.1:5432").is_some() && leaf_verifies(&state.load());
    eventually("registered and certified", async || whole()).await;
    let serial = || state.load().leafs.values().next().map(|leaf| leaf.serial.clone());
    let first = serial();
    server.shutdown().await;
    eventually("the loss is noticed", async || state.load().stale_since.is_some()).await;
    assert!(whole(), "the last known state keeps serving");

    let server = start(dir.path()).await;
    eventually("it is regained", async || state.load().stale_since.is_none()).await;
    assert_eq!(serial(), first, "the same root: nothing to renew");
    server.shutdown().await;
    std::fs::remove_dir_all(dir.path().join("server")).unwrap();
    let _server = start(dir.path()).await;
    eventually("the leaf is of the new root", async || serial() != first && whole()).await;
}
