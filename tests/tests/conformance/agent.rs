//! `/v1/agent/*` but for certificates.

use mesh_tests::conformance::{
    Run,
    servers::{SIDES, Side},
};
use serde_json::{Value, json};

const REGISTER: &str = "/v1/agent/service/register";

/// What the catalog says of a service, once Consul's agent has told it.
fn shown(run: &mut Run<'_>, name: &str) {
    let ready = |list: &Value| list.as_array().is_some_and(|list| !list.is_empty());
    run.get_when(&format!("/v1/catalog/service/{name}"), ready);
    run.get(&format!("/v1/health/service/{name}"));
    run.get(&format!("/v1/health/checks/{name}"));
}

fn gone(run: &mut Run<'_>, name: &str) {
    run.get_when(&format!("/v1/catalog/service/{name}"), |list| list.as_array().is_some_and(Vec::is_empty));
}

pub fn of_itself(run: &mut Run<'_>) {
    run.get("/v1/agent/self");
    run.get("/v1/agent/members");
    run.get("/v1/status/leader");
    run.get("/v1/status/peers");
    run.get("/v1/agent/services");
    run.get("/v1/agent/checks");
}

pub fn services(run: &mut Run<'_>) {
    // As little as there can be.
    run.put(REGISTER, &json!({"Name": "plain"}));
    run.get("/v1/agent/service/plain");
    shown(run, "plain");
    // As much.
    run.put(
        REGISTER,
        &json!({
            "ID": "full-1",
            "Name": "full",
            "Tags": ["v1", "primary"],
            "Port": 8080,
            "Address": "10.9.8.7",
            "Meta": {"team": "mesh", "empty": ""},
            "TaggedAddresses": {"lan": {"Address": "10.9.8.8", "Port": 81}, "wan": {"Address": "198.51.100.7", "Port": 82}},
            "Weights": {"Passing": 10, "Warning": 2},
            "EnableTagOverride": true,
            "Checks": [
                {"Name": "alive", "CheckID": "full-ttl", "TTL": "10m", "Status": "passing", "Notes": "reported"},
                {"TCP": "127.0.0.1:1", "Interval": "10h", "Timeout": "1s"},
            ],
        }),
    );
    // Consul dials for the first time within ten hours.
    mesh_tests::wait::until_true("the embedded server to dial", || {
        run.one(Side::Embedded, "GET", "/v1/agent/checks", &[], "").body.contains("connection refused")
    });
    run.get("/v1/agent/service/full-1");
    run.get("/v1/agent/services");
    shown(run, "full");
    for query in ["format=json", "format=text", ""] {
        run.get(&format!("/v1/agent/health/service/id/full-1?{query}"));
        run.get(&format!("/v1/agent/health/service/name/full?{query}"));
    }
    // The clients' names of fields in small letters, IPv6, a native service.
    run.put(
        REGISTER,
        &json!({
            "id": "small-1",
            "name": "small",
            "port": 8081,
            "address": "fd77::9",
            "enable_tag_override": true,
            "connect": {"native": true},
            "check": {"ttl": "10m", "deregister_critical_service_after": "10m"},
        }),
    );
    run.get("/v1/agent/service/small-1");
    shown(run, "small");
    run.get("/v1/health/connect/small");
    // Again, with other values: what is not named has its default.
    run.put(REGISTER, &json!({"ID": "full-1", "Name": "full", "Port": 9090}));
    run.get("/v1/agent/service/full-1");
    run.get("/v1/agent/checks");
    shown(run, "full");
    run.put(
        &format!("{REGISTER}?replace-existing-checks=true"),
        &json!({"ID": "full-1", "Name": "full", "Port": 9090, "Check": {"CheckID": "only", "TTL": "10m"}}),
    );
    run.get("/v1/agent/checks");
    shown(run, "full");
    // Two instances, of which one is not well.
    run.put(REGISTER, &json!({"ID": "full-2", "Name": "full", "Port": 9091}));
    run.get("/v1/agent/health/service/name/full");
    run.get("/v1/agent/health/service/name/full?format=text");
    for id in ["plain", "full-1", "full-2", "small-1"] {
        run.put(&format!("/v1/agent/service/deregister/{id}"), &Value::Null);
    }
    for name in ["plain", "full", "small"] {
        gone(run, name);
    }
    run.get("/v1/agent/services");
    run.get("/v1/agent/checks");
}

