//! What is refused, and parameters that every endpoint takes.

use mesh_tests::conformance::Run;
use serde_json::{Value, json};

const REGISTER: &str = "/v1/agent/service/register";

pub fn bad_bodies(run: &mut Run<'_>) {
    for body in ["", "{", "[]", "\"x\"", "{\"Name\":}", "{\"Name\": 5}", "{\"Name\":\"a\",\"Port\":\"80\"}"] {
        run.request("PUT", REGISTER, &[], body);
        run.request("PUT", "/v1/agent/check/register", &[], body);
        run.request("POST", "/v1/connect/intentions", &[], body);
        run.request("PUT", "/v1/catalog/register", &[], body);
        run.request("POST", "/v1/agent/connect/authorize", &[], body);
    }
    for body in [
        json!({"Name": "a", "Unknown": 1}),
        json!({"Name": ""}),
        json!({"ID": "a"}),
        json!({"Name": "a", "Address": "0.0.0.0"}),
        json!({"Name": "a", "Kind": "gateway-of-sorts"}),
        json!({"Name": "a", "Kind": "connect-proxy"}),
        json!({"Name": "a", "Kind": "connect-proxy", "Proxy": {"DestinationServiceName": "b"}}),
        json!({"Name": "a", "Check": {"TTL": "soon"}}),
        json!({"Name": "a", "Check": {"TCP": "1.2.3.4:5"}}),
        json!({"Name": "a", "Check": {"TTL": "1s", "Interval": "1s"}}),
        json!({"Name": "a", "Check": {"Name": "of no kind"}}),
        json!({"Name": "a", "Check": {"TTL": "1s", "Status": "perhaps"}}),
        json!({"Name": "a", "Weights": {"Passing": -1, "Warning": 1}}),
        json!({"Name": "a", "Connect": {"SidecarService": {"ID": "own"}}}),
        json!({"Name": "a", "Connect": {"SidecarService": {"Connect": {"SidecarService": {}}}}}),
        json!({"Name": "a", "Meta": {"": "x"}}),
        json!({"Name": "a", "Meta": {"bad key": "x"}}),
    ] {
        run.put(REGISTER, &body);
        run.request("PUT", "/v1/agent/service/deregister/a", &[], "");
    }
    for body in [
        json!({}),
        json!({"Name": "a"}),
        json!({"Name": "a", "TTL": "0s"}),
        json!({"Name": "a", "TTL": "10s", "ServiceID": "nobody"}),
        json!({"Name": "a", "TTL": "10s", "Status": "perhaps"}),
    ] {
        run.put("/v1/agent/check/register", &body);
        run.request("PUT", "/v1/agent/check/deregister/a", &[], "");
    }
}

pub fn unknown_things(run: &mut Run<'_>) {
    for path in [
        "/v1/agent/service/nobody",
        "/v1/agent/health/service/id/nobody",
        "/v1/agent/health/service/name/nobody",
        "/v1/health/state/perhaps",
        "/v1/no/such/path",
        "/v1",
    ] {
        run.get(path);
    }
    for path in ["pass/nobody", "warn/nobody", "fail/nobody", "deregister/nobody"] {
        run.put(&format!("/v1/agent/check/{path}"), &Value::Null);
    }
    run.put("/v1/agent/check/update/nobody", &json!({"Status": "passing"}));
    run.put("/v1/agent/check/update/nobody", &json!({"Status": "perhaps"}));
    run.put("/v1/agent/service/deregister/nobody", &Value::Null);
    // A check that is there, but is none to report on.
    run.put("/v1/agent/check/register", &json!({"Name": "dialled", "TCP": "127.0.0.1:1", "Interval": "10h"}));
    run.put("/v1/agent/check/pass/dialled", &Value::Null);
    run.put("/v1/agent/check/deregister/dialled", &Value::Null);
    for (method, path) in [
        ("POST", "/v1/agent/service/register"),
        ("GET", "/v1/agent/service/register"),
        ("DELETE", "/v1/catalog/services"),
        ("PUT", "/v1/agent/connect/authorize"),
        ("POST", "/v1/connect/ca/configuration"),
        ("PATCH", "/v1/connect/intentions"),
        ("DELETE", "/v1/connect/intentions/match"),
    ] {
        run.request(method, path, &[], "");
    }
    for path in [
        "/v1/kv/some/key",
        "/v1/session/list",
        "/v1/query",
        "/v1/acl/tokens",
        "/v1/coordinate/nodes",
        "/v1/config/service-defaults",
        "/v1/event/list",
        "/v1/agent/metrics",
        "/v1/connect/intentions/exact?source=a&destination=b",
    ] {
        run.get(path);
    }
}

pub fn parameters(run: &mut Run<'_>) {
    for query in [
        "dc=dc1",
        "dc=elsewhere",
        "ns=default",
        "ns=elsewhere",
        "pretty",
        "stale",
        "consistent",
        "stale&consistent",
        "filter=Node==%22host-a%22",
        "filter=Node==%22nobody%22",
        "filter=nonsense",
        "token=anything",
        "max_stale=1s",
    ] {
        run.get(&format!("/v1/catalog/nodes?{query}"));
    }
    run.request("GET", "/v1/catalog/nodes", &[("X-Consul-Token", "anything")], "");
    run.request("HEAD", "/v1/catalog/nodes", &[], "");
    run.request("OPTIONS", "/v1/catalog/nodes", &[], "");
}
