//! Attempts to use what the mesh put there: the outbound listener, a flow's identity, the mesh port, a protected port.
//!
//! Part of the set that `cargo xtask vm-test` runs on other kernels.

use std::io::{BufRead as _, BufReader, Write as _};

use mesh_tests::{
    config::Service,
    container::Container,
    fixture::{Mesh, Scene, connect, is_reset, serve, welcoming},
    host::Host,
    meshnode::{Meshnode, UNMANAGED},
    process::Process,
    require_root,
};
use serde_json::Value;

/// The address of a daemon's outbound listener on 127.0.0.1.
#[track_caller]
fn outbound_listener(node: &Meshnode) -> String {
    let status = node.status();
    let all = status.list("listeners").iter().filter(|l| l["role"] == "outbound");
    let mut on_v4 = all.filter_map(|l| l["address"].as_str()).filter(|a| a.starts_with("127.0.0.1:"));
    on_v4.next().unwrap_or_else(|| panic!("no outbound listener in {:#}", status.0)).to_owned()
}

#[track_caller]
fn assert_reset(said: &Value) {
    assert!(is_reset(said), "{said}");
}

#[test]
fn dialling_the_outbound_listener_is_reset_and_counted() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    let listener = outbound_listener(&mesh.a);
    for cgroup in [UNMANAGED, "web", "other", ""] {
        let before = mesh.a.status().ended("outbound", "not-captured");
        assert_reset(&connect(&mesh.a.host, cgroup, &listener, &["--send", "GET / HTTP/1.0\r\n\r\n"]));
        mesh.a.wait_status("the count", |s| s.ended("outbound", "not-captured") > before);
    }
}

#[test]
fn a_flows_source_port_is_worth_nothing_to_another_process() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    // A flow of web's, alive; its source port is the kernel's secret only as far as ss(8) tells it to everybody.
    let mut holder = hold(&mesh, "web");
    let port = captured_source_port(&mesh);
    let listener = outbound_listener(&mesh.a);
    for thief in ["other", UNMANAGED] {
        // The same port of another loopback address, which can be bound while the flow lives.
        let from = format!("127.0.0.2:{port}");
        assert_reset(&connect(&mesh.a.host, thief, &listener, &["--from", &from, "--send", "x"]));
        // The very same pair is taken.
        let from = format!("127.0.0.1:{port}");
        let said = connect(&mesh.a.host, thief, &listener, &["--from", &from]);
        assert_ne!(said["ok"], true, "{said}");
    }
    holder.signal(nix::sys::signal::Signal::SIGKILL);
    holder.wait();
    // A flow that is over, by a reset, so that the kernel does not keep its port for a minute.
    let said = mesh.connect("web", 5432, &["--read", "7", "--reset"]);
    let from = said["local"].as_str().unwrap().to_owned();
    mesh.a.wait_status("the end of the flow", |s| s.flows("web", "db").is_empty());
    assert_reset(&connect(&mesh.a.host, "other", &listener, &["--from", &from, "--send", "x"]));
}

/// Starts `probe connect` in A's cgroup and returns when its connection to the db is there, and stays.
#[track_caller]
fn hold(mesh: &Mesh, cgroup: &str) -> Process {
    let at = mesh.at(5432);
    // One of the scene's own would be taken for it.
    mesh.a.wait_status("no flow", |s| s.flows(cgroup, "db").is_empty());
    let mut holder = mesh.a.host.spawn_probe(cgroup, &["connect", &at, "--wait", "60000"]);
    mesh.a.wait_status("the held flow", |s| s.flows(cgroup, "db").len() == 1);
    assert!(holder.ended().is_none());
    holder
}

/// The local port of the one connection to the outbound listener, from `/proc/net/tcp`.
#[track_caller]
fn captured_source_port(mesh: &Mesh) -> u16 {
    let listener = outbound_listener(&mesh.a);
    let port: u16 = listener.rsplit_once(':').unwrap().1.parse().unwrap();
    let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", mesh.a.host.space().pid())).unwrap();
    let remote = format!(":{port:04X}");
    let mut lines = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let flow = lines.find(|f| f[2].ends_with(&remote) && f[3] == "01").expect("the captured connection");
    u16::from_str_radix(flow[1].rsplit_once(':').unwrap().1, 16).unwrap()
}

