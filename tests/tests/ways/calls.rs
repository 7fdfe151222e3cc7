//! How `connect()` is called and waited for, by which kind of program, to which kind of address.

use mesh_tests::{fixture::Scene, host::Family, program::compiled::Make, require_root};

use super::{ECHO, HIDDEN, Ways, is_echoed, skip, text};

/// Ways that need no argument.
const CALLS: [&str; 11] = [
    "blocking",
    "poll",
    "select",
    "epoll-level",
    "epoll-edge",
    "fastopen-sendto",
    "fastopen-connect",
    "mark",
    "fork",
    "vfork",
    "thread",
];

/// Also those, where the kernel has them.
const IO_URING: [&str; 2] = ["io_uring", "io_uring-sqpoll"];

#[test]
fn each_call_is_captured_or_denied_over_ipv4() {
    require_root!();
    let mut ways = Ways::new(Family::V4);
    let captured = each_call(&mut ways);
    ways.end(captured);
}

#[test]
fn each_call_is_captured_or_denied_over_ipv6() {
    require_root!();
    let mut ways = Ways::new(Family::V6);
    let captured = each_call(&mut ways);
    ways.end(captured);
}

#[test]
fn each_call_of_a_static_musl_program_is_captured_or_denied() {
    require_root!();
    let mut ways = Ways::of(Scene::new(&[]), Make::Musl);
    let captured = each_call(&mut ways);
    ways.end(captured);
}

#[test]
fn each_call_of_a_32_bit_program_is_captured_or_denied() {
    require_root!();
    let mut ways = Ways::of(Scene::new(&[]), Make::ThirtyTwoBit);
    if ways.mesh.a.host.run("", &[ways.program.to_str().expect("UTF-8")]).status.code() != Some(2) {
        skip("this kernel runs no 32-bit programs");
        return;
    }
    let captured = each_call(&mut ways);
    ways.both("socketcall", &[]);
    ways.end(captured + 1);
}

/// Returns how many were captured.
#[track_caller]
fn each_call(ways: &mut Ways) -> u64 {
    for way in CALLS {
        // What vfork(2) makes becomes another program, which is the way `blocking`.
        if way == "vfork" {
            let said = ways.say("web", way, ways.to(ECHO), &[]);
            is_echoed(&said, "blocking", ways.to(ECHO));
            ways.is_denied(way, &[]);
        } else {
            ways.both(way, &[]);
        }
    }
    let mut captured = CALLS.len() as u64;
    for way in IO_URING {
        let said = ways.say("web", way, ways.to(ECHO), &[]);
        if said["at"] == "io_uring_setup" {
            skip(&format!("{way}: this kernel has it off ({})", said["error"]));
            continue;
        }
        is_echoed(&said, way, ways.to(ECHO));
        ways.is_denied(way, &[]);
        captured += 1;
    }
    captured
}

#[test]
fn mptcp_is_refused_and_what_falls_back_to_tcp_is_captured() {
    require_root!();
    let ways = Ways::new(Family::V4);
    for cgroup in ["web", "other"] {
        let said = ways.say(cgroup, "mptcp", ways.to(ECHO), &[]);
        assert_eq!((&said["at"], &said["error"]), (&"socket".into(), &"EPROTONOSUPPORT".into()), "{said}");
    }
    ways.both("blocking", &[]);
    ways.end(1);
}

#[test]
fn ipv4_mapped_and_ipv6_only_sockets_are_as_on_plain_tcp() {
    require_root!();
    let ways = Ways::new(Family::V4);
    let mapped = format!("[::ffff:{}]:{ECHO}", ways.mesh.b.host.v4).parse().unwrap();
    let said = ways.say("web", "mapped", mapped, &[]);
    is_echoed(&said, "mapped", ways.to(ECHO));
    assert_eq!(ways.say("other", "mapped", mapped, &[])["error"], "EPERM");
    // A socket for IPv6 only does not take IPv4-mapped addresses, mesh or not.
    let said = ways.say("web", "v6-only", mapped, &[]);
    assert_eq!(said["error"], "ENETUNREACH", "{said}");
    let v6 = format!("[{}]:{ECHO}", ways.mesh.b.host.v6).parse().unwrap();
    let said = ways.say("web", "v6-only", v6, &[]);
    // The instance is announced by its IPv4 address alone, so that this one is outside the mesh: B's guard resets it.
    assert_ne!(said["ok"], true, "{said}");
    drop(ways);
    let ways = Ways::new(Family::V6);
    ways.both("v6-only", &[]);
    ways.end(1);
}

