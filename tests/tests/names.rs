//! Names: what workloads resolve, by every kind of client, and what the servers that they ask still say.

use std::process::Command;

use mesh_tests::{
    container::Container,
    fixture::{Mesh, Scene, connect, serve},
    host::Host,
    process::{Output, Process},
    program::{
        dnsmasq::{BIG, BIG_COUNT, Dnsmasq, NOT_THE_MESH, PLAIN, words},
        is_installed,
        postgres::{Postgres, psql},
        resolved::{self, Resolved},
    },
    require_root, wait,
};

const SYSTEM: &str = "127.0.0.53";

/// `db` on B; on A a server at 127.0.0.53 that `/etc/resolv.conf` names, as systemd-resolved does it.
struct Names {
    mesh: Mesh,
    system: Dnsmasq,
    _db: Process,
}

#[track_caller]
fn scene(sections: &str) -> Names {
    let mut scene = Scene::new(&[("db", 5432)]);
    scene.sections = sections.to_owned();
    let mesh = scene.start();
    let _db = serve(&mesh.b.host, "db", 5432, &["echo"]);
    let system = Dnsmasq::start(&mesh.a.host, "", SYSTEM, "192.0.2.10");
    mesh.a.host.resolv_conf(&format!("nameserver {SYSTEM}\noptions timeout:2 attempts:2\n"));
    Names { mesh, system, _db }
}

/// The virtual IPs of `db` as `web` resolves it, once the mesh knows it, and that it is healthy.
#[track_caller]
fn virtual_ip(mesh: &Mesh) -> String {
    wait::until("db.mesh to resolve", || {
        let said = dig(&mesh.a.host, "web", &["db.mesh"]);
        let first = said.stdout.lines().next().unwrap_or_default().to_owned();
        let healthy = dig(&mesh.a.host, "web", &["db.service.mesh"]);
        if first.starts_with("240.240.") && healthy.stdout.trim() == mesh.b_address() {
            return Ok(first);
        }
        Err(format!("{said}\n{healthy}"))
    })
}

#[track_caller]
fn dig(host: &Host, cgroup: &str, words: &[&str]) -> Output {
    host.run(cgroup, &[&["dig", "+short", "+tries=2", "+timeout=3"], words].concat())
}

