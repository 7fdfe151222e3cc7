//! Workloads in network namespaces of their own, as containers are: captured like everybody else, and let go of.

use mesh_tests::{
    container::Container,
    fixture::{Mesh, Scene, is_reset, serve, welcoming},
    meshnode::Meshnode,
    process::Process,
    require_root, wait,
};
use serde_json::Value;

const SECRET: &str = "a-line-that-must-not-cross-in-clear";

/// `web` may connect to `echo` on B.
#[track_caller]
fn scene() -> (Mesh, Process) {
    let mesh = Scene::new(&[("echo", 7001)]).start();
    let server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
    mesh.allow("web", "echo", 7001);
    (mesh, server)
}

/// Lets plain packets of containers out, so that whatever is not captured would get through.
#[track_caller]
fn forward(node: &Meshnode) {
    node.host.run("", &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]).ok();
}

#[track_caller]
fn connect(container: &Container, to: &str, options: &[&str]) -> Value {
    let said = container.probe(&[&["connect", to], options].concat());
    serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("probe said no JSON: {e}: {said}"))
}

/// The namespaces, other than the host's, that the daemon listens in.
fn served(node: &Meshnode) -> usize {
    let status = node.status();
    let roles = status.list("listeners").iter().filter_map(|l| l["role"].as_str());
    roles.filter(|role| role.starts_with("outbound net:")).collect::<std::collections::BTreeSet<_>>().len()
}

#[track_caller]
fn until_served(node: &Meshnode, count: usize) {
    wait::until("the namespaces that are served", || match served(node) {
        n if n == count => Ok(()),
        n => Err(format!("{n}\n{}", node.log())),
    });
}

#[test]
fn workload_in_its_own_network_namespace_is_captured() {
    require_root!();
    let (mesh, _server) = scene();
    forward(&mesh.a);
    let container = Container::new(&mesh.a.host, 1, "web/container");
    let capture = mesh.net.capture(&mesh.a.host);
    let to = mesh.at(7001);
    until_served(&mesh.a, 1);
    let said = connect(&container, &to, &["--send", SECRET, "--half-close"]);
    assert_eq!(said["received"], SECRET, "{said}\n{}", mesh.logs());
    assert_eq!(said["peer"], to, "it sees whom it dialled: {said}");
    let trace = capture.stop();
    assert_eq!((trace.bytes_at(7001), trace.count(SECRET)), (0, 0));
}

#[test]
fn other_workloads_container_is_denied_as_everywhere() {
    require_root!();
    let (mesh, _server) = scene();
    forward(&mesh.a);
    let container = Container::new(&mesh.a.host, 1, "other/container");
    until_served(&mesh.a, 1);
    let said = connect(&container, &mesh.at(7001), &["--send", SECRET]);
    assert_eq!(said["error"], "EPERM", "{said}");
}

#[test]
fn container_of_nobody_is_none_of_the_daemons_business() {
    require_root!();
    let (mesh, _server) = scene();
    let nobody = Container::new(&mesh.a.host, 1, "unmanaged/container");
    connect(&nobody, &format!("{}:1", nobody.gateway), &[]);
    let _web = Container::new(&mesh.a.host, 2, "web/container");
    // Whoever serves the second has looked at the first.
    until_served(&mesh.a, 1);
    connect(&nobody, &format!("{}:1", nobody.gateway), &[]);
    let third = Container::new(&mesh.a.host, 3, "web/container-3");
    until_served(&mesh.a, 2);
    drop(third);
    until_served(&mesh.a, 1);
}

#[test]
fn status_and_containers_that_come_and_go_do_not_stop_each_other() {
    require_root!();
    let (mesh, _server) = scene();
    std::thread::scope(|scope| {
        let containers = scope.spawn(|| {
            for round in 0..6 {
                // The kernel takes a namespace's links away in its own time: each round has a name of its own.
                let n = round + 1;
                let container = Container::new(&mesh.a.host, n, &format!("web/container-{n}"));
                until_served(&mesh.a, 1);
                drop(container);
                until_served(&mesh.a, 0);
            }
        });
        while !containers.is_finished() {
            mesh.a.status();
        }
    });
}

