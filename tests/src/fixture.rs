//! The usual scene: host A with workloads that connect, host B with services, one control plane on A.

use std::net::SocketAddr;

use serde_json::Value;

use crate::{
    config::{CA_FILE, Config, ControlPlane, STATE_DIR, Service},
    host::{Family, Host},
    meshnode::Meshnode,
    net::Network,
    process::Process,
    program::{
        consul::{self, Consul},
        listens,
    },
    space::Options,
    wait,
};

/// Two hosts with daemons. A is `a`, embedded; B is `b`, remote.
#[derive(Debug)]
pub struct Mesh {
    pub a: Meshnode,
    pub b: Meshnode,
    pub net: Network,
    pub family: Family,
}

/// What differs between the scenes of tests.
#[derive(Clone, Debug)]
pub struct Scene {
    pub family: Family,
    pub on_a: Vec<Service>,
    pub on_b: Vec<Service>,
    /// Further lines of A's `[control_plane.embedded]`.
    pub embedded: String,
    /// Further lines of `[control_plane]` of both, where a Consul is the control plane.
    pub consul: String,
    /// Further top-level lines of both configurations.
    pub top: String,
    /// Further sections of A's configuration, and of B's.
    pub sections: String,
    pub sections_on_b: String,
    pub options: Options,
}

impl Scene {
    /// Workloads `web` and `other` on A; `services` on B.
    pub fn new(services: &[(&str, u16)]) -> Self {
        Self {
            family: Family::V4,
            on_a: vec![Service::client("web"), Service::client("other")],
            on_b: services.iter().map(|(name, port)| Service::server(name, *port)).collect(),
            embedded: String::new(),
            consul: String::new(),
            top: String::new(),
            sections: String::new(),
            sections_on_b: String::new(),
            options: Options::default(),
        }
    }

    pub fn family(mut self, family: Family) -> Self {
        self.family = family;
        self
    }

    /// Starts both hosts and their daemons, and returns when A's daemon knows B's services.
    #[track_caller]
    pub fn start(self) -> Mesh {
        let net = Network::with(self.options);
        let (a, b) = (net.host("a"), net.host("b"));
        self.start_on(net, a, b)
    }

    /// The same on hosts on which the programs run already.
    #[track_caller]
    pub fn start_on(self, net: Network, a: Host, b: Host) -> Mesh {
        let Self { family, on_a, on_b, embedded, top, sections, sections_on_b, .. } = self;
        let config = |host: &Host, control_plane, services| Config {
            node: format!("host-{}", host.name),
            advertise: host.ip(family),
            control_plane,
            services,
            top: top.clone(),
            sections: String::new(),
        };
        let server = a.ip(family);
        let mut a_config = config(&a, ControlPlane::Embedded { lines: embedded }, on_a);
        a_config.sections = sections;
        let mut b_config = config(&b, ControlPlane::Remote { server }, on_b);
        b_config.sections = sections_on_b;
        let a = Meshnode::start(a, a_config);
        share_ca(&a, &b);
        let b = Meshnode::start(b, b_config);
        Mesh { a, b, net, family }
    }
}

/// Two hosts whose control plane is a real Consul: its server is on A, its client agent on B.
#[derive(Debug)]
pub struct ConsulMesh {
    // Before the agents, so that daemons are gone first.
    pub mesh: Mesh,
    pub server: Consul,
    pub agent: Consul,
}

impl Scene {
    /// Starts both hosts with a Consul agent and a daemon each. `extra` is merged into both agents' configuration.
    #[track_caller]
    pub fn start_with_consul(self, extra: &Value) -> ConsulMesh {
        let net = Network::with(self.options);
        let (a, b) = (net.host("a"), net.host("b"));
        let server = Consul::start(&a, consul::Role::server().with(extra.clone()));
        let agent = Consul::start(&b, consul::Role::client(&a).with(extra.clone()));
        ConsulMesh { mesh: self.start_beside_agents(net, a, b), server, agent }
    }

