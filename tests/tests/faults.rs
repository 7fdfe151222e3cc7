//! What happens when something breaks: it fails closed, visibly, and comes back. One test per row of `docs/faults.md`.
//!
//! Part of the set that `cargo xtask vm-test` runs on other kernels.

use std::io::{BufRead as _, BufReader};

use mesh_tests::{
    config::{CONFIG, STATE_DIR, Service},
    fixture::{Mesh, Scene, client_host, connect, echoing_on_a, serve, welcoming},
    host::Host,
    meshnode::{Meshnode, UNMANAGED, binary},
    require_root, wait,
};

#[track_caller]
fn is_let_in(mesh: &Mesh) -> bool {
    mesh.connect("web", 5432, &["--read", "7"])["received"] == "welcome"
}

#[test]
fn a_killed_daemon_leaves_no_way_out_in_clear() {
    require_root!();
    let (mut mesh, _server) = welcoming("db", 5432);
    mesh.a.kill9();
    let capture = mesh.net.capture(&mesh.a.host);
    for cgroup in ["web", "other"] {
        let said = mesh.connect(cgroup, 5432, &["--send", "not in clear, please"]);
        assert_eq!(said["error"], "EPERM", "{said}");
    }
    // What the mesh has nothing to do with goes on.
    let _bare = serve(&mesh.b.host, "bare", 7777, &["greet", "outside"]);
    assert_eq!(mesh.connect("web", 7777, &[])["received"], "outside");
    let trace = capture.stop();
    assert_eq!(trace.bytes_at(5432), 0);
    assert_eq!(trace.count("not in clear, please"), 0);
    mesh.a.run();
    mesh.until_connects("web", 5432);
    assert!(is_let_in(&mesh));
}

#[test]
fn a_killed_daemon_leaves_protection_in_place() {
    require_root!();
    let (mut mesh, _server) = welcoming("db", 5432);
    mesh.b.kill9();
    let outsider = mesh.net.host("c");
    let said = connect(&outsider, "", &mesh.at(5432), &["--send", "x", "--wait", "2000"]);
    assert_ne!(said["received"], "welcome", "{said}");
    assert!(said["ok"] != true || said["end"] == "ECONNRESET", "{said}");
    let said = connect(&mesh.b.host, UNMANAGED, "127.0.0.1:5432", &[]);
    assert_eq!(said["error"], "EPERM", "{said}");
    // The caller on the other host sees a reset, or is told that there is no instance any more.
    let said = mesh.connect("web", 5432, &["--send", "x"]);
    assert_ne!(said["received"], "welcome", "{said}");
    mesh.b.run();
    mesh.until_connects("web", 5432);
    assert!(is_let_in(&mesh));
}

#[test]
fn a_restart_adopts_the_pins() {
    require_root!();
    let (mut mesh, _server) = welcoming("db", 5432);
    let pins = |host: &Host| host.run("", &["find", "/sys/fs/bpf/meshnode", "-type", "f"]).ok();
    let before = pins(&mesh.a.host);
    assert!(!before.is_empty());
    mesh.a.kill9();
    assert_eq!(pins(&mesh.a.host), before, "the pins outlive the daemon");
    mesh.a.run();
    let status = mesh.a.status();
    assert!(!status.attached().is_empty());
    assert!(status.list("attachments").iter().all(|a| a["state"] == "attached"), "{:#}", status.0);
    mesh.until_connects("web", 5432);
    assert_eq!(mesh.connect("other", 5432, &[])["error"], "EPERM");
    let captured = mesh.a.status().counter("captured");
    assert!(captured > 0);
}

#[test]
fn a_second_daemon_is_refused() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    let binary = binary();
    let said = mesh.a.host.run("", &[binary.to_str().unwrap(), "run", "--config", CONFIG]).fails();
    assert!(said.to_lowercase().contains("another"), "{said}");
    assert!(is_let_in(&mesh), "the first one goes on");
    assert!(mesh.a.status().list("attachments").iter().all(|a| a["state"] == "attached"));
}

