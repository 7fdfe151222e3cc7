//! Services outside the mesh that speak TLS, to programs that do not: the gateway's TLS towards them.

use std::{fs, path::Path};

use mesh_tests::{
    fixture::{Mesh, Scene, connect, is_reset, serve},
    host::Host,
    meshnode::UNMANAGED,
    net::Network,
    pki::{Authority, Identity, Validity},
    process::Process,
    program::{listens, nginx::Nginx},
    require_root,
    space::tool,
    wait,
};
use serde_json::Value;

const PORT: u16 = 7001;
/// Where stunnel finds the server that it puts TLS before.
const BEHIND: u16 = 7002;
const NAME: &str = "billing.test";
const CA: &str = "/etc/meshnode/billing-ca.pem";
const CERT: &str = "/etc/meshnode/billing-cert.pem";
const KEY: &str = "/etc/meshnode/billing-key.pem";

/// What `[gateway.tls]` says.
#[derive(Clone, Copy)]
struct Tls<'a> {
    sni: &'a str,
    certificate: bool,
    check: bool,
}

const PLAIN: Tls<'static> = Tls { sni: NAME, certificate: false, check: true };

/// A, whose `web` dials; B, the gateway of `billing`; and X, which runs no meshnode.
struct Outside {
    mesh: Mesh,
    x: Host,
    ca: Authority,
}

fn section(x: &Host, tls: Tls<'_>) -> String {
    let Tls { sni, certificate, check } = tls;
    let own =
        if certificate { format!("cert_file = \"{CERT}\"\nkey_file = \"{KEY}\"\n") } else { String::new() };
    format!(
        "[[gateway]]\nservice = \"billing\"\naddress = \"{}:{PORT}\"\n[gateway.tls]\nca_file = \"{CA}\"\n\
         sni = \"{sni}\"\n{own}[gateway.check]\nenabled = {check}\ninterval = \"1s\"\n",
        x.v4
    )
}

fn scene(tls: Tls<'_>) -> Outside {
    let net = Network::new();
    let (a, b, x) = (net.host("a"), net.host("b"), net.host("x"));
    let ca = Authority::rogue();
    b.write(CA, &ca.cert);
    let own = ca.issue_named("gateway.test", Validity::Now);
    b.write(CERT, &own.cert);
    b.write(KEY, &own.key);
    let mut scene = Scene::new(&[]);
    scene.sections_on_b = section(&x, tls);
    let mesh = scene.start_on(net, a, b);
    mesh.a.intention("web", "billing", "allow");
    Outside { mesh, x, ca }
}

impl Outside {
    fn at(&self) -> String {
        format!("{}:{PORT}", self.x.v4)
    }

    /// stunnel on X, with `identity`, before the server at [`BEHIND`]; `more` are further lines of its configuration.
    fn stunnel(&self, identity: &Identity, more: &str) -> Process {
        let dir = self.x.space().scratch();
        let file = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).expect("an own directory");
            path.display().to_string()
        };
        let cert = file("server.pem", &identity.cert);
        let key = file("server-key.pem", &identity.key);
        file("clients.pem", &self.ca.cert);
        let config = file(
            "stunnel.conf",
            &format!(
                "foreground = yes\npid =\ndebug = err\n[billing]\naccept = :::{PORT}\nconnect = 127.0.0.1:{BEHIND}\n\
                 cert = {cert}\nkey = {key}\n{more}\n"
            ),
        );
        let mut stunnel = self.x.spawn(UNMANAGED, &["stunnel4", &config]);
        stunnel.wait_ready(|| listens(&self.x, PORT));
        stunnel
    }

    /// The lines that make stunnel demand a certificate of the CA.
    fn demanding(&self) -> String {
        format!("verifyChain = yes\nCAfile = {}", self.x.space().scratch().join("clients.pem").display())
    }

    fn issue(&self, validity: Validity) -> Identity {
        self.ca.issue_named(NAME, validity)
    }

    /// Waits until status says of the gateway that it is `health`, and why.
    #[track_caller]
    fn until_health(&self, health: &str, why: &str) -> Value {
        let status = self.mesh.b.wait_status(&format!("{health}: {why}"), |s| {
            s.entry("gateways", "service", "billing").is_some_and(|gateway| {
                gateway["health"] == health && gateway["reason"].as_str().unwrap_or("").contains(why)
            })
        });
        status.entry("gateways", "service", "billing").expect("just seen").clone()
    }

    #[track_caller]
    fn until_welcome(&self) {
        wait::until("a welcome through the gateway", || {
            let said = connect(&self.mesh.a.host, "web", &self.at(), &["--read", "7"]);
            if said["received"] == "welcome" { Ok(()) } else { Err(format!("{said}\n{}", self.mesh.logs())) }
        });
    }

    /// Waits until a flow of `web` was reset before any data, for that reason in B's status and in its counters.
    #[track_caller]
    fn until_reset(&self, name: &str, words: &str) {
        wait::until(&format!("a reset: {name}"), || {
            let said = connect(&self.mesh.a.host, "web", &self.at(), &["--send", "x", "--read", "1"]);
            let reset = is_reset(&said);
            let status = self.mesh.b.status();
            let seen = status.recent("web", "billing").iter().any(|flow| {
                flow["reason"].as_str().is_some_and(|r| r.starts_with(name) && r.contains(words))
            });
            let counted = status.ended("inbound", name) > 0;
            if reset && seen && counted { Ok(()) } else { Err(format!("{said}\n{}", self.mesh.logs())) }
        });
    }
}