    /// Starts the daemons of two hosts that have a Consul agent each.
    #[track_caller]
    pub fn start_beside_agents(self, net: Network, a: Host, b: Host) -> Mesh {
        let Self { family, on_a, on_b, consul, top, sections, sections_on_b, .. } = self;
        let config = |host: &Host, services, sections| Config {
            node: format!("host-{}", host.name),
            advertise: host.ip(family),
            control_plane: ControlPlane::Consul { lines: consul.clone() },
            services,
            top: top.clone(),
            sections,
        };
        let (a_config, b_config) = (config(&a, on_a, sections), config(&b, on_b, sections_on_b));
        let (a, b) = (Meshnode::start(a, a_config), Meshnode::start(b, b_config));
        Mesh { a, b, net, family }
    }
}

impl ConsulMesh {
    /// Allows `source` to connect to `destination` (at `port` of B), and returns when a process in A's cgroup `source`
    /// can.
    #[track_caller]
    pub fn allow(&self, source: &str, destination: &str, port: u16) {
        self.server.intention(&self.mesh.a.host, source, destination, "allow");
        self.mesh.until_connects(source, port);
    }
}

/// Gives `client` the certificate of `server`'s API.
#[track_caller]
pub fn share_ca(server: &Meshnode, client: &Host) {
    let ca = wait::until("the API's CA", || {
        let path = server.host.space().path(&format!("{STATE_DIR}/api-ca.pem"));
        std::fs::read_to_string(path).map_err(|e| e.to_string())
    });
    client.write(CA_FILE, &ca);
}

/// The usual scene: `web` on A may connect to `service` on B's `port`, where a server says `welcome` to each.
#[track_caller]
pub fn welcoming(service: &str, port: u16) -> (Mesh, Process) {
    let mesh = Scene::new(&[(service, port)]).start();
    let server = serve(&mesh.b.host, service, port, &["banner", "welcome"]);
    mesh.allow("web", service, port);
    (mesh, server)
}

/// A scene on one host, with these sections in A's configuration: `web` may connect to `echo` at A's port 7001, where a server
/// sends back what it gets. No flow is open.
#[track_caller]
pub fn echoing_on_a(sections: &str) -> (Mesh, Process) {
    let mut scene = Scene::new(&[]);
    scene.on_a.push(Service::server("echo", 7001));
    sections.clone_into(&mut scene.sections);
    let mesh = scene.start();
    let server = serve(&mesh.a.host, "echo", 7001, &["echo"]);
    mesh.a.intention("web", "echo", "allow");
    wait::until_true("the intention to act", || {
        connect(&mesh.a.host, "web", "127.0.0.1:7001", &["--read", "0"])["ok"] == true
    });
    // The last one's may still be listed.
    mesh.a.wait_status("no flow", |s| s.all_flows().is_empty());
    (mesh, server)
}

impl Mesh {
    /// Where programs dial B's service at `port`.
    pub fn at(&self, port: u16) -> String {
        SocketAddr::new(self.b.host.ip(self.family), port).to_string()
    }

    /// B's address as text.
    pub fn b_address(&self) -> String {
        self.b.host.ip(self.family).to_string()
    }

    /// The mesh port of B's service.
    #[track_caller]
    pub fn mesh_port(&self, service: &str) -> u16 {
        let status = self.b.wait_status("the mesh port", |s| {
            s.entry("services", "name", service).is_some_and(|s| s["mesh_port"].is_u64())
        });
        let port = status.entry("services", "name", service).expect("just seen")["mesh_port"].as_u64();
        u16::try_from(port.expect("just seen")).expect("a port")
    }

    /// Allows `source` to connect to `destination` (at `port` of B), and returns when a process in A's cgroup `source`
    /// can.
    #[track_caller]
    pub fn allow(&self, source: &str, destination: &str, port: u16) {
        self.a.intention(source, destination, "allow");
        self.until_connects(source, port);
    }