/// Returns the addresses that `getent` prints, each once, sorted.
fn addresses(said: &str) -> Vec<String> {
    let mut all: Vec<String> =
        said.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn workloads_resolve_the_mesh_and_everybody_resolves_all_else_as_before() {
    require_root!();
    let Names { mesh, system, _db } = scene("");
    let host = &mesh.a.host;
    let db = virtual_ip(&mesh);
    // glibc.
    let getent = |cgroup, name| addresses(&host.run(cgroup, &["getent", "ahostsv4", name]).ok());
    assert_eq!(getent("web", "db.mesh"), [db.as_str()]);
    assert_eq!(getent("web", "db.service.consul"), [mesh.b_address()]);
    assert_eq!(getent("web", "db.virtual.consul"), [db.as_str()]);
    assert_eq!(getent("other", "db.mesh"), [db.as_str()], "names are no secret, connections are");
    assert_eq!(getent("web", PLAIN), ["192.0.2.10"]);
    assert_eq!(
        getent("web", "other.service.consul"),
        [NOT_THE_MESH],
        "unknown there: as Consul's server says"
    );
    assert_eq!(getent("unmanaged", PLAIN), ["192.0.2.10"]);
    assert_eq!(getent("unmanaged", "db.mesh"), [NOT_THE_MESH], "who is no workload asks the server");
    let six = addresses(&host.run("web", &["getent", "ahostsv6", "six.example"]).ok());
    assert_eq!(six, ["2001:db8::6"], "AAAA only");
    let missing = host.run("web", &["getent", "ahosts", "nope.mesh"]);
    assert!(!missing.status.success(), "{missing}");
    let six = addresses(&host.run("web", &["getent", "ahostsv6", "db.mesh"]).ok());
    assert!(six.len() == 1 && six[0].starts_with("fd6d:6573:6800:"), "{six:?}");
    // A resolver that asks over TCP alone.
    host.resolv_conf(&format!("nameserver {SYSTEM}\noptions use-vc\n"));
    assert_eq!(getent("web", "db.mesh"), [db.as_str()]);
    assert_eq!(getent("web", PLAIN), ["192.0.2.10"]);
    assert_eq!(getent("web", BIG).len(), BIG_COUNT);
    // What the search path makes of a name is not ours.
    host.resolv_conf(&format!("search search.test\nnameserver {SYSTEM}\noptions ndots:3\n"));
    assert_eq!(getent("web", "db.mesh"), ["192.0.2.77"]);
    assert!(system.server.log().contains("db.mesh.search.test"), "{}", system.server.log());
    // Python's own way into the C library.
    let script = "import socket;print(socket.getaddrinfo('db.service.mesh.',5432,socket.AF_INET)[0][4])";
    let said = host.run("web", &["python3", "-c", script]).ok();
    assert_eq!(said.trim(), format!("('{}', 5432)", mesh.b_address()));
}

#[test]
fn a_real_systemd_resolved_is_asked_as_before_for_all_but_the_mesh() {
    require_root!();
    if !resolved::is_here() {
        return;
    }
    let mesh = Scene::new(&[("db", 5432)]).start();
    let _db = serve(&mesh.b.host, "db", 5432, &["echo"]);
    let upstream = Dnsmasq::start(&mesh.b.host, "", &mesh.b_address(), "192.0.2.10");
    let host = &mesh.a.host;
    host.resolv_conf(&format!("nameserver {}\noptions edns0 trust-ad\n", resolved::STUB));
    let _resolved = Resolved::start(host, "", &mesh.b_address());
    let db = virtual_ip(&mesh);
    let getent = |cgroup, name| addresses(&host.run(cgroup, &["getent", "ahostsv4", name]).ok());
    for cgroup in ["web", "unmanaged"] {
        wait::until_true("resolved to have found its server", || {
            dig(host, cgroup, &[PLAIN]).stdout.trim() == "192.0.2.10"
        });
        assert_eq!(getent(cgroup, PLAIN), ["192.0.2.10"]);
        assert_eq!(dig(host, cgroup, &["+tcp", PLAIN]).ok().trim(), "192.0.2.10");
        assert_eq!(getent(cgroup, BIG).len(), BIG_COUNT);
        let full = host.run(cgroup, &["dig", PLAIN]).ok();
        assert!(full.contains(&format!("SERVER: {}#53", resolved::STUB)), "{full}");
    }
    assert_eq!(getent("web", "db.mesh"), [db.as_str()]);
    assert_eq!(getent("web", "db.service.consul"), [mesh.b_address()]);
    assert_eq!(dig(host, "web", &["+tcp", "db.mesh"]).ok().trim(), db);
    assert_eq!(getent("unmanaged", "db.mesh"), [NOT_THE_MESH], "who is no workload asks the server");
    let log = upstream.server.log();
    assert!(!log.contains("db.service.consul"), "a name of the mesh left the host: {log}");
    assert_eq!(connect(host, "web", &format!("{}:5432", mesh.b_address()), &[])["error"], "EPERM");
}

#[test]
fn dig_sees_what_the_server_that_it_asked_would_send() {
    require_root!();
    let Names { mesh, .. } = &scene("");
    let host = &mesh.a.host;
    let db = virtual_ip(mesh);
    let web = |words: &[&str]| host.run("web", &[&["dig", "+tries=2", "+timeout=3"], words].concat()).ok();
    for options in [&["+notcp"][..], &["+tcp"], &["+noedns"], &["+bufsize=1232", "+dnssec"], &["+nocookie"]] {
        let said = web(&[options, &["db.mesh"]].concat());
        assert!(said.contains(&db) && said.contains("status: NOERROR"), "{options:?}: {said}");
        assert!(said.contains(&format!("SERVER: {SYSTEM}#53")), "{options:?}: {said}");
        let said = web(&[options, &[PLAIN]].concat());
        assert!(said.contains("192.0.2.10"), "{options:?}: {said}");
        assert!(said.contains(&format!("SERVER: {SYSTEM}#53")), "{options:?}: {said}");
    }
    let srv = web(&["+short", "_db._tcp.service.consul", "SRV"]);
    assert!(srv.contains("5432") && srv.contains(".addr.dc1.consul."), "{srv}");
    let srv = web(&["+short", "_db._tcp.mesh", "SRV"]);
    assert_eq!(srv.trim(), "1 1 5432 db.mesh.");
    let said = web(&["nope.mesh"]);
    assert!(said.contains("status: NXDOMAIN") && said.contains("SOA"), "{said}");
    let said = web(&["db.mesh", "MX"]);
    assert!(said.contains("status: NOERROR") && said.contains("ANSWER: 0"), "{said}");
    assert_eq!(web(&["+short", "-x", &db]).trim(), "db.mesh.");
    // More than a datagram takes: cut, and asked again over TCP.
    let cut = web(&["+ignore", "+noedns", BIG]);
    assert!(cut.lines().any(|line| line.contains("flags:") && line.contains(" tc")), "{cut}");
    let big = web(&["+short", "+noedns", BIG]);
    assert_eq!(big.lines().filter(|line| line.starts_with("198.51.100.")).count(), BIG_COUNT, "{big}");
    // Several on one connection.
    let several =
        web(&["+tcp", "+keepopen", "+short", PLAIN, "db.mesh", "+tcp", "+keepopen", "+short", PLAIN]);
    let lines: Vec<&str> = several.lines().collect();
    assert_eq!(lines, ["192.0.2.10", db.as_str(), "192.0.2.10"]);
    let status = mesh.a.status();
    assert!(status.counter("dns_answered") > 5 && status.counter("dns_forwarded") > 5);
}

#[test]
fn programs_connect_by_name() {
    require_root!();
    let Names { mesh, _db: placeholder, .. } = scene("");
    drop(placeholder);
    let _db = Postgres::start(&mesh.b.host, "db", 5432);
    mesh.allow("web", "db", 5432);
    virtual_ip(&mesh);
    let host = &mesh.a.host;
    for name in ["db.mesh", "db.service.consul", "db.service.mesh"] {
        let said = host.run("web", &psql(name, "5432", "select 6*7")).ok();
        assert_eq!(said.trim(), "42", "{name}");
        let refused = host.run("other", &psql(name, "5432", "select 6*7")).fails();
        assert!(refused.contains("Operation not permitted"), "{name}: {refused}");
    }
}

#[test]
fn a_socket_that_asks_two_servers_at_once_hears_each_of_them() {
    require_root!();
    let Names { mesh, .. } = &scene("");
    let six = mesh.b.host.v6.to_string();
    let four = mesh.b.host.v4.to_string();
    let _four = Dnsmasq::start(&mesh.b.host, "", &four, "192.0.2.20");
    let _six = Dnsmasq::start(&mesh.b.host, "", &six, "192.0.2.30");
    let db = virtual_ip(mesh);
    // As musl does it: one IPv6 socket, IPv4 servers by their mapped addresses, whoever answers first.
    let said = mesh
        .a
        .host
        .run("web", &["python3", "-c", TWO_SERVERS, &format!("::ffff:{four}"), SYSTEM_MAPPED, &six])
        .ok();
    let expected = [
        format!("::ffff:{four} 53 {PLAIN} 192.0.2.20"),
        format!("{SYSTEM_MAPPED} 53 {PLAIN} 192.0.2.10"),
        format!("{six} 53 {PLAIN} 192.0.2.30"),
        format!("::ffff:{four} 53 db.mesh {db}"),
        format!("{SYSTEM_MAPPED} 53 db.mesh {db}"),
        format!("{six} 53 db.mesh {db}"),
    ];
    let mut lines: Vec<&str> = said.lines().collect();
    let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    lines.sort_unstable();
    expected.sort_unstable();
    assert_eq!(lines, expected);
    // The same servers by clients that connect their sockets.
    for server in [&four, &six] {
        let at = format!("@{server}");
        let plain = if server.contains(':') { "192.0.2.30" } else { "192.0.2.20" };
        for options in ["+notcp", "+tcp"] {
            assert_eq!(dig(&mesh.a.host, "web", &[&at, options, PLAIN]).ok().trim(), plain);
            assert_eq!(dig(&mesh.a.host, "web", &[&at, options, "db.mesh"]).ok().trim(), db);
        }
    }
    let peer = mesh.a.host.run("web", &["python3", "-c", PEER, &four, &six]).ok();
    assert_eq!(peer.lines().collect::<Vec<_>>(), [format!("{four} 53"), format!("{six} 53")]);
}

const SYSTEM_MAPPED: &str = "::ffff:127.0.0.53";

/// Asks all servers for two names with one socket that is not connected, and prints who answered what.
const TWO_SERVERS: &str = r#"
import socket, struct, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.settimeout(10)
names = ["plain.example", "db.mesh"]
def query(n, name):
    labels = b"".join(bytes([len(l)]) + l.encode() for l in name.split("."))
    return struct.pack(">6H", n, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)
for server in sys.argv[1:]:
    for n, name in enumerate(names):
        s.sendto(query(n, name), (server, 53))
for _ in range(2 * len(sys.argv[1:])):
    data, who = s.recvfrom(4096)
    print(who[0], who[1], names[struct.unpack(">H", data[:2])[0]], socket.inet_ntoa(data[-4:]))
"#;

/// Prints the peer that a connected socket of each family sees.
const PEER: &str = r#"
import socket, sys
for family, server in ((socket.AF_INET, sys.argv[1]), (socket.AF_INET6, sys.argv[2])):
    s = socket.socket(family, socket.SOCK_DGRAM)
    s.connect((server, 53))
    print(*s.getpeername()[:2])
"#;

#[test]
fn a_static_musl_program_resolves_like_all_others() {
    require_root!();
    if !is_installed("musl-gcc") {
        eprintln!("SKIP: a_static_musl_program_resolves_like_all_others: musl-gcc is not installed");
        return;
    }
    let Names { mesh, .. } = &scene("");
    let host = &mesh.a.host;
    let db = virtual_ip(mesh);
    let scratch = host.space().scratch();
    let (source, program) = (scratch.join("resolve.c"), scratch.join("resolve"));
    std::fs::write(&source, MUSL).expect("the scratch folder takes files");
    let built = Command::new("musl-gcc").arg("-static").arg("-o").args([&program, &source]).status();
    assert!(built.is_ok_and(|status| status.success()), "musl-gcc");
    let program = program.to_str().expect("UTF-8");
    let resolve = |cgroup, name| host.run(cgroup, &[program, name]).ok();
    // Two servers that answer the same: musl asks both at once.
    let _second = Dnsmasq::start(&mesh.b.host, "", &mesh.b_address(), "192.0.2.10");
    host.resolv_conf(&format!("nameserver {SYSTEM}\nnameserver {}\n", mesh.b_address()));
    assert_eq!(resolve("web", "db.mesh").trim(), db);
    assert_eq!(resolve("web", PLAIN).trim(), "192.0.2.10");
    assert_eq!(resolve("unmanaged", "db.mesh").trim(), NOT_THE_MESH);
    assert!(resolve("web", BIG).lines().count() > 1, "a big answer");
}

const MUSL: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = { .ai_family = AF_INET, .ai_socktype = SOCK_STREAM }, *all, *one;
    int failed = getaddrinfo(argv[1], 0, &hints, &all);
    if (failed) { fprintf(stderr, "%s\n", gai_strerror(failed)); return 1; }
    for (one = all; one; one = one->ai_next) {
        char text[64];
        inet_ntop(AF_INET, &((struct sockaddr_in *)one->ai_addr)->sin_addr, text, sizeof text);
        puts(text);
    }
    return 0;
}
"#;