#[test]
fn plain_bytes_at_the_mesh_port_are_refused_and_counted() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    let to = format!("{}:{}", mesh.b.host.v4, mesh.mesh_port("db"));
    let before = mesh.b.status().ended("inbound", "plain-text");
    let said = connect(&mesh.a.host, UNMANAGED, &to, &["--send", "GET / HTTP/1.0\r\n\r\n"]);
    assert!(!said["received"].as_str().unwrap_or("").contains("welcome"), "{said}");
    assert_ne!(said["end"], "TIMEOUT", "{said}");
    mesh.b.wait_status("the count", |s| s.ended("inbound", "plain-text") > before);
}

#[test]
fn strict_guard_resets_cleartext_from_outside() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    let outsider = mesh.net.host("c");
    let before = mesh.b.status().counter("guarded");
    for address in
        [mesh.b.host.ip(mesh_tests::host::Family::V4), mesh.b.host.ip(mesh_tests::host::Family::V6)]
    {
        let to = std::net::SocketAddr::new(address, 5432).to_string();
        assert_reset(&connect(&outsider, "", &to, &["--send", "x"]));
    }
    let status = mesh.b.wait_status("the count", |s| s.counter("guarded") >= before + 2);
    let guarded = status.list("recent").iter().find(|f| f["state"] == "guarded").expect("a record of it");
    assert!(
        guarded["instance"].as_str().unwrap_or("").contains(&outsider.v4.to_string())
            || guarded["instance"].as_str().unwrap_or("").contains(&outsider.v6.to_string()),
        "{guarded}"
    );
}

#[test]
fn permissive_guard_lets_cleartext_pass_and_counts_it() {
    require_root!();
    let mut scene = Scene::new(&[]);
    scene.on_b = vec![Service::server("db", 5432).with("guard = \"permissive\"")];
    let mesh = scene.start();
    let _server = serve(&mesh.b.host, "db", 5432, &["greet", "welcome"]);
    let outsider = mesh.net.host("c");
    let said = connect(&outsider, "", &mesh.at(5432), &[]);
    assert_eq!(said["received"], "welcome", "{said}");
    mesh.b.wait_status("the count", |s| s.counter("guard_passed") > 0);
    let said = connect(&mesh.b.host, UNMANAGED, "127.0.0.1:5432", &[]);
    assert_eq!(said["received"], "welcome", "{said}");
    mesh.b.wait_status("the count", |s| s.counter("would_deny") > 0);
}

#[test]
fn protected_port_is_refused_from_the_same_host_on_every_address() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    let b = &mesh.b;
    let before = b.status().counter("denied_unmanaged");
    let targets = [
        "127.0.0.1:5432".to_owned(),
        "127.0.0.9:5432".to_owned(),
        "[::1]:5432".to_owned(),
        format!("{}:5432", b.host.v4),
        format!("[{}]:5432", b.host.v6),
        format!("[::ffff:{}]:5432", b.host.v4),
        "0.0.0.0:5432".to_owned(),
        "[::]:5432".to_owned(),
    ];
    for to in &targets {
        let said = connect(&b.host, UNMANAGED, to, &["--send", "x"]);
        assert_eq!(said["error"], "EPERM", "{to}: {said}");
    }
    b.wait_status("the count", |s| s.counter("denied_unmanaged") == before + targets.len() as u64);
}

#[test]
fn protected_port_is_refused_from_another_network_namespace() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    let container = Container::new(&mesh.b.host, 1, UNMANAGED);
    for to in [format!("{}:5432", container.gateway), mesh.at(5432)] {
        let said: Value =
            serde_json::from_str(&container.probe(&["connect", &to, "--send", "x"]).stdout).unwrap();
        assert_eq!(said["received"].as_str().unwrap_or(""), "", "{said}");
        let refused = ["EPERM", "ECONNRESET"].iter().any(|e| said["error"] == *e || said["end"] == *e);
        assert!(refused, "{to}: {said}");
    }
    let status = mesh.b.status();
    assert!(status.counter("denied_unmanaged") + status.counter("guarded") >= 2, "{:#}", status.0);
}

