//! Between two hosts: connections that carry one flow after another, and one for each flow.

use mesh_tests::{
    fixture::{Mesh, Scene},
    require_root,
};

use super::{PORT, Route, Server, is_on};

const OFF: &str = "[proxy]\npool = false\n";

/// A caller's host and a server's, each with the pool or without.
#[track_caller]
fn start(on_a: bool, on_b: bool) -> Mesh {
    let mut scene = Scene::new(&[("echo", PORT)]);
    let section = |on| if on { String::new() } else { OFF.to_owned() };
    (scene.sections, scene.sections_on_b) = (section(on_a), section(on_b));
    let mesh = scene.start();
    assert_eq!((is_on(&mesh.a, "pool"), is_on(&mesh.b, "pool")), (on_a, on_b));
    mesh.a.intention("web", "echo", "allow");
    mesh
}

#[track_caller]
fn carries_everything(on_a: bool, on_b: bool) {
    let mesh = start(on_a, on_b);
    let mut route = Route::new(&mesh.a.host, mesh.at(PORT), Server::start(&mesh.b.host), &mesh.a);
    route.until_it_works();
    route.carries_everything();
    // One that ends in order leaves its connection.
    let call = route.begin(1, "in-order");
    route.finish(call);
    let pooled = on_a && on_b;
    mesh.a.wait_status("what became of its connection", |s| {
        s.all_flows().is_empty() && (s.counter("connections_waiting") > 0) == pooled
    });
    route.is_cut_by_policy();
}

#[test]
fn connections_that_carry_one_flow_after_another_lose_nothing_and_keep_ends_apart() {
    require_root!();
    carries_everything(true, true);
}

#[test]
fn raw_bytes_to_a_host_that_has_the_pool_off() {
    require_root!();
    carries_everything(true, false);
}

#[test]
fn raw_bytes_from_a_host_that_has_the_pool_off() {
    require_root!();
    carries_everything(false, true);
}

#[test]
fn raw_bytes_between_hosts_without_a_pool() {
    require_root!();
    carries_everything(false, false);
}

/// A transfer that a dead daemon takes along never looks complete.
#[track_caller]
fn death_is_no_end(pool: bool) {
    let mut mesh = start(pool, pool);
    let mut route = Route::new(&mesh.a.host, mesh.at(PORT), Server::start(&mesh.b.host), &mesh.a);
    route.until_it_works();
    let call = route.begin(1 << 40, "in-order");
    mesh.a.wait_status("the transfer", |s| {
        s.flows("web", "echo").iter().any(|f| f["bytes_sent"].as_u64().is_some_and(|b| b > 1 << 16))
    });
    let (is_callers, mut server) = (route.next() & 1 == 0, route.server);
    if is_callers {
        mesh.a.kill9()
    } else {
        mesh.b.kill9()
    }
    let (caller, server) = (call.1.said(), server.said(call.0));
    for said in [&caller, &server] {
        let is_error = matches!(said["end"].as_str(), Some("ECONNRESET" | "EPIPE"));
        assert!(said["right"] == true && is_error, "caller: {caller}\nserver: {server}");
    }
}

#[test]
fn daemon_that_dies_is_a_reset_with_the_pool() {
    require_root!();
    death_is_no_end(true);
}

#[test]
fn daemon_that_dies_is_a_reset_without_the_pool() {
    require_root!();
    death_is_no_end(false);
}