#[test]
fn program_in_clear_reaches_a_service_in_tls_and_sees_what_it_would_see_in_clear() {
    require_root!();
    let outside = scene(Tls { certificate: true, ..PLAIN });
    let _echo = serve(&outside.x, UNMANAGED, BEHIND, &["echo"]);
    let _stunnel = outside.stunnel(&outside.issue(Validity::Now), &outside.demanding());
    assert_eq!(outside.until_health("passing", "")["tls"], NAME);
    let (host, at) = (&outside.mesh.a.host, outside.at());
    wait::until_true("web to get in", || connect(host, "web", &at, &[])["ok"] == true);
    let capture = outside.mesh.net.capture(&outside.mesh.b.host);
    let said = connect(host, "web", &at, &["--send", "a secret row of the bill", "--half-close"]);
    assert_eq!(
        (&said["received"], &said["end"]),
        (&"a secret row of the bill".into(), &"eof".into()),
        "{said}"
    );
    let trace = capture.stop();
    assert_eq!(trace.count("a secret row"), 0, "something went in clear");
    trace.assert_tls13(PORT);
    // Both ways at once, compared.
    let copied = host.probe("web", &["transfer", &at, "32"]).ok();
    assert!(copied.contains("\"ok\":true"), "{copied}");
    assert_eq!(connect(host, "other", &at, &[])["error"], "EPERM");
}

#[test]
fn server_that_speaks_first_ends_in_order_and_one_that_is_cut_off_is_a_reset() {
    require_root!();
    let outside = scene(PLAIN);
    let identity = outside.issue(Validity::Now);
    let stunnel = outside.stunnel(&identity, "");
    let greet = serve(&outside.x, UNMANAGED, BEHIND, &["greet", "welcome"]);
    outside.until_welcome();
    let said = connect(&outside.mesh.a.host, "web", &outside.at(), &["--read", "100"]);
    assert_eq!((&said["received"], &said["end"]), (&"welcome".into(), &"eof".into()), "{said}");
    drop(greet);
    let _echo = serve(&outside.x, UNMANAGED, BEHIND, &["echo"]);
    let (probe, at) = (tool("probe").display().to_string(), outside.at());
    let words = [&*probe, "connect", &at, "--send", "x", "--wait", "60000"];
    let mut held = outside.mesh.a.host.spawn("web", &words);
    outside.mesh.b.wait_status("the flow", |s| s.flows("web", "billing").len() == 1);
    drop(stunnel);
    held.wait();
    assert!(held.log().contains("ECONNRESET"), "{}", held.log());
}

#[test]
fn server_that_cannot_be_believed_gets_nothing_and_the_operator_is_told_why() {
    require_root!();
    let outside = scene(PLAIN);
    let _server = serve(&outside.x, UNMANAGED, BEHIND, &["greet", "welcome"]);
    let other = Authority::rogue();
    for (identity, name, words) in [
        (
            other.issue_named(NAME, Validity::Now),
            "external-untrusted",
            "no CA of ca_file signed its certificate",
        ),
        (
            outside.ca.issue_named("other.test", Validity::Now),
            "external-untrusted",
            "is not for billing.test, but for",
        ),
        (outside.issue(Validity::Expired), "external-untrusted", "its certificate has expired"),
        (outside.issue(Validity::NotYet), "external-untrusted", "is not valid yet"),
    ] {
        let stunnel = outside.stunnel(&identity, "");
        outside.until_health("critical", words);
        outside.until_reset(name, words);
        drop(stunnel);
    }
    // The twin, and one that is in clear.
    let stunnel = outside.stunnel(&outside.issue(Validity::Now), "");
    outside.until_health("passing", "");
    outside.until_welcome();
    drop(stunnel);
    let _clear = serve(&outside.x, UNMANAGED, PORT, &["greet", "welcome"]);
    outside.until_health("critical", "does not speak TLS from the first byte");
    outside.until_reset("external-tls", "does not speak TLS");
}

