//! Who is not allowed, and what each refusal looks like; beside each, who is.

use mesh_tests::{
    fixture::{Mesh, Scene, is_reset, serve},
    meshnode::UNMANAGED,
    process::Process,
    require_root,
};

fn scene() -> (Mesh, Process) {
    let mesh = Scene::new(&[("db", 5432)]).start();
    let server = serve(&mesh.b.host, "db", 5432, &["greet", "welcome"]);
    (mesh, server)
}

fn is_let_in(mesh: &Mesh, cgroup: &str) -> bool {
    mesh.connect(cgroup, 5432, &[])["received"] == "welcome"
}

#[test]
fn no_intention_means_no_connection() {
    require_root!();
    let (mesh, _server) = scene();
    mesh.until_denied("web", 5432);
    let before = mesh.a.status().counter("denied_intention");
    assert_eq!(mesh.connect("web", 5432, &[])["error"], "EPERM");
    mesh.a.wait_status("the count", |s| s.counter("denied_intention") == before + 1);
    mesh.allow("web", "db", 5432);
    assert!(is_let_in(&mesh, "web"));
}

#[test]
fn another_workload_is_refused_by_the_kernel() {
    require_root!();
    let (mesh, _server) = scene();
    mesh.allow("web", "db", 5432);
    assert!(is_let_in(&mesh, "web"));
    assert_eq!(mesh.connect("other", 5432, &[])["error"], "EPERM");
}

#[test]
fn an_unmanaged_process_is_reset_by_the_destinations_guard() {
    require_root!();
    let (mesh, _server) = scene();
    mesh.allow("web", "db", 5432);
    assert!(is_let_in(&mesh, "web"));
    let said = mesh.connect(UNMANAGED, 5432, &["--send", "x"]);
    assert!(is_reset(&said), "{said}");
    mesh.b.wait_status("the guard's count", |s| s.counter("guarded") > 0);
}

#[test]
fn exact_allow_beats_wildcard_deny() {
    require_root!();
    let (mesh, _server) = scene();
    mesh.a.intention("*", "db", "deny");
    mesh.allow("web", "db", 5432);
    assert!(is_let_in(&mesh, "web"));
    assert_eq!(mesh.connect("other", 5432, &[])["error"], "EPERM");
}

#[test]
fn exact_deny_beats_wildcard_allow() {
    require_root!();
    let (mesh, _server) = scene();
    mesh.a.intention("web", "db", "deny");
    mesh.a.intention("*", "db", "allow");
    mesh.until_connects("other", 5432);
    assert!(is_let_in(&mesh, "other"));
    assert_eq!(mesh.connect("web", 5432, &[])["error"], "EPERM");
}

#[test]
fn exact_destination_beats_exact_source() {
    require_root!();
    let (mesh, _server) = scene();
    mesh.a.intention("web", "*", "allow");
    mesh.until_connects("web", 5432);
    mesh.a.intention("*", "db", "deny");
    mesh.until_denied("web", 5432);
    mesh.a.delete_intention("*", "db");
    mesh.until_connects("web", 5432);
}

#[test]
fn intentions_have_a_direction() {
    require_root!();
    let mut scene = Scene::new(&[("db", 5432)]);
    scene.on_a.push(mesh_tests::config::Service::server("api", 8080));
    let mesh = scene.start();
    let _db = serve(&mesh.b.host, "db", 5432, &["greet", "welcome"]);
    let _api = serve(&mesh.a.host, "api", 8080, &["greet", "welcome"]);
    mesh.allow("api", "db", 5432);
    assert!(is_let_in(&mesh, "api"));
    let to = format!("{}:8080", mesh.a.host.v4);
    let said = mesh_tests::fixture::connect(&mesh.b.host, "db", &to, &[]);
    assert_eq!(said["error"], "EPERM", "{said}");
}

#[test]
fn default_allow_lets_in_what_no_intention_denies() {
    require_root!();
    let mut scene = Scene::new(&[("db", 5432)]);
    scene.embedded = "default_policy = \"allow\"".to_owned();
    let mesh = scene.start();
    let _server = serve(&mesh.b.host, "db", 5432, &["greet", "welcome"]);
    mesh.until_connects("web", 5432);
    mesh.a.intention("web", "db", "deny");
    mesh.until_denied("web", 5432);
    mesh.until_connects("other", 5432);
    assert!(is_let_in(&mesh, "other"));
}
