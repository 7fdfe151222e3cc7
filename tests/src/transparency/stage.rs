//! Two pairs of hosts with the same addresses: one plain, one with daemons. A program runs on both in the same way.

use super::{Outcome, Report};
use crate::{
    config::Service,
    fixture::{Mesh, Scene},
    host::{Family, Host},
    net::Network,
    process::Output,
};

/// The workload that connects. `other`, on the same host, is the one that no intention allows.
pub const CLIENT: &str = "web";

/// Host A, from which a program connects, and host B, where its server is.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'s> {
    pub a: &'s Host,
    pub b: &'s Host,
}

impl Ends<'_> {
    /// Runs a program on A, as the workload that connects.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Output {
        self.a.run(CLIENT, words)
    }

    /// B's address as text.
    pub fn address(&self) -> String {
        self.b.ip(Family::V4).to_string()
    }

    /// B's address with a port.
    pub fn at(&self, port: u16) -> String {
        format!("{}:{port}", self.address())
    }
}

/// How it is proved that the captured run went through the mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proof {
    /// Each packet between the hosts: TLS 1.3 at the service's mesh port, nothing at its own.
    Wire,
    /// By what the daemons counted, for more packets than one wants to keep: flows, and at least so many bytes one way.
    Counted { flows: u64, bytes: u64 },
}

/// The pairs.
#[derive(Debug)]
pub struct Stage {
    pub mesh: Mesh,
    plain: (Network, Host, Host),
    services: Vec<(&'static str, u16)>,
}

impl Stage {
    /// Makes the hosts. B's services are `services`; each has the cgroup of its name on both hosts B.
    #[track_caller]
    pub fn start(services: &[(&'static str, u16)]) -> Self {
        let on_b = services.iter().map(|(name, port)| Service::server(name, *port)).collect();
        Self::start_with(services, Scene { on_b, ..Scene::new(services) })
    }

    /// The same where the mesh's scene differs from the usual one.
    #[track_caller]
    pub fn start_with(services: &[(&'static str, u16)], scene: Scene) -> Self {
        let net = Network::new();
        let (a, b) = (net.host("a"), net.host("b"));
        let mesh = scene.start();
        Self { mesh, plain: (net, a, b), services: services.to_vec() }
    }

    pub fn plain(&self) -> Ends<'_> {
        Ends { a: &self.plain.1, b: &self.plain.2 }
    }

    pub fn captured(&self) -> Ends<'_> {
        Ends { a: &self.mesh.a.host, b: &self.mesh.b.host }
    }

    /// Runs `start` for both pairs: it starts a server on B.
    pub fn both<T>(&self, mut start: impl FnMut(Ends<'_>) -> T) -> [T; 2] {
        [start(self.plain()), start(self.captured())]
    }

    /// Has both names of B say its address on both hosts A.
    pub fn name_b(&self, name: &str) {
        for ends in [self.plain(), self.captured()] {
            ends.a.name_address(name, ends.b.ip(Family::V4));
        }
    }

    /// Allows the client to reach `service`, whose server runs, and no one else.
    #[track_caller]
    pub fn allow(&self, service: &str) {
        let port = self.port(service);
        self.mesh.allow(CLIENT, service, port);
        self.mesh.until_denied("other", port);
    }

    /// Runs `run` on both pairs and compares the outcomes; the captured one must have gone through the mesh to `service`.
    #[track_caller]
    pub fn compare(
        &self,
        report: &mut Report,
        case: &str,
        service: &str,
        proof: Proof,
        run: impl Fn(Ends<'_>) -> Outcome,
    ) -> Outcome {
        let plain = run(self.plain());
        let captured = self.proved(case, service, proof, || run(self.captured()));
        report.compare(case, &plain, &captured);
        plain
    }

    /// Returns the outcome of a captured run.
    ///
    /// # Panics
    /// When it did not go through the mesh.
    #[track_caller]
    pub fn proved(&self, case: &str, service: &str, proof: Proof, run: impl FnOnce() -> Outcome) -> Outcome {
        let Mesh { a, b, net, .. } = &self.mesh;
        let before = a.status().counter("captured");
        let wire = (proof == Proof::Wire).then(|| net.capture(&b.host));
        let outcome = run();
        if let Some(trace) = wire.map(crate::capture::Capture::stop) {
            trace.assert_tls13(self.mesh.mesh_port(service));
            let beside = trace.bytes_at(self.port(service));
            assert_eq!(beside, 0, "{case}: {beside} bytes went to the service's own port");
        }
        let (flows, bytes) = match proof {
            Proof::Wire => (1, 1),
            Proof::Counted { flows, bytes } => (flows, bytes),
        };
        a.wait_status(&format!("{case}: {flows} captured flows, one with {bytes} bytes"), |s| {
            let all = s.flows(CLIENT, service).into_iter().chain(s.recent(CLIENT, service));
            let most = all.map(|f| f["bytes_sent"].as_u64().max(f["bytes_received"].as_u64())).max();
            s.counter("captured") >= before + flows && most.flatten() >= Some(bytes)
        });
        outcome
    }

    /// Returns the port of a service of B.
    #[track_caller]
    pub fn port(&self, service: &str) -> u16 {
        self.services.iter().find(|s| s.0 == service).expect("a service of this stage").1
    }
}