#[test]
fn service_that_demands_a_certificate_says_so_when_there_is_none_and_when_it_is_not_the_right_one() {
    require_root!();
    let mut outside = scene(Tls { check: false, ..PLAIN });
    let _server = serve(&outside.x, UNMANAGED, BEHIND, &["greet", "welcome"]);
    for version in ["TLSv1.3", "TLSv1.2"] {
        let lines = format!("{}\nsslVersion = {version}", outside.demanding());
        let stunnel = outside.stunnel(&outside.issue(Validity::Now), &lines);
        outside.until_reset("external-refused", "it demands a client certificate, and the gateway has none");
        drop(stunnel);
    }
    let _stunnel = outside.stunnel(&outside.issue(Validity::Now), &outside.demanding());
    // With the check the catalog hears of it as well.
    let reload = |outside: &mut Outside, tls: Tls<'_>| {
        outside.mesh.b.config.sections = section(&outside.x, tls);
        outside.mesh.b.write_config();
        outside.mesh.b.cli(&["reload"]).ok();
    };
    reload(&mut outside, PLAIN);
    outside.until_health("critical", "it demands a client certificate");
    let stranger = Authority::rogue().issue_named("gateway.test", Validity::Now);
    let good = [CERT, KEY].map(|path| outside.mesh.b.host.read(path));
    outside.mesh.b.host.write(CERT, &stranger.cert);
    outside.mesh.b.host.write(KEY, &stranger.key);
    reload(&mut outside, Tls { certificate: true, ..PLAIN });
    outside.until_health("critical", "it refused the gateway's certificate");
    // The files alone have changed.
    outside.mesh.b.host.write(CERT, &good[0]);
    outside.mesh.b.host.write(KEY, &good[1]);
    outside.mesh.b.cli(&["reload"]).ok();
    outside.until_health("passing", "");
    outside.until_welcome();
}

#[test]
fn file_that_cannot_be_used_is_refused_with_file_and_line_and_nothing_changes() {
    require_root!();
    let outside = scene(PLAIN);
    let _server = serve(&outside.x, UNMANAGED, BEHIND, &["greet", "welcome"]);
    let _stunnel = outside.stunnel(&outside.issue(Validity::Now), "");
    outside.until_welcome();
    let good = outside.mesh.b.host.read(CA);
    outside.mesh.b.host.write(CA, "no certificate");
    for words in [&["reload"][..], &["config", "check"]] {
        let refused = outside.mesh.b.cli(words).fails();
        assert!(
            refused.contains("gateway[0].tls.ca_file: ") && refused.contains("meshnode.toml:"),
            "{refused}"
        );
        assert!(refused.contains("has no certificate in PEM"), "{refused}");
    }
    outside.until_welcome();
    outside.mesh.b.host.write(CA, &Authority::rogue().cert);
    let said = outside.mesh.b.cli(&["reload"]).ok();
    assert!(said.contains("gateway billing: other TLS files"), "{said}");
    outside.until_health("critical", "no CA of ca_file signed its certificate");
    outside.mesh.b.host.write(CA, &good);
    outside.mesh.b.cli(&["reload"]).ok();
    outside.until_health("passing", "");
    outside.until_welcome();
}

#[test]
fn http_in_clear_is_https_beyond_the_gateway() {
    require_root!();
    let outside = scene(PLAIN);
    let identity = outside.issue(Validity::Now);
    let dir = outside.x.space().scratch();
    let file = |name: &str, text: &str| {
        fs::write(dir.join(name), text).expect("an own directory");
        Path::new(dir).join(name).display().to_string()
    };
    let (cert, key) = (file("web.pem", &identity.cert), file("web-key.pem", &identity.key));
    let big = "a line of the bill\n".repeat(500_000);
    for versions in ["TLSv1.3", "TLSv1.2"] {
        let lines = format!("ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols {versions};");
        let nginx = Nginx::start_with(&outside.x, UNMANAGED, PORT, "ssl", &lines, &[("bill", &big)]);
        let url = format!("http://{}/bill", outside.at());
        wait::until_true("the page", || {
            let page = outside.mesh.a.host.run("web", &["curl", "-sS", "-m", "20", &url]);
            page.status.success() && page.stdout == big
        });
        drop(nginx);
    }
}
