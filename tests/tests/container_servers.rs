//! Protected services whose programs are in network namespaces of their own, with addresses of their own, as containers
//! are: reached through the mesh, by nobody around it, and let go of.

use std::collections::BTreeSet;

use mesh_tests::{
    config::Service,
    container::Container,
    fixture::{self, Mesh, Scene},
    host::{Host, LIMIT},
    meshnode::Meshnode,
    process::Process,
    require_root,
    space::tool,
    status::Status,
    wait,
};
use serde_json::Value;

/// `web` and `other` on A; on B `services`, and the workloads `batch` and `stranger` that only connect.
#[track_caller]
fn scene(services: Vec<Service>) -> Mesh {
    let mut scene = Scene::new(&[]);
    scene.on_b = services;
    scene.on_b.extend([Service::client("batch"), Service::client("stranger")]);
    let mesh = scene.start();
    // Whoever knows the way reaches containers of B from A: nothing but the guard is between.
    mesh.b.host.run("", &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]).ok();
    let mut route = mesh.net.space().command("", "ip");
    route.args(["route", "add", "10.78.0.0/16", "via", &mesh.b_address()]);
    mesh_tests::process::run(route, None, LIMIT).ok();
    mesh
}

fn db() -> Vec<Service> {
    vec![Service::server("db", 5432).with("check.interval = \"1s\"")]
}

/// Starts `probe serve banner` in the container.
#[track_caller]
fn serve(host: &Host, container: &Container, at: &str, text: &str) -> Process {
    let probe = tool("probe");
    let command = container.command(&[probe.to_str().expect("UTF-8"), "serve", "banner", at, text]);
    let server = Process::spawn(command, &host.log_file("server"));
    wait::until("the server", || match server.log() {
        log if log.contains("listening") => Ok(()),
        log => Err(log),
    });
    server
}

fn parse(said: &mesh_tests::process::Output) -> Value {
    serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("probe said no JSON: {e}: {said}"))
}

#[track_caller]
fn from_container(container: &Container, to: &str, options: &[&str]) -> Value {
    parse(&container.probe(&[&["connect", to], options].concat()))
}

/// Connects and says what the server's first `bytes` were.
#[track_caller]
fn hear(host: &Host, cgroup: &str, to: &str, bytes: &str) -> Value {
    fixture::connect(host, cgroup, to, &["--read", bytes])
}

/// The namespaces whose guard is attached, the kernel says, as `status` words them.
fn guards(status: &Status) -> BTreeSet<String> {
    let all = status.list("attachments").iter().filter(|a| a["state"] == "attached");
    let targets = all.filter_map(|a| a["target"].as_str()).filter(|target| target.starts_with("net:["));
    targets.map(ToOwned::to_owned).collect()
}

fn is_passing(status: &Status, service: &str) -> bool {
    status.entry("services", "name", service).is_some_and(|s| s["health"] == "passing")
}

#[track_caller]
fn until_guarded(node: &Meshnode, count: usize) -> Status {
    node.wait_status("the guards of namespaces", |s| guards(s).len() == count)
}

#[track_caller]
fn until_heard(mesh: &Mesh, cgroup: &str, port: u16, text: &str) {
    wait::until(&format!("{cgroup} to hear {text}"), || {
        match hear(&mesh.a.host, cgroup, &mesh.at(port), &text.len().to_string()) {
            said if said["received"] == text => Ok(()),
            said => Err(format!("{said}\n{}", mesh.logs())),
        }
    });
}

/// It got through to nobody: reset at once, or not answered.
#[track_caller]
fn assert_guarded(said: &Value) {
    assert_eq!(said["received"].as_str().unwrap_or(""), "", "{said}");
    assert!(said["ok"] == false || said["end"] == "ECONNRESET", "{said}");
}

/// `db` in a container of B, allowed to `web`.
#[track_caller]
fn one() -> (Mesh, Container, Process) {
    let mesh = scene(db());
    let container = Container::new(&mesh.b.host, 1, "db/one");
    let server = serve(&mesh.b.host, &container, "[::]:5432", "welcome");
    // Its neighbour on another port belongs to nobody: what reaches this one is stopped by the guard alone.
    mesh.a.intention("web", "db", "allow");
    until_heard(&mesh, "web", 5432, "welcome");
    (mesh, container, server)
}

