//! The harness itself: what the other suites rely on, shown without a daemon. The searches for plaintext mean something
//! only because the same search finds it here.

use std::{process::Command, time::Duration};

use mesh_tests::{
    container::Container,
    host::Family,
    janitor,
    net::Network,
    program::{
        nginx::Nginx,
        postgres::{Postgres, psql},
        redis::Redis,
        sshd::Sshd,
    },
    require_root,
    space::Options,
    wait,
};

#[test]
fn psql_reaches_postgres_in_clear_and_the_capture_sees_every_byte() {
    require_root!();
    let net = Network::new();
    let (a, b) = (net.host("a"), net.host("b"));
    let _db = Postgres::start(&b, "db", 5432);
    let capture = net.capture(&a);
    for family in [Family::V4, Family::V6] {
        let address = b.ip(family).to_string();
        let answer = a.run("web", &psql(&address, "5432", "select 'the plain ' || 'text'")).ok();
        assert_eq!(answer, "the plain text\n");
    }
    let trace = capture.stop();
    assert!(trace.bytes_at(5432) > 0);
    assert!(trace.count("the plain text") >= 2 * 2, "once in a packet, once in a stream, for each family");
    let refused = std::panic::catch_unwind(|| trace.assert_secret(5432, &["the plain text"]));
    assert!(refused.is_err(), "the search must fail where there is plaintext");
    let refused = std::panic::catch_unwind(|| trace.assert_tls13(5432));
    assert!(refused.is_err(), "PostgreSQL's protocol is not TLS 1.3");
}

#[test]
fn programs_start_and_answer() {
    require_root!();
    let net = Network::new();
    let (a, b) = (net.host("a"), net.host("b"));
    let address = b.v4.to_string();
    let _cache = Redis::start(&b, "cache", 6379);
    assert_eq!(a.run("web", &["redis-cli", "-h", &address, "ping"]).ok(), "PONG\n");
    let _site = Nginx::start(&b, "site", 80, &[("hello.txt", "hello\n")]);
    assert_eq!(a.run("web", &["curl", "-s", &format!("http://{address}/hello.txt")]).ok(), "hello\n");
    let sshd = Sshd::start(&b, "sshd", 22);
    let ssh = sshd.ssh(&address, "hostname");
    let words: Vec<&str> = ssh.iter().map(String::as_str).collect();
    assert_eq!(a.run("web", &words).ok(), "b\n");
}

#[test]
fn host_has_its_own_cgroup_root_network_name_and_files() {
    require_root!();
    let net = Network::new();
    let (a, b) = (net.host("a"), net.host("b"));
    assert_eq!(a.run("web", &["grep", "^0::", "/proc/self/cgroup"]).ok(), "0::/web\n");
    assert_eq!(a.run("", &["grep", "^0::", "/proc/self/cgroup"]).ok(), "0::/\n");
    assert_eq!(a.run("", &["uname", "-n"]).ok(), "a\n");
    a.write("/etc/meshnode/x", "of a");
    assert_eq!(a.run("", &["cat", "/etc/meshnode/x"]).ok(), "of a");
    b.run("", &["cat", "/etc/meshnode/x"]).fails();
    assert!(!std::path::Path::new("/etc/meshnode/x").exists());
    assert_eq!(
        a.run("", &["stat", "-fc", "%T", "/sys/fs/bpf", "/sys/fs/cgroup"]).ok(),
        "bpf_fs\ncgroup2fs\n"
    );
    assert_eq!(a.run("", &["ls", "/sys/class/net"]).ok(), "eth0\nlo\n");
    a.run("", &["mkdir", "/sys/fs/bpf/meshnode"]).ok();
    b.run("", &["test", "-e", "/sys/fs/bpf/meshnode"]).fails();
    assert_eq!(a.run("", &["id", "-un", "postgres"]).ok(), "postgres\n");
}