pub fn sidecars(run: &mut Run<'_>) {
    run.put(
        REGISTER,
        &json!({
            "Name": "web",
            "Port": 8080,
            "Tags": ["v1"],
            "Meta": {"a": "b"},
            "Connect": {"SidecarService": {}},
        }),
    );
    run.get("/v1/agent/service/web");
    run.get("/v1/agent/service/web-sidecar-proxy");
    run.get_when("/v1/agent/checks", |checks| checks.as_object().is_some_and(|all| all.len() == 2));
    shown(run, "web-sidecar-proxy");
    run.get("/v1/catalog/connect/web");
    run.get("/v1/health/connect/web");
    run.get("/v1/health/connect/web?passing");
    run.get("/v1/agent/services");
    // With what people give it, and the next port.
    run.put(
        REGISTER,
        &json!({
            "ID": "api-1",
            "Name": "api",
            "Address": "10.1.2.3",
            "Port": 8081,
            "Connect": {"SidecarService": {
                "Name": "api-side",
                "Tags": ["side"],
                "Check": {"TTL": "10m", "Status": "warning"},
                "Proxy": {
                    "LocalServiceAddress": "127.0.0.2",
                    "Config": {"handshake_timeout_ms": 1000, "name": "x"},
                    "Upstreams": [
                        {"DestinationName": "web", "LocalBindPort": 9191},
                        {"DestinationName": "db", "DestinationType": "service", "LocalBindAddress": "127.0.0.3",
                         "LocalBindPort": 9192, "Datacenter": "dc1", "Config": {"connect_timeout_ms": 5}},
                    ],
                },
            }},
        }),
    );
    run.get("/v1/agent/service/api-1-sidecar-proxy");
    run.get("/v1/agent/service/api-1");
    shown(run, "api-side");
    run.get("/v1/health/connect/api");
    // A proxy by itself.
    run.put(
        REGISTER,
        &json!({
            "Kind": "connect-proxy",
            "Name": "db-proxy",
            "Port": 21500,
            "Proxy": {"DestinationServiceName": "db", "DestinationServiceID": "db-1", "LocalServicePort": 5432},
        }),
    );
    run.get("/v1/agent/service/db-proxy");
    shown(run, "db-proxy");
    run.get("/v1/catalog/connect/db");
    run.get("/v1/catalog/node-services/host-a");
    // The sidecar goes with its service; a proxy by itself does not.
    for id in ["web", "api-1", "db-1", "db-proxy"] {
        run.put(&format!("/v1/agent/service/deregister/{id}"), &Value::Null);
    }
    for name in ["web", "web-sidecar-proxy", "api", "api-side", "db-proxy"] {
        gone(run, name);
    }
    run.get("/v1/health/connect/web");
    run.get("/v1/agent/services");
    run.get("/v1/agent/checks");
}

pub fn checks(run: &mut Run<'_>) {
    run.put(REGISTER, &json!({"Name": "checked", "Port": 1}));
    run.put("/v1/agent/check/register", &json!({"Name": "Of The Node", "TTL": "10m", "Notes": "n"}));
    run.put(
        "/v1/agent/check/register",
        &json!({"ID": "of-service", "Name": "s", "ServiceID": "checked", "TTL": "10m", "Status": "passing"}),
    );
    run.put(
        "/v1/agent/check/register",
        &json!({"ID": "dialled", "Name": "d", "ServiceID": "checked", "TCP": "127.0.0.1:1", "Interval": "10h"}),
    );
    run.put(
        "/v1/agent/check/register",
        &json!({"CheckID": "newer", "Name": "of later clients", "TTL": "10m"}),
    );
    for side in SIDES {
        run.one(side, "PUT", "/v1/agent/check/deregister/newer", &[], "");
    }
    run.get("/v1/agent/checks");
    for (action, id) in
        [("pass", "of-service"), ("warn", "of-service"), ("fail", "of-service"), ("pass", "Of%20The%20Node")]
    {
        run.put(&format!("/v1/agent/check/{action}/{id}?note=because%20{action}"), &Value::Null);
        run.get("/v1/agent/checks");
        run.get("/v1/agent/health/service/id/checked");
    }
    run.put("/v1/agent/check/update/of-service", &json!({"Status": "passing", "Output": "all is well"}));
    run.put("/v1/agent/check/update/of-service", &json!({"Status": "warning"}));
    run.get("/v1/agent/checks");
    shown(run, "checked");
    run.get("/v1/health/node/host-a");
    for state in ["any", "passing", "warning", "critical"] {
        run.get(&format!("/v1/health/state/{state}"));
    }
    run.put("/v1/agent/check/deregister/dialled", &Value::Null);
    run.put("/v1/agent/check/deregister/dialled", &Value::Null);
    run.get("/v1/agent/checks");
    run.put("/v1/agent/service/deregister/checked", &Value::Null);
    run.put("/v1/agent/check/deregister/Of%20The%20Node", &Value::Null);
    run.get("/v1/agent/checks");
    gone(run, "checked");
}

pub fn aliases(run: &mut Run<'_>) {
    run.put(REGISTER, &json!({"Name": "first", "Port": 1}));
    run.put(REGISTER, &json!({"Name": "second", "Port": 2, "Check": {"TTL": "10m", "Name": "t"}}));
    run.put(
        "/v1/agent/check/register",
        &json!({"ID": "alias", "Name": "as the other", "ServiceID": "first", "AliasService": "second"}),
    );
    for action in ["warn", "fail", "pass"] {
        run.put(&format!("/v1/agent/check/{action}/service:second?note=so"), &Value::Null);
        run.get("/v1/agent/checks");
        run.get("/v1/health/checks/first");
    }
    for name in ["first", "second"] {
        run.put(&format!("/v1/agent/service/deregister/{name}"), &Value::Null);
        gone(run, name);
    }
    run.get("/v1/agent/checks");
}

pub fn maintenance(run: &mut Run<'_>) {
    run.put(REGISTER, &json!({"Name": "tended", "Port": 1, "Tags": ["t"]}));
    for query in ["enable=true", "enable=true&reason=a%20disk", "enable=false"] {
        run.put(&format!("/v1/agent/service/maintenance/tended?{query}"), &Value::Null);
        run.get("/v1/agent/checks");
        run.get("/v1/agent/health/service/id/tended");
        shown(run, "tended");
        run.get("/v1/health/service/tended?passing");
    }
    run.put("/v1/agent/service/maintenance/tended", &Value::Null);
    run.put("/v1/agent/service/maintenance/tended?enable=perhaps", &Value::Null);
    run.put("/v1/agent/service/maintenance/nobody?enable=true", &Value::Null);
    run.put("/v1/agent/service/deregister/tended", &Value::Null);
    gone(run, "tended");
}
