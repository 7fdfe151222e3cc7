//! The usual two hosts, with a Consul cluster whose servers are hosts of their own: each part can fail alone.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::{
    config::{ControlPlane, TOKEN_FILE},
    fixture::{Mesh, Scene},
    host::{Family, Host},
    meshnode::{Meshnode, UNMANAGED},
    net::Network,
    process::Process,
    program::consul::{self, Consul, Role},
    space::tool,
    wait,
};

/// Hosts A and B with a client agent and a daemon each, and servers.
#[derive(Debug)]
pub struct Cluster {
    // Before the agents, so that daemons are gone first.
    pub mesh: Mesh,
    pub agent_a: Consul,
    pub agent_b: Consul,
    pub servers: Vec<Server>,
}

/// The token that may do everything, where ACLs are on.
pub const MANAGEMENT: &str = "00000000-0000-4000-8000-000000000001";

/// A Consul server on a host of its own.
#[derive(Debug)]
pub struct Server {
    pub consul: Consul,
    pub host: Host,
}

impl Cluster {
    /// Starts `servers` servers, the agents and the daemons. `extra` is merged into every agent's configuration.
    #[track_caller]
    pub fn start(servers: u32, scene: Scene, extra: &Value) -> Self {
        Self::start_with(servers, scene, extra, "")
    }

    /// With ACLs that deny, and [`MANAGEMENT`] as the token that may do everything. The daemons show what their token
    /// file holds, which Consul does not know.
    #[track_caller]
    pub fn start_with_acl(scene: Scene) -> Self {
        let acl = json!({"acl": {
            "enabled": true, "default_policy": "deny", "token_ttl": "1s", "policy_ttl": "1s", "role_ttl": "1s",
            "tokens": {"master": MANAGEMENT, "agent": MANAGEMENT},
        }});
        let mut cluster = Self::start_with(1, scene, &acl, &format!("token_file = \"{TOKEN_FILE}\""));
        cluster.servers[0].consul.token = MANAGEMENT.to_owned();
        let (consul, host) = cluster.server();
        consul.wait_acls(host);
        cluster
    }

    #[track_caller]
    fn start_with(servers: u32, scene: Scene, extra: &Value, lines: &str) -> Self {
        let net = Network::with(scene.options);
        let (a, b) = (net.host("a"), net.host("b"));
        let hosts: Vec<_> = (0..servers).map(|n| net.host(&format!("s{n}"))).collect();
        let join: Vec<IpAddr> = hosts.iter().map(|host| host.ip(Family::V4)).collect();
        let role = |servers| Role { servers, join: join.clone(), extra: json!({}) }.with(extra.clone());
        let launch = |host: Host| Server { consul: Consul::launch(&host, role(Some(servers))), host };
        let mut servers: Vec<_> = hosts.into_iter().map(launch).collect();
        let (mut agent_a, mut agent_b) = (Consul::launch(&a, role(None)), Consul::launch(&b, role(None)));
        servers.iter_mut().for_each(|server| server.consul.wait_ready(&server.host));
        agent_a.wait_ready(&a);
        agent_b.wait_ready(&b);
        let scene = Scene { consul: lines.to_owned(), ..scene };
        Self { mesh: scene.start_beside_agents(net, a, b), agent_a, agent_b, servers }
    }

    /// The first server and its host.
    pub fn server(&self) -> (&Consul, &Host) {
        let Server { consul, host } = &self.servers[0];
        (consul, host)
    }

    /// Makes or replaces an intention at the first server, which tries until it succeeds.
    #[track_caller]
    pub fn intention(&self, source: &str, destination: &str, action: &str) {
        self.intention_at(0, source, destination, action);
    }

    /// The same at server number `n`.
    #[track_caller]
    pub fn intention_at(&self, n: usize, source: &str, destination: &str, action: &str) {
        let Server { consul, host } = &self.servers[n];
        consul.intention(host, source, destination, action);
    }

    /// Allows `source` to connect to `destination` (at `port` of B), and returns when a process in A's cgroup `source`
    /// can.
    #[track_caller]
    pub fn allow(&self, source: &str, destination: &str, port: u16) {
        self.intention(source, destination, "allow");
        self.mesh.until_connects(source, port);
    }