#[test]
fn a_full_map_denies_and_counts() {
    require_root!();
    let mut scene = Scene::new(&[]);
    scene.on_a = vec![Service::server("db", 5432), Service::client("web")];
    scene.sections = "[limits]\ndirect_flows = 4\n".to_owned();
    let mesh = scene.start();
    let _server = serve(&mesh.a.host, "db", 5432, &["banner", "welcome"]);
    mesh.a.intention("web", "db", "allow");
    wait::until_true("the intention to act", || {
        connect(&mesh.a.host, "web", "127.0.0.1:5432", &["--read", "7"])["ok"] == true
    });
    mesh.a.wait_status("no flow", |s| s.all_flows().is_empty());
    let hold = ["connect", "127.0.0.1:5432", "--wait", "60000"];
    let holders: Vec<_> = (0..4).map(|_| mesh.a.host.spawn_probe("web", &hold)).collect();
    mesh.a.wait_status("a full map", |s| s.flows("web", "db").len() == 4);
    let said = connect(&mesh.a.host, "web", "127.0.0.1:5432", &["--read", "7"]);
    assert_eq!(said["error"], "EPERM", "{said}");
    mesh.a.wait_status("the count", |s| s.counter("denied_map_full") > 0);
    drop(holders);
    wait::until_true("room", || {
        connect(&mesh.a.host, "web", "127.0.0.1:5432", &["--read", "7"])["received"] == "welcome"
    });
}

/// Its `connect()` is allowed, and says so; the SYN goes with the first write, when the file that is named is there. Prints how it
/// ends.
const LATE_SYN: &str = "import errno, os, socket, sys, time
s = socket.socket()
s.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
s.setsockopt(socket.IPPROTO_TCP, 34, 1)  # TCP_FASTOPEN_NO_COOKIE: without one, too
s.connect(('127.0.0.1', 7001))
while not os.path.exists(sys.argv[1]):
    time.sleep(.01)
s.settimeout(300)
try:
    s.send(b'x')
    while s.recv(1):
        pass
    print('EOF')
except OSError as e:
    print(errno.errorcode.get(e.errno, e))
";

/// Takes half a minute: so often the daemon looks for what never sent its SYN.
#[test]
fn direct_flow_that_a_full_map_cannot_list_is_ended_and_named_and_one_with_room_goes_on() {
    require_root!();
    let (mesh, _server) = echoing_on_a("[limits]\ndirect_flows = 4\n");
    let [(now, mut early), (later, mut late)] = ["now", "later"].map(|name| {
        let file = mesh.a.host.space().scratch().join(name);
        let words = ["python3", "-c", LATE_SYN, file.to_str().expect("UTF-8")];
        let program = mesh.a.host.spawn("web", &words);
        (file, program)
    });
    mesh.a.wait_status("each connect()", |s| s.flows("web", "echo").len() == 2);
    mesh.a.wait_status("those to be forgotten", |s| s.all_flows().is_empty());
    std::fs::write(now, "").expect("scratch is ours");
    mesh.a.wait_status("the flow that there is room for", |s| s.flows("web", "echo").len() == 1);
    let hold = ["connect", "127.0.0.1:7001", "--wait", "60000"];
    let mut holders: Vec<_> = (0..3).map(|_| mesh.a.host.spawn_probe("web", &hold)).collect();
    mesh.a.wait_status("a full map", |s| s.flows("web", "echo").len() == 4);
    std::fs::write(later, "").expect("scratch is ours");
    let status = late.wait();
    assert_eq!((status.code(), late.log().trim()), (Some(0), "ECONNABORTED"));
    let status = mesh.a.wait_status("the record", |s| {
        s.recent("web", "echo").iter().any(|f| f["state"] == "failed" && f["reason"] == "map-full")
    });
    assert_eq!(status.counter("flow_lost"), 1);
    mesh.a.wait_log("its line", |line| line.contains("raise [limits] direct_flows"));
    assert!(early.ended().is_none(), "it goes on: {}", early.log());
    assert!(holders.iter_mut().all(|one| one.ended().is_none()), "the others go on");
    let log = mesh.a.log();
    assert_eq!(log.matches("raise [limits] direct_flows").count(), 1, "{log}");
}

#[test]
fn a_full_map_of_destinations_denies_what_it_cannot_know() {
    require_root!();
    let mut scene = Scene::new(&[("db", 5432), ("db2", 5433), ("db3", 5434)]);
    scene.sections = "[limits]\ndestinations = 2\n".to_owned();
    let mesh = scene.start();
    let servers = [("db", 5432), ("db2", 5433), ("db3", 5434)];
    let _servers = servers.map(|(name, port)| serve(&mesh.b.host, name, port, &["banner", "welcome"]));
    mesh.a.intention("web", "*", "allow");
    let capture = mesh.net.capture(&mesh.a.host);
    // One of the three is not in the map: for a workload that must be a refusal, never cleartext.
    wait::until("two known and one denied", || {
        let said = servers.map(|(_, port)| mesh.connect("web", port, &["--read", "7"]));
        let known = said.iter().filter(|s| s["received"] == "welcome").count();
        let denied = said.iter().filter(|s| s["error"] == "EPERM").count();
        if (known, denied) == (2, 1) { Ok(()) } else { Err(format!("{said:?}")) }
    });
    mesh.a.wait_status("the count", |s| s.counter("denied_map_full") > 0);
    assert_eq!(capture.stop().count("welcome"), 0);
}

