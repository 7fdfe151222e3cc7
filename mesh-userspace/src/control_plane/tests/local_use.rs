//! What is watched follows what local services use; against a real Consul.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    super::{
        ApiError, Client, LocalService, Settings, Sync, TokenSource, Watched,
        testing::{self, Consul, db, eventually, local, web},
    },
    create_intention, decision, mesh_end,
};
use crate::{intention::Action, state::MeshState};

/// Registers `NAMES`, each with a sidecar, at ports 10000 and up.
async fn register(client: &Client, names: &[&str]) {
    for (port, name) in (10_000..).zip(names) {
        let body = json!({
            "Name": name, "Port": port, "Address": "10.77.0.2",
            "Connect": {"SidecarService": {"Port": port + 10_000, "Checks": []}},
        });
        client.put::<()>("/v1/agent/service/register", &body).await.unwrap();
    }
}

/// Which of the services of [`register`] the catalog has.
fn known(state: &MeshState, count: u16) -> Option<Vec<u16>> {
    let mesh = state.load();
    mesh.catalog.as_ref()?;
    let at = |n: &u16| mesh_end(&mesh, &format!("10.77.0.2:{}", 10_000 + n)).is_some();
    Some((0..count).filter(at).collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_large_catalog_only_what_local_services_may_call_is_watched() {
    let Some(consul) = Consul::start(json!({})).await else { return };
    let client = consul.client("");
    register(&client, &["s0", "s1", "s2", "s3", "s4", "s5"]).await;
    create_intention(&client, "*", "*", "deny").await;
    create_intention(&client, "web", "s1", "allow").await;
    create_intention(&client, "cron", "s2", "allow").await;
    let settings = Settings { catalog_limit: 1, ..consul.settings() };
    let (state, services) = (MeshState::default(), local(&[web()]));
    let sync = Sync::start(settings, state.clone(), services.subscribe()).unwrap();
    eventually("the upstream alone is known", async || known(&state, 6) == Some(vec![1])).await;
    // The agent tells the servers of its services one after the other.
    eventually("the others are counted", async || {
        sync.watched() == Watched { services: 1, unwatched: Some(5) }
    })
    .await;

    create_intention(&client, "web", "s4", "allow").await;
    eventually("a new upstream is known", async || known(&state, 6) == Some(vec![1, 4])).await;
    assert_eq!(decision(&state.load(), "web", "s4"), Some(Action::Allow));

    // A service that the program knows how to dial is still denied here.
    client.delete("/v1/connect/intentions/exact").await.unwrap_err();
    let found: Vec<Value> = client.get("/v1/connect/intentions").await.unwrap();
    let id = found.iter().find(|i| i["DestinationName"] == "s4").unwrap()["ID"].as_str().unwrap().to_owned();
    client.delete(&format!("/v1/connect/intentions/{id}")).await.unwrap();
    eventually("it is revoked", async || decision(&state.load(), "web", "s4") == Some(Action::Deny)).await;
    assert_eq!(known(&state, 6), Some(vec![1, 4]));

    // Services of this host that come by a reload bring their upstreams, and take them along.
    let cron = LocalService { name: "cron".parse().unwrap(), id: "cron".to_owned(), listens: None };
    services.send(Arc::new(vec![web(), cron])).unwrap();
    eventually("the other's upstream is known", async || known(&state, 6) == Some(vec![1, 2, 4])).await;
    assert_eq!(decision(&state.load(), "cron", "s2"), Some(Action::Allow));
    services.send(Arc::new(vec![web()])).unwrap();
    eventually("its intentions are forgotten", async || {
        decision(&state.load(), "cron", "s2") == Some(Action::Deny)
    })
    .await;
    create_intention(&client, "web", "*", "allow").await;
    eventually("a wildcard means all", async || known(&state, 6) == Some(vec![0, 1, 2, 3, 4, 5])).await;
    eventually("none is left out", async || sync.watched().unwatched == Some(0)).await;
    assert!(sync.status().connected && sync.status().last_error.is_none(), "{:?}", sync.status());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_limit_a_catalog_is_watched_as_far_as_it_is_called() {
    let Some(consul) = Consul::start(json!({})).await else { return };
    let client = consul.client("");
    register(&client, &["s0", "s1"]).await;
    create_intention(&client, "*", "*", "deny").await;
    let settings = Settings { catalog_limit: 0, ..consul.settings() };
    let (state, services) = (MeshState::default(), local(&[web()]));
    let sync = Sync::start(settings, state.clone(), services.subscribe()).unwrap();
    eventually("nothing is called", async || known(&state, 2) == Some(vec![])).await;
    assert_eq!(sync.watched(), Watched { services: 0, unwatched: None });
    create_intention(&client, "web", "s1", "allow").await;
    eventually("one is", async || known(&state, 2) == Some(vec![1])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_count_as_no_services_and_are_not_watched() {
    let Some(consul) = Consul::start(json!({})).await else { return };
    let client = consul.client("");
    register(&client, &["s0", "s1", "s2"]).await;
    // Named as a sidecar, and a service in the mesh by itself.
    let odd = json!({"Name": "s0-sidecar-proxy", "ID": "odd", "Port": 10_007, "Address": "10.77.0.2",
        "Connect": {"SidecarService": {"Port": 20_007, "Checks": []}}});
    client.put::<()>("/v1/agent/service/deregister/s0-sidecar-proxy", &()).await.unwrap();
    client.put::<()>("/v1/agent/service/register", &odd).await.unwrap();
    let (state, services) = (MeshState::default(), local(&[web()]));
    let sync = Sync::start(consul.settings(), state.clone(), services.subscribe()).unwrap();
    eventually("the three that take mTLS are known", async || known(&state, 8) == Some(vec![1, 2, 7])).await;
    eventually("sidecars are not watched", async || {
        sync.watched() == Watched { services: 4, unwatched: Some(0) }
    })
    .await;
}

fn with_acl() -> Value {
    json!({"acl": {"enabled": true, "default_policy": "deny", "tokens": {"master": "root-token", "agent": "root-token"}}})
}

/// Makes a token and returns its secret.
async fn token(consul: &Consul, rules: &str) -> String {
    let root = consul.client("root-token");
    let name = uuid::Uuid::new_v4().simple().to_string();
    root.put::<Value>("/v1/acl/policy", &json!({"Name": name, "Rules": rules})).await.unwrap();
    let token: Value = root.put("/v1/acl/token", &json!({"Policies": [{"Name": name}]})).await.unwrap();
    token["SecretID"].as_str().unwrap().to_owned()
}

fn with_token(consul: &Consul, token: &str) -> Settings {
    let mut settings = consul.settings();
    settings.access.token = Some(TokenSource::value(token).unwrap());
    settings
}

const READ_ALL: &str = r#"node_prefix "" { policy = "read" } service_prefix "" { policy = "read" }"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_the_token_may_not_read_is_denied_and_the_others_go_on() {
    let Some(consul) = Consul::start(with_acl()).await else { return };
    let root = consul.client("root-token");
    create_intention(&root, "web", "cache", "allow").await;
    create_intention(&root, "secret", "cache", "allow").await;
    let token = token(&consul, &format!("{READ_ALL} service \"secret\" {{ policy = \"deny\" }}")).await;
    let secret = LocalService { name: "secret".parse().unwrap(), id: "secret".to_owned(), listens: None };
    let (state, services) = (MeshState::default(), local(&[web(), secret]));
    let sync = Sync::start(with_token(&consul, &token), state.clone(), services.subscribe()).unwrap();
    eventually("what may be read is", async || {
        decision(&state.load(), "web", "cache") == Some(Action::Allow)
    })
    .await;
    assert_eq!(decision(&state.load(), "secret", "cache"), Some(Action::Deny));
    eventually("the refusal is shown", async || {
        sync.status().last_error.is_some_and(|error| error.contains("forbidden"))
    })
    .await;
    create_intention(&root, "*", "cache", "deny").await;
    create_intention(&root, "web", "mail", "allow").await;
    eventually("changes arrive at once", async || {
        decision(&state.load(), "web", "mail") == Some(Action::Allow)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consul_service_identity_is_all_that_a_token_needs() {
    let Some(consul) = Consul::start(with_acl()).await else { return };
    let root = consul.client("root-token");
    let identity = json!({"ServiceIdentities": [{"ServiceName": "db"}, {"ServiceName": "web"}]});
    let token: Value = root.put("/v1/acl/token", &identity).await.unwrap();
    create_intention(&root, "web", "db", "allow").await;
    let (_health, db) = db(21000);
    let (state, services) = (MeshState::default(), local(&[db, web()]));
    let settings = with_token(&consul, token["SecretID"].as_str().unwrap());
    let sync = Sync::start(settings, state.clone(), services.subscribe()).unwrap();
    eventually("all of it works", async || {
        let mesh = state.load();
        mesh_end(&mesh, "10.77.0.1:5432").is_some()
            && decision(&mesh, "web", "db") == Some(Action::Allow)
            && decision(&mesh, "cron", "db") == Some(Action::Deny)
            && mesh.leafs.len() == 2
            && sync.status().connected
            && sync.status().last_error.is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_of_another_datacenter_is_refused_by_both_names() {
    let Some(consul) = Consul::start(json!({"datacenter": "eu-1"})).await else { return };
    let (state, services) = (MeshState::default(), local(&[web()]));
    let sync = Sync::start(consul.settings(), state.clone(), services.subscribe()).unwrap();
    let said = || sync.status().last_error.unwrap_or_default();
    eventually("it is refused", async || said().contains("`eu-1`") && said().contains("`dc1`")).await;
    assert!(state.load().catalog.is_none(), "nothing of it is believed");
    drop(sync);
    let unsaid = Settings { datacenter_given: false, ..consul.settings() };
    let _sync = Sync::start(unsaid, state.clone(), services.subscribe()).unwrap();
    eventually("without a name the agent's counts", async || state.load().is_synced()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_namespaces_or_partitions_refuses_them_clearly() {
    let Some(consul) = Consul::start(json!({})).await else { return };
    let mut settings = consul.settings();
    settings.access.tenancy.namespace = Some("team".to_owned());
    let error = Client::new(&settings).unwrap().get::<Value>("/v1/catalog/services").await.unwrap_err();
    assert!(
        matches!(&error, ApiError::Status { reason, .. } if reason.contains("Enterprise feature")),
        "{error}"
    );

    // This version does not even look at a partition: what it answers must not be taken for that partition's.
    let mut settings = consul.settings();
    settings.access.tenancy.partition = Some("team".to_owned());
    let (state, services) = (MeshState::default(), testing::local(&[web()]));
    let sync = Sync::start(settings, state.clone(), services.subscribe()).unwrap();
    let said = || sync.status().last_error.unwrap_or_default();
    eventually("it is refused", async || {
        said().contains("control_plane.partition") && said().contains("`team`")
    })
    .await;
    assert!(state.load().catalog.is_none());
}
