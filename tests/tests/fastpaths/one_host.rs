//! Within one host: connected by the kernel, and through the proxy.

use mesh_tests::{
    config::{Config, ControlPlane, Service},
    meshnode::Meshnode,
    net::Network,
    require_root,
};

use super::{PORT, Route, Server, is_on};

#[track_caller]
fn carries_everything(top: &str, sections: &str) {
    let net = Network::new();
    let host = net.host("a");
    let config = Config {
        node: "host-a".to_owned(),
        advertise: host.v4.into(),
        control_plane: ControlPlane::Embedded { lines: String::new() },
        services: vec![Service::server("echo", PORT), Service::client("web")],
        top: top.to_owned(),
        sections: sections.to_owned(),
    };
    let node = Meshnode::start(host, config);
    let direct = top.is_empty();
    assert_eq!((is_on(&node, "same-host direct"), is_on(&node, "pool")), (direct, sections.is_empty()));
    node.intention("web", "echo", "allow");
    let to = format!("{}:{PORT}", node.host.v4);
    let mut route = Route::new(&node.host, to, Server::start(&node.host), &node);
    route.until_it_works();
    route.carries_everything();
    route.is_cut_by_policy();
    let status = node.status();
    assert_eq!(status.counter("direct") > 0, direct);
    assert_eq!(status.counter("captured") > 0, !direct);
}

#[test]
fn flows_that_the_kernel_connects() {
    require_root!();
    carries_everything("", "");
}

#[test]
fn flows_of_one_host_through_the_proxy() {
    require_root!();
    carries_everything("same_host = \"mtls\"", "");
}

#[test]
fn flows_of_one_host_through_the_proxy_without_a_pool() {
    require_root!();
    carries_everything("same_host = \"mtls\"", "[proxy]\npool = false\n");
}
