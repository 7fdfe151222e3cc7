//! One host with meshnode, one with a foreign proxy: Consul's built-in one, or Envoy as Consul configures it. Both
//! directions, allowed and denied, under a real Consul and under the embedded server.

mod gateway;
mod identity;
mod inward;
mod outward;

use std::io::{BufRead as _, BufReader};

use mesh_tests::{
    config::Service,
    fixture::serve,
    foreign::{Pair, Plane},
    host::Host,
    meshnode::UNMANAGED,
    process::Process,
    program::{
        connect_proxy::ConnectProxy,
        envoy::{Envoy, Sidecar},
        postgres::Postgres,
    },
};

const WELCOME: &str = "welcome, says the server first";

/// What is called: a service, its program's port, and its mesh port where a foreign proxy serves it.
#[derive(Clone, Copy)]
struct Called(&'static str, u16, u16);

const ECHO: Called = Called("echo", 7001, 21001);
const BANNER: Called = Called("banner", 7002, 21002);
const COUNT: Called = Called("count", 7003, 21003);
const DB: Called = Called("db", 5432, 21004);

/// The foreign proxy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Consul,
    Envoy,
}

/// One that runs.
#[expect(dead_code, reason = "they are held, and killed when dropped")]
enum Running {
    Consul(ConnectProxy),
    Envoy(Envoy),
}

impl Kind {
    /// Puts a sidecar before a program of B, which is registered already, that takes connections from `web` only.
    #[track_caller]
    fn protect(self, pair: &Pair, Called(name, port, mesh_port): Called) -> Running {
        match self {
            Self::Consul => Running::Consul(ConnectProxy::sidecar(pair, name, &[mesh_port])),
            Self::Envoy => {
                Running::Envoy(Sidecar::of(pair, name).protects(port, mesh_port, &["web"]).start())
            }
        }
    }

    /// Lets B's programs dial `called` as `source`, at 2000 above the program's port (3000 for others than `web`).
    #[track_caller]
    fn reach(self, pair: &Pair, source: &str, called: &[Called]) -> Running {
        let upstreams: Vec<_> = called.iter().map(|c| (c.0, local(source, *c))).collect();
        match self {
            Self::Consul => Running::Consul(ConnectProxy::upstreams(pair, source, &upstreams)),
            Self::Envoy => {
                let sidecar = Sidecar::of(pair, source);
                Running::Envoy(
                    upstreams.iter().fold(sidecar, |s, (name, port)| s.reaches(name, *port)).start(),
                )
            }
        }
    }
}

/// Where B's programs dial `called` as `source`.
fn local(source: &str, Called(_, port, _): Called) -> u16 {
    port + if source == "web" { 2000 } else { 3000 }
}

fn at(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn clients() -> Vec<Service> {
    vec![Service::client("web"), Service::client("other")]
}

/// The programs that are called.
#[expect(dead_code, reason = "they are held, and killed when dropped")]
struct Programs(Vec<Process>, Option<Postgres>);

impl Programs {
    /// Each in the cgroup of its name, or in one that means nothing.
    #[track_caller]
    fn start(host: &Host, called: &[Called], managed: bool) -> Self {
        let cgroup = |Called(name, ..): &Called| if managed { *name } else { UNMANAGED };
        let probes = called.iter().filter(|c| c.0 != DB.0).map(|c| match c.0 {
            "banner" => serve(host, cgroup(c), c.1, &["banner", WELCOME]),
            what => serve(host, cgroup(c), c.1, &[what]),
        });
        let probes = probes.collect();
        let db = called.iter().find(|c| c.0 == DB.0).map(|c| Postgres::start(host, cgroup(c), c.1));
        Self(probes, db)
    }
}

/// Connections that are held open until they are cut.
struct Held(Process);

impl Held {
    #[track_caller]
    fn open(host: &Host, cgroup: &str, to: &str) -> Self {
        let mut process = host.spawn_probe(cgroup, &["hold", to, "2"]);
        let mut first = String::new();
        BufReader::new(process.stdout().expect("a pipe")).read_line(&mut first).expect("a line");
        assert_eq!(first, "holding 2\n", "{}", process.log());
        Self(process)
    }

    #[track_caller]
    fn wait_until_cut(mut self) {
        // Its further lines find a pipe that nobody reads, which is one way to end.
        self.0.wait();
    }
}
