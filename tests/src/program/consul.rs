//! A real Consul agent, as a server or as a client of servers, with its CLI and its API.

use std::{io::Write as _, net::IpAddr, path::PathBuf};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::{
    host::{Family, Host},
    process::{Output, Process},
    wait,
};

/// The cgroup that agents run in.
pub const CGROUP: &str = "consul";
/// Where an agent serves its API, on loopback of its host.
pub const API: &str = "http://127.0.0.1:8500";

/// Returns the consul binary: `$CONSUL_BIN`, or what `cargo xtask setup` put below `target/`; without one says loudly
/// that the test is skipped.
///
/// # Panics
/// Under CI, where no test is skipped for want of Consul.
pub fn binary() -> Option<PathBuf> {
    let places = [
        std::env::var_os("CONSUL_BIN").map(PathBuf::from),
        Some(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/bin/consul").into()),
    ];
    let found = places.into_iter().flatten().find(|p| p.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs no test without Consul: `cargo xtask setup` installs it"
        );
        // `io::stderr` is not captured by the test runner, other than `eprintln!`.
        writeln!(
            std::io::stderr(),
            "SKIP: no consul binary; `cargo xtask setup` installs it, or set CONSUL_BIN"
        )
        .expect("stderr takes a line");
    }
    found
}

/// Returns from a test, after saying so, where Consul is not installed.
#[macro_export]
macro_rules! require_consul {
    () => {
        if $crate::program::consul::binary().is_none() {
            return;
        }
    };
}

/// A running agent (or one that was killed and can be started again). It serves its API at [`API`].
#[derive(Debug)]
pub struct Consul {
    process: Option<Process>,
    /// Its `-config-file`.
    config: PathBuf,
    /// What `consul` commands and requests show as their token; empty for none.
    pub token: String,
}

/// What makes agents differ.
#[derive(Clone, Debug)]
pub struct Role {
    /// `bootstrap_expect` of a server; `None` makes a client agent.
    pub servers: Option<u32>,
    /// Whom to join.
    pub join: Vec<IpAddr>,
    /// Further configuration, merged into the agent's.
    pub extra: Value,
}

impl Role {
    /// The only server.
    pub fn server() -> Self {
        Self { servers: Some(1), join: Vec::new(), extra: json!({}) }
    }

    /// A client agent of `server`.
    pub fn client(server: &Host) -> Self {
        Self { servers: None, join: vec![server.ip(Family::V4)], extra: json!({}) }
    }