#[test]
fn with_a_cache_a_cold_start_serves() {
    require_root!();
    let (mut mesh, _server) = welcoming("db", 5432);
    let mut c = client_host(&mesh, "c", "web3", true);
    c.run();
    mesh.a.intention("web3", "db", "allow");
    let to = mesh.at(5432);
    let reach = |c: &Meshnode| connect(&c.host, "web3", &to, &["--read", "7"]);
    wait::until("c to reach the db", || {
        let said = reach(&c);
        if said["received"] == "welcome" { Ok(()) } else { Err(format!("{said}\n{}", c.log())) }
    });
    // What is learned is on the disk a moment later (the writes of 100 ms are one).
    wait::until_true("the cache", || {
        let cached =
            |file| std::fs::read_to_string(c.host.space().path(&format!("{STATE_DIR}/control-plane/{file}")));
        cached("intentions.json").is_ok_and(|text| text.contains("web3"))
            && cached("catalog.json").is_ok_and(|text| text.contains("5432"))
    });
    mesh.a.kill9();
    c.wait_status("the outage", |s| s.0["control_plane"]["connected"] == false);
    assert_eq!(reach(&c)["received"], "welcome", "an outage stops nothing that was running");
    c.kill9();
    c.run();
    c.wait_status("the cache", |s| s.0["control_plane"]["from_cache"] == true);
    wait::until("c to reach the db from its cache", || {
        let said = reach(&c);
        if said["received"] == "welcome" { Ok(()) } else { Err(format!("{said}\n{}", c.log())) }
    });
}

#[test]
fn without_a_cache_a_cold_start_denies() {
    require_root!();
    let (mut mesh, _server) = welcoming("db", 5432);
    let mut c = client_host(&mesh, "c", "web3", true);
    mesh.a.kill9();
    c.launch();
    c.wait_ready();
    let status = c.wait_status("the reason", |s| s.0["control_plane"]["last_error"].is_string());
    assert_eq!(status.0["control_plane"]["connected"], false);
    let said = connect(&c.host, "web3", &mesh.at(5432), &["--send", "x"]);
    assert_eq!(said["error"], "EPERM", "{said}");
    c.wait_status("the count", |s| s.counter("denied_not_synced") > 0);
}

#[test]
fn a_bad_configuration_is_refused_as_a_whole() {
    require_root!();
    let (mut mesh, _server) = welcoming("db", 5432);
    let good = mesh.a.config.clone();
    mesh.a.config.services.push(Service::client("late"));
    mesh.a.config.sections = "[nonsense]\nkey = 1\n".to_owned();
    mesh.a.write_config();
    mesh.a.reload();
    wait::until("the refusal", || {
        let log = mesh.a.log();
        if log.contains("nonsense") && log.contains("meshnode.toml:") { Ok(()) } else { Err(log) }
    });
    assert!(mesh.a.status().entry("workloads", "service", "late").is_none(), "no part of it was taken");
    assert!(is_let_in(&mesh));
    // Without the bad part, the same is taken.
    mesh.a.config.sections = good.sections;
    mesh.a.write_config();
    mesh.a.reload();
    mesh.a.wait_status("the new workload", |s| s.entry("workloads", "service", "late").is_some());
    assert!(is_let_in(&mesh));
}

#[test]
fn sigterm_lets_live_flows_end_and_takes_no_new_ones() {
    require_root!();
    let mesh = Scene::new(&[("echo", 7001)]).start();
    let _server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
    mesh.allow("web", "echo", 7001);
    let Mesh { mut a, b, net, .. } = mesh;
    let to = format!("{}:7001", b.host.v4);
    let mut ping = a.host.spawn_probe("web", &["ping", &to]);
    let mut lines = BufReader::new(ping.stdout().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "pinging");
    a.daemon().signal(nix::sys::signal::Signal::SIGTERM);
    a.wait_status("draining", |s| s.0["draining"] == true);
    let said = connect(&a.host, "web", &to, &["--send", "x"]);
    assert!(said["ok"] != true || said["end"] == "ECONNRESET", "{said}");
    assert!(ping.ended().is_none(), "the live flow goes on");
    drop(ping.stdin());
    let summary: serde_json::Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(summary["ok"], true, "{summary}");
    assert!(a.daemon().wait().success());
    drop(net);
}
