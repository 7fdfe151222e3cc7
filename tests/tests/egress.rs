//! What a `mesh-only` workload may reach outside the mesh: what its list has, and nothing else by any kind of socket.

use mesh_tests::{
    config::Service,
    fixture::{Mesh, Scene, connect, serve},
    host::Host,
    meshnode::UNMANAGED,
    net::Network,
    process::Process,
    require_root, wait,
};
use serde_json::{Value, json};

/// At every port of the list, and at none beside it.
const LISTED: u16 = 7001;
const UNLISTED: u16 = 7002;
/// In the list for one protocol only.
const TCP_ONLY: u16 = 7101;
const UDP_ONLY: u16 = 7102;

const LIST: &str = r#"egress = "mesh-only"
[[service.egress_allow]]
cidr = "10.77.3.0/24"
ports = ["7001", "7003-7005"]
[[service.egress_allow]]
cidr = "fd77:0:0:3::/64"
ports = "7001"
[[service.egress_allow]]
cidr = "10.77.0.0/16"
ports = "7101"
protocol = "tcp"
[[service.egress_allow]]
cidr = "10.77.3.1"
ports = "7102"
protocol = "udp"
"#;

/// A, whose `web` is `mesh-only` with a list and whose `other` may reach anything; X (10.77.3.1), in the list, and Y
/// (10.77.4.1), which but for [`TCP_ONLY`] is not. Neither runs meshnode.
struct Outside {
    mesh: Mesh,
    x: Host,
    y: Host,
    _servers: Vec<Process>,
}

fn scene(list: &str) -> Outside {
    let net = Network::new();
    let (a, b, x, y) = (net.host("a"), net.host("b"), net.host("x"), net.host("y"));
    assert_eq!((x.v4.to_string().as_str(), y.v4.to_string().as_str()), ("10.77.3.1", "10.77.4.1"));
    let mut scene = Scene::new(&[]);
    scene.on_a = vec![Service::client("web").with(list), Service::client("other")];
    let mut servers = Vec::new();
    for host in [&x, &y] {
        let ports = [LISTED, UNLISTED, TCP_ONLY, UDP_ONLY];
        servers.extend(ports.map(|port| serve(host, UNMANAGED, port, &["greet", "welcome"])));
    }
    let mesh = scene.start_on(net, a, b);
    mesh.a.wait_status("the first sync", |s| s.0["control_plane"]["connected"] == true);
    Outside { mesh, x, y, _servers: servers }
}

impl Outside {
    #[track_caller]
    fn dial(&self, cgroup: &str, to: &str) -> Value {
        connect(&self.mesh.a.host, cgroup, to, &["--read", "7"])
    }

    /// Waits until `web` is welcome at X's listed port: then the kernel has the list.
    #[track_caller]
    fn until_listed(&self) {
        wait::until("the list to act", || {
            let said = self.dial("web", &format!("{}:{LISTED}", self.x.v4));
            if said["received"] == "welcome" { Ok(()) } else { Err(format!("{said}\n{}", self.mesh.a.log())) }
        });
    }

    /// Runs Python in A's cgroup; it prints one word.
    #[track_caller]
    fn python(&self, cgroup: &str, script: &str) -> String {
        let said = self.mesh.a.host.run(cgroup, &["python3", "-c", script]);
        assert!(said.status.success(), "{said}");
        said.stdout.trim().to_owned()
    }
}

#[test]
fn tcp_goes_where_the_list_says_and_nowhere_else() {
    require_root!();
    let outside = scene(LIST);
    outside.until_listed();
    let (x, y) = (&outside.x, &outside.y);
    for (to, listed) in [
        (format!("{}:{LISTED}", x.v4), true),
        (format!("{}:{UNLISTED}", x.v4), false),
        (format!("{}:{TCP_ONLY}", x.v4), true),
        (format!("{}:{UDP_ONLY}", x.v4), false),
        (format!("{}:{TCP_ONLY}", y.v4), true),
        (format!("{}:{LISTED}", y.v4), false),
        (format!("[{}]:{LISTED}", x.v6), true),
        (format!("[{}]:{UNLISTED}", x.v6), false),
        (format!("[{}]:{LISTED}", y.v6), false),
        (format!("[::ffff:{}]:{LISTED}", x.v4), true),
        (format!("[::ffff:{}]:{UNLISTED}", x.v4), false),
    ] {
        let said = outside.dial("web", &to);
        if listed {
            assert_eq!(said["received"], "welcome", "{to}: {said}");
        } else {
            assert_eq!(said["error"], "EPERM", "{to}: {said}");
        }
        assert_eq!(outside.dial("other", &to)["received"], "welcome", "{to}");
        assert_eq!(outside.dial(UNMANAGED, &to)["received"], "welcome", "{to}");
    }
    // Its own loopback is outside, too.
    let _own = serve(&outside.mesh.a.host, UNMANAGED, LISTED, &["greet", "welcome"]);
    for to in [format!("127.0.0.1:{LISTED}"), format!("[::1]:{LISTED}")] {
        assert_eq!(outside.dial("web", &to)["error"], "EPERM", "{to}");
        assert_eq!(outside.dial("other", &to)["received"], "welcome", "{to}");
    }
}