#[test]
fn a_container_resolves_the_mesh_and_asks_its_own_server_for_all_else() {
    require_root!();
    let Names { mesh, .. } = &scene("");
    let host = &mesh.a.host;
    let db = virtual_ip(mesh);
    let container = Container::new(host, 1, "web/container");
    // As a container engine's: the same address means another server here.
    let inside = words(host, "127.0.0.11", "192.0.2.40");
    let inside: Vec<&str> = inside.iter().map(String::as_str).collect();
    let _inside = Process::spawn(container.command(&inside), &host.log_file("inside"));
    wait::until("the container's names", || {
        let said = container.run(&["dig", "+short", "+tries=1", "+timeout=2", "@127.0.0.11", "db.mesh"]);
        if said.stdout.trim() == db { Ok(()) } else { Err(format!("{said}\n{}", mesh.a.log())) }
    });
    for options in ["+notcp", "+tcp"] {
        let plain = container.run(&["dig", "+short", options, "@127.0.0.11", PLAIN]).ok();
        assert_eq!(plain.trim(), "192.0.2.40", "{options}");
        let big = container.run(&["dig", "+short", options, "+noedns", "@127.0.0.11", BIG]).ok();
        assert!(big.lines().count() >= BIG_COUNT, "{options}: {big}");
    }
    // More at once than sockets are opened in advance.
    let names = ["dig", "+short", "@127.0.0.11"].into_iter().chain([PLAIN; 40]).collect::<Vec<_>>();
    assert_eq!(container.run(&names).ok().lines().filter(|line| *line == "192.0.2.40").count(), 40);
}

