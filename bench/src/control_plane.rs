//! The control plane at size: a server that was filled, one real node on it, and many simulated ones.
//!
//! Hosts: `a` serves (an embedded server, or a Consul), `b` is the node that is measured, `c` makes the load.

mod scene;

use std::time::Duration;

use anyhow::Result;
use mesh_tests::{host::Host, net::Network};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    api::Endpoint,
    figures::{mib, ms, progress, rounded},
    fill::fill,
    server::Server,
    shape::Shape,
    usage,
};
use scene::Scene;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub shape: Shape,
    /// Simulated nodes.
    pub watchers: usize,
    /// Changes of an intention, for each figure.
    pub changes: usize,
    /// Changes of an intention that wake one simulated node; a fifth of that wakes all of them.
    pub wakes: usize,
    /// Services that the measured node may call.
    pub upstreams: usize,
    /// Changes per second that are none of the node's business, while they are made.
    pub churn: u32,
    /// How long CPU is measured.
    pub window: Duration,
    /// On a real Consul instead of the embedded server.
    pub consul: bool,
}

/// Runs everything and returns the figures.
pub fn run(plan: Plan) -> Result<Value> {
    usage::raise_file_limit()?;
    let net = Network::new();
    let (a, b, c) = (net.host("a"), net.host("b"), net.host("c"));
    // One connection for each question of each simulated node.
    c.run("", &["sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65535"]).ok();
    let server = Server::start(a, plan.consul);
    // Every thread of the runtime is a child of this one, and so in the network of host `c`.
    c.space().enter().in_network(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        measure(plan, &runtime, server, b)
    })
}

fn measure(plan: Plan, runtime: &Runtime, mut server: Server, node: Host) -> Result<Value> {
    let endpoint = server.endpoint()?;
    let mut report = json!({"plan": describe(&plan)});
    let mut note = |name: &str, figures: Value| {
        progress(&format!("{name}: {figures}"));
        report[name] = figures;
    };
    progress("filling the server");
    note("fill", runtime.block_on(filled(&endpoint, plan.shape, &server))?);
    note("server_restart", server.restart()?);
    let mut scene = Scene::new(plan, runtime, endpoint, &server, node)?;
    note("node_start", scene.start_node()?);
    note("verdict", scene.verdicts()?);
    note("cpu", scene.cpu()?);
    let (watchers, figures) = scene.watchers()?;
    note("watchers", figures);
    note("wake", scene.wakes(&watchers)?);
    note("cpu_with_watchers", scene.cpu()?);
    note("verdict_with_watchers", scene.verdicts()?);
    watchers.check()?;
    note("node", scene.node_memory()?);
    Ok(report)
}

async fn filled(endpoint: &Endpoint, shape: Shape, server: &Server) -> Result<Value> {
    let before = usage::cpu(server.pid()?)?;
    let filled = fill(endpoint, shape).await?;
    let writes = (2 * shape.all_instances() + shape.all_intentions()) as f64;
    let took = filled.catalog + filled.intentions;
    Ok(json!({
        "catalog_ms": ms(filled.catalog), "intentions_ms": ms(filled.intentions),
        "writes_per_s": rounded(writes / took.as_secs_f64()),
        "server_cpu_ms": ms(usage::cpu(server.pid()?)?.saturating_sub(before)),
        "server_rss_mib": mib(server.memory()?),
    }))
}

fn describe(plan: &Plan) -> Value {
    json!({
        "server": if plan.consul { "consul" } else { "embedded" },
        "services": plan.shape.services, "instances": plan.shape.all_instances(),
        "intentions": plan.shape.all_intentions(), "catalog_nodes": plan.shape.nodes,
        "watching_nodes": plan.watchers, "upstreams_of_the_node": plan.upstreams,
    })
}

/// The table of a report's figures.
pub fn table(report: &Value) -> String {
    let lines = crate::figures::lines(report);
    let width = lines.iter().map(|(path, _)| path.len()).max().unwrap_or(0);
    lines.iter().map(|(path, value)| format!("{path:width$}  {value}\n")).collect()
}

/// The size that the issue names, or one of seconds.
pub fn plan(quick: bool, consul: bool) -> Plan {
    let full = Plan {
        shape: Shape { services: 5_000, instances: 20, nodes: 1_000, intentions: 10 },
        watchers: 1_000,
        changes: 300,
        wakes: 30,
        upstreams: 20,
        churn: 50,
        window: Duration::from_secs(20),
        consul,
    };
    if !quick {
        // Each change of any intention wakes every node that watches a Consul: 1,000 of them, at the rate of `churn`, are
        // more than it serves on two cores.
        return if consul { Plan { watchers: 100, changes: 20, wakes: 5, ..full } } else { full };
    }
    let shape = Shape { services: 200, instances: 5, nodes: 50, intentions: 10 };
    Plan { shape, watchers: 50, changes: 60, window: Duration::from_secs(2), ..full }
}
