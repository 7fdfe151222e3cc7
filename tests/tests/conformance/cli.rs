//! The real `consul` command, run against both.

use mesh_tests::conformance::{
    Run,
    servers::{SIDES, Side},
};

const WEB_JSON: &str = r#"{"service": {"id": "web-1", "name": "web", "port": 8080, "tags": ["v1"], "meta": {"a": "b"},
    "connect": {"sidecar_service": {"proxy": {"upstreams": [{"destination_name": "db", "local_bind_port": 9191}]}}},
    "check": {"ttl": "10m", "status": "passing"}}}"#;

const TWO_HCL: &str = r#"
services {
  name = "db"
  port = 5432
  tagged_addresses { lan = { address = "10.0.0.5" port = 5432 } }
  weights { passing = 5 warning = 1 }
}
services {
  name = "cache"
  port = 6379
  checks = [ { name = "alive" ttl = "10m" }, { name = "port" tcp = "127.0.0.1:1" interval = "10h" } ]
}
"#;

pub fn intentions(run: &mut Run<'_>) {
    for words in [
        &["create", "-allow", "web", "db"][..],
        &["create", "-deny", "-meta", "by=me", "-meta", "why=so", "*", "db"],
        &["create", "web", "cache"],
        // There already; replaced.
        &["create", "-deny", "web", "db"],
        &["create", "-deny", "-replace", "web", "db"],
        &["create", "-allow", "a*", "db"],
        &["create", "-allow", "web"],
        &["get", "web", "db"],
        &["get", "*", "db"],
        &["get", "web", "nobody"],
        &["check", "web", "db"],
        &["check", "web", "cache"],
        &["check", "app", "nothing"],
        &["match", "db"],
        &["match", "-source", "web"],
        &["match", "-destination", "cache"],
        &["match", "nobody"],
        &["delete", "web", "db"],
        &["delete", "web", "db"],
        &["delete", "*", "db"],
        &["delete", "web", "cache"],
    ] {
        run.cli(&[&["intention"], words].concat());
    }
    // From Consul 1.9; here it prints the help.
    run.cli(&["intention", "list"]);
    for side in SIDES {
        let file = run.servers.host(side).space().scratch().join("intention.json");
        std::fs::write(
            file,
            r#"{"SourceName": "f", "DestinationName": "g", "SourceType": "consul", "Action": "deny"}"#,
        )
        .expect("scratch is ours");
    }
    run.cli(&["intention", "create", "-file", "{scratch}/intention.json"]);
    run.cli(&["intention", "delete", "f", "g"]);
}

pub fn services(run: &mut Run<'_>) {
    for side in SIDES {
        let scratch = run.servers.host(side).space().scratch();
        std::fs::write(scratch.join("web.json"), WEB_JSON).expect("scratch is ours");
        std::fs::write(scratch.join("two.hcl"), TWO_HCL).expect("scratch is ours");
    }
    run.cli(&["services", "register", "{scratch}/web.json", "{scratch}/two.hcl"]);
    run.cli(&[
        "services",
        "register",
        "-name=small",
        "-port=1",
        "-tag=a",
        "-tag=b",
        "-meta=k=v",
        "-address=10.0.0.9",
    ]);
    run.cli(&["services", "register", "{scratch}/nowhere.json"]);
    run.cli(&["services", "register"]);
    // Consul dials for the first time within ten hours.
    mesh_tests::wait::until_true("the embedded server to dial", || {
        let said = run.one(Side::Embedded, "GET", "/v1/agent/checks", &[], "").body;
        said.matches("connection refused").count() == 2
    });
    for path in ["/v1/agent/services", "/v1/agent/checks"] {
        run.get(path);
    }
    for words in [
        &["datacenters"][..],
        &["nodes"],
        &["nodes", "-detailed"],
        &["nodes", "-service=web"],
        &["nodes", "-service=nobody"],
        &["nodes", "-node-meta=a=b"],
        &["nodes", "-filter=Node == \"host-a\""],
        &["services"],
        &["services", "-tags"],
        &["services", "-node=host-a"],
        &["services", "-node=nobody"],
    ] {
        run.cli_when_settled(&[&["catalog"], words].concat());
    }
    run.cli(&["maint", "-enable", "-service=web-1", "-reason=a disk"]);
    run.cli_when_settled(&["maint"]);
    run.cli(&["maint", "-disable", "-service=web-1"]);
    run.cli_when_settled(&["maint"]);
    run.cli(&["watch", "-type=service", "-service=db"]);
    run.cli(&["watch", "-type=nodes"]);
    run.cli(&["watch", "-type=connect_roots"]);
    run.cli(&["services", "deregister", "{scratch}/two.hcl"]);
    run.cli(&["services", "deregister", "-id=web-1"]);
    run.cli(&["services", "deregister", "-id=small"]);
    run.cli(&["services", "deregister", "-id=nobody"]);
    run.cli_when_settled(&["catalog", "services"]);
}

pub fn certificates(run: &mut Run<'_>) {
    run.cli(&["connect", "ca", "get-config"]);
    for side in SIDES {
        let file = run.servers.host(side).space().scratch().join("ca.json");
        std::fs::write(file, r#"{"Provider": "consul", "Config": {"LeafCertTTL": "36h"}}"#)
            .expect("scratch is ours");
    }
    run.cli(&["connect", "ca", "set-config", "-config-file", "{scratch}/ca.json"]);
    run.cli(&["connect", "ca", "get-config"]);
    run.cli(&["connect", "ca", "set-config", "-config-file", "{scratch}/nowhere.json"]);
}

/// What a server has no use for when it is alone says so, and does not seem to work.
pub fn the_rest(run: &mut Run<'_>) {
    for words in [
        &["members"][..],
        &["members", "-detailed"],
        &["info"],
        &["kv", "get", "some/key"],
        &["kv", "put", "some/key", "value"],
        &["kv", "delete", "some/key"],
        &["reload"],
        &["maint", "-enable"],
        &["maint", "-disable"],
        &["operator", "raft", "list-peers"],
        &["operator", "autopilot", "get-config"],
        &["config", "list", "-kind", "service-defaults"],
        &["event", "-name", "x"],
        &["force-leave", "nobody"],
        &["join", "10.77.1.99"],
        &["keyring", "-list"],
        &["rtt", "host-a", "host-a"],
        &["snapshot", "save", "{scratch}/snapshot"],
        &["acl", "token", "list"],
        &["acl", "bootstrap"],
        &["login", "-method=m", "-bearer-token-file=/dev/null", "-token-sink-file={scratch}/sink"],
        &["lock", "-timeout=1s", "some/key", "true"],
    ] {
        run.cli(words);
    }
}
