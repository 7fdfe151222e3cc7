//! Every way that a program connects: captured, direct, or denied, and never in clear unseen. What a way must do is the
//! table of `docs/compatibility.md`.
//!
//! Part of the set that `cargo xtask vm-test` runs on other kernels.

mod again;
mod bound;
mod calls;
mod fastopen;
mod languages;
mod processes;
mod stream;

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use mesh_tests::{
    capture::Capture,
    fixture::{Mesh, Scene, serve},
    host::Family,
    meshnode::Meshnode,
    process::Process,
    program::compiled::{Make, compiled},
};
use serde_json::Value;

const ECHO: u16 = 7001;
/// In the mesh, and nobody may.
const HIDDEN: u16 = 7002;
const SECOND: u16 = 7003;
/// Not in the mesh.
const BARE: u16 = 7777;

/// `web` on A may connect to `echo` and `second` on B, `other` to nothing; each byte at B is captured.
struct Ways {
    wire: Capture,
    program: PathBuf,
    _servers: Vec<Process>,
    mesh: Mesh,
    before: u64,
}

impl Ways {
    #[track_caller]
    fn new(family: Family) -> Self {
        Self::of(Scene::new(&[]).family(family), Make::C)
    }

    #[track_caller]
    fn of(mut scene: Scene, make: Make) -> Self {
        scene.on_b = Scene::new(&[("echo", ECHO), ("hidden", HIDDEN), ("second", SECOND)]).on_b;
        let mesh = scene.start();
        Self::on(mesh, make)
    }

    #[track_caller]
    fn on(mesh: Mesh, make: Make) -> Self {
        let services = [("echo", ECHO), ("hidden", HIDDEN), ("second", SECOND), ("bare", BARE)];
        let servers = services.map(|(name, port)| serve(&mesh.b.host, name, port, &["echo"])).into();
        mesh.allow("web", "echo", ECHO);
        mesh.allow("web", "second", SECOND);
        let before = mesh.a.status().counter("captured");
        let wire = mesh.net.capture(&mesh.b.host);
        Self { wire, program: compiled("ways.c", make), _servers: servers, mesh, before }
    }

    /// Where B's service is.
    fn to(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.mesh.b.host.ip(self.mesh.family), port)
    }

    #[track_caller]
    fn say(&self, cgroup: &str, way: &str, to: SocketAddr, arguments: &[&str]) -> Value {
        say(&self.mesh.a, cgroup, &self.program, way, to, arguments)
    }

    /// Goes the way in `web` to `echo`, and asserts that it saw what it would have seen on plain TCP.
    #[track_caller]
    fn arrives(&self, way: &str, arguments: &[&str]) -> Value {
        let to = self.to(ECHO);
        let said = self.say("web", way, to, arguments);
        is_echoed(&said, way, to);
        said
    }

    /// Goes the way in `other`, which may not.
    #[track_caller]
    fn is_denied(&self, way: &str, arguments: &[&str]) -> Value {
        let said = self.say("other", way, self.to(ECHO), arguments);
        assert_eq!(said["error"], "EPERM", "{said}");
        said
    }

    /// The same way in both.
    #[track_caller]
    fn both(&self, way: &str, arguments: &[&str]) {
        self.arrives(way, arguments);
        self.is_denied(way, arguments);
    }

    /// Asserts that `captured` connections were captured, and that nothing went to the services in clear.
    #[track_caller]
    fn end(self, captured: u64) {
        let counted = self.mesh.a.status().counter("captured") - self.before;
        assert_eq!(counted, captured, "captured connections");
        let trace = self.wire.stop();
        for port in [ECHO, HIDDEN, SECOND] {
            assert_eq!(trace.bytes_at(port), 0, "something went to port {port} itself");
        }
    }
}

/// Runs `ways` and returns what it said.
#[track_caller]
fn say(
    node: &Meshnode,
    cgroup: &str,
    program: &Path,
    way: &str,
    to: SocketAddr,
    arguments: &[&str],
) -> Value {
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    let words = [&[program.to_str().expect("UTF-8"), way, &ip, &port], arguments].concat();
    let said = node.host.run(cgroup, &words);
    serde_json::from_str(said.stdout.trim()).unwrap_or_else(|e| panic!("no JSON: {e}: {said}"))
}

#[track_caller]
fn is_echoed(said: &Value, way: &str, to: SocketAddr) {
    assert_eq!(said["ok"], true, "{said}");
    assert_eq!(said["received"], format!("sent by {way}"), "{said}");
    assert_eq!(address(&said["peer"]), to, "{said}");
}

/// An address as the program told it; IPv4-mapped is IPv4.
#[track_caller]
fn address(value: &Value) -> SocketAddr {
    let text = value.as_str().unwrap_or_default();
    let parsed: SocketAddr = text.parse().unwrap_or_else(|e| panic!("`{text}`: {e}"));
    SocketAddr::new(parsed.ip().to_canonical(), parsed.port())
}

/// Says past the test runner's output capture that a part can't run here.
fn skip(why: &str) {
    writeln!(std::io::stderr(), "SKIP: ways: {why}").expect("stderr takes a line");
}

/// Asserts that the newest denial of `cgroup`'s service is for `reason`.
#[track_caller]
fn is_denied_for(node: &Meshnode, source: &str, reason: &str) {
    node.wait_status("the denial's event", |s| {
        s.recent(source, "echo").iter().any(|f| f["state"] == "denied" && f["reason"] == reason)
    });
}

fn text(ip: impl Into<IpAddr>) -> String {
    ip.into().to_string()
}
