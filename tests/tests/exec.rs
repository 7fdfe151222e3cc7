//! `meshnode exec` as somebody at a laptop types it: who it is, what was refused and why, and a daemon for one command.

use std::process::Command;

use mesh_tests::{
    config::{API_PORT, CA_FILE, TOKEN},
    fixture::{Mesh, Scene, serve, share_ca},
    host::Host,
    meshnode::binary,
    process::{Output, Process},
    program::postgres::Postgres,
    require_root, wait,
};
use nix::sys::signal::Signal;

/// A host without daemon that has the CA of the control plane.
#[track_caller]
fn laptop(mesh: &Mesh) -> Host {
    let host = mesh.net.host("laptop");
    share_ca(&mesh.a, &host);
    host
}

/// The words of `exec --temporary` up to the command; `token` is that of the control plane on A.
fn temporary(mesh: &Mesh, service: &str, token: &str) -> Vec<String> {
    let address = std::net::SocketAddr::new(mesh.a.host.ip(mesh.family), API_PORT);
    let binary = binary();
    let words = [
        binary.to_str().expect("UTF-8"),
        "exec",
        "--temporary",
        "--http-addr",
        &format!("https://{address}"),
        "--ca-file",
        CA_FILE,
        "--token",
        token,
        "--service",
        service,
    ];
    words.map(str::to_owned).to_vec()
}

#[track_caller]
fn run(host: &Host, words: &[String], command: &[&str]) -> Output {
    let all: Vec<&str> =
        words.iter().map(String::as_str).chain(["--"]).chain(command.iter().copied()).collect();
    host.run("", &all)
}

#[track_caller]
fn spawn(host: &Host, words: &[String], command: &[&str]) -> Process {
    let all: Vec<&str> =
        words.iter().map(String::as_str).chain(["--"]).chain(command.iter().copied()).collect();
    let spawned: Command = host.command("", &all);
    Process::spawn(spawned, &host.log_file("exec"))
}

fn psql<'a>(address: &'a str, query: &'a str) -> Vec<&'a str> {
    vec!["psql", "-h", address, "-p", "5432", "-U", "postgres", "-tAc", query]
}

/// Folders, pins and cgroups of temporary daemons on the host; empty when nothing is left.
#[track_caller]
fn left(host: &Host) -> String {
    let look = "ls -d /run/meshnode-exec/* /sys/fs/bpf/meshnode-exec-* /sys/fs/cgroup/meshnode.temporary/ \
                /sys/fs/cgroup/unified/meshnode.temporary/ 2>/dev/null";
    host.run("", &["sh", "-c", look]).stdout
}

#[test]
fn exec_says_who_the_command_is_and_what_was_refused_it_with_the_next_step() {
    require_root!();
    let mesh = Scene::new(&[("db", 5432)]).start();
    let _db = Postgres::start(&mesh.b.host, "db", 5432);
    mesh.allow("web", "db", 5432);
    let address = mesh.b_address();
    let query = psql(&address, "select 6 * 7");
    let exec = |service: &str, how: &str| {
        mesh.a.cli(&[&["exec", "--service", service, how, "--"], &query[..]].concat())
    };
    let said = exec("web", "--explain");
    assert_eq!(said.stdout, "42\n", "{said}");
    assert!(
        said.stderr.contains("running as spiffe://") && said.stderr.contains("/svc/web, certified for "),
        "{said}"
    );
    assert!(said.stderr.contains("it may connect to db"), "{said}");
    assert!(!said.stderr.contains("denied"), "{said}");

    let said = exec("other", "--explain");
    assert_eq!(said.status.code(), Some(2), "psql's own code: {said}");
    assert!(said.stderr.contains("denied: other → db (") && said.stderr.contains("by psql"), "{said}");
    assert!(said.stderr.contains("To allow it: meshnode intention create other db"), "{said}");
    // Without a terminal, nothing is added to what the command says.
    assert!(!exec("other", "--quiet").stderr.contains("meshnode"), "quiet is quiet");
    let plain = mesh.a.cli(&[&["exec", "--service", "other", "--"], &query[..]].concat());
    assert!(!plain.stderr.contains("meshnode:"), "{plain}");
}