#[test]
fn each_denial_is_told_with_program_destination_protocol_and_reason() {
    require_root!();
    let outside = scene(LIST);
    outside.until_listed();
    let before = outside.mesh.a.status().counter("denied_mesh_only");
    let to = format!("{}:{UNLISTED}", outside.x.v4);
    assert_eq!(outside.dial("web", &to)["error"], "EPERM");
    let status = outside.mesh.a.wait_status("the event", |s| {
        s.list("recent").iter().any(|flow| flow["original_dst"] == to.as_str())
    });
    let told = status.list("recent").iter().find(|flow| flow["original_dst"] == to.as_str()).unwrap();
    assert_eq!(
        (&told["source"], &told["program"], &told["state"], &told["reason"]),
        (&json!("web"), &json!("probe"), &json!("denied"), &json!("mesh-only: tcp"))
    );
    assert!(told["pid"].as_u64().is_some_and(|pid| pid > 0), "{told}");
    assert_eq!(status.counter("denied_mesh_only"), before + 1);
    let log = outside.mesh.a.log();
    let line = log.lines().find(|line| line.contains("denied by the kernel") && line.contains(&to));
    let line = line.unwrap_or_else(|| panic!("no audit record:\n{log}"));
    for word in ["mesh-only", "web", "probe", "tcp"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    let web = status.entry("workloads", "service", "web").unwrap();
    assert_eq!(web["egress_allow"][0], "10.77.3.0/24 7001,7003-7005 tcp+udp");
    let shown = outside.mesh.a.cli(&["status"]).ok();
    assert!(shown.contains("EGRESS (4)") && shown.contains("10.77.3.1/32 7102 udp"), "{shown}");
}

#[test]
fn sockets_that_no_hook_judges_are_refused_to_it_alone() {
    require_root!();
    let outside = scene(LIST);
    outside.until_listed();
    // In the host's own namespace: who may have ping sockets.
    outside
        .mesh
        .a
        .host
        .run("", &["sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"])
        .ok();
    for (kind, number) in [
        ("AF_INET, socket.SOCK_DGRAM", "1"),
        ("AF_INET6, socket.SOCK_DGRAM", "58"),
        ("AF_INET, socket.SOCK_RAW", "1"),
        ("AF_INET6, socket.SOCK_RAW", "58"),
        ("AF_INET, socket.SOCK_RAW", "17"),
        ("AF_INET, socket.SOCK_RAW", "255"),
    ] {
        let script = format!(
            "import errno, socket\ntry:\n    socket.socket(socket.{kind}, {number})\n    print('made')\nexcept OSError as e:\n    print(errno.errorcode[e.errno])"
        );
        assert_eq!(outside.python("web", &script), "EPERM", "{kind} {number}");
        assert_eq!(outside.python("other", &script), "made", "{kind} {number}");
    }
    let status = outside.mesh.a.wait_status("the events", |s| s.counter("denied_protocol") == 6);
    let told = |reason: &str| {
        status
            .list("recent")
            .iter()
            .any(|flow| flow["reason"] == reason && flow["source"] == "web" && flow["program"] == "python3")
    };
    assert!(told("protocol: icmp") && told("protocol: icmpv6") && told("protocol: raw"), "{:#}", status.0);
}

#[test]
fn a_list_is_changed_by_a_reload() {
    require_root!();
    let mut outside = scene(LIST);
    outside.until_listed();
    let (listed, unlisted) = (format!("{}:{LISTED}", outside.x.v4), format!("{}:{UNLISTED}", outside.x.v4));
    outside.mesh.a.config.services[0] = Service::client("web").with(&LIST.replace("7001", "7002"));
    outside.mesh.a.write_config();
    outside.mesh.a.cli(&["reload"]).ok();
    assert_eq!(outside.dial("web", &unlisted)["received"], "welcome");
    assert_eq!(outside.dial("web", &listed)["error"], "EPERM");
    // Narrower within a wider network, and back to nothing.
    outside.mesh.a.config.services[0] = Service::client("web").with("egress = \"mesh-only\"");
    outside.mesh.a.write_config();
    outside.mesh.a.cli(&["reload"]).ok();
    for to in [&listed, &unlisted] {
        assert_eq!(outside.dial("web", to)["error"], "EPERM");
        assert_eq!(outside.dial("other", to)["received"], "welcome");
    }
    outside.mesh.a.config.services[0] = Service::client("web");
    outside.mesh.a.write_config();
    outside.mesh.a.cli(&["reload"]).ok();
    assert_eq!(outside.dial("web", &unlisted)["received"], "welcome");
}

#[test]
fn a_restarted_daemon_keeps_no_more_than_the_list_that_it_has() {
    require_root!();
    let mut outside = scene(LIST);
    outside.until_listed();
    let (listed, unlisted) = (format!("{}:{LISTED}", outside.x.v4), format!("{}:{UNLISTED}", outside.x.v4));
    outside.mesh.a.kill9();
    assert_eq!(
        outside.dial("web", &listed)["received"],
        "welcome",
        "what the kernel has holds without the daemon"
    );
    assert_eq!(outside.dial("web", &unlisted)["error"], "EPERM");
    outside.mesh.a.config.services[0] = Service::client("web").with(&LIST.replace("7001", "7002"));
    outside.mesh.a.write_config();
    outside.mesh.a.run();
    wait::until("the new list", || {
        let said = outside.dial("web", &unlisted);
        if said["received"] == "welcome" { Ok(()) } else { Err(said.to_string()) }
    });
    assert_eq!(outside.dial("web", &listed)["error"], "EPERM");
}
