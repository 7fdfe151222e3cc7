//! dnsmasq as the server that programs ask for names: it also has names of its own in the mesh's domains, by which a test
//! sees who answered.

use std::fmt::Write as _;

use super::listens;
use crate::{host::Host, process::Process};

/// What a server says of every name in `mesh` and `consul`: nobody else gives this address.
pub const NOT_THE_MESH: &str = "203.0.113.66";
/// Has one address.
pub const PLAIN: &str = "plain.example";
/// Has more addresses than a datagram takes.
pub const BIG: &str = "big.example";
pub const BIG_COUNT: usize = 200;

/// A running server at port 53 of one address.
#[derive(Debug)]
pub struct Dnsmasq {
    pub server: Process,
}

impl Dnsmasq {
    /// Starts a server that says `plain` for [`PLAIN`].
    #[track_caller]
    pub fn start(host: &Host, cgroup: &str, at: &str, plain: &str) -> Self {
        let words = words(host, at, plain);
        let mut server = host.spawn(cgroup, &words.iter().map(String::as_str).collect::<Vec<_>>());
        server.wait_ready(|| listens(host, 53));
        Self { server }
    }
}

/// Returns the command line.
pub fn words(host: &Host, at: &str, plain: &str) -> Vec<String> {
    let file = host.log_file("big");
    let mut hosts = String::new();
    for n in 0..BIG_COUNT {
        writeln!(hosts, "198.51.100.{} {BIG}", n + 1).expect("a string takes all");
    }
    std::fs::write(&file, hosts).unwrap_or_else(|e| panic!("write {}: {e}", file.display()));
    let mut words: Vec<String> = [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--user=root",
        "--group=root",
        "--pid-file=",
        "--log-queries",
        "--log-facility=-",
        "--local=/example/",
        "--local=/search.test/",
        "--host-record=six.example,2001:db8::6",
        "--host-record=db.mesh.search.test,192.0.2.77",
    ]
    .map(str::to_owned)
    .into();
    words.push(format!("--listen-address={at}"));
    words.push(format!("--host-record={PLAIN},{plain}"));
    words.push(format!("--addn-hosts={}", file.display()));
    words.extend(["mesh", "consul"].map(|domain| format!("--address=/{domain}/{NOT_THE_MESH}")));
    words
}
