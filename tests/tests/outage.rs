//! The control plane fails, with a real Consul: what runs goes on, what is new goes on from the cache, and what changed
//! meanwhile arrives afterwards.

use mesh_tests::{
    cluster::{Cluster, Faulty, plane_lines, until_fresh, until_stale},
    config::{STATE_DIR, Service, TOKEN_FILE},
    fixture::{Scene, client_host, connect, serve},
    load::Load,
    meshnode::Meshnode,
    pki::{self, Authority, Identity, Validity},
    process::Process,
    require_consul, require_root,
    status::Status,
    wait,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

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

/// `web` may call `db`, and A's agent can be made to answer badly.
#[track_caller]
fn start_faulty() -> (Faulty, Process) {
    let faulty = Faulty::start(Scene::new(&[("db", 5432)]), &json!({}));
    let program = serve(&faulty.cluster.mesh.b.host, "db", 5432, &["echo"]);
    faulty.cluster.intention("*", "*", "deny");
    faulty.cluster.allow("web", "db", 5432);
    (faulty, program)
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
    let n = wait::until("a leader", || {
        let leader = cluster.agent_a.get(&cluster.mesh.a.host, "/v1/status/leader");
        let address = leader.as_str().unwrap_or_default().split(':').next().unwrap_or_default().to_owned();
        let found = cluster.servers.iter().position(|s| s.host.v4.to_string() == address);
        found.ok_or_else(|| leader.to_string())
    });
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

/// A token's two lives.
const TOKENS: [&str; 2] = ["00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"];

#[test]
fn token_that_is_revoked_is_named_and_the_next_one_in_its_file_is_taken_up() {
    require_root!();
    require_consul!();
    let cluster = Cluster::start_with_acl(Scene::new(&[("db", 5432)]));
    let (a, b) = (&cluster.mesh.a, &cluster.mesh.b);
    let _program = serve(&b.host, "db", 5432, &["echo"]);
    cluster.intention("web", "db", "allow");
    // The files hold what nobody knows.
    let refused = |s: &Status| {
        s.0["control_plane"]["last_error"]
            .as_str()
            .is_some_and(|e| e.contains("forbidden") && e.contains("ACL not found"))
    };
    a.wait_status("the refusal", refused);
    assert_eq!(cluster.mesh.connect("web", 5432, &[])["error"], "EPERM");
    let write = |token| [a, b].iter().for_each(|node| node.host.write(TOKEN_FILE, token));
    let first = cluster.make_token(TOKENS[0]);
    write(TOKENS[0]);
    cluster.mesh.until_connects("web", 5432);
    let load = connections(&cluster);
    let (consul, host) = cluster.server();
    assert_eq!(consul.api(host, "DELETE", &format!("/v1/acl/token/{first}"), None).0, 200);
    // Wakes the watches, which would else ask again within minutes.
    cluster.intention("web", "db", "deny");
    cluster.intention("web", "db", "allow");
    for node in [a, b] {
        node.wait_status("the revocation", refused);
    }
    cluster.make_token(TOKENS[1]);
    write(TOKENS[1]);
    until_fresh(a);
    until_fresh(b);
    a.wait_status("no error", |s| s.0["control_plane"]["last_error"].is_null());
    load.stop();
    cluster.mesh.until_connects("web", 5432);
}

#[test]
fn drained_daemon_deregisters_and_a_dead_ones_services_turn_critical() {
    require_root!();
    require_consul!();
    let mut scene = Scene::new(&[("db", 5432)]);
    scene.on_a.push(Service::server("cache", 6379));
    let mut cluster = Cluster::start(1, scene, &json!({}));
    let a = serve(&cluster.mesh.a.host, "cache", 6379, &["echo"]);
    let b = serve(&cluster.mesh.b.host, "db", 5432, &["echo"]);
    cluster.until_catalog("cache", Some(true));
    cluster.until_catalog("db", Some(true));
    cluster.mesh.b.kill9();
    cluster.mesh.a.cli(&["drain"]).ok();
    assert!(cluster.mesh.a.daemon().wait().success());
    cluster.until_catalog("cache", None);
    cluster.until_catalog("cache-sidecar-proxy", None);
    cluster.until_catalog("db", Some(false));
    cluster.until_catalog("db-sidecar-proxy", Some(false));
    // The programs themselves go on.
    drop((a, b));
}

/// Gives `service` of a daemon that does not run a cached leaf that is valid for `seconds` more.
fn shorten_leaf(node: &Meshnode, ca: &Authority, id: &str, service: &str, seconds: u32) {
    let path = format!("{STATE_DIR}/control-plane/leafs/{service}.json");
    let text = node.host.read(&path);
    let mut cached: Value = serde_json::from_str(text.split_once('\n').unwrap().1).unwrap();
    let Identity { cert, key } = ca.issue(id, Validity::For(seconds));
    cached["data"]["cert_pem"] = cert.into();
    cached["data"]["key_pem"] = key.into();
    let body = cached.to_string();
    let sum = node.host.run_with_input("", &["sha256sum"], &body).ok();
    let sum = sum.split(' ').next().unwrap();
    node.host.write(&path, &format!("meshnode-cache 1 {sum}\n{body}"));
}

#[test]
fn leaf_that_expires_in_an_outage_is_counted_down_refuses_new_flows_and_keeps_open_ones() {
    require_root!();
    let mut mesh = Scene::new(&[("db", 5432)]).start();
    let _program = serve(&mesh.b.host, "db", 5432, &["echo"]);
    let (ca, id) = (Authority::stolen(&mesh.a), pki::spiffe_id(&pki::trust_domain(&mesh.a), "web3"));
    let mut c = client_host(&mesh, "c", "web3", true);
    c.run();
    mesh.a.intention("web3", "db", "allow");
    let to = mesh.at(5432);
    let reaches = |c: &Meshnode| {
        connect(&c.host, "web3", &to, &["--send", "hello", "--read", "5"])["received"] == "hello"
    };
    wait::until_true("c to reach the db", || reaches(&c));
    c.terminate();
    mesh.a.kill9();
    shorten_leaf(&c, &ca, &id, "web3", 25);
    c.run();
    wait::until_true("c to reach the db from its cache", || reaches(&c));
    let flow = Load::flow(&c.host, "web3", &to);
    let leaf = |s: &Status| s.entry("certificates", "service", "web3").cloned().unwrap_or_default();
    let late =
        c.wait_status("the warning", |s| leaf(s)["late"] == true && leaf(s)["renewal_error"].is_string());
    assert!(leaf(&late)["seconds_left"].as_i64().unwrap() <= 25, "{late:?}");
    let expired =
        c.wait_status("the expiry", |s| leaf(s)["seconds_left"].as_i64().is_some_and(|left| left < 0));
    assert!(leaf(&expired)["renewal_error"].as_str().unwrap().contains("refuses connections"), "{expired:?}");
    assert!(!reaches(&c));
    c.wait_status("the refusal's count", |s| s.ended("outbound", "leaf-expired") > 0);
    let shown = c.cli(&["status"]).ok();
    assert!(shown.contains("the certificate of web3 has expired: new connections are refused"), "{shown}");
    let metrics = c.cli(&["status", "--check"]);
    assert_eq!(metrics.status.code(), Some(3));
    mesh.a.run();
    wait::until_true("a new leaf", || reaches(&c));
    assert_eq!(leaf(&c.status())["late"], false);
    flow.noticed_nothing();
}

#[test]
fn refusals_cost_one_line_few_questions_and_no_connection() {
    answers_that_are_no_answers(&["status 500", "status 429", "html"]);
}

#[test]
fn spoiled_answers_cost_one_line_few_questions_and_no_connection() {
    answers_that_are_no_answers(&["garbage", "reset", "truncate", "huge"]);
}

#[track_caller]
fn answers_that_are_no_answers(modes: &[&str]) {
    require_root!();
    require_consul!();
    let (faulty, _program) = start_faulty();
    let (cluster, a) = (&faulty.cluster, &faulty.cluster.mesh.a);
    let (load, flow) = (connections(cluster), flow(cluster, 5432));
    for mode in modes {
        until_fresh(a);
        let before = plane_lines(&a.log()).len();
        faulty.mode(mode);
        until_stale(a);
        // It goes on failing for some time, and more questions fail.
        let seen = faulty.requests(mode);
        wait::until_true("more failures", || faulty.requests(mode) >= seen + 4);
        let log = a.log();
        let lines = &plane_lines(&log)[before..];
        assert!(
            lines.len() <= 2 && lines.iter().filter(|l| l.contains("control plane lost")).count() == 1,
            "{mode}: {lines:#?}"
        );
        cluster.mesh.until_connects("web", 5432);
        faulty.mode("pass");
        until_fresh(a);
        // Status knows it before the line is written.
        let regained = |log: &str| {
            plane_lines(log)[before..].iter().filter(|l| l.contains("control plane regained")).count()
        };
        wait::until_true("the line that says so", || regained(&a.log()) > 0);
        let log = a.log();
        assert_eq!(regained(&log), 1, "{mode}: {:#?}", &plane_lines(&log)[before..]);
    }
    load.noticed_nothing();
    flow.noticed_nothing();
    // What changes is still learned.
    cluster.intention("web", "db", "deny");
    cluster.mesh.until_denied("web", 5432);
}

#[test]
fn index_that_jumps_back_or_stands_still_is_lived_with() {
    require_root!();
    require_consul!();
    let (faulty, _program) = start_faulty();
    let cluster = &faulty.cluster;
    let load = connections(cluster);
    // Each is a step back from the one before, for every watch.
    for (index, action) in [("index 9", "deny"), ("index 5", "allow"), ("index 1", "deny"), ("pass", "allow")]
    {
        cluster.intention("other", "db", action);
        faulty.mode(index);
        match action {
            "allow" => cluster.mesh.until_connects("other", 5432),
            _ => cluster.mesh.until_denied("other", 5432),
        }
    }
    until_fresh(&cluster.mesh.a);
    load.noticed_nothing();
}

#[test]
fn slow_answers_are_given_up_and_asked_for_again() {
    require_root!();
    require_consul!();
    let (faulty, _program) = start_faulty();
    let cluster = &faulty.cluster;
    let load = connections(cluster);
    faulty.mode("slow");
    let plane = until_stale(&cluster.mesh.a);
    assert!(plane["last_error"].as_str().unwrap().contains("no complete answer"), "{plane}");
    cluster.intention("other", "db", "allow");
    faulty.mode("pass");
    cluster.mesh.until_connects("other", 5432);
    until_fresh(&cluster.mesh.a);
    load.noticed_nothing();
}

/// Returns how many connections of any process of A to its agent are established.
fn to_the_agent(cluster: &Cluster) -> usize {
    let words = ["ss", "-Htn", "state", "established", "dst", "127.0.0.1:8500"];
    cluster.mesh.a.host.run("", &words).ok().lines().count()
}

/// Registers `count` services with mTLS ends at the server, whose connections nobody else wants.
fn register_many(cluster: &Cluster, count: u16) {
    let (consul, host) = cluster.server();
    for n in 0..count {
        let service = json!({
            "Name": format!("s{n}"), "Port": 10_000 + n, "Address": "10.77.2.1",
            "Connect": {"SidecarService": {"Port": 30_000 + n, "Checks": []}},
        });
        let (code, said) = consul.api(host, "PUT", "/v1/agent/service/register", Some(&service.to_string()));
        assert_eq!(code, 200, "{said}");
    }
}

#[test]
fn connections_to_the_agent_are_bounded_whatever_the_catalog_holds() {
    require_root!();
    require_consul!();
    let cluster = Cluster::start(1, Scene::new(&[("db", 5432)]), &json!({}));
    let _program = serve(&cluster.mesh.b.host, "db", 5432, &["echo"]);
    cluster.allow("web", "db", 5432);
    let mut most = 0;
    register_many(&cluster, 300);
    // Consul takes 200 from one address, and others on this host want some too.
    cluster.intention("*", "*", "deny");
    cluster.intention("web", "s299", "allow");
    wait::until_within(wait::patience() * 2, "the last service in the mesh", || {
        most = most.max(to_the_agent(&cluster));
        let said = connect(&cluster.mesh.a.host, "web", "10.77.2.1:10299", &["--wait", "50"]);
        let denied = connect(&cluster.mesh.a.host, "other", "10.77.2.1:10299", &["--wait", "50"]);
        let known = said["ok"] == true && denied["error"] == "EPERM";
        if known { Ok(()) } else { Err(format!("{said} {denied}")) }
    });
    most = most.max(to_the_agent(&cluster));
    assert!(most < 190, "{most} connections");
    until_fresh(&cluster.mesh.a);
}

#[test]
fn agent_that_takes_fewer_connections_than_there_are_watches_serves_all_the_same() {
    require_root!();
    require_consul!();
    let limits = json!({"limits": {"http_max_conns_per_client": 64}});
    let cluster = Cluster::start(1, Scene::new(&[("db", 5432)]), &limits);
    let _program = serve(&cluster.mesh.b.host, "db", 5432, &["echo"]);
    cluster.allow("web", "db", 5432);
    let load = connections(&cluster);
    register_many(&cluster, 40);
    cluster.intention("*", "*", "deny");
    cluster.intention("other", "db", "allow");
    // When it refuses one connection all others are closed, and count until their questions would have been answered: a
    // minute and a sixteenth (see `watch::Lines`), in which nobody may hear of the intention.
    wait::until_within(wait::patience() * 3, "other to reach the db", || {
        let said = cluster.mesh.connect("other", 5432, &["--send", "x", "--read", "1"]);
        if said["received"] == "x" { Ok(()) } else { Err(format!("{said}\n{}", cluster.mesh.a.log())) }
    });
    // One that it is about to refuse is established for a moment: of five looks, one may be too many.
    let mut counts = Vec::new();
    for _ in 0..5 {
        counts.push(to_the_agent(&cluster));
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    assert!(counts.iter().filter(|count| **count > 64).count() <= 1, "{counts:?}");
    load.noticed_nothing();
}
