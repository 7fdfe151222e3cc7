//! `/v1/status/*`, `/v1/agent/self` and `/v1/agent/members`: who this server is.

use axum::response::Response;
use serde_json::{Value, json};

use super::{ApiError, App, read::Read};
use crate::control_plane::embedded::{acl::Right, model::Probe};

/// The version of Consul's API that this server follows; clients look at it.
const CONSUL_VERSION: &str = "1.9.0";
/// Consul's port for servers among themselves. Nothing listens there: there is one server.
const SERVER_PORT: u16 = 8300;
const SERF_PORT: u16 = 8301;

fn address(app: &App) -> String {
    let ip = &app.node_address;
    if ip.contains(':') { format!("[{ip}]:{SERVER_PORT}") } else { format!("{ip}:{SERVER_PORT}") }
}

pub async fn leader(read: Read) -> Response {
    read.json(&address(&read.app))
}

pub async fn peers(read: Read) -> Response {
    read.json(&[address(&read.app)])
}

pub async fn agent_self(read: Read) -> Result<Response, ApiError> {
    let app = &read.app;
    read.demand(Right::agent_read(&app.node))?;
    let id = app.store.tables().node(&app.node).map(|node| node.id.clone());
    Ok(read.json(&json!({
        "Config": {
            "Datacenter": app.datacenter,
            "NodeName": app.node,
            "NodeID": id,
            "Revision": "",
            "Server": true,
            "Version": CONSUL_VERSION,
            "MeshnodeVersion": env!("CARGO_PKG_VERSION"),
        },
        "DebugConfig": {},
        "Member": member(app),
        "Meta": { "consul-network-segment": "" },
        "Stats": stats(app),
        "xDS": Value::Null,
    })))
}

/// What `consul info` prints, as far as there is such a thing here: texts, as Consul has them.
fn stats(app: &App) -> Value {
    let tables = app.store.tables();
    let of_kind = |wanted: fn(&Probe) -> bool| {
        tables.checks_of_node(&app.node).filter(|check| wanted(&check.probe)).count().to_string()
    };
    json!({
        "agent": {
            "check_monitors": "0",
            "check_ttls": of_kind(|probe| matches!(probe, Probe::Ttl { .. })),
            "checks": of_kind(|_| true),
            "services": tables.services_of_node(&app.node).count().to_string(),
        },
        "build": { "prerelease": "meshnode", "revision": "", "version": CONSUL_VERSION },
        "consul": {
            "acl": if app.acl { "enabled" } else { "disabled" },
            "bootstrap": "true",
            "known_datacenters": "1",
            "leader": "true",
            "leader_addr": address(app),
            "server": "true",
        },
        "runtime": {
            "arch": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
            "cpu_count": std::thread::available_parallelism().map_or(1, usize::from).to_string(),
            "os": "linux",
            "version": concat!("meshnode ", env!("CARGO_PKG_VERSION")),
        },
    })
}

pub async fn members(read: Read) -> Response {
    let own = read.viewer().sees_node(&read.app.node).then(|| member(&read.app));
    read.json(&own.as_slice())
}

fn member(app: &App) -> Value {
    let id = app.store.tables().node(&app.node).map(|node| node.id.clone());
    json!({
        "Name": app.node,
        "Addr": app.node_address,
        "Port": SERF_PORT,
        "Tags": {
            "acls": if app.acl { "1" } else { "0" },
            "bootstrap": "1",
            "build": format!("{CONSUL_VERSION}:meshnode"),
            "dc": app.datacenter,
            "id": id,
            "port": SERVER_PORT.to_string(),
            "raft_vsn": "3",
            "role": "consul",
            "segment": "",
            "vsn": "2",
            "vsn_max": "3",
            "vsn_min": "2",
        },
        "Status": 1,
        "ProtocolMin": 1,
        "ProtocolMax": 5,
        "ProtocolCur": 2,
        "DelegateMin": 2,
        "DelegateMax": 5,
        "DelegateCur": 4,
    })
}