#[test]
fn containers_service_is_reached_through_the_mesh_and_by_nobody_around_it() {
    require_root!();
    let (mesh, container, _server) = one();
    let _open = serve(&mesh.b.host, &container, "[::]:5433", "open");
    let status = until_guarded(&mesh.b, 1);
    assert!(guards(&status).iter().all(|target| target.ends_with(" (db)")), "{:?}", guards(&status));
    mesh.b.wait_status("its health", |s| is_passing(s, "db"));
    assert!(mesh.b.cli(&["status"]).ok().contains("net:["));

    // The same host, another host, another container: each reaches the open port and not the protected one.
    let (open, closed) = (format!("{}:5433", container.v4), format!("{}:5432", container.v4));
    let nobody = Container::new(&mesh.b.host, 2, "unmanaged/nobody");
    assert_eq!(hear(&mesh.a.host, "", &open, "4")["received"], "open");
    assert_eq!(hear(&mesh.b.host, "", &open, "4")["received"], "open");
    assert_eq!(from_container(&nobody, &open, &["--read", "4"])["received"], "open");
    assert_guarded(&hear(&mesh.a.host, "", &closed, "7"));
    assert_guarded(&hear(&mesh.a.host, "web", &closed, "7"));
    assert_eq!(hear(&mesh.b.host, "", &closed, "7")["error"], "EPERM");
    assert_eq!(from_container(&nobody, &closed, &["--read", "7"])["error"], "EPERM");
    // Who is not governed at all passes no hook.
    let ungoverned = mesh.b.host.space().enter().in_network(|| {
        let to: std::net::SocketAddr = closed.parse().expect("an address");
        let mut stream = std::net::TcpStream::connect(to).map_err(|e| e.kind())?;
        std::io::Read::read(&mut stream, &mut [0; 7]).map_err(|e| e.kind())
    });
    assert_eq!(ungoverned, Err(std::io::ErrorKind::ConnectionReset));
    // The kernel's count, and that of the listener inside, which resets before it counts.
    mesh.b.wait_status("the guard's counts", |s| {
        s.counter("guarded") >= 3 && s.ended("inbound", "guarded") >= 3
    });
    // Without an intention nobody gets there through the mesh either.
    mesh.until_denied("other", 5432);
}

#[test]
fn workloads_of_the_same_host_reach_a_container_by_policy_and_itself_directly() {
    require_root!();
    let (mesh, container, _server) = one();
    mesh.a.intention("batch", "db", "allow");
    mesh.a.intention("db", "db", "allow");
    let caller = Container::new(&mesh.b.host, 2, "batch/caller");
    let own = format!("{}:5432", container.v4);
    let host = mesh.at(5432);
    wait::until("batch to reach db", || match hear(&mesh.b.host, "batch", &own, "7") {
        said if said["received"] == "welcome" && said["peer"] == own => Ok(()),
        said => Err(format!("{said}\n{}", mesh.b.log())),
    });
    // The container's own address, the host's, and loopback, from the host and from another container.
    for to in [&own, &host, &"127.0.0.1:5432".to_owned()] {
        assert_eq!(hear(&mesh.b.host, "batch", to, "7")["received"], "welcome", "{to}");
        assert_eq!(hear(&mesh.b.host, "stranger", to, "7")["error"], "EPERM", "{to}");
        assert_eq!(hear(&mesh.b.host, "", to, "7")["error"], "EPERM", "{to}");
    }
    for to in [&own, &host] {
        wait::until("batch in a container to reach db", || {
            let said = from_container(&caller, to, &["--read", "7"]);
            if said["received"] == "welcome" { Ok(()) } else { Err(format!("{to} {said}")) }
        });
    }
    let stranger = Container::new(&mesh.b.host, 3, "stranger/caller");
    for to in [&own, &host] {
        assert_eq!(from_container(&stranger, to, &["--read", "7"])["error"], "EPERM", "{to}");
    }
    let opened = mesh.b.status().counter("direct");
    for to in [&own, &"127.0.0.1:5432".to_owned()] {
        assert_eq!(from_container(&container, to, &["--read", "7"])["received"], "welcome", "{to}");
    }
    assert_eq!(mesh.b.status().counter("direct"), opened + 2, "inside of the container nothing is proxied");
    // Nobody but the service may listen there.
    let probe = tool("probe");
    let squatter = mesh.b.host.space().cgroup().child("stranger/squatter");
    let enter = container.enter_as(&mesh.b.host);
    let mut bind = enter.command(&squatter, &probe);
    bind.args(["serve", "echo", "127.0.0.2:5432"]);
    let said = mesh_tests::process::run(bind, None, LIMIT).fails();
    assert!(said.contains("Operation not permitted"), "{said}");
}