#[test]
fn names_outside_the_mesh_resolve_while_the_daemon_is_dead() {
    require_root!();
    let Names { mesh, .. } = &mut scene("");
    let db = virtual_ip(mesh);
    assert_eq!(dig(&mesh.a.host, "web", &[PLAIN]).ok().trim(), "192.0.2.10");
    mesh.a.kill9();
    for options in ["+notcp", "+tcp"] {
        assert_eq!(dig(&mesh.a.host, "web", &[options, PLAIN]).ok().trim(), "192.0.2.10");
        // The server's word; where it leads to is still the kernel's to decide.
        assert_eq!(dig(&mesh.a.host, "web", &[options, "db.mesh"]).ok().trim(), NOT_THE_MESH);
    }
    mesh.a.run();
    assert_eq!(virtual_ip(mesh), db, "the address is the service's for good");
}

#[test]
fn names_are_refused_while_the_daemon_is_dead_if_it_is_told_so() {
    require_root!();
    let Names { mesh, .. } = &mut scene("[dns]\nwhen_down = \"refuse\"\n");
    virtual_ip(mesh);
    mesh.a.kill9();
    let said = mesh.a.host.run("web", &["python3", "-c", ERRORS]).ok();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["1", "1", "1"], "EPERM: {said}");
    let said = mesh.a.host.run("unmanaged", &["python3", "-c", ERRORS]).ok();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["0", "0", "0"], "{said}");
}

