//! The node that is measured, beside the simulated ones.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mesh_tests::{config::Service, host::Host};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinHandle};

use super::Plan;
use crate::{
    api::{Connection, Endpoint},
    figures::{mib, ms, rounded, summary},
    server::{Client, Server},
    shape::{Shape, intention, name},
    usage,
    verdict::{Connector, monotonic},
    watchers::Watchers,
};

/// The workload of the measured node.
const WORKLOAD: &str = "bench-web";
/// Between two changes of an intention: a watch asks no more often than five times a second, after a burst of ten.
const PAUSE: Duration = Duration::from_millis(220);
/// No answer for so long: all who were woken have asked again.
const QUIET: Duration = Duration::from_secs(1);

const INTENTIONS: &str = "/v1/connect/intentions";

pub struct Scene<'a> {
    plan: Plan,
    runtime: &'a Runtime,
    endpoint: Endpoint,
    server: &'a Server,
    api: Connection,
    node: Client,
    connector: Connector,
    /// The intention that is changed.
    intention: String,
}

impl<'a> Scene<'a> {
    /// Makes the node's intentions; starts nothing.
    pub fn new(
        plan: Plan,
        runtime: &'a Runtime,
        endpoint: Endpoint,
        server: &'a Server,
        host: Host,
    ) -> Result<Self> {
        let mut api = runtime.block_on(endpoint.connect())?;
        let mut first = None;
        for upstream in (0..plan.upstreams).map(name) {
            let id = runtime.block_on(create(&mut api, WORKLOAD, &upstream, "allow"))?;
            first.get_or_insert(id);
        }
        let node = server.client(host, vec![Service::client(WORKLOAD)]);
        let connector = Connector::start(&node.meshnode.host, WORKLOAD, plan.shape.address(0, 0))?;
        let intention = first.context("a node without upstreams")?;
        Ok(Self { plan, runtime, endpoint, server, api, node, connector, intention })
    }

    /// Starts the daemon without a cache and measures until a program's first connection is allowed.
    pub fn start_node(&mut self) -> Result<Value> {
        self.connector.expect(true)?;
        let start = monotonic();
        self.node.meshnode.launch();
        let first = self.connector.seen()?;
        self.node.meshnode.wait_ready();
        Ok(
            json!({"first_allowed_ms": ms(first.saturating_sub(start)), "cpu_ms": ms(usage::cpu(self.node.pid()?)?)}),
        )
    }

    pub fn node_memory(&self) -> Result<Value> {
        let pid = self.node.pid()?;
        let (bytes, maps) = usage::maps(pid)?;
        let connections = connections(&self.node.meshnode.host, self.endpoint.address.port());
        Ok(json!({
            "rss_mib": mib(usage::rss(pid)?), "bpf_maps_mib": mib(bytes), "bpf_maps": maps,
            "api_connections": connections,
        }))
    }

    /// Changes an intention of the node again and again; returns how long after the request was sent the kernel's
    /// verdict was another one, and when the request was answered.
    pub fn verdicts(&mut self) -> Result<Value> {
        let (mut denied, mut allowed, mut answered) = (Vec::new(), Vec::new(), Vec::new());
        let path = format!("{INTENTIONS}/{}", self.intention);
        for n in 0..self.plan.changes {
            let allow = n % 2 == 1;
            let body = intention(WORKLOAD, &name(0), if allow { "allow" } else { "deny" });
            self.connector.expect(allow)?;
            let start = monotonic();
            self.runtime.block_on(self.api.put(&path, &body))?;
            answered.push(monotonic().saturating_sub(start));
            let seen = self.connector.seen()?.saturating_sub(start);
            if allow {
                allowed.push(seen)
            } else {
                denied.push(seen)
            }
            std::thread::sleep(PAUSE);
        }
        if self.plan.changes % 2 == 1 {
            self.runtime.block_on(self.api.put(&path, &intention(WORKLOAD, &name(0), "allow")))?;
        }
        let all = [denied.clone(), allowed.clone()].concat();
        Ok(json!({
            "change_to_verdict": summary(all), "to_denied": summary(denied), "to_allowed": summary(allowed),
            "change_to_answer": summary(answered),
        }))
    }

    /// Measures the CPU of node and server while nothing changes, and while others' services and intentions do.
    pub fn cpu(&mut self) -> Result<Value> {
        let idle = self.window()?;
        let churn = self.runtime.spawn(churn(self.endpoint.clone(), self.plan));
        let mut busy = self.window()?;
        let made = stop(self.runtime, churn)?;
        busy["changes_per_s"] = rounded(made as f64 / self.plan.window.as_secs_f64());
        Ok(json!({"idle": idle, "others_change": busy}))
    }

    fn window(&self) -> Result<Value> {
        let (node, server) = (self.node.pid()?, self.server.pid()?);
        let (of_node, of_server, start) = (usage::cpu(node)?, usage::cpu(server)?, Instant::now());
        std::thread::sleep(self.plan.window);
        let percent = |pid, before: Duration| -> Result<Value> {
            let used = usage::cpu(pid)?.saturating_sub(before);
            Ok(rounded(100.0 * used.as_secs_f64() / start.elapsed().as_secs_f64()))
        };
        Ok(
            json!({"node_cpu_percent": percent(node, of_node)?, "server_cpu_percent": percent(server, of_server)?}),
        )
    }

