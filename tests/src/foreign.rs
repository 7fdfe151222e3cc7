//! The scene of interoperation: host A with a meshnode daemon, host B without one, where only a foreign proxy speaks the
//! mesh's protocol. The control plane is a real Consul, or A's embedded server, which B's proxy then has as its agent.

use std::process::Command;

use serde_json::{Value, json};

use crate::{
    config::{API_PORT, CA_FILE, Config, ControlPlane, Service, TOKEN},
    fixture::share_ca,
    host::Host,
    meshnode::{Meshnode, UNMANAGED},
    net::Network,
    pki::{Authority, Identity},
    process::Output,
    program::consul::{self, API, CGROUP, Consul},
    wait,
};

/// Who serves the control plane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plane {
    /// A Consul server on B, its client agent on A.
    Consul,
    /// A's daemon.
    Embedded,
}

/// The two hosts. Everything is denied until an intention allows it.
#[derive(Debug)]
pub struct Pair {
    pub a: Meshnode,
    pub b: Host,
    pub net: Network,
    /// B's Consul server and A's agent.
    pub consul: Option<(Consul, Consul)>,
}

impl Pair {
    /// Starts the control plane and A's daemon with `services`.
    #[track_caller]
    pub fn start(plane: Plane, services: Vec<Service>) -> Self {
        let net = Network::new();
        let (a, b) = (net.host("a"), net.host("b"));
        let (control_plane, consul) = match plane {
            Plane::Embedded => (ControlPlane::Embedded { lines: String::new() }, None),
            Plane::Consul => {
                let server = Consul::start(&b, consul::Role::server());
                let agent = Consul::start(&a, consul::Role::client(&b));
                // Without ACLs, Consul allows what no intention denies.
                server.intention(&b, "*", "*", "deny");
                (ControlPlane::Consul { lines: String::new() }, Some((server, agent)))
            }
        };
        let config = Config {
            node: "host-a".to_owned(),
            advertise: a.v4.into(),
            control_plane,
            services,
            top: String::new(),
            sections: String::new(),
        };
        let a = Meshnode::start(a, config);
        if plane == Plane::Embedded {
            share_ca(&a, &b);
        }
        Self { a, b, net, consul }
    }

    /// Returns the command `consul WORDS…`, on B, with the control plane as its agent.
    #[track_caller]
    pub fn consul_command(&self, words: &[&str]) -> Command {
        let binary = consul::binary().expect("the test asked for it");
        let mut command = self.b.command(CGROUP, &[&[binary.to_str().expect("UTF-8")], words].concat());
        match self.consul {
            Some(_) => command.env("CONSUL_HTTP_ADDR", API),
            None => command
                .env("CONSUL_HTTP_ADDR", format!("https://{}:{API_PORT}", self.a.host.v4))
                .env("CONSUL_CACERT", CA_FILE)
                .env("CONSUL_HTTP_TOKEN", TOKEN),
        };
        command
    }

    #[track_caller]
    fn consul_cli(&self, words: &[&str]) -> Output {
        crate::process::run(self.consul_command(words), None, crate::host::LIMIT)
    }

    /// Returns what a GET of the API answers to a program of B.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let mut words = vec!["curl", "-sS", "--fail", "--max-time", "30"];
        let (url, token) = match self.consul {
            Some(_) => (format!("{API}{path}"), String::new()),
            None => {
                let url = format!("https://{}:{API_PORT}{path}", self.a.host.v4);
                words.extend(["--cacert", CA_FILE]);
                (url, format!("X-Consul-Token: {TOKEN}"))
            }
        };
        words.extend(["-H", &token, &url]);
        let said = self.b.run(CGROUP, &words).ok();
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("GET {path}: {e}: {said}"))
    }

    /// `consul connect ca set-config` with a new root, which it returns.
    #[track_caller]
    pub fn rotate_root(&self) -> String {
        let Identity { cert, key } = Authority::next_root(&self.trust_domain());
        let config = json!({"Provider": "consul", "Config": {"RootCert": cert, "PrivateKey": key}});
        let file = self.b.space().scratch().join("ca.json");
        std::fs::write(&file, config.to_string()).expect("scratch is ours");
        self.consul_cli(&["connect", "ca", "set-config", "-config-file", file.to_str().expect("UTF-8")]).ok();
        cert
    }

    /// `consul intention create -ALLOW-OR-DENY -replace`.
    #[track_caller]
    pub fn intention(&self, source: &str, destination: &str, action: &str) {
        let action = format!("-{action}");
        self.consul_cli(&["intention", "create", &action, "-replace", source, destination]).ok();
    }

    /// `consul intention delete`.
    #[track_caller]
    pub fn delete_intention(&self, source: &str, destination: &str) {
        self.consul_cli(&["intention", "delete", source, destination]).ok();
    }

    /// `consul services register` for a service of B whose program is at `port`, with a sidecar at `mesh_port`.
    #[track_caller]
    pub fn register(&self, service: &str, port: u16, mesh_port: u16) {
        self.register_with(service, port, mesh_port, &json!([]));
    }

    /// The same for one that has `upstreams`, as Consul's `proxy.upstreams`.
    #[track_caller]
    pub fn register_with(&self, service: &str, port: u16, mesh_port: u16, upstreams: &Value) {
        let ip = self.b.v4.to_string();
        // By default a sidecar has a TCP check every ten seconds, the first of them at a random time: too slow here.
        let definition = json!({"service": {
            "name": service, "port": port, "address": ip,
            "connect": {"sidecar_service": {
                "port": mesh_port, "address": ip,
                "checks": [{"name": "the service itself", "alias_service": service}],
                "proxy": {"upstreams": upstreams},
            }},
        }});
        let file = self.b.space().scratch().join(format!("{service}.json"));
        std::fs::write(&file, definition.to_string()).expect("scratch is ours");
        self.consul_cli(&["services", "register", file.to_str().expect("UTF-8")]).ok();
    }

    /// The trust domain of the mesh.
    #[track_caller]
    pub fn trust_domain(&self) -> String {
        let roots = self.get("/v1/agent/connect/ca/roots");
        roots["TrustDomain"].as_str().expect("a trust domain").to_owned()
    }

    /// Runs `probe` in the cgroup `cgroup` of A and returns what it says.
    #[track_caller]
    pub fn on_a(&self, cgroup: &str, words: &[&str]) -> Value {
        probe(&self.a.host, cgroup, words)
    }

    /// Runs `probe` on B, where no cgroup means anything.
    #[track_caller]
    pub fn on_b(&self, words: &[&str]) -> Value {
        probe(&self.b, UNMANAGED, words)
    }

    /// Waits until `probe WORDS…` in A's cgroup `cgroup` succeeds.
    #[track_caller]
    pub fn until_on_a(&self, cgroup: &str, words: &[&str]) {
        self.until(|| self.on_a(cgroup, words));
    }

    /// Waits until `probe WORDS…` on B succeeds.
    #[track_caller]
    pub fn until_on_b(&self, words: &[&str]) {
        self.until(|| self.on_b(words));
    }

    #[track_caller]
    fn until(&self, probe: impl Fn() -> Value) {
        wait::until("the foreign peer", || {
            let said = probe();
            if said["ok"] == true && said["failed"].as_object().is_none_or(serde_json::Map::is_empty) {
                Ok(())
            } else {
                Err(format!("{said}\n{}", self.a.log()))
            }
        });
    }
}

#[track_caller]
fn probe(host: &Host, cgroup: &str, words: &[&str]) -> Value {
    let said = host.probe(cgroup, words);
    serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("probe said no JSON: {e}: {said}"))
}
