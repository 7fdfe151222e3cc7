//! Two single hosts with the same address, on each of which both the caller and its server are: one plain, one with a
//! daemon.

use super::{Ends, Outcome, Report, stage::CLIENT};
use crate::{
    config::{Config, ControlPlane, Service},
    fixture,
    host::Host,
    meshnode::Meshnode,
    net::Network,
    wait,
};

/// How the host with the daemon connects its own workloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Path {
    /// The kernel connects the two programs: the default.
    Direct,
    /// As between hosts.
    Mtls,
}

impl Path {
    /// The counter of such connections.
    fn counter(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Mtls => "captured",
        }
    }

    fn other(self) -> Self {
        match self {
            Self::Direct => Self::Mtls,
            Self::Mtls => Self::Direct,
        }
    }
}

/// The two hosts.
#[derive(Debug)]
pub struct SameHost {
    // Before its network, so that it is gone first.
    pub node: Meshnode,
    path: Path,
    plain: Host,
    _networks: [Network; 2],
}

impl SameHost {
    /// Makes the hosts. `services` listen on both, each in the cgroup of its name.
    #[track_caller]
    pub fn start(services: &[(&str, u16)], path: Path) -> Self {
        let clients = [CLIENT, "other"].map(Service::client);
        let servers = services.iter().map(|(name, port)| Service::server(name, *port));
        Self::start_with(clients.into_iter().chain(servers).collect(), path)
    }

    /// The same with these services of the host that has a daemon.
    #[track_caller]
    pub fn start_with(services: Vec<Service>, path: Path) -> Self {
        let networks = [Network::new(), Network::new()];
        let [plain, host] = [&networks[0], &networks[1]].map(|net| net.host("a"));
        let top = match path {
            Path::Direct => String::new(),
            Path::Mtls => "same_host = \"mtls\"".to_owned(),
        };
        let config = Config {
            node: "host-a".to_owned(),
            advertise: host.v4.into(),
            control_plane: ControlPlane::Embedded { lines: String::new() },
            services,
            top,
            sections: String::new(),
        };
        Self { node: Meshnode::start(host, config), path, plain, _networks: networks }
    }

    pub fn plain(&self) -> Ends<'_> {
        Ends { a: &self.plain, b: &self.plain }
    }

    pub fn captured(&self) -> Ends<'_> {
        Ends { a: &self.node.host, b: &self.node.host }
    }

    /// Runs `start` for both hosts: it starts a server.
    pub fn both<T>(&self, mut start: impl FnMut(Ends<'_>) -> T) -> [T; 2] {
        [start(self.plain()), start(self.captured())]
    }

    /// Allows the client to reach `service`, whose server runs at `port`, and no one else.
    #[track_caller]
    pub fn allow(&self, service: &str, port: u16) {
        self.node.intention(CLIENT, service, "allow");
        let host = &self.node.host;
        let at = self.captured().at(port);
        let connect = |cgroup: &str| fixture::connect(host, cgroup, &at, &["--send", "", "--read", "0"]);
        wait::until("the intention to act", || match connect(CLIENT) {
            said if said["ok"] == true => Ok(()),
            said => Err(format!("{said}\n{}", self.node.log())),
        });
        assert_eq!(connect("other")["error"], "EPERM", "no intention allows it");
    }

    /// Runs `run` on both hosts and compares the outcomes; the captured one must have made at least `flows` connections, all
    /// of them by this pair's path.
    #[track_caller]
    pub fn compare(
        &self,
        report: &mut Report,
        case: &str,
        flows: u64,
        run: impl Fn(Ends<'_>) -> Outcome,
    ) -> Outcome {
        let plain = run(self.plain());
        let captured = self.proved(case, flows, || run(self.captured()));
        report.compare(case, &plain, &captured);
        plain
    }

    /// Returns the outcome of a captured run.
    ///
    /// # Panics
    /// When it made fewer connections through the mesh, or one by the other path.
    #[track_caller]
    pub fn proved(&self, case: &str, flows: u64, run: impl FnOnce() -> Outcome) -> Outcome {
        let before = self.node.status();
        let count = |path: Path| before.counter(path.counter());
        let (by_path, by_other) = (count(self.path), count(self.path.other()));
        let outcome = run();
        let after = self.node.wait_status(&format!("{case}: {flows} flows, {:?}", self.path), |s| {
            s.counter(self.path.counter()) >= by_path + flows
        });
        let beside = after.counter(self.path.other().counter()) - by_other;
        assert_eq!(beside, 0, "{case}: {beside} connections were not {:?}", self.path);
        outcome
    }
}
