//! Who is measured. Each is two hops, a proxy beside the client and one beside the server, but for those that show what
//! there is to lose: plain TCP, and meshnode between two programs of one host.

mod consul;
mod envoy;
mod haproxy;
mod nginx;
mod stunnel;
mod ztunnel;

use std::{net::SocketAddr, path::PathBuf, process::Command};

use mesh_tests::{meshnode, space::tool};

use super::{
    stage::{CALLER, On, PROGRAM, Place, Stage},
    wire::AES_128,
};
use crate::server::DAEMON_CGROUP;

/// One way from the client to the server.
pub struct Contestant {
    pub name: &'static str,
    /// What its figures are divided by.
    pub against: &'static str,
    /// Returns its version, or why it is not there.
    pub find: fn() -> Result<String, String>,
    /// Starts its proxies.
    pub start: fn(&mut Stage) -> Lane,
}

/// A contestant that runs.
pub struct Lane {
    /// Where the client runs, and what it dials there.
    pub client: Place,
    pub dial: SocketAddr,
    /// The proxies: the client's, the server's.
    pub proxies: Vec<Place>,
    /// Where the server's proxy takes TLS.
    pub mesh: Option<MeshEnd>,
}

/// The server's proxy, as a TLS client sees it.
#[derive(Clone, Copy)]
pub struct MeshEnd {
    pub at: SocketAddr,
    /// The number of the cipher suite that it has to take.
    pub suite: u16,
    /// Whether `load` can be its client: it believes the stage's certificates, and bytes go through it as they come.
    pub takes_load: bool,
}

impl MeshEnd {
    /// What all do that can be told.
    fn usual(at: SocketAddr) -> Self {
        Self { at, suite: AES_128, takes_load: true }
    }
}

/// The names of the baselines.
pub const PLAIN: &str = "plain";
pub const PLAIN_LOCAL: &str = "plain-local";

pub const ALL: [Contestant; 11] = [
    Contestant {
        name: PLAIN,
        against: PLAIN,
        find: || Ok("TCP from host to host, nothing between".to_owned()),
        start: |stage| direct(Place { on: On::A, cgroup: "load" }, stage.at(On::B, PROGRAM)),
    },
    Contestant {
        name: PLAIN_LOCAL,
        against: PLAIN_LOCAL,
        find: || Ok("TCP within one host, nothing between".to_owned()),
        start: |stage| direct(Place { on: On::B, cgroup: "load" }, stage.at(On::B, PROGRAM)),
    },
    Contestant {
        name: "relay",
        against: PLAIN,
        find: || Ok("copies bytes, two hops, no TLS; in this workspace".to_owned()),
        start: relay,
    },
    Contestant {
        name: "meshnode",
        against: PLAIN,
        find: || version(&[&meshnode::binary().display().to_string(), "--version"]),
        start: |stage| {
            let mesh = stage.start_mesh();
            Lane {
                client: Place { on: On::MeshA, cgroup: CALLER },
                dial: stage.at(On::MeshB, PROGRAM),
                proxies: [On::MeshA, On::MeshB].map(|on| Place { on, cgroup: DAEMON_CGROUP }).to_vec(),
                mesh: Some(MeshEnd::usual(mesh)),
            }
        },
    },
    Contestant {
        name: "meshnode-local",
        against: PLAIN_LOCAL,
        find: || version(&[&meshnode::binary().display().to_string(), "--version"]),
        start: |stage| {
            stage.start_mesh();
            let client = Place { on: On::MeshB, cgroup: CALLER };
            let proxies = vec![Place { cgroup: DAEMON_CGROUP, ..client }];
            Lane { proxies, ..direct(client, stage.at(On::MeshB, PROGRAM)) }
        },
    },
    envoy::CONTESTANT,
    haproxy::CONTESTANT,
    nginx::CONTESTANT,
    stunnel::CONTESTANT,
    consul::CONTESTANT,
    ztunnel::CONTESTANT,
];

/// Returns the contestant of that name.
pub fn named(name: &str) -> Option<&'static Contestant> {
    ALL.iter().find(|contestant| contestant.name == name)
}

fn direct(client: Place, dial: SocketAddr) -> Lane {
    Lane { client, dial, proxies: Vec::new(), mesh: None }
}

fn relay(stage: &mut Stage) -> Lane {
    let pair = Pair { name: "relay", listen: 8001, mesh: 20001 };
    let binary = tool("relay").display().to_string();
    let (listen, mesh) = (pair.dial().to_string(), stage.at(On::B, pair.mesh).to_string());
    stage.start(pair.server(), pair.mesh, &[&binary, &mesh, &program().to_string()]);
    stage.start(pair.client(), pair.listen, &[&binary, &listen, &mesh]);
    Lane { mesh: None, ..pair.lane(stage) }
}

/// Two foreign proxies, configured by hand: the client's on A's loopback, the server's on B.
struct Pair {
    /// Also of the cgroup that the proxy runs in.
    name: &'static str,
    /// Where the client's listens, and the server's.
    listen: u16,
    mesh: u16,
}

impl Pair {
    fn client(&self) -> Place {
        Place { on: On::A, cgroup: self.name }
    }

    fn server(&self) -> Place {
        Place { on: On::B, cgroup: self.name }
    }

    fn dial(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.listen).into()
    }

    fn lane(&self, stage: &Stage) -> Lane {
        Lane {
            client: Place { on: On::A, cgroup: "load" },
            dial: self.dial(),
            proxies: vec![self.client(), self.server()],
            mesh: Some(MeshEnd::usual(stage.at(On::B, self.mesh))),
        }
    }

    /// Starts both, `command` with the path of a configuration file each: `file`, with the client's text or the server's.
    fn start(&self, stage: &mut Stage, command: &[&str], file: &str, [client, server]: [String; 2]) -> Lane {
        for (place, text, port) in [(self.server(), server, self.mesh), (self.client(), client, self.listen)]
        {
            let file = stage.file(place.on, file, &text);
            stage.start(place, port, &[command, &[&file]].concat());
        }
        self.lane(stage)
    }
}

/// Where B's proxies find the program.
fn program() -> SocketAddr {
    ([127, 0, 0, 1], PROGRAM).into()
}

/// Returns the line with a number in what a program says of itself.
fn version(words: &[&str]) -> Result<String, String> {
    let said = Command::new(words[0])
        .args(&words[1..])
        .output()
        .map_err(|error| format!("{}: {error}; `cargo xtask setup` installs it", words[0]))?;
    let text = [said.stdout, said.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let numbered = text.lines().map(str::trim).find(|line| line.contains(|c: char| c.is_ascii_digit()));
    let line = numbered.unwrap_or_default();
    Ok(line.strip_prefix(words[0]).unwrap_or(line).trim().to_owned())
}

/// The same of one that `cargo xtask setup` puts below target/tools.
fn version_of(binary: Option<PathBuf>, words: &[&str]) -> Result<String, String> {
    let binary = binary.ok_or("`cargo xtask setup` found no way to install it")?;
    version(&[&[binary.to_str().expect("UTF-8")], words].concat())
}