/// As `revoke` has it for the host's own network namespace.
#[test]
fn direct_flows_inside_a_container_are_listed_with_their_bytes_and_cut() {
    require_root!();
    let (mut mesh, container, _server) = one();
    // Processes in the container's network namespace, of other workloads, too.
    let enter = container.enter_as(&mesh.b.host);
    let beside = |cgroup: &str, words: &[&str]| {
        let mut command = enter.command(&mesh.b.host.space().cgroup().child(cgroup), tool("probe"));
        command.args(words);
        command
    };
    let to = "127.0.0.1:5432";
    let sources = ["db", "batch", "stranger"];
    let mut live = sources.map(|source| {
        mesh.a.intention(source, "db", "allow");
        wait::until(&format!("{source} to reach db"), || {
            let words = ["connect", to, "--read", "7"];
            match parse(&mesh_tests::process::run(beside(&format!("{source}/beside"), &words), None, LIMIT)) {
                said if said["received"] == "welcome" => Ok(()),
                said => Err(format!("{said}\n{}", mesh.b.log())),
            }
        });
        let words = ["connect", to, "--read", "8", "--wait", "120000"];
        Process::spawn(beside(&format!("{source}/beside"), &words), &mesh.b.host.log_file(source))
    });
    let status = mesh.b.wait_status("the flows with their bytes", |s| {
        sources.iter().all(|source| {
            let flows = s.flows(source, "db");
            flows.len() == 1 && flows[0]["state"] == "direct" && flows[0]["bytes_received"] == 7
        })
    });
    assert!(status.list("uncaptured").is_empty(), "{:#}", status.0);

    // Both ways to take an intention back.
    mesh.a.delete_intention("db", "db");
    mesh.a.intention("batch", "db", "deny");
    let [own, batch, stranger] = &mut live;
    for (process, source) in [(own, "db"), (batch, "batch")] {
        process.wait();
        assert!(process.log().contains("ECONNABORTED"), "{}", process.log());
        mesh.b.wait_status("the record", |s| {
            let revoked = s.recent(source, "db").iter().filter(|f| f["state"] == "revoked").count();
            s.flows(source, "db").is_empty() && revoked == 1
        });
    }
    assert!(stranger.ended().is_none(), "another intention's flows were cut");
    assert_eq!(mesh.b.status().flows("stranger", "db").len(), 1);

    // While no daemon is there; the next one knows of the flow before it knows of the namespace.
    mesh.b.kill9();
    mesh.a.delete_intention("stranger", "db");
    assert!(stranger.ended().is_none());
    mesh.b.run();
    stranger.wait();
    assert!(stranger.log().contains("ECONNABORTED"), "{}", stranger.log());
    mesh.b.wait_status("no live flow", |s| s.flows("stranger", "db").is_empty());
}

#[test]
fn service_that_a_reload_removes_loses_its_direct_flows_inside_a_container() {
    require_root!();
    let (mut mesh, container, _server) = one();
    mesh.a.intention("db", "db", "allow");
    wait::until("db to reach itself", || {
        let said = from_container(&container, "127.0.0.1:5432", &["--read", "7"]);
        if said["received"] == "welcome" { Ok(()) } else { Err(said.to_string()) }
    });
    let probe = tool("probe");
    let words =
        [probe.to_str().expect("UTF-8"), "connect", "127.0.0.1:5432", "--read", "8", "--wait", "120000"];
    let mut live = Process::spawn(container.command(&words), &mesh.b.host.log_file("live"));
    // Not the one of before, which may be about to end.
    let pid = live.pid();
    mesh.b.wait_status("the live flow", |s| s.flows("db", "db").iter().any(|f| f["pid"] == pid));
    mesh.b.config.services.retain(|service| service.name != "db");
    mesh.b.write_config();
    mesh.b.cli(&["reload"]).ok();
    live.wait();
    assert!(live.log().contains("ECONNABORTED"), "{}\n{}", live.log(), mesh.b.log());
}

