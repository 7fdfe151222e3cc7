//! Who foreign peers are taken for and how they are talked to: identities, TLS versions, SNI, ALPN.

use mesh_tests::{require_consul, require_envoy, require_root, status::Status, wait};
use serde_json::Value;

use super::*;

/// A is caller (`web`, `other`) and called (`local`); B has `echo` and its Envoys. Everything is allowed.
struct Scene {
    pair: Pair,
    _programs: [Process; 2],
}

/// A's own service.
const LOCAL: Called = Called("local", 7101, 0);

impl Scene {
    #[track_caller]
    fn start() -> Self {
        Self::under(Plane::Embedded)
    }

    #[track_caller]
    fn under(plane: Plane) -> Self {
        let services = [clients(), vec![Service::server(LOCAL.0, LOCAL.1)]].concat();
        let pair = Pair::start(plane, services);
        let programs =
            [serve(&pair.a.host, LOCAL.0, LOCAL.1, &["echo"]), serve(&pair.b, UNMANAGED, ECHO.1, &["echo"])];
        pair.intention("*", "*", "allow");
        pair.register(ECHO.0, ECHO.1, ECHO.2);
        Self { pair, _programs: programs }
    }

    /// Waits until `web` of A has an answer of B's `echo`, and returns the record of such a flow.
    #[track_caller]
    fn outward(&self) -> Value {
        let to = format!("{}:{}", self.pair.b.v4, ECHO.1);
        self.pair.until_on_a("web", &["flood", &to, "1"]);
        self.record("web", ECHO.0)
    }

    /// Waits until a program of B has an answer through the upstream at `port`, and returns the record of such a flow.
    #[track_caller]
    fn inward(&self, port: u16) -> Value {
        self.pair.until_on_b(&["flood", &at(port), "1"]);
        self.record("web", LOCAL.0)
    }

    /// The last flow that ended as it should.
    #[track_caller]
    fn record(&self, source: &str, destination: &str) -> Value {
        wait::until("a finished flow", || {
            let status = self.pair.a.status();
            let flow = status
                .recent(source, destination)
                .into_iter()
                .find(|flow| flow["state"] == "closed")
                .cloned();
            flow.ok_or_else(|| format!("{:#}", status.0))
        })
    }

    /// Waits until A has counted one of `reasons` once more than before `attempt`, which must get no byte.
    #[track_caller]
    fn is_refused(&self, direction: &str, reasons: &[&str], attempt: impl Fn() -> Value) {
        let count =
            |status: &Status| reasons.iter().map(|reason| status.ended(direction, reason)).sum::<u64>();
        let before = count(&self.pair.a.status());
        wait::until(&format!("{reasons:?}"), || {
            let said = attempt();
            assert!(said["received"] != "x" && said["end"] != "TIMEOUT", "{said}");
            let status = self.pair.a.status();
            if count(&status) > before { Ok(()) } else { Err(format!("{:#}", status.0["counters"])) }
        });
    }
}

const SEND: [&str; 4] = ["--send", "x", "--read", "1"];

#[test]
fn envoy_with_the_leaf_of_another_service_is_refused() {
    require_root!();
    require_consul!();
    require_envoy!();
    let scene = Scene::start();
    let pair = &scene.pair;
    // As a server.
    let to = format!("{}:{}", pair.b.v4, ECHO.1);
    let impostor = Sidecar::of(pair, "other").protects(ECHO.1, ECHO.2, &["web"]).start();
    scene.is_refused("outbound", &["wrong-service"], || {
        pair.on_a("web", &[&["connect", &to], &SEND[..]].concat())
    });
    drop(impostor);
    let _honest = Sidecar::of(pair, ECHO.0).protects(ECHO.1, ECHO.2, &["web"]).start();
    scene.outward();
    // As a client: it is `other`, whatever it does.
    pair.intention("other", LOCAL.0, "deny");
    let _web = Sidecar::of(pair, "web").reaches(LOCAL.0, 9001).start();
    let _other = Sidecar::of(pair, "other").reaches(LOCAL.0, 9002).start();
    scene.inward(9001);
    scene.is_refused("inbound", &["not-allowed"], || {
        pair.on_b(&[&["connect", &at(9002)], &SEND[..]].concat())
    });
}

#[test]
fn envoy_that_wants_another_service_refuses_ours() {
    require_root!();
    require_consul!();
    require_envoy!();
    let scene = Scene::start();
    let pair = &scene.pair;
    let _right = Sidecar::of(pair, "web").reaches(LOCAL.0, 9001).start();
    let _wrong = Sidecar::of(pair, "web").believing_only(ECHO.0).reaches(LOCAL.0, 9002).start();
    scene.inward(9001);
    scene.is_refused("inbound", &["refused-by-peer"], || {
        pair.on_b(&[&["connect", &at(9002)], &SEND[..]].concat())
    });
}

