//! What a `mesh-only` workload may reach outside the mesh: what its list has, and nothing else by any kind of socket.

use mesh_tests::{
    config::Service,
    fixture::{Mesh, Scene, connect, serve},
    host::Host,
    meshnode::UNMANAGED,
    net::Network,
    process::Process,
    program::dnsmasq::{Dnsmasq, PLAIN},
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
    let is_told = |line: &str| line.contains("denied by the kernel") && line.contains(&to);
    let line = outside.mesh.a.wait_log("the audit record", is_told);
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
    outside.mesh.a.wait_status("the events", |s| {
        let told = |reason: &str| {
            s.list("recent").iter().any(|flow| {
                flow["reason"] == reason && flow["source"] == "web" && flow["program"] == "python3"
            })
        };
        s.counter("denied_protocol") == 6
            && ["protocol: icmp", "protocol: icmpv6", "protocol: raw"].into_iter().all(told)
    });
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

/// Echoes datagrams at each port, for IPv4 and IPv6.
fn echo_datagrams(host: &Host) -> Process {
    let ports = [LISTED, UNLISTED, TCP_ONLY, UDP_ONLY];
    let script = format!(
        "import selectors, socket\nall = selectors.DefaultSelector()\nfor port in {ports:?}:\n    s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)\n    s.bind(('::', port))\n    all.register(s, selectors.EVENT_READ)\nprint('ready', flush=True)\nwhile True:\n    for key, _ in all.select():\n        data, peer = key.fileobj.recvfrom(100)\n        key.fileobj.sendto(data, peer)\n"
    );
    let mut server = host.spawn(UNMANAGED, &["python3", "-c", &script]);
    server.wait_for_log("ready");
    server
}

/// How a program sends a datagram; each sends `x`, and prints what comes back or the error.
const WAYS: [(&str, &str); 6] = [
    ("connected", "s = new(family); s.connect(to); s.send(b'x')"),
    ("sendto", "s = new(family); s.sendto(b'x', to)"),
    ("sendmsg", "s = new(family); s.sendmsg([b'x'], [], 0, to)"),
    // Connected to where it may, sent to where the test says; an answer from there is not taken.
    (
        "connected elsewhere",
        "s = new(family); s.connect((listed[family], 7001)); s.sendto(b'x', to); print('x'); raise SystemExit",
    ),
    // Dissolved in between: no longer connected to where it may.
    ("dissolved", "s = new(family); s.connect((listed[family], 7001)); dissolve(s); s.sendto(b'x', to)"),
    ("sendmmsg", "s = new(family); sendmmsg(s, to)"),
];

/// `sendto(AF_UNSPEC)` with an IPv4 address in it is sent, by IPv4 sockets (`udp_sendmsg`).
const UNSPEC: (&str, &str) = ("unspecified family", "s = new(family); send_unspec(s, to)");

#[track_caller]
fn send(outside: &Outside, cgroup: &str, way: &str, to: &str, port: u16) -> String {
    let (v4, v6) = (outside.x.v4, outside.x.v6);
    let script = format!(
        r#"
import ctypes, errno, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
listed = {{socket.AF_INET: "{v4}", socket.AF_INET6: "{v6}"}}
family = socket.AF_INET6 if ":" in "{to}" else socket.AF_INET
to = ("{to}", {port})
def new(family):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.settimeout(5)
    return s
def check(n):
    if n < 0:
        raise OSError(ctypes.get_errno(), "")
def dissolve(s):
    check(libc.connect(s.fileno(), struct.pack("H14x", 0), 16))
def packed(family_in_it):
    if family == socket.AF_INET:
        return struct.pack("=H", family_in_it) + struct.pack("!H", to[1]) + socket.inet_aton(to[0]) + bytes(8)
    return struct.pack("=H", family_in_it) + struct.pack("!HI", to[1], 0) + socket.inet_pton(family, to[0]) + bytes(4)
def send_unspec(s, to):
    address = packed(0)
    check(libc.sendto(s.fileno(), b"x", 1, 0, address, len(address)))
def sendmmsg(s, to):
    class Iov(ctypes.Structure):
        _fields_ = [("base", ctypes.c_char_p), ("len", ctypes.c_size_t)]
    class Msg(ctypes.Structure):
        _fields_ = [("name", ctypes.c_char_p), ("namelen", ctypes.c_uint), ("iov", ctypes.POINTER(Iov)),
                    ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
                    ("flags", ctypes.c_int), ("len", ctypes.c_uint)]
    address = packed(family)
    iov = Iov(b"x", 1)
    msg = Msg(address, len(address), ctypes.pointer(iov), 1, None, 0, 0, 0)
    check(libc.sendmmsg(s.fileno(), ctypes.byref(msg), 1, 0))
try:
    {way}
    print(s.recv(10).decode())
except socket.timeout:
    print("TIMEOUT")
except OSError as e:
    print(errno.errorcode[e.errno])
"#
    );
    outside.python(cgroup, &script)
}

#[test]
fn datagrams_go_where_the_list_says_and_nowhere_else_however_they_are_sent() {
    require_root!();
    let outside = scene(LIST);
    outside.until_listed();
    let (x, y) = (&outside.x, &outside.y);
    let _echoes = [echo_datagrams(x), echo_datagrams(y)];
    let mapped = format!("::ffff:{}", x.v4);
    for (to, port, listed) in [
        (x.v4.to_string(), LISTED, true),
        (x.v4.to_string(), UDP_ONLY, true),
        (x.v4.to_string(), TCP_ONLY, false),
        (x.v4.to_string(), UNLISTED, false),
        (y.v4.to_string(), LISTED, false),
        (x.v6.to_string(), LISTED, true),
        (x.v6.to_string(), UNLISTED, false),
        (y.v6.to_string(), LISTED, false),
        (mapped.clone(), LISTED, true),
        (mapped, UNLISTED, false),
    ] {
        for (name, way) in WAYS {
            if name.starts_with("connected else") && to.starts_with("::ffff") {
                // The socket has an IPv6 source by then, which the kernel itself refuses (ENETUNREACH).
                continue;
            }
            let said = send(&outside, "web", way, &to, port);
            assert_eq!(said, if listed { "x" } else { "EPERM" }, "{name} to {to} {port}");
        }
        // Who is not confined is let, whichever way.
        assert_eq!(send(&outside, "other", WAYS[0].1, &to, port), "x", "{to} {port}");
        assert_eq!(send(&outside, "other", WAYS[1].1, &to, port), "x", "{to} {port}");
    }
    let way = UNSPEC.1;
    assert_eq!(send(&outside, "web", way, &x.v4.to_string(), LISTED), "x");
    assert_eq!(send(&outside, "web", way, &x.v4.to_string(), UNLISTED), "EPERM");
    assert_eq!(send(&outside, "other", way, &x.v4.to_string(), UNLISTED), "x");
    let to = format!("{}:{UNLISTED}", x.v6);
    let to = to.rsplit_once(':').map(|(ip, port)| format!("[{ip}]:{port}")).expect("a port");
    outside.mesh.a.wait_status("the events", |s| {
        s.list("recent").iter().any(|flow| {
            flow["original_dst"] == to.as_str()
                && flow["reason"] == "mesh-only: udp"
                && flow["source"] == "web"
                && flow["program"] == "python3"
        })
    });
}

#[test]
fn queries_of_a_dead_daemons_workload_need_the_list_as_well() {
    require_root!();
    let mut outside = scene(LIST);
    outside.until_listed();
    outside.mesh.a.kill9();
    let to = outside.x.v4.to_string();
    assert_eq!(send(&outside, "web", WAYS[1].1, &to, 53), "EPERM");
    assert_eq!(send(&outside, "web", WAYS[0].1, &to, 53), "EPERM");
    // The twin is answered by X itself: nobody listens there.
    assert_eq!(send(&outside, "other", WAYS[0].1, &to, 53), "ECONNREFUSED");
}

const BY_NAME: &str = r#"egress = "mesh-only"
[[service.egress_allow]]
name = "plain.example"
ports = "7001"
"#;

const RESOLVER: &str = "127.0.0.53";

#[track_caller]
fn dig(outside: &Outside, cgroup: &str, words: &[&str]) -> String {
    let said = outside.mesh.a.host.run(cgroup, &[&["dig", "+tries=1", "+timeout=5"], words].concat());
    said.stdout
}

#[test]
fn what_was_learnt_for_a_name_outlives_the_daemon_and_not_the_list() {
    require_root!();
    let mut outside = scene(BY_NAME);
    let host = &outside.mesh.a.host;
    let _system = Dnsmasq::start(host, "", RESOLVER, &outside.x.v4.to_string());
    host.resolv_conf(&format!("nameserver {RESOLVER}\n"));
    let x = format!("{}:{LISTED}", outside.x.v4);
    assert_eq!(outside.dial("web", &x)["error"], "EPERM");
    assert!(dig(&outside, "web", &["+short", PLAIN]).contains(&outside.x.v4.to_string()));
    assert_eq!(outside.dial("web", &x)["received"], "welcome");
    wait::until_true("it to be kept", || {
        let file = host.space().path("/var/lib/meshnode/egress-learnt.json");
        std::fs::read_to_string(file).is_ok_and(|kept| kept.contains(PLAIN))
    });
    for _ in 0..2 {
        outside.mesh.a.kill9();
        outside.mesh.a.run();
        assert_eq!(outside.dial("web", &x)["received"], "welcome", "{}", outside.mesh.a.log());
        assert_eq!(outside.dial("web", &format!("{}:{UNLISTED}", outside.x.v4))["error"], "EPERM");
    }
    outside.mesh.a.config.services[0] = Service::client("web").with("egress = \"mesh-only\"");
    outside.mesh.a.kill9();
    outside.mesh.a.write_config();
    outside.mesh.a.run();
    wait::until_true("the list alone to decide", || outside.dial("web", &x)["error"] == "EPERM");
}

#[test]
fn what_exec_was_refused_is_explained_by_the_entries_that_the_list_lacks() {
    require_root!();
    let outside = scene(BY_NAME);
    let host = &outside.mesh.a.host;
    let _system = Dnsmasq::start(host, "", RESOLVER, &outside.x.v4.to_string());
    host.resolv_conf(&format!("nameserver {RESOLVER}\n"));
    let explained = |service: &str, script: &str| {
        let words = ["exec", "--service", service, "--explain", "--", "sh", "-c", script];
        outside.mesh.a.cli(&words).stderr
    };
    let to = outside.y.v4;
    let said = explained(
        "web",
        &format!("dig +tries=1 secret.example; curl -sm 3 http://{to}:{LISTED}; dig @{to} +tries=1 {PLAIN}"),
    );
    for entry in [
        "mesh-only: query for secret.example.\nmeshnode:   web is configured as egress = \"mesh-only\". To allow it",
        "[[service.egress_allow]]\nmeshnode:     name = \"secret.example\"",
        &format!("cidr = \"{to}\"\nmeshnode:     ports = \"{LISTED}\"\nmeshnode:     protocol = \"tcp\""),
        &format!("mesh-only: untrusted server for {PLAIN}"),
        &format!("cidr = \"{to}\"\nmeshnode:     ports = \"53\"\nmeshnode:     protocol = \"udp\""),
    ] {
        assert!(said.contains(entry), "{entry}\n{said}");
    }
    let said = explained("other", &format!("dig +tries=1 secret.example; curl -sm 3 http://{to}:{LISTED}"));
    assert!(!said.contains("egress_allow"), "{said}");
}

#[test]
fn names_of_the_list_are_resolved_and_reached_and_no_others_leave_the_host() {
    require_root!();
    let outside = scene(BY_NAME);
    let host = &outside.mesh.a.host;
    let system = Dnsmasq::start(host, "", RESOLVER, &outside.x.v4.to_string());
    let accomplice = Dnsmasq::start(&outside.y, "", &outside.y.v4.to_string(), &outside.y.v4.to_string());
    host.resolv_conf(&format!("nameserver {RESOLVER}\n"));
    let (x, y) = (format!("{}:{LISTED}", outside.x.v4), format!("{}:{LISTED}", outside.y.v4));
    // An address means nothing before somebody said that it is the name's.
    assert_eq!(outside.dial("web", &x)["error"], "EPERM");

    let secret = "exfiltrated.secret.example";
    for more in [&[][..], &["+tcp"]] {
        let said = dig(&outside, "web", &[&[secret], more].concat());
        assert!(said.contains("status: REFUSED"), "{said}");
    }
    assert!(!system.server.log().contains(secret), "{}", system.server.log());
    // Nor may the program choose whom it believes.
    let lie = dig(&outside, "web", &[&format!("@{}", outside.y.v4), PLAIN]);
    assert!(lie.contains("status: REFUSED"), "{lie}");
    assert!(!accomplice.server.log().contains(PLAIN), "{}", accomplice.server.log());
    assert_eq!(outside.dial("web", &y)["error"], "EPERM");
    let before = outside.mesh.a.status().counter("dns_refused");
    assert!(before >= 3, "{before}");
    outside.mesh.a.wait_log("the audit record", |line| line.contains(secret) && line.contains("was refused"));
    // The twin asks whom and what it likes.
    assert!(dig(&outside, "other", &["+short", &format!("@{}", outside.y.v4), PLAIN]).contains("10.77.4.1"));
    let _ = dig(&outside, "other", &[secret]);
    assert!(system.server.log().contains(secret), "{}", system.server.log());

    let said = dig(&outside, "web", &["+short", PLAIN]);
    assert_eq!(said.trim(), outside.x.v4.to_string());
    // The answer acts before the program has it: no waiting.
    assert_eq!(outside.dial("web", &x)["received"], "welcome");
    assert_eq!(outside.dial("web", &format!("{}:{UNLISTED}", outside.x.v4))["error"], "EPERM");
    assert_eq!(outside.dial("web", &y)["error"], "EPERM");
    // What another workload was told lets this one nowhere.
    assert_eq!(outside.dial("other", &y)["received"], "welcome");
}