#[test]
fn child_in_another_session_stays_what_its_cgroup_is() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    let (to, probe) = (mesh.at(5432), mesh_tests::space::tool("probe"));
    let probe = probe.to_str().unwrap();
    let escape = ["setsid", "-w", "nohup", probe, "connect", &to, "--read", "7"];
    let said: Value = serde_json::from_str(&mesh.a.host.run("web", &escape).ok()).unwrap();
    assert_eq!(said["received"], "welcome");
    mesh.a.wait_status("its record", |s| s.recent("web", "db").iter().any(|f| f["program"] == "probe"));
    let said: Value = serde_json::from_str(&mesh.a.host.run("other", &escape).stdout).unwrap();
    assert_eq!(said["error"], "EPERM", "{said}");
}

#[test]
fn cgroup_below_a_workloads_is_the_workload_too() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    let said = mesh.connect("web/deep/er", 5432, &["--read", "7"]);
    assert_eq!(said["received"], "welcome", "{said}");
    assert_eq!(mesh.connect("other/deep/er", 5432, &[])["error"], "EPERM");
}

#[test]
fn moving_out_of_the_cgroup_ends_the_identity_for_new_connections() {
    require_root!();
    let (mesh, _server) = welcoming("db", 5432);
    let to = mesh.at(5432);
    let probe = mesh_tests::space::tool("probe");
    let script = format!(
        "read _; {probe} connect {to} --read 7; echo $$ > /sys/fs/cgroup/other/cgroup.procs; {probe} connect {to}",
        probe = probe.display(),
    );
    let command = mesh.a.host.command("web", &["sh", "-c", &script]);
    let mut shell = Process::spawn_piped(command, &mesh.a.host.log_file("sh"));
    shell.stdin().unwrap().write_all(b"go\n").unwrap();
    let lines: Vec<String> = BufReader::new(shell.stdout().unwrap()).lines().map(Result::unwrap).collect();
    let said: Vec<Value> = lines.iter().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(said[0]["received"], "welcome", "{said:?}");
    assert_eq!(said[1]["error"], "EPERM", "{said:?}");
}

/// Says what binding `at` in the cgroup `cgroup` of A comes to: `bound`, or the error's number.
#[track_caller]
fn bind(host: &Host, cgroup: &str, at: &str) -> String {
    let script = "import socket, sys\nhost, port = sys.argv[1].rsplit(':', 1)\nfamily = socket.AF_INET6 if ':' in host else socket.AF_INET\ns = socket.socket(family)\ns.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\ntry:\n    s.bind((host, int(port)))\n    s.listen()\n    print('bound')\nexcept OSError as e:\n    print(e.errno)\n";
    host.run(cgroup, &["python3", "-c", script, at]).ok().trim().to_owned()
}

#[test]
fn protected_port_is_bound_by_its_service_and_by_nobody_else() {
    require_root!();
    let mesh = Scene::new(&[("db", 5432), ("cache", 6379)]).start();
    let host = &mesh.b.host;
    for at in ["127.0.0.1:5432", "0.0.0.0:5432", "::1:5432", "::ffff:127.0.0.1:5432"] {
        assert_eq!(bind(host, "db", at), "bound", "{at}");
        assert_eq!(bind(host, UNMANAGED, at), "1", "{at}");
        assert_eq!(bind(host, "cache", at), "1", "{at}");
    }
    assert_eq!(bind(host, UNMANAGED, "127.0.0.1:5433"), "bound");
    mesh.b.wait_status("the count", |s| s.counter("denied_bind") == 8);
}

#[test]
fn mptcp_which_no_hook_sees_is_not_to_be_had() {
    require_root!();
    let mesh = Scene::new(&[("db", 5432)]).start();
    let script = "import socket\ntry:\n    socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)\n    print('made')\nexcept OSError as e:\n    print(e.errno)\n";
    for cgroup in ["web", UNMANAGED] {
        // EPROTONOSUPPORT: what a kernel without MPTCP says.
        assert_eq!(mesh.a.host.run(cgroup, &["python3", "-c", script]).ok(), "93\n", "{cgroup}");
    }
    assert_eq!(mesh.a.status().counter("denied_mptcp"), 2);
}