#[test]
fn link_local_address_of_another_host_is_outside_the_mesh() {
    require_root!();
    let ways = Ways::new(Family::V6);
    let node = &ways.mesh.a;
    let of_b = ways
        .mesh
        .b
        .host
        .run("", &["ip", "-6", "-brief", "addr", "show", "dev", "eth0", "scope", "link"])
        .ok();
    assert!(of_b.contains("fe80::"), "{of_b}");
    // A and B are on different links: what A reaches by that address is the router, where nothing listens.
    let program = ways.program.to_str().expect("UTF-8").to_owned();
    let router = router_link_local(&ways);
    for cgroup in ["web", "other"] {
        let said = node.host.run(cgroup, &[&program, "blocking", &router, &ECHO.to_string()]);
        assert!(said.stdout.contains("ECONNREFUSED"), "it is plain TCP: {said}");
    }
    // Its own link-local address is the host's own: protected ports are what they are elsewhere.
    ways.end(0);
}

/// The router's address on A's link, with the interface.
#[track_caller]
fn router_link_local(ways: &Ways) -> String {
    let port = format!("port{}", ways.mesh.a.host.v4.octets()[2]);
    let mut ip = ways.mesh.net.space().command("", "ip");
    ip.args(["-6", "-brief", "addr", "show", "dev", &port, "scope", "link"]);
    let said = mesh_tests::process::run(ip, None, mesh_tests::host::LIMIT).ok();
    let address = said.split_whitespace().find(|w| w.starts_with("fe80::")).expect("a link has one");
    format!("{}%eth0", address.split('/').next().expect("it has a first part"))
}

#[test]
fn connected_udp_passes_whoever_sends() {
    require_root!();
    let ways = Ways::new(Family::V4);
    for cgroup in ["web", "other"] {
        for port in [ECHO, HIDDEN] {
            let said = ways.say(cgroup, "udp", ways.to(port), &[]);
            assert_eq!(
                (&said["ok"], &said["peer"]),
                (&true.into(), &ways.to(port).to_string().into()),
                "{said}"
            );
        }
    }
    assert_eq!(ways.mesh.a.status().counter("captured"), ways.before);
}

#[test]
fn same_calls_to_a_service_of_this_host_are_direct() {
    require_root!();
    let mut scene = Scene::new(&[]);
    scene.on_a.push(mesh_tests::config::Service::server("local", 7100));
    let ways = Ways::of(scene, Make::C);
    let node = &ways.mesh.a;
    let _server = mesh_tests::fixture::serve(&node.host, "local", 7100, &["echo"]);
    node.intention("web", "local", "allow");
    let own = text(node.host.v4);
    let to = format!("{own}:7100").parse().unwrap();
    mesh_tests::wait::until("the intention", || {
        let said = ways.say("web", "blocking", to, &[]);
        if said["ok"] == true { Ok(()) } else { Err(said.to_string()) }
    });
    let before = node.status().counter("direct");
    let calls: Vec<_> = CALLS.iter().filter(|w| **w != "vfork").collect();
    for way in &calls {
        is_echoed(&ways.say("web", way, to, &[]), way, to);
        assert_eq!(ways.say("other", way, to, &[])["error"], "EPERM", "{way}");
    }
    // The unspecified address is loopback to connect(2).
    for any in ["0.0.0.0:7100", "[::]:7100", "[::ffff:0.0.0.0]:7100"] {
        let way = if any.starts_with('[') { "mapped" } else { "blocking" };
        let said = ways.say("web", way, any.parse().unwrap(), &[]);
        assert_eq!(said["received"], format!("sent by {way}"), "{any}: {said}");
        assert_eq!(ways.say("other", way, any.parse().unwrap(), &[])["error"], "EPERM", "{any}");
    }
    node.wait_status("the direct flows", |s| s.counter("direct") - before == calls.len() as u64 + 3);
    node.wait_status("their end", |s| s.flows("web", "local").is_empty());
}
