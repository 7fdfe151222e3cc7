//! Where the data path is measured: the hosts, their certificates, the servers at the end of every path, and the proxies
//! that run at the moment.
//!
//! `a` dials and `b` serves, over a veth pair between them, for everybody but meshnode, whose hosts `mesh-a` and `mesh-b`
//! are made in the same way: so nobody's connections pass the programs of meshnode in the kernel but its own. A control
//! plane of their own, `control`, hands out everybody's certificates.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use mesh_tests::{
    bpf, config::Service, host::Host, meshnode::Meshnode, net::Network, process::Process, program::listens,
    space::tool, wait,
};
use serde_json::Value;

use crate::{
    fill,
    server::{Client, Server},
    shape::name,
};

/// Where the plain server listens, on both hosts that serve.
pub const PROGRAM: u16 = 7000;
/// The service that is called, as the certificates name it, and its caller: the workload of the load.
pub const SERVICE: &str = "echo";
pub const CALLER: &str = "web";

/// A host of the stage.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum On {
    A,
    B,
    MeshA,
    MeshB,
}

/// A cgroup of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub on: On,
    pub cgroup: &'static str,
}

pub struct Stage {
    _permitted: Permitted,
    // Before the hosts: programs are gone first.
    running: Vec<(Place, Process)>,
    _servers: [Process; 2],
    mesh: [Client; 2],
    mesh_runs: bool,
    a: Host,
    b: Host,
    control: Server,
    pub net: Network,
}

/// Everybody's. bbr, which some machines have by default, paces what crosses a veth pair, and costs a timer for it.
pub const CONGESTION_CONTROL: &str = "cubic";

/// What network namespaces may choose from: the machine's list, which is put back at the end. Without it they keep its
/// default, whatever that is.
struct Permitted(Option<String>);

impl Permitted {
    const LIST: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

    fn permit() -> Self {
        let before = std::fs::read_to_string(Self::LIST).expect("the list of permitted congestion controls");
        if before.split_whitespace().any(|name| name == CONGESTION_CONTROL) {
            return Self(None);
        }
        let with = format!("{} {CONGESTION_CONTROL}", before.trim());
        std::fs::write(Self::LIST, with).expect("permit cubic in network namespaces (is tcp_cubic there?)");
        Self(Some(before))
    }
}

impl Drop for Permitted {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = std::fs::write(Self::LIST, before);
        }
    }
}

impl Stage {
    /// Makes the hosts, starts control plane and plain servers, and allows what will be called. No proxy runs yet.
    pub fn new() -> Self {
        let permitted = Permitted::permit();
        let net = Network::new();
        let control = Server::start(net.host("control"), false);
        let [a, b, mesh_a, mesh_b] = ["a", "b", "mesh-a", "mesh-b"].map(|name| net.host(name));
        for (from, to) in [(&a, &b), (&a, &mesh_b), (&mesh_a, &mesh_b)] {
            net.wire(from, to);
        }
        for host in [&a, &b, &mesh_a, &mesh_b] {
            sysctls(host);
        }
        let servers = [(&b, "program"), (&mesh_b, SERVICE)].map(|(host, cgroup)| {
            let at = format!("0.0.0.0:{PROGRAM}");
            let mut command = host.space().command(cgroup, tool("load"));
            command.args(["serve", &at]);
            let mut server = Process::spawn(command, &host.log_file("server"));
            server.wait_ready(|| listens(host, PROGRAM));
            server
        });
        let mesh = [
            control.client(mesh_a, vec![Service::client(CALLER)]),
            control.client(mesh_b, vec![Service::client(CALLER), Service::server(SERVICE, PROGRAM)]),
        ];
        let stage = Self {
            _permitted: permitted,
            running: Vec::new(),
            _servers: servers,
            mesh,
            mesh_runs: false,
            a,
            b,
            control,
            net,
        };
        stage.control().intention(CALLER, SERVICE, "allow");
        for (on, service) in [(On::A, CALLER), (On::B, SERVICE)] {
            stage.write_identity(on, service);
        }
        stage
    }