/// Prints the errors of asking by a datagram, by a connected socket, and over TCP.
const ERRORS: &str = r#"
import socket
at = ("127.0.0.53", 53)
def error(call):
    try: call()
    except OSError as e: return e.errno
    return 0
print(error(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x" * 12, at)))
print(error(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(at)))
print(error(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect(at)))
"#;

#[test]
fn names_are_left_alone_where_the_configuration_says_so() {
    require_root!();
    let Names { mesh, .. } = &scene("[dns]\nenabled = false\n");
    for cgroup in ["web", "unmanaged"] {
        assert_eq!(dig(&mesh.a.host, cgroup, &["db.mesh"]).ok().trim(), NOT_THE_MESH);
    }
    let status = mesh.a.status();
    assert!(!status.list("listeners").iter().any(|l| l["role"] == "dns"));
}

#[test]
fn the_daemons_sockets_for_names_serve_nobody_else() {
    require_root!();
    let Names { mesh, .. } = &scene("");
    let db = virtual_ip(mesh);
    let status = mesh.a.status();
    let mut ports = status
        .list("listeners")
        .iter()
        .filter(|l| l["role"] == "dns")
        .map(|l| l["address"].as_str().expect("text").rsplit(':').next().expect("a port").to_owned());
    let four = ports.next().expect("it listens");
    // From another host: the port is not there.
    let at = format!("@{}", mesh.a.host.v4);
    let said = mesh.b.host.run("", &["dig", "+tries=1", "+timeout=1", "+short", &at, "-p", &four, PLAIN]);
    assert!(!said.stdout.contains("192.0.2.10"), "{said}");
    // By somebody on the host: what is public there, and nothing through an alias that the kernel did not give.
    let ask = |name| {
        let words = ["dig", "+tries=1", "+timeout=1", "+short", "@127.77.200.200", "-p", &four, name];
        mesh.a.host.run("unmanaged", &words).stdout
    };
    assert_eq!(ask("db.mesh").trim(), db);
    assert!(!ask(PLAIN).contains("192.0.2.10"));
    let tcp = mesh.a.host.run(
        "unmanaged",
        &["dig", "+tcp", "+tries=1", "+timeout=2", "+short", "@127.0.0.1", "-p", &four, "db.mesh"],
    );
    assert!(!tcp.stdout.contains(&db), "a connection that the kernel did not put there is reset: {tcp}");
}

#[test]
fn a_server_that_is_not_there_is_an_error_and_does_not_stop_the_mesh() {
    require_root!();
    let Names { mesh, system, _db } = scene("");
    let db = virtual_ip(&mesh);
    drop(system);
    let said = mesh.a.host.run("web", &["dig", "+tries=1", "+timeout=3", PLAIN]);
    assert!(said.stdout.contains("SERVFAIL"), "told at once, as ICMP would: {said}");
    assert_eq!(dig(&mesh.a.host, "web", &["db.mesh"]).ok().trim(), db);
    let plain = mesh.a.host.run("unmanaged", &["dig", "+tries=1", "+timeout=3", PLAIN]);
    assert!(!plain.status.success(), "{plain}");
}

#[test]
fn garbage_and_floods_stop_nobody() {
    require_root!();
    let Names { mesh, .. } = &scene("");
    let db = virtual_ip(mesh);
    mesh.a.host.run("web", &["python3", "-c", GARBAGE]).ok();
    assert_eq!(dig(&mesh.a.host, "web", &["db.mesh"]).ok().trim(), db);
    assert_eq!(dig(&mesh.a.host, "other", &[PLAIN]).ok().trim(), "192.0.2.10");
    mesh.allow("web", "db", 5432);
}

/// Sends what is no query, and many that nobody answers.
const GARBAGE: &str = r#"
import os, socket, struct
t = socket.create_connection(("127.0.0.53", 53))
t.sendall(b"\0\x05hello")
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(2000):
    s.sendto(os.urandom(n % 300), ("127.0.0.53", 53))
question = b"\7example\0\0\1\0\1"
for n in range(3000):
    s.sendto(struct.pack(">6H", n, 0x0100, 1, 0, 0, 0) + question, ("192.0.2.1", 53))
"#;