#[test]
fn hybrid_host_has_cgroup_v2_where_hybrid_machines_have_it() {
    require_root!();
    let net = Network::with(Options { hybrid: true, ..Options::default() });
    let a = net.host("a");
    let seen = a.run("", &["stat", "-fc", "%T", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"]).ok();
    assert_eq!(seen, "tmpfs\ncgroup2fs\n");
}

#[test]
fn container_has_its_own_network_in_its_hosts_cgroup_tree() {
    require_root!();
    let net = Network::new();
    let a = net.host("a");
    let container = Container::new(&a, 1, "docker/c1");
    assert_eq!(container.run(&["grep", "^0::", "/proc/self/cgroup"]).ok(), "0::/docker/c1\n");
    let mut server = a.spawn_probe("srv", &["serve", "echo", "0.0.0.0:7000"]);
    wait::until("the server", || mesh_tests::program::listens(&a, 7000));
    let at = format!("{}:7000", container.gateway);
    let said = container.probe(&["connect", &at, "--send", "hi", "--half-close"]).ok();
    assert!(said.contains(r#""received":"hi""#), "{said}");
    container.probe(&["connect", "127.0.0.1:7000"]).fails();
    assert!(server.ended().is_none());
}

#[test]
fn probe_reports_ends_and_errors() {
    require_root!();
    let net = Network::new();
    let (a, b) = (net.host("a"), net.host("b"));
    let servers: Vec<_> = [("echo", "7001"), ("count", "7002"), ("reset", "7003")]
        .map(|(what, port)| b.spawn_probe("srv", &["serve", what, &format!("[::]:{port}")]))
        .into();
    wait::until("the servers", || {
        [7001, 7002, 7003].iter().try_for_each(|p| mesh_tests::program::listens(&b, *p))
    });
    let connect = |port: u16, more: &[&str]| -> serde_json::Value {
        let at = format!("{}:{port}", b.v4);
        let words: Vec<&str> = ["connect", &at].into_iter().chain(more.iter().copied()).collect();
        serde_json::from_str(&a.probe("web", &words).stdout).unwrap()
    };
    assert_eq!(connect(7001, &["--send", "echo", "--half-close"])["received"], "echo");
    assert_eq!(connect(7002, &["--send", "12345", "--half-close"])["received"], "5");
    assert_eq!(connect(7003, &["--send", "x"])["end"], "ECONNRESET");
    assert_eq!(connect(7004, &[])["error"], "ECONNREFUSED");
    let flood = a.probe("web", &["flood", &format!("{}:7001", b.v4), "200"]).ok();
    assert!(flood.contains(r#""done":200"#), "{flood}");
    drop(servers);
}

#[test]
fn nothing_is_left_after_drop_nor_after_panic() {
    require_root!();
    let made = std::sync::Mutex::new(Vec::new());
    let live = |panic: bool| {
        let net = Network::new();
        let a = net.host("a");
        let process = a.spawn("deep/er", &["setsid", "sleep", "1000"]);
        made.lock().unwrap().extend([a.space().cgroup().path().to_owned(), a.space().scratch().to_owned()]);
        made.lock().unwrap().push(format!("/proc/{}", process.pid()).into());
        made.lock().unwrap().push(format!("/proc/{}", a.space().pid()).into());
        assert!(!panic, "this panic is part of the test");
    };
    live(false);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live(true))).unwrap_err();
    for path in made.into_inner().unwrap() {
        assert!(!path.exists(), "{} is still there", path.display());
    }
}

/// What the next test starts in a process of its own, and kills. By itself it does nothing.
#[test]
fn victim() {
    let Ok(file) = std::env::var("VICTIM_FILE") else { return };
    let net = Network::new();
    let a = net.host("a");
    let _process = a.spawn("deep/er", &["sleep", "1000"]);
    // The keeper's pid, so that the killer can also kill it.
    std::fs::write(file, a.space().pid().to_string()).unwrap();
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn nothing_is_left_after_the_tests_are_killed() {
    require_root!();
    for keepers_too in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim"])
            .env("VICTIM_FILE", &file)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let keeper = wait::until("the victim's hosts", || {
            std::fs::read_to_string(&file).ok().and_then(|t| t.parse::<i32>().ok()).ok_or("none".to_owned())
        });
        assert!(!janitor::left_by(victim.id()).is_empty());
        if keepers_too {
            let pid = nix::unistd::Pid::from_raw(keeper);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        if keepers_too {
            // The network's keeper cleans up by itself; the host's can't any more.
            wait::until_true("the janitor's work", || {
                janitor::sweep();
                janitor::left_by(victim.id()).is_empty()
            });
        } else {
            wait::until_true("the keepers' work", || janitor::left_by(victim.id()).is_empty());
        }
    }
}
