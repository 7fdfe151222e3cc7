//! A real Consul as the control plane: its server and client agents, its CLI, its CA.

use mesh_tests::{
    fixture::{Scene, serve},
    require_consul, require_root,
};
use serde_json::json;

#[test]
fn two_hosts_talk_under_consuls_intentions_and_certificates() {
    require_root!();
    require_consul!();
    let consul = Scene::new(&[("db", 5432)]).start_with_consul(&json!({"acl": {"enabled": false}}));
    let _server = serve(&consul.mesh.b.host, "db", 5432, &["banner", "welcome"]);
    let a = &consul.mesh.a.host;
    consul.server.intention(a, "*", "*", "deny");
    consul.mesh.until_denied("web", 5432);
    consul.allow("web", "db", 5432);
    assert_eq!(consul.mesh.connect("other", 5432, &[])["error"], "EPERM");
    consul.server.delete_intention(a, "web", "db");
    consul.mesh.until_denied("web", 5432);
    let services = consul.server.cli(a, &["catalog", "services"]).ok();
    assert!(services.contains("db-sidecar-proxy"), "{services}");
}