    /// Makes `count` intentions more, from the caller to others and from others to the service: all that its hosts get.
    pub fn intend(&self, count: usize) -> anyhow::Result<()> {
        let endpoint = self.control.endpoint()?;
        self.a.space().enter().in_network(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let pair = |n: usize| match n % 2 {
                0 => (CALLER.to_owned(), name(n / 2)),
                _ => (name(n / 2), SERVICE.to_owned()),
            };
            runtime.block_on(fill::intentions(&endpoint, count, pair))
        })
    }

    pub fn host(&self, on: On) -> &Host {
        match on {
            On::A => &self.a,
            On::B => &self.b,
            On::MeshA => &self.mesh[0].meshnode.host,
            On::MeshB => &self.mesh[1].meshnode.host,
        }
    }

    pub fn control(&self) -> &Meshnode {
        match &self.control {
            Server::Embedded(meshnode) => meshnode,
            Server::Consul(..) => unreachable!("the stage has an embedded server"),
        }
    }

    /// The address of `port` of the host, for others.
    pub fn at(&self, on: On, port: u16) -> SocketAddr {
        (self.host(on).v4, port).into()
    }

    /// The folder with cert.pem, key.pem, both.pem (of the two) and roots.pem: on A the caller's, on B the service's.
    pub fn identity(&self, on: On) -> PathBuf {
        self.host(on).space().scratch().join("identity")
    }

    fn write_identity(&self, on: On, service: &str) {
        let control = self.control();
        let text = |value: &Value| value.as_str().expect("PEM").to_owned();
        let leaf = control.get(&format!("/v1/agent/connect/ca/leaf/{service}"));
        let roots = control.get("/v1/agent/connect/ca/roots");
        let roots: String =
            roots["Roots"].as_array().expect("roots").iter().map(|root| text(&root["RootCert"])).collect();
        let (cert, key) = (text(&leaf["CertPEM"]), text(&leaf["PrivateKeyPEM"]));
        let folder = self.identity(on);
        std::fs::create_dir_all(&folder).expect("scratch is ours");
        let both = format!("{cert}{key}");
        for (name, text) in [("cert", cert), ("key", key), ("both", both), ("roots", roots)] {
            std::fs::write(folder.join(name).with_extension("pem"), text).expect("scratch is ours");
        }
    }

    /// Starts a proxy in its place, and waits until it listens at `port`.
    pub fn start(&mut self, place: Place, port: u16, words: &[&str]) {
        self.start_with(place, port, words, &[]);
    }

    /// The same with variables of the environment.
    pub fn start_with(&mut self, place: Place, port: u16, words: &[&str], variables: &[(&str, &str)]) {
        let host = self.host(place.on);
        assert!(listens(host, port).is_err(), "port {port} of {} is taken", host.name);
        let mut command = host.command(place.cgroup, words);
        command.envs(variables.iter().copied());
        let mut process = Process::spawn(command, &host.log_file(words[0]));
        process.wait_ready(|| listens(host, port));
        self.running.push((place, process));
    }

    /// Writes a file for a program of the host and returns its path.
    pub fn file(&self, on: On, name: &str, text: &str) -> String {
        let path = self.host(on).space().scratch().join(name);
        std::fs::write(&path, text).expect("scratch is ours");
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Starts both daemons, if they do not run, and returns where the service takes mTLS.
    pub fn start_mesh(&mut self) -> SocketAddr {
        if !self.mesh_runs {
            for node in &mut self.mesh {
                node.meshnode.run();
            }
            self.mesh_runs = true;
        }
        // What the caller dials before is no address of the mesh to its kernel, and passes as it is.
        wait::until_true("the service's address in the caller's kernel", || {
            bpf::count(self.host(On::MeshA), "DESTINATIONS") > 0
        });
        let status = self.mesh[1].meshnode.wait_status("the mesh port", |status| {
            status.entry("services", "name", SERVICE).is_some_and(|service| service["mesh_port"].is_u64())
        });
        let port = status.entry("services", "name", SERVICE).expect("just seen")["mesh_port"].as_u64();
        self.at(On::MeshB, u16::try_from(port.expect("just seen")).expect("a port"))
    }

    /// Ends every proxy.
    pub fn stop(&mut self) {
        for (place, process) in std::mem::take(&mut self.running) {
            drop(process);
            // nginx' workers outlive it, and would serve the next round.
            let cgroup = self.host(place.on).space().cgroup().child(place.cgroup);
            cgroup.kill_and_remove(Duration::from_secs(5)).expect("its processes can be killed");
        }
        if self.mesh_runs {
            for node in &mut self.mesh {
                node.meshnode.terminate();
            }
            self.mesh_runs = false;
        }
    }

    /// Returns a command of the load in its place.
    pub fn load(&self, place: Place) -> std::process::Command {
        self.host(place.on).space().command(place.cgroup, tool("load"))
    }

    /// Waits until a request to `to` is answered.
    pub fn until_answered(&self, place: Place, to: SocketAddr) {
        wait::until(&format!("an answer at {to}"), || {
            let mut command = self.load(place);
            command.args(["once", "--to", &to.to_string()]);
            let said = mesh_tests::process::run(command, None, mesh_tests::host::LIMIT);
            let logs: String = self.running.iter().map(|(_, process)| process.log()).collect();
            if said.status.success() { Ok(()) } else { Err(format!("{said}\n{logs}")) }
        });
    }
}

/// Many connections a second from one address to one other: ports are not to run out, and those of listeners are not to
/// be taken.
fn sysctls(host: &Host) {
    let chosen = host.run("", &["sysctl", "-n", "net.ipv4.tcp_congestion_control"]).ok();
    assert_eq!(
        chosen.trim(),
        CONGESTION_CONTROL,
        "every host of the stage is to have the same congestion control"
    );
    let settings = [
        "net.ipv4.ip_local_port_range=2000 65535",
        "net.ipv4.ip_local_reserved_ports=7000-9000,15000-15100,20000-22000",
        "net.ipv4.tcp_tw_reuse=1",
    ];
    host.run("", &[&["sysctl", "-qw"], &settings[..]].concat()).ok();
    // Since Linux 6.14; before, a port is free again after a second.
    host.run("", &["sysctl", "-qew", "net.ipv4.tcp_tw_reuse_delay=1"]);
}
