//! From a program behind a foreign proxy to services that meshnode protects.

use mesh_tests::{program::postgres::psql, require_consul, require_envoy, require_root, wait};
use serde_json::Value;

use super::*;

/// A's services, allowed to `web`. On B a foreign proxy is `web`, and another one `other`.
struct Scene {
    pair: Pair,
    _programs: Programs,
    _proxies: [Running; 2],
}

impl Scene {
    #[track_caller]
    fn start(plane: Plane, kind: Kind) -> Self {
        let all = [ECHO, BANNER, COUNT, DB];
        let pair = Pair::start(plane, protected(&all));
        let programs = Programs::start(&pair.a.host, &all, true);
        for one in all {
            pair.intention("web", one.0, "allow");
        }
        let web = match kind {
            // As a service that is registered with its upstreams, which its sidecar reads from its agent.
            Kind::Consul => {
                let upstream = |c: Called| serde_json::json!({"destination_name": c.0, "local_bind_port": local("web", c)});
                pair.register_with("web", 7000, 21000, &all.map(upstream).to_vec().into());
                let ports = all.map(|c| local("web", c));
                Running::Consul(ConnectProxy::sidecar(&pair, "web", &ports))
            }
            Kind::Envoy => kind.reach(&pair, "web", &all),
        };
        let other = kind.reach(&pair, "other", &[ECHO, BANNER]);
        let scene = Self { pair, _programs: programs, _proxies: [web, other] };
        for one in [ECHO, COUNT] {
            scene.until(one, &["--send", "x", "--half-close"], |said| said["end"] == "eof");
        }
        scene
    }

    #[track_caller]
    fn connect(&self, source: &str, to: Called, more: &[&str]) -> Value {
        self.pair.on_b(&[&["connect", &at(local(source, to)), "--wait", "5000"], more].concat())
    }

    #[track_caller]
    fn until(&self, to: Called, more: &[&str], good: impl Fn(&Value) -> bool) {
        wait::until(to.0, || {
            let said = self.connect("web", to, more);
            if good(&said) { Ok(()) } else { Err(format!("{said}\n{}", self.pair.a.log())) }
        });
    }

    /// What must work with every proxy, and what must not.
    #[track_caller]
    fn carries_programs(&self) {
        let Pair { a, b, net, .. } = &self.pair;
        self.until(ECHO, &["--send", "x", "--read", "1"], |said| said["received"] == "x");
        let moved = self.pair.on_b(&["transfer", &at(local("web", ECHO)), "16"]);
        assert_eq!(moved["ok"], true, "{moved}\n{}", a.log());
        self.until(BANNER, &["--read", "10"], |said| said["received"] == WELCOME);
        let port = local("web", DB).to_string();
        let psql = psql("127.0.0.1", &port, "select 'a row of ' || 6 * 7");
        wait::until_true("psql", || b.run(UNMANAGED, &psql).status.success());
        let capture = net.capture(&a.host);
        assert_eq!(b.run(UNMANAGED, &psql).ok(), "a row of 42\n");
        assert_eq!(self.connect("web", BANNER, &["--read", "10"])["received"], WELCOME);
        let trace = capture.stop();
        for to in [BANNER, DB] {
            let mesh_port = mesh_port(&self.pair, to);
            trace.assert_secret(mesh_port, &[WELCOME, "a row of", "postgres"]);
            trace.assert_tls13(mesh_port);
            assert_eq!(trace.bytes_at(to.1), 0, "something went to port {} itself", to.1);
        }
        // The twin, of which the programs learn nothing: even the one that speaks first says nothing.
        for to in [ECHO, BANNER] {
            let said = self.connect("other", to, &["--send", "x"]);
            assert!(said["received"] == "" && said["end"] != "TIMEOUT", "other reached {}: {said}", to.0);
            a.wait_status("the denial", |s| {
                s.recent("other", to.0).iter().any(|f| {
                    f["state"] == "denied"
                        && f["reason"].as_str().is_some_and(|r| r.starts_with("not-allowed"))
                })
            });
        }
    }

    /// A deleted intention ends, at this end, what is open; the foreign proxy passes it on.
    #[track_caller]
    fn revocation_cuts_flows(&self) {
        self.pair.a.wait_status("no flow", |s| s.flows("web", "echo").is_empty());
        let held = Held::open(&self.pair.b, UNMANAGED, &at(local("web", ECHO)));
        self.pair.delete_intention("web", "echo");
        held.wait_until_cut();
        self.pair.a.wait_status("the records of both, and no flow", |s| {
            let revoked = s.recent("web", "echo").iter().filter(|flow| flow["state"] == "revoked").count();
            revoked == 2 && s.flows("web", "echo").is_empty()
        });
        let said = self.connect("web", ECHO, &["--send", "x"]);
        assert_eq!(said["received"], "", "{said}");
    }
}

fn protected(called: &[Called]) -> Vec<Service> {
    called.iter().map(|Called(name, port, _)| Service::server(name, *port)).collect()
}

#[track_caller]
fn mesh_port(pair: &Pair, called: Called) -> u16 {
    let status = pair.a.wait_status("the mesh port", |s| {
        s.entry("services", "name", called.0).is_some_and(|s| s["mesh_port"].is_u64())
    });
    let port = status.entry("services", "name", called.0).expect("just seen")["mesh_port"].as_u64();
    u16::try_from(port.expect("just seen")).expect("a port")
}

#[test]
fn callers_behind_consuls_proxy() {
    require_root!();
    require_consul!();
    for plane in [Plane::Consul, Plane::Embedded] {
        let scene = Scene::start(plane, Kind::Consul);
        scene.carries_programs();
        scene.revocation_cuts_flows();
    }
}

#[test]
fn callers_behind_envoy() {
    require_root!();
    require_consul!();
    require_envoy!();
    for plane in [Plane::Consul, Plane::Embedded] {
        let scene = Scene::start(plane, Kind::Envoy);
        scene.carries_programs();
        // Envoy passes on that one direction ends; Consul's proxy closes both.
        let said = scene.connect("web", COUNT, &["--send", "hello", "--half-close"]);
        assert_eq!((&said["received"], &said["end"]), (&"5".into(), &"eof".into()), "{said}");
        scene.revocation_cuts_flows();
    }
}