#[test]
fn container_that_connects_the_moment_it_is_there_is_captured_or_denied_and_never_in_clear() {
    require_root!();
    let (mesh, _server) = scene();
    forward(&mesh.a);
    let capture = mesh.net.capture(&mesh.a.host);
    let to = mesh.at(7001);
    for n in 1..=5 {
        let container = Container::new(&mesh.a.host, n, &format!("web/container-{n}"));
        let said = connect(&container, &to, &["--send", SECRET, "--half-close"]);
        assert!(said["received"] == SECRET || said["error"] == "EPERM", "{said}");
    }
    let trace = capture.stop();
    assert_eq!((trace.bytes_at(7001), trace.count(SECRET)), (0, 0));
}

#[test]
fn namespace_is_let_go_of_when_its_last_workload_has_ended() {
    require_root!();
    let (mesh, _server) = scene();
    let container = Container::new(&mesh.a.host, 1, "web/container");
    until_served(&mesh.a, 1);
    let said = connect(&container, &mesh.at(7001), &["--send", "x", "--half-close"]);
    assert_eq!(said["received"], "x", "{said}");
    let links = || mesh.a.host.run("", &["ip", "-brief", "link"]).ok();
    assert!(links().contains("ctr1"));
    drop(container);
    until_served(&mesh.a, 0);
    // The host's end of the pair goes with the namespace: nobody keeps it alive.
    wait::until("the namespace's end", || {
        let links = links();
        if links.contains("ctr1") { Err(links) } else { Ok(()) }
    });
}

#[test]
fn dialling_the_listener_inside_a_container_is_reset_and_brings_nothing() {
    require_root!();
    let (mesh, _server) = scene();
    let container = Container::new(&mesh.a.host, 1, "web/container");
    until_served(&mesh.a, 1);
    let status = mesh.a.status();
    let inside = status.list("listeners").iter().find(|l| {
        l["role"].as_str().is_some_and(|r| r.starts_with("outbound net:"))
            && l["address"].as_str().is_some_and(|a| a.starts_with("127."))
    });
    let address = inside.expect("it is served")["address"].as_str().expect("text");
    let said = connect(&container, address, &["--send", "hello", "--read", "1"]);
    assert!(is_reset(&said), "{said}");
}

#[test]
fn restarted_daemon_serves_containers_again_and_a_dead_one_leaves_no_way_out_in_clear() {
    require_root!();
    let (mut mesh, _server) = scene();
    forward(&mesh.a);
    let container = Container::new(&mesh.a.host, 1, "web/container");
    until_served(&mesh.a, 1);
    let to = mesh.at(7001);
    mesh.a.kill9();
    let capture = mesh.net.capture(&mesh.a.host);
    assert_eq!(connect(&container, &to, &["--send", SECRET])["error"], "EPERM");
    let trace = capture.stop();
    assert_eq!((trace.bytes_at(7001), trace.count(SECRET)), (0, 0));
    mesh.a.run();
    until_served(&mesh.a, 1);
    wait::until("the container to connect", || {
        let said = connect(&container, &to, &["--send", SECRET, "--half-close"]);
        if said["received"] == SECRET { Ok(()) } else { Err(said.to_string()) }
    });
}

#[test]
fn revocation_cuts_a_containers_live_flow() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    let container = Container::new(&mesh.a.host, 1, "web/container");
    until_served(&mesh.a, 1);
    let probe = mesh_tests::space::tool("probe");
    let to = mesh.at(5432);
    let command = container.command(&[probe.to_str().expect("UTF-8"), "connect", &to, "--wait", "60000"]);
    let mut live = Process::spawn_piped(command, &mesh.a.host.log_file("live"));
    mesh.a.wait_status("the live flow", |s| s.flows("web", "db").len() == 1);
    mesh.a.delete_intention("web", "db");
    live.wait();
    // B may have cut it before A denies the next one.
    wait::until("the container to be denied", || match connect(&container, &to, &["--wait", "50"]) {
        said if said["error"] == "EPERM" => Ok(()),
        said => Err(said.to_string()),
    });
}