#[test]
fn one_command_on_a_host_without_daemon_reaches_the_mesh_and_leaves_nothing() {
    require_root!();
    let mesh = Scene::new(&[("db", 5432)]).start();
    let _db = Postgres::start(&mesh.b.host, "db", 5432);
    mesh.allow("web", "db", 5432);
    let laptop = laptop(&mesh);
    let address = mesh.b_address();
    let capture = mesh.net.capture(&laptop);
    let said = run(&laptop, &temporary(&mesh, "web", TOKEN), &psql(&address, "select 'in' || 'side'"));
    assert_eq!(said.stdout, "inside\n", "{said}");
    assert!(said.stderr.contains("starting a daemon for this command"), "{said}");
    let trace = capture.stop();
    assert_eq!((trace.bytes_at(5432), trace.count("inside")), (0, 0), "all of it is TLS");
    assert_eq!(left(&laptop), "");

    let said = run(&laptop, &temporary(&mesh, "other", TOKEN), &psql(&address, "select 1"));
    assert_eq!(said.status.code(), Some(2), "{said}");
    assert!(said.stderr.contains("denied: other → db"), "{said}");
    assert!(said.stderr.contains("intentions let other connect to nothing"), "{said}");
    let said = run(&laptop, &temporary(&mesh, "web", TOKEN), &["sh", "-c", "exit 7"]);
    assert_eq!(said.status.code(), Some(7), "{said}");
    let said = run(&laptop, &temporary(&mesh, "web", TOKEN), &["no-such-command"]);
    assert_eq!(said.status.code(), Some(127), "{said}");
    assert_eq!(left(&laptop), "");
}

#[test]
fn what_stands_in_the_way_of_a_temporary_daemon_is_named_and_the_command_does_not_run() {
    require_root!();
    let mesh = Scene::new(&[("db", 5432)]).start();
    let laptop = laptop(&mesh);
    let command = ["echo", "it ran"];
    let refused = |words: &[String], why: &str| {
        let said = run(&laptop, words, &command);
        assert_eq!((said.status.code(), said.stdout.as_str()), (Some(125), ""), "{said}");
        assert!(said.stderr.contains(why), "{why}: {said}");
        assert_eq!(left(&laptop), "", "{why}");
    };
    let good = temporary(&mesh, "web", TOKEN);
    let started = std::time::Instant::now();
    refused(
        &temporary(&mesh, "web", "wrong-token-0123456789"),
        "refuses: Permission denied: the token is wrong",
    );
    assert!(
        started.elapsed() < std::time::Duration::from_secs(5),
        "nobody waits for a token to become right"
    );
    let with = |from: &str, to: &str| {
        good.iter().map(|w| if w == from { to.to_owned() } else { w.clone() }).collect::<Vec<_>>()
    };
    let address = good[4].clone();
    refused(&with(&address, "https://10.77.0.99:8501"), "10.77.0.99");
    refused(&with(&address, "http://10.77.0.99:8500"), "in clear");
    refused(&with(CA_FILE, "/etc/hosts"), "/etc/hosts");
    let without_plane: Vec<String> = good
        .iter()
        .filter(|w| !["--http-addr", &address, "--ca-file", CA_FILE, "--token", TOKEN].contains(&w.as_str()))
        .cloned()
        .collect();
    refused(&without_plane, "needs a control plane");

    // A host that has a daemon needs none for one command.
    let mut on_a = temporary(&mesh, "web", TOKEN);
    on_a[6] = "/var/lib/meshnode/api-ca.pem".into();
    let said = run(&mesh.a.host, &on_a, &command);
    assert_eq!(said.status.code(), Some(125), "{said}");
    assert!(said.stderr.contains("a daemon runs on this host"), "{said}");
}

