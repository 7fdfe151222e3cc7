//! The control plane fails, with a real Consul: what runs goes on, what is new goes on from the cache, and what changed
//! meanwhile arrives afterwards.

use mesh_tests::{
    cluster::{Cluster, until_fresh, until_stale},
    fixture::{Scene, serve},
    load::Load,
    process::Process,
    require_consul, require_root, wait,
};
use nix::sys::signal::Signal;
use serde_json::json;

/// `web` may reach `db` and `vault`, nobody else may reach anything.
fn start(servers: u32) -> (Cluster, [Process; 2]) {
    let cluster = Cluster::start(servers, Scene::new(&[("db", 5432), ("vault", 5433)]), &json!({}));
    let b = &cluster.mesh.b.host;
    let programs = [serve(b, "db", 5432, &["echo"]), serve(b, "vault", 5433, &["echo"])];
    cluster.intention("*", "*", "deny");
    cluster.allow("web", "db", 5432);
    cluster.allow("web", "vault", 5433);
    cluster.mesh.until_denied("other", 5432);
    (cluster, programs)
}

fn connections(cluster: &Cluster) -> Load {
    Load::connections(&cluster.mesh.a.host, "web", &cluster.mesh.at(5432))
}

fn flow(cluster: &Cluster, port: u16) -> Load {
    Load::flow(&cluster.mesh.a.host, "web", &cluster.mesh.at(port))
}

/// Another service may be called, and one no more; to be learned after the outage.
fn change_policy(cluster: &Cluster, server: usize) {
    cluster.intention_at(server, "web", "vault", "deny");
    cluster.intention_at(server, "other", "db", "allow");
}

/// The change is known, and cut the live flow `vault`.
fn policy_has_changed(cluster: &Cluster, mut vault: Load) {
    cluster.mesh.until_denied("web", 5433);
    cluster.mesh.until_connects("other", 5432);
    wait::until_true("the revoked flow's end", || !vault.goes_on());
    assert_eq!(vault.stop()["ok"], false);
}

#[test]
fn agents_killed_and_started_again_are_not_noticed_and_what_changed_arrives() {
    require_root!();
    require_consul!();
    let (mut cluster, _programs) = start(1);
    let (load, db, mut vault) = (connections(&cluster), flow(&cluster, 5432), flow(&cluster, 5433));
    cluster.agent_b.kill9();
    // A still hears from the servers, which hold B for dead: that stops nobody from reaching it.
    cluster.until_catalog("db", Some(false));
    cluster.mesh.until_connects("web", 5432);
    cluster.agent_a.kill9();
    until_stale(&cluster.mesh.a);
    until_stale(&cluster.mesh.b);
    change_policy(&cluster, 0);
    assert!(vault.goes_on(), "an outage stops nothing that was running");
    cluster.mesh.until_connects("web", 5433);
    cluster.agent_a.relaunch(&cluster.mesh.a.host);
    cluster.agent_b.relaunch(&cluster.mesh.b.host);
    policy_has_changed(&cluster, vault);
    until_fresh(&cluster.mesh.a);
    until_fresh(&cluster.mesh.b);
    cluster.until_catalog("db", Some(true));
    load.noticed_nothing();
    db.noticed_nothing();
}

#[test]
fn agent_that_leaves_or_comes_back_empty_is_told_again_what_it_serves() {
    require_root!();
    require_consul!();
    let (mut cluster, _programs) = start(1);
    let (load, db) = (connections(&cluster), flow(&cluster, 5432));
    // In order: its node and services are out of the catalog, while the service still runs.
    cluster.agent_b.leave();
    cluster.until_catalog("db", None);
    until_stale(&cluster.mesh.b);
    cluster.mesh.until_connects("web", 5432);
    cluster.agent_b.lose_data();
    cluster.agent_b.relaunch(&cluster.mesh.b.host);
    cluster.until_catalog("db", Some(true));
    until_fresh(&cluster.mesh.b);
    load.noticed_nothing();
    db.noticed_nothing();
}

#[test]
fn killed_leader_is_not_noticed_and_the_next_ones_changes_arrive() {
    require_root!();
    require_consul!();
    let (mut cluster, _programs) = start(3);
    let (load, db, vault) = (connections(&cluster), flow(&cluster, 5432), flow(&cluster, 5433));
    let leader = cluster.agent_a.get(&cluster.mesh.a.host, "/v1/status/leader");
    let leader = leader.as_str().unwrap().split(':').next().unwrap().to_owned();
    let n = cluster.servers.iter().position(|s| s.host.v4.to_string() == leader).unwrap();
    cluster.servers[n].consul.kill9();
    change_policy(&cluster, (n + 1) % 3);
    policy_has_changed(&cluster, vault);
    until_fresh(&cluster.mesh.a);
    load.noticed_nothing();
    db.noticed_nothing();
}

#[test]
fn partition_from_the_servers_is_lived_through_even_by_a_daemon_that_starts_in_it() {
    require_root!();
    require_consul!();
    let (mut cluster, _programs) = start(1);
    let (load, db) = (connections(&cluster), flow(&cluster, 5432));
    cluster.mesh.net.set_link(&cluster.servers[0].host, false);
    until_stale(&cluster.mesh.a);
    until_stale(&cluster.mesh.b);
    // The server, alone, still decides.
    change_policy(&cluster, 0);
    cluster.until_catalog("db", Some(false));
    load.noticed_nothing();
    db.noticed_nothing();
    cluster.mesh.a.kill9();
    cluster.mesh.a.run();
    cluster.mesh.a.wait_status("the disk cache", |s| s.0["control_plane"]["from_cache"] == true);
    cluster.mesh.until_connects("web", 5432);
    assert!(until_stale(&cluster.mesh.a)["last_error"].is_string());
    let (load, db, vault) = (connections(&cluster), flow(&cluster, 5432), flow(&cluster, 5433));
    cluster.mesh.net.set_link(&cluster.servers[0].host, true);
    policy_has_changed(&cluster, vault);
    until_fresh(&cluster.mesh.a);
    until_fresh(&cluster.mesh.b);
    load.noticed_nothing();
    db.noticed_nothing();
}

#[test]
fn agent_that_hangs_is_seen_to_hang_and_taken_up_again() {
    require_root!();
    require_consul!();
    let (mut cluster, _programs) = start(1);
    let (load, db) = (connections(&cluster), flow(&cluster, 5432));
    cluster.agent_a.process().signal(Signal::SIGSTOP);
    let plane = until_stale(&cluster.mesh.a);
    assert!(plane["last_error"].as_str().unwrap().contains("no complete answer"), "{plane}");
    cluster.intention("other", "db", "allow");
    cluster.agent_a.process().signal(Signal::SIGCONT);
    cluster.mesh.until_connects("other", 5432);
    until_fresh(&cluster.mesh.a);
    load.noticed_nothing();
    db.noticed_nothing();
}