#[test]
fn program_that_listens_on_the_containers_address_only_is_reached() {
    require_root!();
    let mesh = scene(db());
    let container = Container::new(&mesh.b.host, 1, "db/one");
    let at = format!("{}:5432", container.v4);
    let _server = serve(&mesh.b.host, &container, &at, "welcome");
    mesh.a.intention("web", "db", "allow");
    until_heard(&mesh, "web", 5432, "welcome");
    mesh.b.wait_status("its health", |s| is_passing(s, "db"));
    assert_guarded(&hear(&mesh.a.host, "", &at, "7"));
}

#[test]
fn restarted_container_is_taken_up_and_the_old_ones_namespace_let_go_of() {
    require_root!();
    let (mesh, container, server) = one();
    let old = guards(&until_guarded(&mesh.b, 1));
    let mut live = mesh.a.host.spawn_probe("web", &["connect", &mesh.at(5432), "--wait", "60000"]);
    mesh.b.wait_status("the live flow", |s| s.flows("web", "db").len() == 1);
    // A child that the program leaves behind holds the connection open; its namespace ends all the same.
    drop(server);
    drop(container);
    live.wait();
    mesh.b.wait_status("no live flow", |s| s.flows("web", "db").is_empty());
    mesh.b.wait_status("nobody to dial", |s| guards(s).is_empty() && !is_passing(s, "db"));
    wait::until("the namespace's end", || {
        let links = mesh.b.host.run("", &["ip", "-brief", "link"]).ok();
        if links.contains("ctr1") { Err(links) } else { Ok(()) }
    });
    wait::until_true("the guard's pin to go", || pins(&mesh) == 0);

    let container = Container::new(&mesh.b.host, 2, "db/two");
    let _server = serve(&mesh.b.host, &container, "[::]:5432", "welcome-again");
    until_heard(&mesh, "web", 5432, "welcome-again");
    let new = guards(&until_guarded(&mesh.b, 1));
    assert!(new != old || pins(&mesh) == 1, "{old:?} {new:?}");
    assert_guarded(&hear(&mesh.a.host, "", &format!("{}:5432", container.v4), "7"));
}

/// How many guards of namespaces are pinned on B.
fn pins(mesh: &Mesh) -> usize {
    let listed = mesh.b.host.run("", &["sh", "-c", "ls /sys/fs/bpf/meshnode/v*/guards | wc -l"]).ok();
    listed.trim().parse().expect("a number")
}

#[test]
fn dead_daemon_leaves_containers_guarded_a_new_one_adopts_them_and_detach_frees_them() {
    require_root!();
    let (mut mesh, container, _server) = one();
    until_guarded(&mesh.b, 1);
    let closed = format!("{}:5432", container.v4);
    mesh.b.kill9();
    assert_guarded(&hear(&mesh.a.host, "", &closed, "7"));
    mesh.b.run();
    assert_guarded(&hear(&mesh.a.host, "", &closed, "7"));
    until_heard(&mesh, "web", 5432, "welcome");
    until_guarded(&mesh.b, 1);
    assert_eq!(pins(&mesh), 1);
    assert_guarded(&hear(&mesh.a.host, "", &closed, "7"));
    mesh.b.terminate();
    assert_guarded(&hear(&mesh.a.host, "", &closed, "7"));
    mesh.b.cli(&["detach"]).ok();
    // The kernel detaches what is pinned no more in its own time (`bpf_link_put`).
    wait::until("no guard", || match hear(&mesh.a.host, "", &closed, "7") {
        said if said["received"] == "welcome" => Ok(()),
        said => Err(said.to_string()),
    });
}

