//! Each fast path, and each switched off: what programs send arrives as on plain TCP, whatever they, the network or the
//! policy do meanwhile. What is random follows from a seed, which a failure names; `MESHNODE_SEED` repeats one.
//!
//! Part of the set that `cargo xtask vm-test` runs on other kernels.

mod between_hosts;
mod one_host;

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Lines},
    process::ChildStdout,
    time::{SystemTime, UNIX_EPOCH},
};

use mesh_tests::{host::Host, meshnode::Meshnode, process::Process, program::listens, wait};
use serde_json::Value;

const PORT: u16 = 7001;

/// `probe serve stalls`, and what it said of each connection.
struct Server {
    _process: Process,
    lines: Lines<BufReader<ChildStdout>>,
    heard: HashMap<u64, Value>,
}

impl Server {
    #[track_caller]
    fn start(host: &Host) -> Self {
        let mut process = host.spawn_probe("echo", &["serve", "stalls", &format!("[::]:{PORT}")]);
        let mut lines = BufReader::new(process.stdout().expect("it is a pipe")).lines();
        lines.next().expect("it says that it listens").expect("text");
        wait::until("the server", || listens(host, PORT));
        Self { _process: process, lines, heard: HashMap::new() }
    }

    /// Returns what it said of the connection with the seed.
    #[track_caller]
    fn said(&mut self, seed: u64) -> Value {
        loop {
            if let Some(said) = self.heard.remove(&seed) {
                return said;
            }
            let line = self.lines.next().expect("it lives").expect("text");
            let said: Value = serde_json::from_str(&line).expect("JSON");
            self.heard.insert(said["seed"].as_u64().expect("a seed"), said);
        }
    }
}

/// A path from `web` to `echo`.
struct Route<'m> {
    from: &'m Host,
    to: String,
    server: Server,
    /// Where intentions are made.
    policy: &'m Meshnode,
    seed: u64,
}

const ENDINGS: [&str; 3] = ["in-order", "caller-resets", "server-resets"];

impl<'m> Route<'m> {
    #[track_caller]
    fn new(from: &'m Host, to: String, server: Server, policy: &'m Meshnode) -> Self {
        let seed =
            std::env::var("MESHNODE_SEED").map_or_else(|_| clock(), |seed| seed.parse().expect("a seed"));
        eprintln!("MESHNODE_SEED={seed}");
        Self { from, to, server, policy, seed: seed.max(1) }
    }

    /// Another number that follows from the seed.
    fn next(&mut self) -> u64 {
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        self.seed
    }

    #[track_caller]
    fn begin(&mut self, most: usize, ending: &str) -> (u64, Call) {
        let seed = self.next();
        let words = ["stalls", &self.to, &most.to_string(), &seed.to_string(), ending];
        (seed, Call::of(self.from.spawn_probe("web", &words)))
    }

    /// Both ends found what the plan says: each byte, and the end.
    #[track_caller]
    fn finish(&mut self, (seed, call): (u64, Call)) {
        let (caller, server) = (call.said(), self.server.said(seed));
        assert!(
            caller["ok"] == true && server["ok"] == true,
            "caller: {caller}\nserver: {server}\n{}",
            self.policy.log()
        );
    }

    /// Transfers at once, then connections that follow each other and end in every way.
    #[track_caller]
    fn carries_everything(&mut self) {
        let slowness = usize::try_from(wait::slowness()).expect("small");
        let big = (8 << 20) / (slowness * slowness);
        let calls: Vec<_> = (0..6).map(|_| self.begin(big, "in-order")).collect();
        for call in calls {
            self.finish(call);
        }
        for _ in 0..24 / wait::slowness() {
            let ending = ENDINGS[(self.next() % 3) as usize];
            let most = 1 << (self.next() % 20);
            let call = self.begin(most, ending);
            self.finish(call);
        }
    }

    /// A change of policy ends a transfer at both ends, as an error; it works again once it is allowed.
    #[track_caller]
    fn is_cut_by_policy(&mut self) {
        let (seed, mut call) = self.begin(1 << 40, "in-order");
        self.policy.wait_status("the transfer", |s| {
            s.flows("web", "echo").iter().any(|flow| flow["bytes_sent"].as_u64().is_some_and(|b| b > 1 << 16))
        });
        assert!(call.goes_on());
        self.policy.delete_intention("web", "echo");
        let (caller, server) = (call.said(), self.server.said(seed));
        for said in [&caller, &server] {
            let is_error = matches!(said["end"].as_str(), Some("ECONNRESET" | "ECONNABORTED" | "EPIPE"));
            assert!(said["right"] == true && is_error, "caller: {caller}\nserver: {server}");
        }
        self.until("a refusal", |said| said["end"] == "EPERM");
        self.policy.intention("web", "echo", "allow");
        self.until_it_works();
        let call = self.begin(1 << 16, "in-order");
        self.finish(call);
    }

    #[track_caller]
    fn until_it_works(&mut self) {
        self.until("a transfer", |said| said["ok"] == true);
    }

    #[track_caller]
    fn until(&mut self, what: &str, is: impl Fn(&Value) -> bool) {
        wait::until(what, || {
            let said = self.begin(1, "in-order").1.said();
            if is(&said) { Ok(()) } else { Err(format!("{said}\n{}", self.policy.log())) }
        });
    }
}

/// `probe stalls`
struct Call {
    process: Process,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Call {
    fn of(mut process: Process) -> Self {
        let lines = BufReader::new(process.stdout().expect("it is a pipe")).lines();
        Self { process, lines }
    }

    fn goes_on(&mut self) -> bool {
        self.process.ended().is_none()
    }

    #[track_caller]
    fn said(mut self) -> Value {
        let line = self.lines.next().expect("a line of JSON").expect("text");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }
}

fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_nanos() as u64
}

/// Whether the daemon says that the fast path is in use.
#[track_caller]
fn is_on(node: &Meshnode, name: &str) -> bool {
    let status = node.status();
    let path =
        status.entry("fast_paths", "name", name).unwrap_or_else(|| panic!("no {name}: {:#}", status.0));
    assert!(path["on"] == true || !path["detail"].as_str().unwrap_or("").is_empty(), "why it is off: {path}");
    path["on"] == true
}