    /// Waits until a process in A's cgroup `cgroup` connects to B's `port`. Catalog, health and intentions arrive when
    /// they do; what must not happen meanwhile is for the tests of faults.
    #[track_caller]
    pub fn until_connects(&self, cgroup: &str, port: u16) {
        // So long a refusal may take.
        let wait = (300 * wait::slowness()).to_string();
        wait::until(&format!("{cgroup} to reach port {port}"), || {
            let said = self.connect(cgroup, port, &["--send", "", "--read", "0"]);
            // The mesh accepts before the upstream answers: one more look tells whether it holds.
            let later = self.connect(cgroup, port, &["--wait", &wait]);
            if said["ok"] == true && (later["end"] == "TIMEOUT" || later["end"] == "eof") {
                return Ok(());
            }
            Err(format!("{said} {later}\n--- a\n{}\n--- b\n{}", self.a.log(), self.b.log()))
        });
    }

    /// Waits until connect(2) in A's cgroup `cgroup` to B's `port` fails with EPERM.
    #[track_caller]
    pub fn until_denied(&self, cgroup: &str, port: u16) {
        wait::until(&format!("{cgroup} to be denied port {port}"), || {
            let said = self.connect(cgroup, port, &["--wait", "50"]);
            if said["error"] == "EPERM" { Ok(()) } else { Err(said.to_string()) }
        });
    }

    /// Runs `probe connect` in A's cgroup to B's `port` and returns what it says.
    #[track_caller]
    pub fn connect(&self, cgroup: &str, port: u16, options: &[&str]) -> Value {
        connect(&self.a.host, cgroup, &self.at(port), options)
    }

    /// Prints both daemons' logs, for a test that fails.
    pub fn logs(&self) -> String {
        format!("--- log of a\n{}\n--- log of b\n{}", self.a.log(), self.b.log())
    }
}

/// A host that is a client of A's embedded control plane, with the workload `service`, which only connects; its daemon
/// is not started. Without A's CA it would not believe it.
#[track_caller]
pub fn client_host(mesh: &Mesh, name: &str, service: &str, with_ca: bool) -> Meshnode {
    let host = mesh.net.host(name);
    if with_ca {
        share_ca(&mesh.a, &host);
    }
    let config = Config {
        node: format!("host-{name}"),
        advertise: host.ip(Family::V4),
        control_plane: ControlPlane::Remote { server: mesh.a.host.ip(mesh.family) },
        services: vec![Service::client(service)],
        top: String::new(),
        sections: String::new(),
    };
    Meshnode::prepare(host, config)
}

/// Starts a server of `probe` (`echo`, `banner TEXT`, …) at `port` of every address, in the cgroup `service`.
#[track_caller]
pub fn serve(host: &Host, service: &str, port: u16, what: &[&str]) -> Process {
    let at = format!("[::]:{port}");
    let words: Vec<&str> = ["serve", what[0], &at].iter().chain(&what[1..]).copied().collect();
    let server = host.spawn_probe(service, &words);
    wait::until("the server", || listens(host, port));
    server
}

/// Runs `probe connect` and returns what it says.
#[track_caller]
pub fn connect(host: &Host, cgroup: &str, to: &str, options: &[&str]) -> Value {
    let words: Vec<&str> = ["connect", to].into_iter().chain(options.iter().copied()).collect();
    let said = host.probe(cgroup, &words);
    serde_json::from_str(&said.stdout).unwrap_or_else(|e| panic!("probe said no JSON: {e}: {said}"))
}

/// Whether a connection that `connect` made was reset before any data. One that comes before the caller runs again is an
/// error of connect(2) itself, as on plain TCP: `inet_stream_connect` returns the socket's error.
pub fn is_reset(said: &Value) -> bool {
    let nothing = said["received"].as_str().is_none_or(str::is_empty);
    nothing && (said["end"] == "ECONNRESET" || said["error"] == "ECONNRESET")
}
