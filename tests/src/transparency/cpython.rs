//! CPython's own test suite, as the distribution packages it. Its tests are client and server in one process, on
//! loopback, at ports that the kernel picks; so the host is one, and three of a kind are compared: without a daemon,
//! with flows that the kernel connects, and with flows that go through the proxy both ways under TLS.

use std::{fs, time::Duration};

use serde_json::Value;

use super::{Outcome, stage::CLIENT};
use crate::{
    config::{Config, ControlPlane, Service},
    host::Host,
    meshnode::Meshnode,
    net::Network,
    process::run,
    program::script,
};

/// Longer than any selection of the suite takes.
const LIMIT: Duration = Duration::from_secs(300);

/// The ports that the kernel picks from: each is the protected port of a service of its own.
const PORTS: std::ops::Range<u16> = 30_000..30_200;

/// Address families that depend on the machine: they never come near TCP.
const LEFT_OUT: &str = "VSOCK|Bluetooth|CAN|RDS|TIPC|Alg|UDPLITE|Qipcrtr|HyperV";

/// Returns a host without a daemon, whose ephemeral ports are [`PORTS`].
#[track_caller]
pub fn plain_host(net: &Network) -> Host {
    let host = net.host("a");
    let range = format!("{} {}", PORTS.start, PORTS.end - 1);
    host.run("", &["sysctl", "-q", "-w", &format!("net.ipv4.ip_local_port_range={range}")]).ok();
    host
}

/// Returns such a host with a daemon, where each of the ports is a service that the client may reach. Guards are
/// permissive, else no one could bind a port that belongs to another service.
#[track_caller]
pub fn meshed_host(net: &Network, same_host: &str) -> Meshnode {
    let host = plain_host(net);
    let server = |port: u16| {
        Service::server(&format!("port-{port}"), port)
            .with("guard = \"permissive\"")
            .with("[service.check]\nenabled = false")
    };
    let services = std::iter::once(Service::client(CLIENT)).chain(PORTS.map(server)).collect();
    let config = Config {
        node: "host-a".to_owned(),
        advertise: host.v4.into(),
        control_plane: ControlPlane::Embedded { lines: String::new() },
        services,
        top: format!("same_host = \"{same_host}\"\n"),
        sections: String::new(),
    };
    let node = Meshnode::start(host, config);
    node.intention(CLIENT, "*", "allow");
    node.wait_status("a certificate for each", |s| s.list("certificates").len() > PORTS.len());
    node
}

/// Runs the tests that `names` are or hold, and returns how each ended, by its id.
#[track_caller]
pub fn run_tests(host: &Host, names: &[String]) -> Outcome {
    let results = host.log_file("cpython-results");
    let suite = script::path("suite.py");
    let results_text = results.to_str().expect("UTF-8").to_owned();
    let scratch = host.space().scratch().to_str().expect("UTF-8");
    let mut words =
        vec!["env", "-C", scratch, script::PYTHON, "-W", "ignore", &suite, &results_text, LEFT_OUT];
    words.extend(names.iter().map(String::as_str));
    let output = run(host.command(CLIENT, &words), None, LIMIT);
    let text = fs::read_to_string(&results).unwrap_or_else(|e| panic!("{e}: {output}"));
    let ends: serde_json::Map<String, Value> = serde_json::from_str(&text).expect("it writes JSON");
    ends.into_iter().map(|(test, end)| (test, end.as_str().unwrap_or_default().to_owned())).collect()
}
