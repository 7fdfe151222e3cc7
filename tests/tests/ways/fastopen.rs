//! TCP Fast Open where the machine has it on for everybody, without cookies: the SYN carries the first write.

use mesh_tests::{
    config::Service,
    fixture::{Scene, serve},
    net::Network,
    program::compiled::Make,
    require_root, wait,
};

use super::{ECHO, Ways, is_echoed};

/// `tcp_fastopen`: clients (1) and servers (2), neither with cookies (4, 0x200), all listeners (0x400).
const EVERYBODY: &str = "echo 1543 > /proc/sys/net/ipv4/tcp_fastopen";

#[test]
fn data_in_the_syn_arrives_captured_and_direct() {
    require_root!();
    let mut scene = Scene::new(&[("echo", ECHO), ("hidden", super::HIDDEN), ("second", super::SECOND)]);
    scene.on_a.push(Service::server("local", 7100));
    let net = Network::new();
    let (a, b) = (net.host("a"), net.host("b"));
    for host in [&a, &b] {
        // Before anybody listens: a listener takes it up then.
        host.run("", &["sh", "-c", EVERYBODY]).ok();
    }
    let ways = Ways::on(scene.start_on(net, a, b), Make::C);
    let node = &ways.mesh.a;
    let _server = serve(&node.host, "local", 7100, &["echo"]);
    node.intention("web", "local", "allow");
    let local = format!("{}:7100", node.host.v4).parse().unwrap();
    wait::until("the intention", || {
        let said = ways.say("web", "blocking", local, &[]);
        if said["ok"] == true { Ok(()) } else { Err(said.to_string()) }
    });
    let said = ways.say("web", "fastopen-connect", local, &[]);
    is_echoed(&said, "fastopen-connect", local);
    assert_eq!(
        (&said["syn_data"], &said["early"]),
        (&"taken".into(), &"ENOTCONN".into()),
        "the twin: {said}"
    );
    is_echoed(&ways.say("web", "fastopen-sendto", local, &[]), "fastopen-sendto", local);
    for _ in 0..5 {
        ways.both("fastopen-sendto", &[]);
        // connect() is denied at once, not with the first write.
        let said = ways.is_denied("fastopen-connect", &[]);
        assert_eq!(said["at"], "connect", "{said}");
        // The daemon's listener takes no data in a SYN: it would accept before the kernel has said what for.
        let said = ways.arrives("fastopen-connect", &[]);
        assert_eq!((&said["syn_data"], &said["early"]), (&"not taken".into(), &"ENOTCONN".into()), "{said}");
    }
    let status = node.status();
    assert_eq!(status.ended("outbound", "not-captured"), 0);
    let direct = |s: &mesh_tests::status::Status| s.flows("web", "local").is_empty();
    node.wait_status("the end of the direct flows", direct);
    let plain = format!("{}:{}", ways.mesh.b.host.v4, super::BARE).parse().unwrap();
    is_echoed(&ways.say("web", "fastopen-connect", plain, &[]), "fastopen-connect", plain);
    ways.end(10);
}
