//! `/v1/catalog/*`.

use mesh_tests::conformance::Run;
use serde_json::{Value, json};

const REGISTER: &str = "/v1/catalog/register";
const DEREGISTER: &str = "/v1/catalog/deregister";

/// A node of two services that no agent looks after.
pub fn register_far(run: &mut Run<'_>) {
    run.put(
        REGISTER,
        &json!({
            "ID": "11111111-2222-3333-4444-555555555555",
            "Node": "far",
            "Address": "10.50.0.1",
            "TaggedAddresses": {"lan": "10.50.0.1", "wan": "192.0.2.50"},
            "NodeMeta": {"rack": "r1"},
            "Service": {"ID": "cache-1", "Service": "cache", "Port": 6379, "Tags": ["hot"], "Meta": {"k": "v"},
                        "Address": "10.50.0.2", "Weights": {"Passing": 3, "Warning": 1}},
            "Checks": [
                {"CheckID": "node-up", "Name": "up", "Status": "passing", "Notes": "n", "Output": "pong"},
                {"CheckID": "cache-up", "Name": "cache up", "ServiceID": "cache-1", "Status": "warning"},
            ],
        }),
    );
    run.put(
        REGISTER,
        &json!({
            "Node": "far",
            "SkipNodeUpdate": true,
            "Service": {"Kind": "connect-proxy", "Service": "cache-sidecar-proxy", "Port": 21000,
                        "Proxy": {"DestinationServiceName": "cache", "DestinationServiceID": "cache-1"}},
        }),
    );
}

pub fn deregister_far(run: &mut Run<'_>) {
    run.put(DEREGISTER, &json!({"Node": "far"}));
}

pub fn reads(run: &mut Run<'_>) {
    run.get("/v1/catalog/datacenters");
    run.get("/v1/catalog/nodes");
    register_far(run);
    for path in [
        "nodes",
        "nodes?node-meta=rack:r1",
        "nodes?node-meta=rack:r2",
        "nodes?near=host-a",
        "services",
        "services?node-meta=rack:r1",
        "service/cache",
        "service/cache?tag=hot",
        "service/cache?tag=HOT",
        "service/cache?tag=cold",
        "service/cache?tag=hot&tag=cold",
        "service/cache?node-meta=rack:r1",
        "service/cache?near=_agent",
        "service/cache?stale",
        "service/cache?consistent",
        "service/cache?cached",
        "service/cache?dc=dc1",
        "service/cache?pretty",
        "service/cache-sidecar-proxy",
        "connect/cache",
        "connect/nobody",
        "service/nobody",
        "node/far",
        "node/nobody",
        "node-services/far",
        "node-services/nobody",
    ] {
        run.get(&format!("/v1/catalog/{path}"));
    }
    deregister_far(run);
}

pub fn writes(run: &mut Run<'_>) {
    register_far(run);
    // Again, with other values.
    run.put(
        REGISTER,
        &json!({"Node": "far", "Address": "10.50.0.9", "Datacenter": "dc1", "Service": {"Service": "cache2"}}),
    );
    run.get("/v1/catalog/node/far");
    run.get("/v1/health/node/far");
    run.put(
        REGISTER,
        &json!({"Node": "far", "SkipNodeUpdate": true,
                "Check": {"Node": "far", "CheckID": "cache-up", "Name": "cache up", "ServiceID": "cache-1", "Status": "critical"}}),
    );
    run.get("/v1/health/checks/cache");
    run.put(DEREGISTER, &json!({"Node": "far", "CheckID": "cache-up"}));
    run.get("/v1/health/node/far");
    run.put(DEREGISTER, &json!({"Node": "far", "ServiceID": "cache-1"}));
    run.get("/v1/catalog/node/far");
    // What is not there.
    run.put(DEREGISTER, &json!({"Node": "far", "ServiceID": "cache-1"}));
    run.put(DEREGISTER, &json!({"Node": "nobody"}));
    run.put(DEREGISTER, &json!({"Datacenter": "dc1", "Node": "far", "Address": "10.50.0.9"}));
    run.get("/v1/catalog/node/far");
    run.get("/v1/catalog/nodes");
    for body in [
        json!({}),
        json!({"Node": "x"}),
        json!({"Address": "10.0.0.1"}),
        json!({"Node": "x", "Address": "10.0.0.1", "Datacenter": "dc2"}),
        json!({"Node": "x", "Address": "10.0.0.1", "Service": {}}),
        json!({"Node": "x", "Address": "10.0.0.1", "Service": {"Kind": "connect-proxy", "Service": "p"}}),
        json!({"Node": "x", "Address": "10.0.0.1", "Check": {"CheckID": "c", "ServiceID": "nobody"}}),
        json!({"Node": "nobody", "SkipNodeUpdate": true, "Service": {"Service": "s"}}),
    ] {
        run.put(REGISTER, &body);
    }
    run.put(DEREGISTER, &json!({}));
    for node in ["x", "nobody"] {
        run.put(DEREGISTER, &json!({"Node": node}));
    }
    let names = |nodes: &Value| nodes.as_array().is_some_and(|nodes| nodes.len() == 1);
    run.get_when("/v1/catalog/nodes", names);
}