#[test]
fn signals_reach_the_command_and_its_end_is_the_end_of_the_daemon() {
    require_root!();
    let mesh = Scene::new(&[("db", 5432)]).start();
    let laptop = laptop(&mesh);
    let trap = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let mut exec = spawn(&laptop, &temporary(&mesh, "web", TOKEN), &["sh", "-c", trap]);
    wait::until_true("the command to run", || exec.log().contains("ready"));
    exec.signal(Signal::SIGTERM);
    assert_eq!(exec.wait().code(), Some(9), "{}", exec.log());
    assert!(exec.log().contains("got it"), "{}", exec.log());
    assert_eq!(left(&laptop), "");
}

#[test]
fn interrupt_before_the_command_runs_leaves_nothing_and_one_for_the_command_ends_it() {
    require_root!();
    let mesh = Scene::new(&[("db", 5432)]).start();
    let laptop = laptop(&mesh);
    for said in ["starting a daemon", "running as"] {
        let mut exec = spawn(&laptop, &temporary(&mesh, "web", TOKEN), &["sleep", "20"]);
        wait::until_true(said, || exec.log().contains(said));
        exec.signal(Signal::SIGINT);
        if said == "running as" {
            // A terminal sends it to the command as well, which is not in its process group here. Once it is the command: what
            // is about to become it still takes it as `exec` does.
            let end = "for i in $(seq 200); do \
                       p=$(cat /sys/fs/cgroup/meshnode.temporary/*/meshnode.exec/web/cgroup.procs \
                       /sys/fs/cgroup/unified/meshnode.temporary/*/meshnode.exec/web/cgroup.procs 2>/dev/null); \
                       if [ -n \"$p\" ] && [ \"$(cat /proc/$p/comm)\" = sleep ]; then kill -INT $p; break; fi; \
                       sleep 0.05; done";
            laptop.run("", &["sh", "-c", end]);
        }
        assert_eq!(exec.wait().code(), Some(130), "{said}: {}", exec.log());
        assert_eq!(left(&laptop), "", "{said}: {}", exec.log());
    }
}

#[test]
fn programs_that_outlive_a_killed_exec_are_denied_the_mesh_until_they_are_gone() {
    require_root!();
    let mesh = Scene::new(&[("echo", 7001)]).start();
    let _server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
    mesh.allow("web", "echo", 7001);
    let laptop = laptop(&mesh);
    let probe = mesh_tests::space::tool("probe");
    let connect = format!("{} connect {} --send x --half-close", probe.display(), mesh.at(7001));
    // Connects again and again, as long as it lives; its parent is killed.
    let script = format!("echo ready; for i in $(seq 600); do {connect}; sleep 0.1; done");
    let mut exec = spawn(&laptop, &temporary(&mesh, "web", TOKEN), &["sh", "-c", &script]);
    wait::until_true("the command to connect", || exec.log().contains("\"received\":\"x\""));
    exec.signal(Signal::SIGKILL);
    exec.wait();
    let capture = mesh.net.capture(&laptop);
    wait::until("the orphan to be denied", || {
        let log = exec.log();
        let last = log.lines().rfind(|line| line.starts_with('{')).unwrap_or_default().to_owned();
        if last.contains("EPERM") { Ok(()) } else { Err(log) }
    });
    let trace = capture.stop();
    assert_eq!(trace.bytes_at(7001), 0, "never in clear");
    assert_ne!(left(&laptop), "");
    // Ends what is in the cgroup, by its list of processes.
    let end = "for p in $(cat /sys/fs/cgroup/meshnode.temporary/*/meshnode.exec/web/cgroup.procs \
               /sys/fs/cgroup/unified/meshnode.temporary/*/meshnode.exec/web/cgroup.procs 2>/dev/null); do kill -9 $p; done";
    laptop.run("", &["sh", "-c", end]);
    wait::until("the next one to clear away", || {
        let said = run(&laptop, &temporary(&mesh, "web", TOKEN), &["true"]);
        let left = left(&laptop);
        if left.is_empty() && said.status.success() { Ok(()) } else { Err(format!("{left}\n{said}")) }
    });
}
