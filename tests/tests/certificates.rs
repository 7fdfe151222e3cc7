//! Certificates that must not be taken, presented to a mesh port and by a mesh port. Each refusal is counted by its
//! reason, and the program behind is never reached.

use mesh_tests::{
    fixture::{Mesh, Scene, serve},
    meshnode::UNMANAGED,
    pki::{self, Authority, Identity, Validity, dial},
    process::Process,
    program::listens,
    require_root, wait,
};

const GREETING: &str = "the program was reached";

struct Attack {
    mesh: Mesh,
    _server: Process,
    to: String,
    domain: String,
}

impl Attack {
    fn new() -> Self {
        let mesh = Scene::new(&[("db", 5432)]).start();
        let server = serve(&mesh.b.host, "db", 5432, &["greet", GREETING]);
        mesh.allow("web", "db", 5432);
        let to = format!("{}:{}", mesh.b.host.v4, mesh.mesh_port("db"));
        let domain = pki::trust_domain(&mesh.a);
        Self { mesh, _server: server, to, domain }
    }

    fn id(&self, service: &str) -> String {
        pki::spiffe_id(&self.domain, service)
    }

    /// What comes back from the mesh port.
    #[track_caller]
    fn dial(&self, identity: Option<&Identity>, more: &[&str]) -> String {
        let said = dial(&self.mesh.a.host, UNMANAGED, &self.to, identity, more);
        format!("{}\n{}", said.stdout, said.stderr)
    }

    /// Asserts that the identity is refused for `reason`, which is counted, and gets no byte of the program.
    #[track_caller]
    fn is_refused(&self, identity: Option<&Identity>, more: &[&str], reason: &str) {
        let before = self.mesh.b.status().ended("inbound", reason);
        let said = self.dial(identity, more);
        assert!(!said.contains(GREETING), "{reason}: it reached the program: {said}");
        self.mesh
            .b
            .wait_status(&format!("the count of {reason}"), |s| s.ended("inbound", reason) == before + 1);
    }
}

#[test]
fn certificate_of_an_allowed_service_reaches_the_program() {
    require_root!();
    let attack = Attack::new();
    let web = pki::signed_by_control_plane(&attack.mesh.a, "web");
    let said = attack.dial(Some(&web), &[]);
    assert!(said.contains(GREETING), "{said}");
}

#[test]
fn right_ca_with_another_services_uri_is_refused() {
    require_root!();
    let attack = Attack::new();
    let other = pki::signed_by_control_plane(&attack.mesh.a, "other");
    attack.is_refused(Some(&other), &[], "not-allowed");
}

#[test]
fn no_client_certificate_is_refused() {
    require_root!();
    let attack = Attack::new();
    attack.is_refused(None, &[], "no-client-certificate");
}

#[test]
fn wrong_trust_domain_expired_not_yet_valid_self_signed_and_rogue_ca_are_refused() {
    require_root!();
    let attack = Attack::new();
    let stolen = Authority::stolen(&attack.mesh.a);
    let foreign = pki::spiffe_id("11111111-2222-3333-4444-555555555555.consul", "web");
    let web = attack.id("web");
    // The stolen key shows that it is the named fault that is refused, and nothing else about the certificate.
    assert!(attack.dial(Some(&stolen.issue(&web, Validity::Now)), &[]).contains(GREETING));
    attack.is_refused(Some(&stolen.issue(&foreign, Validity::Now)), &[], "wrong-trust-domain");
    attack.is_refused(Some(&stolen.issue(&web, Validity::Expired)), &[], "expired");
    attack.is_refused(Some(&stolen.issue(&web, Validity::NotYet)), &[], "not-yet-valid");
    attack.is_refused(Some(&pki::self_signed(&web)), &[], "self-signed");
    attack.is_refused(Some(&Authority::rogue().issue(&web, Validity::Now)), &[], "untrusted-chain");
    for not_a_spiffe_id in [format!("{web}/x"), web.replace("/svc/", "/gateway/"), "https://web".to_owned()] {
        attack.is_refused(Some(&stolen.issue(&not_a_spiffe_id, Validity::Now)), &[], "bad-san");
    }
}

#[test]
fn tls11_is_refused() {
    require_root!();
    let attack = Attack::new();
    let web = pki::signed_by_control_plane(&attack.mesh.a, "web");
    attack.is_refused(Some(&web), &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"], "protocol-version");
}

/// A server that presents `identity` at a port of host B, and stands in the catalog as the only instance of a service.
struct Impostor {
    server: Process,
    port: u16,
}

impl Impostor {
    #[track_caller]
    fn start(attack: &Attack, service: &str, port: u16, identity: &Identity) -> Self {
        let host = &attack.mesh.b.host;
        let (cert, key) = pki::files(host, identity);
        let mesh_port = port + 1000;
        let words = [
            "openssl",
            "s_server",
            "-accept",
            &mesh_port.to_string(),
            "-cert",
            cert.to_str().unwrap(),
            "-key",
            key.to_str().unwrap(),
            "-quiet",
        ];
        let server = host.spawn(UNMANAGED, &words);
        wait::until("s_server", || listens(host, mesh_port));
        let body = format!(
            r#"{{"Name":"{service}","ID":"{service}","Address":"{ip}","Port":{port},
                "Connect":{{"SidecarService":{{"Port":{mesh_port},"Address":"{ip}","Checks":[]}}}}}}"#,
            ip = host.v4,
        );
        let (code, said) = attack.mesh.a.api("PUT", "/v1/agent/service/register", Some(&body));
        assert_eq!(code, 200, "{said}");
        attack.mesh.a.intention("web", service, "allow");
        Self { server, port }
    }
}

#[test]
fn an_impostor_at_the_mesh_port_gets_no_byte_of_the_program() {
    require_root!();
    let attack = Attack::new();
    let stolen = Authority::stolen(&attack.mesh.a);
    let foreign = pki::spiffe_id("11111111-2222-3333-4444-555555555555.consul", "s");
    let cases = [
        ("s-service", stolen.issue(&attack.id("db"), Validity::Now), "wrong-service"),
        ("s-domain", stolen.issue(&foreign, Validity::Now), "wrong-trust-domain"),
        ("s-expired", stolen.issue(&attack.id("s-expired"), Validity::Expired), "expired"),
        ("s-early", stolen.issue(&attack.id("s-early"), Validity::NotYet), "not-yet-valid"),
        ("s-self", pki::self_signed(&attack.id("s-self")), "self-signed"),
        ("s-rogue", Authority::rogue().issue(&attack.id("s-rogue"), Validity::Now), "untrusted-chain"),
    ];
    // The twin: with the right certificate the same server is reached.
    let honest = stolen.issue(&attack.id("honest"), Validity::Now);
    let server = Impostor::start(&attack, "honest", 7100, &honest);
    wait::until_true("the honest server", || {
        attack.mesh.connect("web", server.port, &["--send", "for the honest", "--wait", "300"]);
        server.server.log().contains("for the honest")
    });
    for (n, (service, identity, reason)) in cases.into_iter().enumerate() {
        let impostor = Impostor::start(&attack, service, 7101 + u16::try_from(n).unwrap(), &identity);
        let before = attack.mesh.a.status().ended("outbound", reason);
        wait::until_true(reason, || {
            let said = attack.mesh.connect("web", impostor.port, &["--send", "for the impostor"]);
            assert_ne!(said["end"], "TIMEOUT", "{service} was connected: {said}");
            attack.mesh.a.status().ended("outbound", reason) > before
        });
        assert!(!impostor.server.log().contains("for the impostor"));
    }
}
