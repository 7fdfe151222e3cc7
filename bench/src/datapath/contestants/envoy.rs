//! Envoy: its TCP proxy in both directions. As Consul configures a sidecar, the client's verifies the server's SPIFFE ID;
//! without the filter for intentions.

use std::net::SocketAddr;

use mesh_tests::{pki, program::envoy::binary};
use serde_json::{Value, json};

use super::{Contestant, Pair, program, version_of};
use crate::datapath::stage::{On, SERVICE, Stage};

const API: &str = "type.googleapis.com/envoy";

pub const CONTESTANT: Contestant = Contestant {
    name: "envoy",
    against: super::PLAIN,
    find: || version_of(binary(), &["--version"]),
    start: |stage| {
        let pair = Pair { name: "envoy", listen: 8002, mesh: 20002 };
        let id = pki::spiffe_id(&pki::trust_domain(stage.control()), SERVICE);
        let mut client_tls = tls(stage, On::A);
        client_tls["validation_context"]["match_typed_subject_alt_names"] =
            json!([{"san_type": "URI", "matcher": {"exact": id}}]);
        let outward = socket("Upstream", json!({"common_tls_context": client_tls}));
        let inward = json!({"require_client_certificate": true, "common_tls_context": tls(stage, On::B)});
        let (open, mesh) = (([0, 0, 0, 0], pair.mesh).into(), stage.at(On::B, pair.mesh));
        let client = config(pair.dial(), Value::Null, mesh, outward);
        let server = config(open, socket("Downstream", inward), program(), Value::Null);
        let binary = binary().expect("it was found").display().to_string();
        let command = [&*binary, "--disable-hot-restart", "--log-level", "error", "--config-path"];
        pair.start(stage, &command, "envoy.json", [client, server].map(|config| config.to_string()))
    },
};

/// From `listen` to `to`, each with a transport socket, or plain where that is null.
fn config(listen: SocketAddr, inward: Value, to: SocketAddr, outward: Value) -> Value {
    let address = |at: SocketAddr| json!({"socket_address": {"address": at.ip(), "port_value": at.port()}});
    let proxy = json!({
        "@type": format!("{API}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
        "stat_prefix": "bench", "cluster": "next",
    });
    let chain = json!({
        "filters": [{"name": "tcp_proxy", "typed_config": proxy}], "transport_socket": inward,
    });
    let endpoint = json!({"endpoint": {"address": address(to)}});
    json!({
        "node": {"id": "bench", "cluster": "bench"},
        "static_resources": {
            "listeners": [{"name": "here", "address": address(listen), "filter_chains": [chain]}],
            "clusters": [{
                "name": "next", "type": "STATIC", "connect_timeout": "5s", "transport_socket": outward,
                // By default it holds no more than 1,024.
                "circuit_breakers": {"thresholds": [{"max_connections": 100_000}]},
                "load_assignment": {"cluster_name": "next", "endpoints": [{"lb_endpoints": [endpoint]}]},
            }],
        },
    })
}

fn socket(side: &str, mut context: Value) -> Value {
    context["@type"] = format!("{API}.extensions.transport_sockets.tls.v3.{side}TlsContext").into();
    json!({"name": "tls", "typed_config": context})
}

/// The cipher suite is what BoringSSL takes by itself on a machine with AES instructions: it can't be told.
fn tls(stage: &Stage, on: On) -> Value {
    let file = |name: &str| json!({"filename": stage.identity(on).join(name)});
    json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": ["X25519"],
        },
        "tls_certificates": [{"certificate_chain": file("cert.pem"), "private_key": file("key.pem")}],
        "validation_context": {"trusted_ca": file("roots.pem")},
    })
}