#[test]
fn tls12_is_spoken_with_an_envoy_that_has_no_13_and_with_no_other() {
    require_root!();
    require_consul!();
    require_envoy!();
    let scene = Scene::start();
    let pair = &scene.pair;
    for (versions, spoken) in [(("TLSv1_2", "TLSv1_2"), "TLS 1.2"), (("TLSv1_2", "TLSv1_3"), "TLS 1.3")] {
        let sidecar = |service| Sidecar::of(pair, service).versions(versions);
        let _server = sidecar(ECHO.0).protects(ECHO.1, ECHO.2, &["web"]).start();
        let _client = sidecar("web").reaches(LOCAL.0, 9001).start();
        // The record of a flow is there a moment after its program has ended; until then the newest is the last round's.
        wait::until_true("an outward flow", || scene.outward()["tls"] == spoken);
        wait::until_true("an inward flow", || scene.inward(9001)["tls"] == spoken);
        let to = format!("{}:{}", pair.b.v4, ECHO.1);
        let capture = pair.net.capture(&pair.b);
        let said = pair.on_a("web", &["connect", &to, "--send", WELCOME, "--half-close"]);
        assert_eq!(said["received"], WELCOME, "{said}");
        capture.stop().assert_secret(ECHO.2, &[WELCOME]);
        let moved = [pair.on_a("web", &["transfer", &to, "4"]), pair.on_b(&["transfer", &at(9001), "4"])];
        assert!(moved.iter().all(|moved| moved["ok"] == true), "{moved:?}");
    }
}

#[test]
fn sni_is_sent_as_consuls_gateways_route_by_it_and_alpn_is_not_needed() {
    require_root!();
    require_consul!();
    require_envoy!();
    let scene = Scene::start();
    let pair = &scene.pair;
    let name = |service: &str| format!("{service}.default.dc1.internal.{}", pair.trust_domain());
    // A server that has a certificate for another name only, as a gateway that does not lead to `echo`.
    let gateway =
        Sidecar::of(pair, ECHO.0).protects_for_sni(ECHO.1, ECHO.2, &["web"], &name("elsewhere")).start();
    let to = format!("{}:{}", pair.b.v4, ECHO.1);
    scene.is_refused("outbound", &["handshake-closed", "handshake-connection"], || {
        pair.on_a("web", &[&["connect", &to], &SEND[..]].concat())
    });
    drop(gateway);
    let _gateway =
        Sidecar::of(pair, ECHO.0).protects_for_sni(ECHO.1, ECHO.2, &["web"], &name(ECHO.0)).start();
    scene.outward();
    // SNI of an Envoy, and whatever ALPN it offers, say nothing to us.
    let _client = Sidecar::of(pair, "web").reaches_with(LOCAL.0, 9001, &["consul~tcp", "h2"]).start();
    scene.inward(9001);
}

#[test]
fn envoys_with_leafs_of_the_old_and_of_the_new_root_are_peers_during_a_rotation() {
    require_root!();
    require_consul!();
    require_envoy!();
    let scene = Scene::under(Plane::Consul);
    let pair = &scene.pair;
    let server = Sidecar::of(pair, ECHO.0).protects(ECHO.1, ECHO.2, &["web"]).start();
    let _old = Sidecar::of(pair, "web").reaches(LOCAL.0, 9001).start();
    scene.outward();
    scene.inward(9001);
    let root = pair.rotate_root();
    // An agent hands out its known leafs for up to 30 s more; nobody had asked it for this one.
    let _new = Sidecar::of(pair, "other").reaches(LOCAL.0, 9002).start();
    assert!(is_signed_by(pair, "other", &root), "the leaf is not of the new root");
    pair.until_on_b(&["flood", &at(9002), "1"]);
    let to = format!("{}:{}", pair.b.v4, ECHO.1);
    let all = || {
        let said = [
            pair.on_a("web", &["flood", &to, "4"]),
            pair.on_b(&["flood", &at(9001), "4"]),
            pair.on_b(&["flood", &at(9002), "4"]),
        ];
        assert!(said.iter().all(|said| said["ok"] == true), "{said:?}\n{}", pair.a.log());
    };
    all();
    server.identity.refresh(pair);
    all();
}

/// Whether the leaf that B's agent hands out for `service` chains to `root` alone.
#[track_caller]
fn is_signed_by(pair: &Pair, service: &str, root: &str) -> bool {
    let leaf = pair.get(&format!("/v1/agent/connect/ca/leaf/{service}"));
    let [root_file, leaf_file] = [root, leaf["CertPEM"].as_str().expect("a leaf")].map(|pem| {
        let file = pair.b.log_file("pem");
        std::fs::write(&file, pem).expect("an own directory");
        file.display().to_string()
    });
    pair.b.run(UNMANAGED, &["openssl", "verify", "-CAfile", &root_file, &leaf_file]).status.success()
}