#[test]
fn two_containers_with_one_port_are_told_apart_by_what_they_are_announced_at() {
    require_root!();
    let at = |name, port: u16| {
        Service::server(name, 6379).with(&format!("announce_port = {port}")).with("check.interval = \"1s\"")
    };
    let mesh = scene(vec![at("cache", 6379), at("queue", 6380)]);
    let containers = [(1, "cache"), (2, "queue")].map(|(n, name)| {
        let container = Container::new(&mesh.b.host, n, &format!("{name}/one"));
        let server = serve(&mesh.b.host, &container, "[::]:6379", name);
        (container, server)
    });
    mesh.a.intention("web", "cache", "allow");
    mesh.a.intention("other", "queue", "allow");
    mesh.a.intention("batch", "queue", "allow");
    until_heard(&mesh, "web", 6379, "cache");
    until_heard(&mesh, "other", 6380, "queue");
    mesh.until_denied("web", 6380);
    mesh.until_denied("other", 6379);
    let [cache, queue] = [0, 1].map(|n| format!("{}:6379", containers[n].0.v4));
    // On the host itself also by the containers' own addresses.
    wait::until("batch to reach queue", || match hear(&mesh.b.host, "batch", &queue, "5") {
        said if said["received"] == "queue" => Ok(()),
        said => Err(format!("{said}\n{}", mesh.b.log())),
    });
    assert_eq!(hear(&mesh.b.host, "batch", &cache, "5")["error"], "EPERM");
    for closed in [cache, queue] {
        assert_guarded(&hear(&mesh.a.host, "", &closed, "5"));
    }
    assert_eq!(until_guarded(&mesh.b, 2).list("degraded").len(), mesh.a.status().list("degraded").len());
}

#[test]
fn replicas_take_turns_and_one_that_does_not_answer_is_passed_over() {
    require_root!();
    let mesh = scene(db());
    let first = Container::new(&mesh.b.host, 1, "db/one");
    let second = Container::new(&mesh.b.host, 2, "db/two");
    let one = serve(&mesh.b.host, &first, "[::]:5432", "1");
    let _two = serve(&mesh.b.host, &second, "[::]:5432", "2");
    mesh.a.intention("web", "db", "allow");
    until_guarded(&mesh.b, 2);
    let heard = || {
        let said = hear(&mesh.a.host, "web", &mesh.at(5432), "1");
        said["received"].as_str().unwrap_or("").to_owned()
    };
    let mut all = BTreeSet::new();
    wait::until("both to be heard", || {
        all.insert(heard());
        if all.contains("1") && all.contains("2") { Ok(()) } else { Err(format!("{all:?}")) }
    });
    drop(one);
    for _ in 0..4 {
        assert_eq!(heard(), "2");
    }
}

/// As `existing` has it for the host's own network namespace.
#[test]
fn connection_in_a_container_from_before_the_daemon_is_listed_where_it_is_and_can_be_cut() {
    require_root!();
    let net = mesh_tests::net::Network::new();
    let (a, b) = (net.host("a"), net.host("b"));
    let container = Container::new(&b, 1, "db/container");
    let _server = serve(&b, &container, "0.0.0.0:5432", "welcome");
    b.space().cgroup().child("unmanaged");
    let to = format!("{}:5432", container.v4);
    let mut before = b.spawn_probe("unmanaged", &["connect", &to, "--wait", "120000", "--read", "8"]);
    wait::until("the connection", || {
        let table = b.run("", &["ss", "-Htn", "state", "established", "dst", &to]).ok();
        if table.is_empty() { Err(before.log()) } else { Ok(()) }
    });

    let mut scene = Scene::new(&[]);
    scene.on_b = db();
    let mesh = scene.start_on(net, a, b);
    let status = mesh.b.wait_status("what is in clear", |s| !s.list("uncaptured").is_empty());
    let [one] = status.list("uncaptured") else { panic!("{:#}", status.0) };
    assert_eq!((&one["direction"], &one["destination"]), (&"inbound".into(), &"db".into()), "{one}");
    assert_eq!((&one["local"], &one["source"]), (&to.clone().into(), &"".into()), "{one}");
    let inode = container.enter_as(&mesh.b.host).network_inode();
    assert_eq!(one["namespace"], inode, "{one}");
    let shown = mesh.b.cli(&["status"]).ok();
    assert!(shown.contains(&format!("in net:[{inode}]")), "{shown}");
    assert!(before.ended().is_none(), "it goes on");

    let said = mesh.b.cli(&["cut"]).ok();
    assert!(said.starts_with("cut (unmanaged) → db  "), "{said}");
    before.wait();
    mesh.b.wait_status("nothing left", |s| s.list("uncaptured").is_empty());
}
