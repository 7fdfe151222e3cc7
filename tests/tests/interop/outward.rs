//! From a program under meshnode to services behind foreign proxies.

use mesh_tests::{
    fixture::is_reset, program::postgres::psql, require_consul, require_envoy, require_root, wait,
};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::*;

/// B's services, each behind a foreign proxy and allowed to A's `web`.
struct Scene {
    pair: Pair,
    _programs: Programs,
    _proxies: Vec<Running>,
}

impl Scene {
    #[track_caller]
    fn start(plane: Plane, kind: Kind, called: &[Called]) -> Self {
        let pair = Pair::start(plane, clients());
        let programs = Programs::start(&pair.b, called, false);
        let mut proxies = Vec::new();
        for one in called {
            pair.register(one.0, one.1, one.2);
            proxies.push(kind.protect(&pair, *one));
            pair.intention("web", one.0, "allow");
        }
        let scene = Self { pair, _programs: programs, _proxies: proxies };
        scene.until_echoed("web");
        scene
    }

    fn to(&self, Called(_, port, _): Called) -> String {
        format!("{}:{port}", self.pair.b.v4)
    }

    #[track_caller]
    fn connect(&self, cgroup: &str, to: Called, more: &[&str]) -> Value {
        self.pair.on_a(cgroup, &[&["connect", &self.to(to), "--wait", "5000"], more].concat())
    }

    #[track_caller]
    fn until(&self, what: &str, attempt: impl Fn() -> Value, good: impl Fn(&Value) -> bool) {
        wait::until(what, || {
            let said = attempt();
            if good(&said) { Ok(()) } else { Err(format!("{said}\n{}", self.pair.a.log())) }
        });
    }

    #[track_caller]
    fn until_echoed(&self, cgroup: &str) {
        let echo = || self.connect(cgroup, ECHO, &["--send", "x", "--read", "1"]);
        self.until("the echo", echo, |said| said["received"] == "x");
    }

    #[track_caller]
    fn until_eperm(&self, cgroup: &str, to: Called) {
        self.until("EPERM", || self.connect(cgroup, to, &["--read", "0"]), |said| said["error"] == "EPERM");
    }

    /// What must work with every proxy: a big transfer, the server's first word, PostgreSQL, TLS 1.3 around each byte.
    /// Also that a workload without an intention gets EPERM.
    #[track_caller]
    fn carries_programs(&self) {
        let moved = self.pair.on_a("web", &["transfer", &self.to(ECHO), "16"]);
        assert_eq!(moved["ok"], true, "{moved}\n{}", self.pair.a.log());
        let banner = || self.connect("web", BANNER, &["--read", "10"]);
        self.until("the greeting", banner, |said| said["received"] == WELCOME);
        let (ip, port) = (self.pair.b.v4.to_string(), DB.1.to_string());
        let psql = psql(&ip, &port, "select 'a row of ' || 6 * 7");
        let query = || self.pair.a.host.run("web", &psql);
        wait::until_true("psql", || query().status.success());
        let capture = self.pair.net.capture(&self.pair.b);
        assert_eq!(query().ok(), "a row of 42\n");
        assert_eq!(banner()["received"], WELCOME);
        let trace = capture.stop();
        for to in [BANNER, DB] {
            trace.assert_secret(to.2, &[WELCOME, "a row of", "postgres"]);
            trace.assert_tls13(to.2);
            assert_eq!(trace.bytes_at(to.1), 0, "something went to port {} itself", to.1);
        }
        for denied in [ECHO, BANNER, DB] {
            assert_eq!(self.connect("other", denied, &[])["error"], "EPERM", "{}", denied.0);
        }
    }

    /// A deleted intention ends, at this end, what is open.
    #[track_caller]
    fn revocation_cuts_flows(&self) {
        self.pair.a.wait_status("no flow", |s| s.flows("web", "echo").is_empty());
        let held = Held::open(&self.pair.a.host, "web", &self.to(ECHO));
        self.pair.a.wait_status("both flows", |s| s.flows("web", "echo").len() == 2);
        self.pair.delete_intention("web", "echo");
        held.wait_until_cut();
        self.pair.a.wait_status("the records of both", |s| {
            s.recent("web", "echo").iter().filter(|flow| flow["state"] == "revoked").count() == 2
        });
        self.until_eperm("web", ECHO);
    }
}

#[test]
fn services_behind_consuls_proxy_under_consul() {
    require_root!();
    require_consul!();
    let mut scene = Scene::start(Plane::Consul, Kind::Consul, &[ECHO, BANNER, COUNT, DB]);
    scene.carries_programs();
    // Consul's proxy closes both directions when one ends: the count is lost, but nothing hangs.
    let said = scene.connect("web", COUNT, &["--send", "hello", "--half-close"]);
    assert_ne!(said["end"], "TIMEOUT", "{said}");
    scene.revocation_cuts_flows();

    // The destination decides for itself: A's agent is frozen, so that A goes on allowing what B denies by now.
    scene.pair.consul.as_mut().expect("the plane").1.process().signal(Signal::SIGSTOP);
    scene.pair.delete_intention("web", "banner");
    let banner = || scene.connect("web", BANNER, &["--read", "10"]);
    scene.until("Consul's proxy to refuse", banner, is_reset);
    scene.pair.a.wait_status("the refusal's record", |s| {
        let newest = s.recent("web", "banner").first().and_then(|flow| flow["reason"].as_str());
        newest.is_some_and(|reason| reason.starts_with("refused-by-peer") && reason.contains("intentions"))
    });
    scene.pair.consul.as_mut().expect("the plane").1.process().signal(Signal::SIGCONT);
    scene.until_eperm("web", BANNER);
}

#[test]
fn services_behind_envoy_under_consul() {
    require_root!();
    require_consul!();
    require_envoy!();
    let scene = Scene::start(Plane::Consul, Kind::Envoy, &[ECHO, BANNER, COUNT, DB]);
    scene.carries_programs();
    let count = || scene.connect("web", COUNT, &["--send", "hello", "--half-close"]);
    scene.until("the count", count, |said| said["received"] == "5" && said["end"] == "eof");
    // The destination decides for itself: its Envoy was told of `web` only.
    scene.pair.intention("other", "echo", "allow");
    let other = || scene.connect("other", ECHO, &["--send", "hello"]);
    scene.until("a connection", other, |said| said["ok"] == true);
    let said = other();
    assert!(said["received"] == "" && said["end"] != "TIMEOUT", "Envoy let it in: {said}");
    scene.revocation_cuts_flows();
}

#[test]
fn services_behind_both_proxies_under_the_embedded_server() {
    require_root!();
    require_consul!();
    require_envoy!();
    for kind in [Kind::Consul, Kind::Envoy] {
        let scene = Scene::start(Plane::Embedded, kind, &[ECHO, BANNER, DB]);
        scene.carries_programs();
        scene.revocation_cuts_flows();
        if kind == Kind::Consul {
            // Who is dialled by another Consul proxy asks the embedded server whether that may be.
            let _web = Kind::Consul.reach(&scene.pair, "web", &[BANNER]);
            let _other = Kind::Consul.reach(&scene.pair, "other", &[BANNER]);
            let dial = |source| scene.pair.on_b(&["connect", &at(local(source, BANNER)), "--read", "10"]);
            scene.until("the allowed one", || dial("web"), |said| said["received"] == WELCOME);
            assert_eq!(dial("other")["received"], "");
        }
    }
}
