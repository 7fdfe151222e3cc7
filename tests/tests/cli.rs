//! What people type: `status`, `exec`, `intention`, `service`, `doctor`, and the exit codes that scripts read.

use mesh_tests::{
    config::{CONFIG, Service},
    fixture::{Scene, welcoming},
    meshnode::binary,
    program::postgres::{Postgres, psql},
    require_root, wait,
};

#[test]
fn status_shows_a_live_flow_from_both_sides() {
    require_root!();
    let (mesh, _server) = welcoming("echo", 7001);
    let to = mesh.at(7001);
    let live = mesh.a.host.spawn_probe("web", &["connect", &to, "--send", "12345", "--wait", "60000"]);
    let status = mesh.a.wait_status("the flow with its bytes", |s| {
        s.flows("web", "echo").first().is_some_and(|f| f["bytes_sent"] == 5 && f["bytes_received"] == 12)
    });
    let flow = status.flows("web", "echo")[0];
    assert_eq!(flow["program"], "probe");
    assert_eq!(flow["pid"], live.pid());
    assert_eq!(flow["direction"], "outbound");
    assert_eq!(flow["state"], "mtls");
    assert_eq!(flow["original_dst"], to);
    assert_eq!(flow["instance"], format!("{}:{}", mesh.b.host.v4, mesh.mesh_port("echo")));
    assert!(flow["age_s"].is_u64());

    let workload = status.entry("workloads", "service", "web").unwrap();
    assert!(workload["cgroups"].as_array().unwrap().iter().any(|path| path == "/web"), "{workload}");
    assert_eq!(workload["processes"], 1);
    let certificate = status.entry("certificates", "service", "web").unwrap();
    assert!(certificate["spiffe_id"].as_str().unwrap().ends_with("/ns/default/dc/dc1/svc/web"));
    assert!(certificate["seconds_left"].as_i64().unwrap() > 3600);
    assert_eq!(status.0["control_plane"]["kind"], "embedded");
    assert_eq!(status.0["control_plane"]["connected"], true);

    let status = mesh.b.wait_status("the other end", |s| s.flows("web", "echo").len() == 1);
    let flow = status.flows("web", "echo")[0];
    assert_eq!(flow["direction"], "inbound");
    assert_eq!(flow["state"], "mtls");
    assert_eq!(status.0["control_plane"]["kind"], "remote");
    let service = status.entry("services", "name", "echo").unwrap();
    assert_eq!((service["port"].as_u64(), service["guard"].as_str()), (Some(7001), Some("strict")));
    mesh.b.wait_status("its health", |s| {
        s.entry("services", "name", "echo").is_some_and(|s| s["health"] == "passing")
    });

    let text = mesh.a.cli(&["status"]).ok();
    for word in ["web", "echo", "probe", "mTLS", "7001"] {
        assert!(text.contains(word), "`{word}` is not in\n{text}");
    }
    let other = mesh.a.cli(&["status", "--service", "other"]).ok();
    assert!(!other.contains("probe"), "{other}");
}

#[test]
fn attachment_that_is_gone_is_seen_to_be_gone() {
    require_root!();
    let (mesh, _server) = welcoming("echo", 7001);
    assert!(mesh.a.status().list("attachments").iter().all(|a| a["state"] == "attached"));
    // The pins of the links are what holds them: without, and without the daemon's own reference, they detach.
    mesh.a.host.run("", &["sh", "-c", "rm -r /sys/fs/bpf/meshnode"]).ok();
    let status = mesh.a.wait_status("the loss to be seen", |s| {
        s.list("attachments").iter().all(|a| a["state"] == "missing")
    });
    let degraded = status.0["degraded"].to_string();
    assert!(degraded.contains("cgroup/connect4 is not in effect"), "{degraded}");
}