    pub fn with(mut self, extra: Value) -> Self {
        merge(&mut self.extra, extra);
        self
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(known), Value::Object(more)) => {
            for (key, value) in more {
                merge(known.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

impl Consul {
    /// Starts an agent as the node `host-NAME` and returns when it answers; a single server has then elected itself and
    /// made its CA.
    #[track_caller]
    pub fn start(host: &Host, role: Role) -> Self {
        let mut consul = Self::launch(host, role);
        consul.wait_ready(host);
        consul
    }

    /// The same without waiting: of several servers none is ready before most have been started.
    #[track_caller]
    pub fn launch(host: &Host, role: Role) -> Self {
        let dir = host.space().scratch().join("consul");
        std::fs::create_dir_all(&dir).expect("scratch is ours");
        let mut config = json!({
            "node_name": format!("host-{}", host.name),
            "bind_addr": host.v4.to_string(),
            "client_addr": "127.0.0.1",
            "data_dir": dir.join("data"),
            "retry_join": role.join,
            "retry_interval": "200ms",
            "disable_update_check": true,
            "log_level": "INFO",
            "performance": {"raft_multiplier": 1},
            "connect": {"enabled": true},
            "ports": {"dns": -1, "grpc": 8502},
        });
        if let Some(servers) = role.servers {
            merge(&mut config, json!({"server": true, "bootstrap_expect": servers}));
        }
        merge(&mut config, role.extra);
        let file = dir.join("agent.json");
        std::fs::write(&file, config.to_string()).expect("scratch is ours");
        let mut consul = Self { process: None, config: file, token: String::new() };
        consul.relaunch(host);
        consul
    }

    /// Starts it again with the data it had.
    #[track_caller]
    pub fn relaunch(&mut self, host: &Host) {
        assert!(self.process.is_none(), "it runs already");
        let binary = binary().expect("the test asked for it");
        let words = ["agent", "-config-file", self.config.to_str().expect("UTF-8")];
        let program = binary.to_str().expect("UTF-8");
        self.process = Some(host.spawn(CGROUP, &[&[program], &words[..]].concat()));
    }

    /// Waits until it answers, knows a leader, and hands out CA roots.
    #[track_caller]
    pub fn wait_ready(&mut self, host: &Host) {
        let token = self.token.clone();
        let process = self.process.as_mut().expect("it was started");
        process.wait_ready(|| {
            for (path, full) in [("/v1/status/leader", ":"), ("/v1/agent/connect/ca/roots", "\"RootCert\"")] {
                let said = request(host, &token, "GET", path, None);
                let denied = said.stdout.ends_with("\n403");
                let good = said.stdout.ends_with("\n200") && said.stdout.contains(full);
                if !(good || denied) {
                    return Err(said.to_string());
                }
            }
            Ok(())
        });
    }

    /// Waits until its token lists the tokens. A server begins in the mode of old ACLs, in which none can be made, and changes
    /// over when it has looked around: seconds after it answers.
    #[track_caller]
    pub fn wait_acls(&self, host: &Host) {
        wait::until("Consul's ACLs", || match self.api(host, "GET", "/v1/acl/tokens", None) {
            (200, _) => Ok(()),
            (code, said) => Err(format!("{code} {said}")),
        });
    }

    /// Kills it as a fault would, and returns when it is gone.
    #[track_caller]
    pub fn kill9(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::SIGKILL);
        process.wait();
    }

    /// Asks it to end, upon which a client agent leaves the cluster: its node and services are out of the catalog.
    #[track_caller]
    pub fn leave(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.signal(Signal::SIGTERM);
        process.wait();
    }

    /// Deletes all that it knew, while it does not run.
    #[track_caller]
    pub fn lose_data(&self) {
        assert!(self.process.is_none(), "it runs");
        let data = self.config.with_file_name("data");
        std::fs::remove_dir_all(&data).unwrap_or_else(|e| panic!("{}: {e}", data.display()));
    }

    /// Its process, to stop and continue.
    #[track_caller]
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    pub fn log(&self) -> String {
        self.process.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Calls its API from its own host. Returns the HTTP status and the body.
    #[track_caller]
    pub fn api(&self, host: &Host, method: &str, path: &str, body: Option<&str>) -> (u16, String) {
        let answer = request(host, &self.token, method, path, body).ok();
        let (body, code) = answer.rsplit_once('\n').expect("curl's -w writes a line");
        (code.parse().expect("an HTTP status"), body.to_owned())
    }

    /// Returns what a GET of its API answers.
    #[track_caller]
    pub fn get(&self, host: &Host, path: &str) -> Value {
        let (code, body) = self.api(host, "GET", path, None);
        assert_eq!(code, 200, "GET {path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("GET {path}: {e}: {body}"))
    }

    /// Runs `consul WORDS…` on its host, outside of any workload.
    #[track_caller]
    pub fn cli(&self, host: &Host, words: &[&str]) -> Output {
        run_cli(host, API, &self.token, words)
    }

    /// Makes or replaces an intention: `allow` or `deny`.
    #[track_caller]
    pub fn intention(&self, host: &Host, source: &str, destination: &str, action: &str) {
        // A cluster between two leaders answers later.
        wait::until("the intention to be taken", || {
            let words = ["intention", "create", &format!("-{action}"), "-replace", source, destination];
            let said = self.cli(host, &words);
            if said.status.success() { Ok(()) } else { Err(said.to_string()) }
        });
    }

    #[track_caller]
    pub fn delete_intention(&self, host: &Host, source: &str, destination: &str) {
        self.cli(host, &["intention", "delete", source, destination]).ok();
    }
}

/// Runs `consul WORDS…` on `host` against the API at `address`.
#[track_caller]
pub fn run_cli(host: &Host, address: &str, token: &str, words: &[&str]) -> Output {
    let binary = binary().expect("the test asked for it");
    let mut command = host.command("", &[&[binary.to_str().expect("UTF-8")], words].concat());
    command.env("CONSUL_HTTP_ADDR", address);
    if !token.is_empty() {
        command.env("CONSUL_HTTP_TOKEN", token);
    }
    crate::process::run(command, None, crate::host::LIMIT)
}

/// Makes a request that answers with the body, a line feed and the status.
#[track_caller]
fn request(host: &Host, token: &str, method: &str, path: &str, body: Option<&str>) -> Output {
    let (url, header) = (format!("{API}{path}"), format!("X-Consul-Token: {token}"));
    let mut words = vec!["curl", "-s", "-S", "--max-time", "30", "-X", method, "-w", "\n%{http_code}"];
    if !token.is_empty() {
        words.extend(["-H", &header]);
    }
    if body.is_some() {
        words.extend(["-H", "Expect:", "--data-binary", "@-"]);
    }
    words.push(&url);
    host.run_with_input("", &words, body.unwrap_or_default())
}

/// Waits until `agents` (each with its host) all know `count` members.
#[track_caller]
pub fn wait_members(agents: &[(&Consul, &Host)], count: usize) {
    for (agent, host) in agents {
        wait::until("the members of the cluster", || {
            let members = agent.get(host, "/v1/agent/members");
            let alive = members.as_array().map_or(0, |all| all.iter().filter(|m| m["Status"] == 1).count());
            if alive == count { Ok(()) } else { Err(members.to_string()) }
        });
    }
}