    /// Starts the simulated nodes and measures what they cost the server.
    pub fn watchers(&self) -> Result<(Watchers, Value)> {
        let (before, cpu, start) = (self.server.memory()?, usage::cpu(self.server.pid()?)?, Instant::now());
        let watchers = self.runtime.block_on(Watchers::start(
            &self.endpoint,
            self.plan.shape,
            self.plan.watchers,
            self.plan.consul,
        ))?;
        let took = start.elapsed();
        let after = self.server.memory()?;
        let figures = json!({
            "queries": watchers.len(), "all_waiting_after_ms": ms(took),
            "server_cpu_ms": ms(usage::cpu(self.server.pid()?)?.saturating_sub(cpu)),
            "server_rss_before_mib": mib(before), "server_rss_mib": mib(after),
            "server_kib_per_query": rounded(after.saturating_sub(before) as f64 / 1024.0 / watchers.len() as f64),
        });
        Ok((watchers, figures))
    }

    /// Makes intentions that concern one simulated node, and all of them; returns how long until the last was woken.
    pub fn wakes(&mut self, watchers: &Watchers) -> Result<Value> {
        let Shape { services, .. } = self.plan.shape;
        let far = name(services - 1);
        // Consul wakes whoever waits for any intention.
        let concerned = if self.plan.consul { self.plan.watchers } else { 1 };
        let (mut one, mut all, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        for n in 0..self.plan.wakes {
            let (took, woken) = self.wake(watchers, &name(n % self.plan.watchers), &far, concerned)?;
            one.push(took);
            answers.push(woken);
        }
        let mut of_all = 0;
        for _ in 0..self.plan.wakes.div_ceil(5) {
            let (took, woken) = self.wake(watchers, "*", &far, self.plan.watchers)?;
            all.push(took);
            of_all = woken;
        }
        Ok(json!({
            "one_node": summary(one), "one_node_answers": answers.iter().sum::<usize>() as f64 / self.plan.wakes as f64,
            "all_nodes": summary(all), "all_nodes_answers": of_all,
        }))
    }

    /// Makes an intention, waits until `expected` watchers were answered, and removes it again. Returns how long that
    /// took, and how many were answered in the end.
    fn wake(
        &mut self,
        watchers: &Watchers,
        source: &str,
        destination: &str,
        expected: usize,
    ) -> Result<(Duration, usize)> {
        let (before, _) = watchers.answers();
        let start = Instant::now();
        self.runtime.block_on(async {
            let id = create(&mut self.api, source, destination, "deny").await?;
            let last = watchers.woken(before, expected).await?;
            let woken = quiet(watchers).await - before;
            self.api.call("DELETE", &format!("{INTENTIONS}/{id}"), Default::default()).await?;
            quiet(watchers).await;
            Ok((last.saturating_duration_since(start), woken))
        })
    }
}

/// Waits until no answers come any more, and returns how many there were.
async fn quiet(watchers: &Watchers) -> usize {
    let mut seen = watchers.answers().0;
    loop {
        tokio::time::sleep(QUIET).await;
        let now = watchers.answers().0;
        if now == seen {
            return now;
        }
        seen = now;
    }
}

async fn create(api: &mut Connection, source: &str, destination: &str, action: &str) -> Result<String> {
    let body = intention(source, destination, action).to_string();
    let answer = api.call("POST", INTENTIONS, body.into()).await?.json()?;
    Ok(answer["ID"].as_str().context("an intention has an ID")?.to_owned())
}

/// Changes services and intentions that no measured or simulated node uses, until aborted.
async fn churn(endpoint: Endpoint, plan: Plan) -> Result<usize> {
    let Shape { services, instances, .. } = plan.shape;
    let mut api = endpoint.connect().await?;
    let mut pace = tokio::time::interval(Duration::from_secs(1) / plan.churn);
    let until = Instant::now() + plan.window;
    let mut made = 0;
    while Instant::now() < until {
        pace.tick().await;
        // The last quarter: see `Plan` for how many are used.
        let n = services - 1 - made / 3 % (services / 4);
        match made % 3 {
            0 => {
                let id = create(&mut api, &name(n), &name(services / 2), "deny").await?;
                api.call("DELETE", &format!("{INTENTIONS}/{id}"), Default::default()).await?;
                made += 1;
            }
            step => {
                let [mut program, _] = plan.shape.registrations(n, made % instances);
                program["Check"]["Output"] = json!(format!("change {made}"));
                program["Check"]["Status"] = json!(if step == 1 { "critical" } else { "passing" });
                api.put("/v1/catalog/register", &program).await?;
            }
        }
        made += 1;
    }
    Ok(made)
}

fn stop(runtime: &Runtime, churn: JoinHandle<Result<usize>>) -> Result<usize> {
    runtime.block_on(churn)?
}

/// Returns how many connections of the host lead to `port` elsewhere.
fn connections(host: &Host, port: u16) -> usize {
    let pid = host.space().pid();
    let tables = ["tcp", "tcp6"].map(|table| std::fs::read_to_string(format!("/proc/{pid}/net/{table}")));
    let established = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&"01") && fields[2].ends_with(&format!(":{port:04X}"))
    };
    tables.iter().flatten().map(|text| text.lines().filter(established).count()).sum()
}
