//! From a program behind Consul's built-in proxy to a service outside the mesh, by a meshnode that is its gateway.

use mesh_tests::{config::Service, require_consul, require_root, wait};

use super::*;

const BILLING: Called = Called("billing", 7005, 21005);

#[track_caller]
fn consul_proxy_reaches_the_gateway(plane: Plane) {
    // The network's third host.
    let gateway = format!("[[gateway]]\nservice = \"billing\"\naddress = \"10.77.3.1:{}\"", BILLING.1);
    let pair = Pair::start(plane, vec![Service::client("idle").with(&gateway)]);
    let x = pair.net.host("x");
    assert_eq!(x.v4.to_string(), "10.77.3.1");
    let _server = serve(&x, UNMANAGED, BILLING.1, &["banner", WELCOME]);
    pair.intention("web", "billing", "allow");
    let _proxies =
        [Kind::Consul.reach(&pair, "web", &[BILLING]), Kind::Consul.reach(&pair, "other", &[BILLING])];
    let dial = |source: &str| {
        let to = at(local(source, BILLING));
        pair.on_b(&["connect", &to, "--read", "10", "--wait", "5000"])
    };
    wait::until("the welcome", || {
        let said = dial("web");
        if said["received"] == WELCOME { Ok(()) } else { Err(format!("{said}\n{}", pair.a.log())) }
    });
    // Before it has a certificate, its proxy does not even ask.
    pair.a.wait_status("the denial", |s| {
        let said = dial("other");
        assert!(said["received"] == "" && said["end"] != "TIMEOUT", "other was let in: {said}");
        s.recent("other", "billing").iter().any(|flow| flow["state"] == "denied")
    });
}

#[test]
fn consul_proxy_reaches_an_external_service_by_a_gateway_under_consul() {
    require_root!();
    require_consul!();
    consul_proxy_reaches_the_gateway(Plane::Consul);
}

#[test]
fn consul_proxy_reaches_an_external_service_by_a_gateway_under_the_embedded_server() {
    require_root!();
    require_consul!();
    consul_proxy_reaches_the_gateway(Plane::Embedded);
}
