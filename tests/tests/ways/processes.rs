//! Whose connection it is: sockets that are made, connected and used by different processes, cgroups and namespaces.

use std::process::Command;

use mesh_tests::{
    cgroup::Cgroup, container::Container, host::Family, meshnode::UNMANAGED, process::run, require_root, wait,
};

use super::{ECHO, Ways, is_echoed};

/// A cgroup of a test host as its own programs see it.
#[track_caller]
fn inside(cgroup: &str) -> String {
    format!("/sys/fs/cgroup/{cgroup}")
}

#[test]
fn socket_belongs_to_whoever_connects_it() {
    require_root!();
    let ways = Ways::new(Family::V4);
    let to = ways.to(ECHO);
    // Made by `web`, connected by `other`: denied. The other way round: web's.
    let said = ways.say("web", "pass-before", to, &[&inside("other")]);
    assert_eq!((&said["error"], &said["at"]), (&"EPERM".into(), &"connect".into()), "{said}");
    is_echoed(&ways.say("other", "pass-before", to, &[&inside("web")]), "pass-before", to);
    is_echoed(&ways.say(UNMANAGED, "pass-before", to, &[&inside("web")]), "pass-before", to);
    // Connected, and then given away: the flow stays what it is.
    is_echoed(&ways.say("web", "pass-after", to, &[&inside("other")]), "pass-after", to);
    let said = ways.say("other", "pass-after", to, &[&inside("web")]);
    assert_eq!((&said["error"], &said["at"]), (&"EPERM".into(), &"connect".into()), "{said}");
    let status = ways.mesh.a.wait_status("the flows", |s| s.recent("web", "echo").len() >= 3);
    assert!(status.recent("other", "echo").iter().all(|f| f["state"] == "denied"), "{:#}", status.0);
    ways.end(3);
}

#[test]
fn socket_made_in_another_cgroup_is_captured_even_when_that_is_gone() {
    require_root!();
    let ways = Ways::new(Family::V4);
    let to = ways.to(ECHO);
    // What keeps the first two from being removed.
    let _keepers = [UNMANAGED, "other"].map(|cgroup| ways.mesh.a.host.spawn(cgroup, &["sleep", "1000"]));
    for (made_in, removed) in [(UNMANAGED, "EBUSY"), ("other", "EBUSY"), ("short-lived", "yes")] {
        let said = ways.say("web", "moved", to, &[&inside("web"), &inside(made_in)]);
        is_echoed(&said, "moved", to);
        assert_eq!(said["removed"], removed, "{said}");
        let said = ways.say("web", "moved", to, &[&inside("other"), &inside(made_in)]);
        assert_eq!(said["error"], "EPERM", "{said}");
    }
    ways.end(3);
}

#[test]
fn process_that_changes_its_network_namespace_is_captured_by_its_sockets_namespace() {
    require_root!();
    let ways = Ways::new(Family::V4);
    let container = Container::new(&ways.mesh.a.host, 1, "web/container");
    ways.mesh.a.host.run("", &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]).ok();
    let net = format!("/proc/{}/ns/net", container.pid());
    let to = ways.to(ECHO);
    wait::until("the daemon to listen there", || {
        let said = ways.say("web", "setns", to, &[&net]);
        if said["error"] == "EPERM" { Err(said.to_string()) } else { Ok(()) }
    });
    let before = ways.mesh.a.status().counter("captured");
    ways.both("setns", &[&net]);
    // A socket stays in the namespace that it was made in.
    ways.both("setns-after", &[&net]);
    assert_eq!(ways.mesh.a.status().counter("captured") - before, 2);
    let trace = ways.wire.stop();
    assert_eq!(trace.bytes_at(ECHO), 0);
}

/// The hooks are those of the socket's own cgroup. A socket that was made outside of the governed subtree has none: the limit
/// of a narrower `cgroup_root`, which the documentation of that key names. The destination's guard still resets it.
#[test]
fn socket_made_outside_of_the_governed_subtree_is_not_seen_and_does_not_get_through() {
    require_root!();
    let ways = Ways::new(Family::V4);
    let to = ways.to(ECHO);
    // This process is outside; the host's cgroups are below its own mount of the tree. Another run has another name.
    let outside = format!("meshnode-ways-outside-{}", std::process::id());
    let outside = Cgroup::at(mesh_tests::cgroup::mount_point().join(outside));
    let web = ways.mesh.a.host.space().cgroup().child("web");
    let mut command = Command::new(&ways.program);
    command.args(["moved", &to.ip().to_string(), &to.port().to_string()]);
    command.arg(web.path()).arg(outside.path());
    let said = ways.mesh.a.host.space().enter().in_network(|| run(command, None, mesh_tests::host::LIMIT));
    let _ = std::fs::remove_dir(outside.path());
    assert!(said.stdout.contains("ECONNRESET"), "B's guard resets it: {said}");
    ways.mesh.b.wait_status("the guard's count", |s| s.counter("guarded") > 0);
    assert_eq!(ways.mesh.a.status().counter("captured"), ways.before);
}

/// What an unmanaged process dials is not the mesh's business where it starts, even by a workload's socket.
#[test]
fn workloads_socket_is_nobodys_in_the_hands_of_an_unmanaged_process() {
    require_root!();
    let ways = Ways::new(Family::V4);
    let said = ways.say("web", "pass-before", ways.to(ECHO), &[&inside(UNMANAGED)]);
    assert_eq!(said["error"], "ECONNRESET", "B's guard resets it: {said}");
    assert_eq!(ways.mesh.a.status().counter("captured"), ways.before);
}