    /// Makes the token `secret` (a UUID), with what a daemon needs; returns its accessor's id.
    #[track_caller]
    pub fn make_token(&self, secret: &str) -> String {
        let (consul, host) = self.server();
        let rules = "service_prefix \"\" { policy = \"write\" intentions = \"read\" }\n\
                     node_prefix \"\" { policy = \"read\" }";
        let put = |path: &str, body: Value| {
            let (code, said) = consul.api(host, "PUT", path, Some(&body.to_string()));
            assert_eq!(code, 200, "{path}: {said}");
            serde_json::from_str::<Value>(&said).expect("JSON")
        };
        let policy = put("/v1/acl/policy", json!({"Name": format!("for-{secret}"), "Rules": rules}));
        let token = put("/v1/acl/token", json!({"SecretID": secret, "Policies": [{"ID": policy["ID"]}]}));
        token["AccessorID"].as_str().expect("an id").to_owned()
    }

    /// Waits until the first server's catalog has an instance of `service` whose checks are as `good` says; `None`:
    /// until it has none.
    #[track_caller]
    pub fn until_catalog(&self, service: &str, good: Option<bool>) {
        let (consul, host) = self.server();
        // A TTL alone is 30 s.
        wait::until_within(wait::patience() * 2, &format!("{service} in the catalog as {good:?}"), || {
            let (code, body) = consul.api(host, "GET", &format!("/v1/health/service/{service}"), None);
            let found: Value =
                if code == 200 { serde_json::from_str(&body).unwrap_or_default() } else { Value::Null };
            let found = found.as_array().ok_or_else(|| body.clone())?;
            let passing = |entry: &Value| {
                entry["Checks"].as_array().is_some_and(|c| c.iter().all(|c| c["Status"] == "passing"))
            };
            let is = match good {
                None => found.is_empty(),
                Some(good) => !found.is_empty() && found.iter().all(|entry| passing(entry) == good),
            };
            if is { Ok(()) } else { Err(body) }
        });
    }
}

/// Waits until `node` serves what it knew, and says since when.
#[track_caller]
pub fn until_stale(node: &Meshnode) -> Value {
    let stale = |plane: &Value| plane["connected"] == false && plane["stale_since"].is_string();
    node.wait_status("the outage", |s| stale(&s.0["control_plane"])).0["control_plane"].clone()
}

/// Waits until the control plane has confirmed all that `node` knows.
#[track_caller]
pub fn until_fresh(node: &Meshnode) {
    let fresh = |plane: &Value| plane["connected"] == true && plane["stale_since"].is_null();
    node.wait_status("the end of the outage", |s| fresh(&s.0["control_plane"]));
}

/// A [`Cluster`] whose A has `faulty` between its daemon and its agent.
#[derive(Debug)]
pub struct Faulty {
    pub cluster: Cluster,
    proxy: Process,
}

const FAULTY: &str = "127.0.0.1:8600";
const MODE_FILE: &str = "/run/faulty-mode";

impl Faulty {
    /// `extra` is merged into every agent's configuration. All goes through unchanged, until [`mode`](Self::mode).
    #[track_caller]
    pub fn start(scene: Scene, extra: &Value) -> Self {
        let mut cluster = Cluster::start(1, scene, extra);
        let host = &cluster.mesh.a.host;
        host.write(MODE_FILE, "pass");
        let agent = consul::API.trim_start_matches("http://");
        let program = tool("faulty");
        let mut proxy = host.spawn(UNMANAGED, &[program.to_str().expect("UTF-8"), FAULTY, agent, MODE_FILE]);
        proxy.wait_for_log("listening");
        cluster.mesh.a.terminate();
        let lines = format!("address = \"http://{FAULTY}\"");
        cluster.mesh.a.config.control_plane = ControlPlane::Consul { lines };
        cluster.mesh.a.write_config();
        cluster.mesh.a.run();
        Self { cluster, proxy }
    }

    /// Spoils answers from now on; see `tests/src/bin/faulty.rs`.
    #[track_caller]
    pub fn mode(&self, mode: &str) {
        self.cluster.mesh.a.host.write(MODE_FILE, mode);
    }

    /// Returns how many requests came in `mode`.
    pub fn requests(&self, mode: &str) -> usize {
        self.proxy.log().lines().filter(|line| line.starts_with(&format!("{mode}: "))).count()
    }
}

/// Returns the lines of a daemon's log from the control plane's client that an operator sees (not debug).
pub fn plane_lines(log: &str) -> Vec<&str> {
    let seen = |line: &&str| [" INFO ", " WARN ", "ERROR "].iter().any(|level| line.contains(level));
    log.lines().filter(seen).filter(|line| line.contains("control_plane::")).collect()
}
