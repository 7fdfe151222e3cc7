//! Sockets that the program bound before it connected: to a port, an address, a device.

use mesh_tests::{fixture::serve, host::Family, meshnode::UNMANAGED, process::Process, require_root};
use nix::sys::signal::Signal;

use super::{BARE, ECHO, Ways, address, is_denied_for, is_echoed, text};

// The fixed ports of this file are below `net.ipv4.ip_local_port_range`: another connection, or what is left of it in
// TIME-WAIT, would have one of that range now and then.

#[test]
fn fixed_port_and_own_address_stay_what_they_are() {
    require_root!();
    for (family, any) in [(Family::V4, "0.0.0.0"), (Family::V6, "::")] {
        let ways = Ways::new(family);
        let own = text(ways.mesh.a.host.ip(family));
        let said = ways.arrives("bind", &[any, "10001"]);
        assert_eq!(address(&said["local"]).port(), 10001, "{said}");
        ways.is_denied("bind", &[any, "10002"]);
        let said = ways.arrives("bind", &[&own, "10003"]);
        assert_eq!(
            address(&said["local"]),
            format!("{}", std::net::SocketAddr::new(own.parse().unwrap(), 10003)).parse().unwrap()
        );
        ways.is_denied("bind", &[&own, "10004"]);
        if family == Family::V4 {
            ways.both("bind-no-port", &[&own]);
            // Plain TCP cannot leave the host with this source; the mesh does for it.
            ways.both("bind", &["127.0.0.1", "10005"]);
            ways.end(4);
        } else {
            ways.end(2);
        }
    }
}

#[test]
fn connection_from_the_same_port_to_elsewhere_on_loopback_takes_nothing_from_a_captured_one() {
    require_root!();
    let mut ways = Ways::new(Family::V4);
    let _elsewhere = serve(&ways.mesh.a.host, UNMANAGED, BARE, &["echo"]);
    let to = ways.to(ECHO);
    let program = ways.program.to_str().expect("UTF-8").to_owned();
    let words = [&program, "share-port", &text(to.ip()), &to.port().to_string(), "10006", &BARE.to_string()];
    // The first connection is established and waits to be accepted while the second one is made.
    ways.mesh.a.daemon().signal(Signal::SIGSTOP);
    let host = &ways.mesh.a.host;
    let mut running = Process::spawn(host.command("web", &words), &host.log_file("ways"));
    running.wait_for_log("both are connected");
    ways.mesh.a.daemon().signal(Signal::SIGCONT);
    running.wait();
    let log = running.log();
    let said = serde_json::from_str(log.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("no JSON: {e}: {log}"));
    is_echoed(&said, "share-port", to);
    ways.end(1);
}

#[test]
fn foreign_source_address_is_denied_and_reported_rather_than_left_to_hang() {
    require_root!();
    let ways = Ways::new(Family::V4);
    let own = text(ways.mesh.a.host.v4);
    for way in ["transparent", "freebind"] {
        let said = ways.say("web", way, ways.to(ECHO), &["203.0.113.7"]);
        assert_eq!((&said["error"], &said["at"]), (&"EPERM".into(), &"connect".into()), "{said}");
        ways.both(way, &[&own]);
    }
    is_denied_for(&ways.mesh.a, "web", "bound-source");
    assert_eq!(ways.mesh.a.status().counter("denied_bound"), 2);
    ways.end(2);
}

#[test]
fn socket_bound_to_a_device_is_captured_and_bound_again_when_it_connects_elsewhere() {
    require_root!();
    for family in [Family::V4, Family::V6] {
        let ways = Ways::new(family);
        ways.both("device", &["eth0"]);
        let bare = ways.to(BARE);
        let said = ways.say("web", "device-again", ways.to(ECHO), &[&text(bare.ip()), &BARE.to_string()]);
        is_echoed(&said, "device-again", bare);
        assert_eq!(said["device"], "eth0", "the program's own binding counts outside the mesh: {said}");
        ways.end(2);
    }
}

#[test]
fn socket_that_its_program_may_not_free_from_a_device_is_denied_and_reported() {
    require_root!();
    let ways = Ways::new(Family::V4);
    let to = ways.to(ECHO);
    let (ip, port) = (text(to.ip()), to.port().to_string());
    let program = ways.program.to_str().expect("UTF-8");
    // An ordinary user may bind a socket that is bound to nothing, and not free it.
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let words = [&nobody[..], &[program, "device", &ip, &port, "eth0"]].concat();
    let said = ways.mesh.a.host.run("web", &words);
    assert!(said.stdout.contains("\"error\": \"EPERM\", \"at\": \"connect\""), "{said}");
    is_denied_for(&ways.mesh.a, "web", "bound-device");
    let words = [&nobody[..], &[program, "blocking", &ip, &port]].concat();
    let said = ways.mesh.a.host.run("web", &words);
    assert!(said.stdout.contains("sent by blocking"), "{said}");
    ways.end(1);
}