#[test]
fn exec_runs_one_command_as_a_service_and_keeps_its_exit_code() {
    require_root!();
    let mesh = Scene::new(&[("db", 5432)]).start();
    let _db = Postgres::start(&mesh.b.host, "db", 5432);
    mesh.allow("web", "db", 5432);
    let address = mesh.b_address();
    let query = psql(&address, "5432", "select 6 * 7");
    let exec = |service: &str, command: &[&str]| {
        mesh.a.cli(&[&["exec", "--service", service, "--"], command].concat())
    };
    assert_eq!(exec("web", &query).ok(), "42\n");
    assert!(exec("other", &query).fails().contains("Operation not permitted"));
    assert_eq!(exec("web", &["sh", "-c", "exit 7"]).status.code(), Some(7));
    assert_eq!(exec("web", &["no-such-command"]).status.code(), Some(127));
    let refused = exec("nobody", &["true"]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(refused.stderr.contains("nobody"), "{refused}");
}

#[test]
fn intention_commands_say_yes_and_no_by_exit_code() {
    require_root!();
    let (mesh, _server) = welcoming("echo", 7001);
    let a = &mesh.a;
    assert_eq!(a.cli(&["intention", "check", "web", "echo"]).status.code(), Some(0));
    assert_eq!(a.cli(&["intention", "check", "other", "echo"]).status.code(), Some(2));
    let twice = a.cli(&["intention", "create", "web", "echo"]);
    assert!(!twice.status.success(), "{twice}");
    a.cli(&["intention", "create", "--deny", "*", "echo"]).ok();
    let list = a.cli(&["intention", "list"]).ok();
    let at = |words: &str| list.lines().position(|line| line.contains(words)).unwrap_or(usize::MAX);
    assert!(at("web") < at("*"), "the one that counts first comes first:\n{list}");
    a.cli(&["intention", "delete", "web", "echo"]).ok();
    a.cli(&["intention", "delete", "web", "echo"]).fails();
    assert_eq!(a.cli(&["intention", "check", "web", "echo"]).status.code(), Some(2));
    let usage = a.cli(&["intention", "create", "we/b", "echo"]);
    assert_eq!(usage.status.code(), Some(64), "{usage}");
    assert!(usage.stderr.contains("we/b"), "{usage}");
    // The second host's command line speaks to the first one's server.
    assert_eq!(mesh.b.cli(&["intention", "check", "other", "echo"]).status.code(), Some(2));
}

#[test]
fn services_of_both_hosts_are_listed() {
    require_root!();
    let (mesh, _server) = welcoming("echo", 7001);
    mesh.a.cli(&["service", "register", "--name", "legacy", "--port", "9999"]).ok();
    for node in [&mesh.a, &mesh.b] {
        let list = node.cli(&["service", "list"]).ok();
        assert!(list.contains("echo") && list.contains("legacy"), "{list}");
    }
}

#[test]
fn commands_without_a_daemon_say_so() {
    require_root!();
    let (mut mesh, _server) = welcoming("echo", 7001);
    mesh.a.kill9();
    let said = mesh.a.cli(&["status"]);
    assert_eq!(said.status.code(), Some(69), "{said}");
    assert!(said.stderr.contains("not running"), "{said}");
    let said = mesh.a.cli(&["exec", "--service", "web", "--", "true"]);
    assert_eq!(said.status.code(), Some(125), "{said}");
}

#[test]
fn doctor_finds_a_healthy_host_healthy_and_names_what_is_wrong() {
    require_root!();
    let (mesh, _server) = welcoming("echo", 7001);
    let said = mesh.a.cli(&["doctor"]);
    assert!(said.status.success(), "{said}");
    for what in ["kernel", "BPF", "cgroup", "bpffs", "clock"] {
        assert!(said.stdout.contains(what), "`{what}` is not in {said}");
    }
    mesh.a.host.write(CONFIG, "same_host = \"sometimes\"\n");
    let said = mesh.a.cli(&["doctor"]);
    assert!(!said.status.success(), "{said}");
    assert!(said.stdout.contains("same_host"), "{said}");
}

#[test]
fn wrong_configuration_is_refused_with_file_line_and_accepted_values() {
    require_root!();
    let mut scene = Scene::new(&[]);
    scene.on_a = vec![Service::client("web")];
    let mesh = scene.start();
    for (bad, words) in [
        ("same_host = \"sometimes\"", ["sometimes", "direct"]),
        ("drain_deadline = \"10 parsecs\"", ["drain_deadline", "10 parsecs"]),
        ("unknown_key = 1", ["unknown_key", "same_host"]),
        ("bpf_dir = \"relative\"", ["bpf_dir", "absolute"]),
    ] {
        mesh.a.host.write("/etc/meshnode/bad.toml", &format!("\n\n{bad}\n"));
        let binary = binary();
        let run = [binary.to_str().unwrap(), "run", "--config", "/etc/meshnode/bad.toml"];
        let said = mesh.a.host.run("", &run);
        assert_eq!(said.status.code(), Some(78), "{said}");
        assert!(said.stderr.contains("bad.toml:3:"), "the line is not named: {said}");
        for word in words {
            assert!(said.stderr.contains(word), "`{word}` is not in {said}");
        }
    }
    assert!(!mesh.a.host.read(CONFIG).is_empty());
}

#[test]
fn completions_and_man_pages_are_made() {
    require_root!();
    let (mesh, _server) = welcoming("echo", 7001);
    wait::until_true("a daemon", || mesh.a.cli(&["--version"]).status.success());
    assert!(mesh.a.cli(&["completions", "bash"]).ok().contains("meshnode"));
    assert!(mesh.a.cli(&["--help"]).ok().contains("status"));
}
