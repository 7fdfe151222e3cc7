//! From one CA root to the next under live load, on the embedded server and on a real Consul: nothing is refused or
//! dropped, certificates are replaced, and the old root leaves. And the end of an identity: a service that is removed
//! or refused loses its certificate and its flows, the others go on.

use std::{
    io::{BufRead as _, BufReader},
    process::ChildStdout,
    time::{Duration, Instant},
};

use mesh_tests::{
    config::{STATE_DIR, TOKEN_FILE},
    fixture::{ConsulMesh, Mesh, Scene, serve},
    host::Host,
    meshnode::{Meshnode, make_private},
    process::Process,
    program::consul::Consul,
    require_consul, require_root, wait,
};
use serde_json::{Value, json};

/// Connections opened all the time by several threads, each checked from end to end; and one that lives on.
struct Load<'m> {
    mesh: &'m Mesh,
    storm: Probe,
    ping: Probe,
}

/// A probe that runs until its stdin ends, and then says how it went.
struct Probe {
    process: Process,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Probe {
    #[track_caller]
    fn start(mesh: &Mesh, words: &[&str]) -> Self {
        let mut process = mesh.a.host.spawn_probe("web", words);
        let mut lines = BufReader::new(process.stdout().unwrap()).lines();
        lines.next().unwrap().unwrap();
        Self { process, lines }
    }

    #[track_caller]
    fn stop(mut self) -> Value {
        drop(self.process.stdin());
        serde_json::from_str(&self.lines.next().unwrap().unwrap()).unwrap()
    }
}

impl<'m> Load<'m> {
    #[track_caller]
    fn start(mesh: &'m Mesh) -> Self {
        let to = mesh.at(7001);
        let (storm, ping) = (Probe::start(mesh, &["storm", &to, "4"]), Probe::start(mesh, &["ping", &to]));
        Self { mesh, storm, ping }
    }

    /// Waits until more connections were opened, and none has failed.
    #[track_caller]
    fn some_more(&mut self) {
        let opened = || self.mesh.b.status().counter("flows_opened");
        let before = opened();
        let (storm, ping, mesh) = (&mut self.storm.process, &mut self.ping.process, self.mesh);
        wait::until("connections", || {
            assert!(storm.ended().is_none(), "a connection failed: {}\n{}", storm.log(), mesh.logs());
            assert!(ping.ended().is_none(), "the long flow ended\n{}", mesh.logs());
            let now = opened();
            if now >= before + 40 { Ok(()) } else { Err(format!("{} opened\n{}", now - before, mesh.logs())) }
        });
    }

    /// Ends it, fails if any connection did, and returns how many there were.
    #[track_caller]
    fn stop(self) -> u64 {
        let (storm, ping) = (self.storm.stop(), self.ping.stop());
        assert_eq!(storm["ok"], true, "{storm}\n{}", self.mesh.logs());
        assert_eq!(ping["ok"], true, "the long flow: {ping}");
        storm["done"].as_u64().unwrap()
    }
}

/// The services' certificates' serial numbers on both hosts.
fn serials(mesh: &Mesh) -> (Option<String>, Option<String>) {
    let of = |node: &Meshnode, service| node.status().serial(service).map(str::to_owned);
    (of(&mesh.a, "web"), of(&mesh.b, "echo"))
}

/// As [`wait::until`], for what takes its time by design: Consul's agents spread their renewals over half a minute, and
/// then meet their limit of a request at a time.
#[track_caller]
fn until(what: &str, mut probe: impl FnMut() -> Result<(), String>) {
    let start = Instant::now();
    while let Err(why) = probe() {
        assert!(
            start.elapsed() < Duration::from_secs(150) * wait::slowness(),
            "gave up waiting for {what}: {why}"
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Waits until both hosts have new certificates.
#[track_caller]
fn until_renewed(mesh: &Mesh, before: &(Option<String>, Option<String>)) {
    until("new certificates on both hosts", || {
        let now = serials(mesh);
        if now.0.is_some() && now.1.is_some() && now.0 != before.0 && now.1 != before.1 {
            Ok(())
        } else {
            Err(format!("{before:?} {now:?}\n{}", mesh.logs()))
        }
    });
}

/// The certificates in the disk cache of a daemon.
#[track_caller]
fn stored_leaf(node: &Meshnode, service: &str) -> Option<String> {
    let path = format!("{STATE_DIR}/control-plane/leafs/{service}.json");
    let text = std::fs::read_to_string(node.host.space().path(&path)).ok()?;
    let body: Value = serde_json::from_str(text.split_once('\n')?.1).ok()?;
    Some(body["data"]["cert_pem"].as_str()?.to_owned())
}

/// Waits until the leaf of `service` on disk is issued by `root` (PEM) itself, openssl says.
#[track_caller]
fn until_chains_to(node: &Meshnode, service: &str, root: &str) {
    let root_file = node.host.log_file("root").with_extension("pem");
    std::fs::write(&root_file, root).unwrap();
    let leaf_file = node.host.log_file("leaf").with_extension("pem");
    until("a leaf of the new root", || {
        let leaf = stored_leaf(node, service).ok_or("there is none")?;
        // The first one: what else is in it must not be needed.
        let end = leaf.find("-----END CERTIFICATE-----").ok_or("no PEM")? + 25;
        std::fs::write(&leaf_file, format!("{}\n", &leaf[..end])).map_err(|e| e.to_string())?;
        let (root, leaf) = (root_file.to_str().unwrap(), leaf_file.to_str().unwrap());
        let said = node.host.run("", &["openssl", "verify", "-CAfile", root, leaf]);
        if said.status.success() { Ok(()) } else { Err(said.to_string()) }
    });
}

/// The listed roots, the one that signs first (Consul lists them in any order).
#[track_caller]
fn roots(node: &Meshnode) -> Vec<Value> {
    let said = node.cli(&["ca", "roots", "--json"]).ok();
    let answer: Value = serde_json::from_str(&said).unwrap();
    let mut roots = answer["Roots"].as_array().unwrap().clone();
    roots.sort_by_key(|root| root["ID"] != answer["ActiveRootID"]);
    roots
}

/// Waits until the daemon trusts as many roots.
#[track_caller]
fn until_trusts(node: &Meshnode, count: usize) {
    wait::until("the trust bundle", || {
        let path = format!("{STATE_DIR}/control-plane/roots.json");
        let text = std::fs::read_to_string(node.host.space().path(&path)).map_err(|e| e.to_string())?;
        let body: Value =
            serde_json::from_str(text.split_once('\n').ok_or("no line")?.1).map_err(|e| e.to_string())?;
        let roots = body["data"]["Roots"].as_array().map_or(0, Vec::len);
        if roots == count { Ok(()) } else { Err(format!("{roots} roots, not {count}")) }
    });
}

/// Takes a little more than a minute: that is the shortest lifetime of a certificate, and the old root waits for it.
#[test]
fn three_rotations_under_load_refuse_nothing_and_the_old_roots_leave() {
    require_root!();
    let mut scene = Scene::new(&[("echo", 7001)]);
    scene.embedded = "leaf_ttl = \"1m\"".to_owned();
    let mesh = scene.start();
    let _server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
    mesh.allow("web", "echo", 7001);
    let refused = refusals(&mesh);
    let mut load = Load::start(&mesh);
    for n in 1..=3 {
        load.some_more();
        let before = serials(&mesh);
        mesh.a.cli(&["ca", "rotate"]).ok();
        until_renewed(&mesh, &before);
        // The ones before stay until their last leaf has expired, a minute later.
        assert!((2..=n + 1).contains(&roots(&mesh.a).len()), "{:?}", roots(&mesh.a));
    }
    let newest = roots(&mesh.a)[0]["RootCert"].as_str().unwrap().to_owned();
    until_chains_to(&mesh.a, "web", &newest);
    until_chains_to(&mesh.b, "echo", &newest);
    load.some_more();
    let start = Instant::now();
    while roots(&mesh.a).len() > 1 {
        assert!(start.elapsed() < Duration::from_secs(240) * wait::slowness(), "the old roots stay");
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(roots(&mesh.a)[0]["RootCert"], newest);
    until_trusts(&mesh.a, 1);
    until_trusts(&mesh.b, 1);
    load.some_more();
    let connections = load.stop();
    eprintln!("{connections} connections over three rotations");
    assert_no_refusal(&mesh, &refused);
}

const REFUSALS: [&str; 6] =
    ["untrusted_chain", "refused_by_peer", "expired", "bad_certificate", "identity_gone", "no_leaf"];

/// How many handshakes have failed on each host, and why.
#[track_caller]
fn refusals(mesh: &Mesh) -> Vec<(String, u64)> {
    let of = |node: &Meshnode| {
        let status = node.status();
        let each = ["inbound", "outbound"].into_iter().flat_map(|d| REFUSALS.map(|reason| (d, reason)));
        each.map(|(direction, reason)| {
            (format!("{} {direction} {reason}", node.host.name), status.ended(direction, reason))
        })
        .collect::<Vec<_>>()
    };
    [of(&mesh.a), of(&mesh.b)].concat()
}

/// No handshake failed on either host since the mesh first worked. Before, a service may be dialled that has no
/// certificate yet.
#[track_caller]
fn assert_no_refusal(mesh: &Mesh, before: &[(String, u64)]) {
    assert_eq!(refusals(mesh), before, "{}", mesh.logs());
}

#[test]
fn a_host_that_has_not_seen_the_new_root_talks_to_one_that_has() {
    require_root!();
    let mesh = Scene::new(&[("echo", 7001)]).start();
    let _server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
    mesh.allow("web", "echo", 7001);
    let refused = refusals(&mesh);
    // B's link to the control plane is cut; the mesh port is not.
    let block = ["ip", "route", "add", "blackhole", "0.0.0.0/0", "table", "77"];
    mesh.b.host.run("", &block).ok();
    let rule = ["ip", "rule", "add", "ipproto", "tcp", "dport", "8501", "table", "77"];
    mesh.b.host.run("", &rule).ok();
    mesh.b.host.run("", &["ss", "-K", "dport", "=", "8501"]);
    mesh.b.wait_status("the outage", |s| s.0["control_plane"]["connected"] == false);
    let before = serials(&mesh);
    for _ in 0..2 {
        let seen = mesh.a.status().serial("web").map(str::to_owned);
        mesh.a.cli(&["ca", "rotate"]).ok();
        mesh.a.wait_status("a new certificate", |s| s.serial("web").map(str::to_owned) != seen);
    }
    assert_eq!(serials(&mesh).1, before.1, "B still has its old certificate");
    for _ in 0..5 {
        let said = mesh.a.host.probe("web", &["flood", &mesh.at(7001), "5"]);
        assert!(said.status.success(), "{said}\n{}", mesh.logs());
    }
    assert_no_refusal(&mesh, &refused);
    // The twin: without the old root's word, B refuses.
    mesh.a.cli(&["ca", "rotate", "--force-without-cross-signing"]).ok();
    mesh.b.wait_status("the refusal", |s| {
        mesh.a.host.probe("web", &["flood", &mesh.at(7001), "1"]);
        s.ended("inbound", "untrusted-chain") > 0
    });
    // Back on the line, B learns all of it.
    mesh.b.host.run("", &["ip", "rule", "del", "ipproto", "tcp", "dport", "8501", "table", "77"]).ok();
    until_renewed(&mesh, &before);
    mesh.until_connects("web", 7001);
}

#[track_caller]
fn set_config(consul: &Consul, host: &Host, config: &Value) {
    let file = host.log_file("ca").with_extension("json");
    std::fs::write(&file, config.to_string()).unwrap();
    consul.cli(host, &["connect", "ca", "set-config", "-config-file", file.to_str().unwrap()]).ok();
}

#[test]
fn rotations_of_a_real_consul_refuse_nothing_under_load() {
    require_root!();
    require_consul!();
    let mut consul = Scene::new(&[("echo", 7001)]).start_with_consul(&json!({"acl": {"enabled": false}}));
    let a = &consul.mesh.a.host;
    let _server = serve(&consul.mesh.b.host, "echo", 7001, &["echo"]);
    consul.server.intention(a, "*", "*", "deny");
    consul.allow("web", "echo", 7001);
    let ConsulMesh { mesh, server, agent } = &mut consul;
    let (mesh, a) = (&*mesh, &mesh.a.host);
    let refused = refusals(mesh);
    let mut load = Load::start(mesh);
    for n in 1..=3 {
        load.some_more();
        let before = serials(mesh);
        if n == 1 {
            // As people do it with Consul's own tool.
            let key = a.run("", &["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"]).ok();
            let config = json!({"Provider": "consul", "Config": {"PrivateKey": key, "RootCert": "",
                "LeafCertTTL": "72h", "RotationPeriod": "2160h", "IntermediateCertTTL": "8760h"}});
            set_config(server, a, &config);
        } else {
            mesh.a.cli(&["ca", "rotate"]).ok();
        }
        until_trusts(&mesh.a, n + 1);
        until_trusts(&mesh.b, n + 1);
        until(
            "a new certificate on A",
            || {
                if serials(mesh).0 != before.0 { Ok(()) } else { Err(mesh.a.log()) }
            },
        );
    }
    // A client agent of Consul 1.8.7 was seen to keep a leaf over a second rotation; the root of that one stays trusted.
    // A restarted one asks for another.
    agent.kill9();
    agent.relaunch(&mesh.b.host);
    agent.wait_ready(&mesh.b.host);
    let active = roots(&mesh.a)[0].clone();
    let newest = active["RootCert"].as_str().unwrap();
    until_chains_to(&mesh.a, "web", newest);
    until_chains_to(&mesh.b, "echo", newest);
    load.some_more();
    eprintln!("{} connections over three rotations of Consul", load.stop());
    assert_no_refusal(mesh, &refused);
}

#[test]
fn consuls_own_tool_rotates_the_embedded_ca() {
    require_root!();
    require_consul!();
    let mesh = Scene::new(&[("echo", 7001)]).start();
    let _server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
    mesh.allow("web", "echo", 7001);
    let a = &mesh.a.host;
    let token = std::fs::read_to_string(a.space().path(&format!("{STATE_DIR}/api-token"))).unwrap();
    let cli = |words: &[&str]| {
        mesh_tests::program::consul::run_cli(a, mesh_tests::program::consul::API, token.trim(), words)
    };
    let shown: Value = serde_json::from_str(&cli(&["connect", "ca", "get-config"]).ok()).unwrap();
    assert_eq!(shown["Config"]["LeafCertTTL"], "72h");
    let key = a.run("", &["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"]).ok();
    let key_file = a.log_file("key").with_extension("pem");
    std::fs::write(&key_file, &key).unwrap();
    let subject = ["-subj", "/O=Example/CN=The new root", "-days", "90"];
    let make = ["openssl", "req", "-x509", "-new", "-key", key_file.to_str().unwrap()];
    let cert = a.run("", &[&make[..], &subject[..]].concat()).ok();
    let config = json!({"Provider": "consul", "Config": {"PrivateKey": key, "RootCert": cert,
        "LeafCertTTL": "1h", "CSRMaxPerSecond": 50}, "ForceWithoutCrossSigning": false});
    let file = a.log_file("ca").with_extension("json");
    std::fs::write(&file, config.to_string()).unwrap();
    let before = serials(&mesh);
    let set = ["connect", "ca", "set-config", "-config-file", file.to_str().unwrap()];
    cli(&set).ok();
    until_renewed(&mesh, &before);
    until_chains_to(&mesh.b, "echo", &cert);
    mesh.until_connects("web", 7001);
    let shown: Value = serde_json::from_str(&cli(&["connect", "ca", "get-config"]).ok()).unwrap();
    assert_eq!(shown["Config"]["LeafCertTTL"], "1h");
    // What does not fit is refused, and nothing changes.
    let other = a.run("", &["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"]).ok();
    let mut wrong = config;
    wrong["Config"]["PrivateKey"] = other.into();
    std::fs::write(&file, wrong.to_string()).unwrap();
    let said = cli(&set).fails();
    assert!(said.contains("belongs"), "{said}");
    assert_eq!(roots(&mesh.a).len(), 2);
}

/// `probe hold`, which tells when its connections end.
struct Held(Process);

impl Held {
    #[track_caller]
    fn open(mesh: &Mesh, cgroup: &str) -> Self {
        let mut process = mesh.a.host.spawn_probe(cgroup, &["hold", &mesh.at(7001), "2"]);
        let first = BufReader::new(process.stdout().unwrap()).lines().next().unwrap().unwrap();
        assert_eq!(first, "holding 2");
        Self(process)
    }
}

#[test]
fn a_removed_service_loses_its_certificate_and_flows_and_the_others_do_not() {
    require_root!();
    let mut mesh = Scene::new(&[("echo", 7001)]).start();
    let _server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
    for service in ["web", "other"] {
        mesh.allow(service, "echo", 7001);
    }
    let (mut gone, mut stays) = (Held::open(&mesh, "web"), Held::open(&mesh, "other"));
    wait::until_true("the leafs on disk", || {
        stored_leaf(&mesh.a, "web").is_some() && stored_leaf(&mesh.a, "other").is_some()
    });
    mesh.a.config.services.retain(|service| service.name != "web");
    mesh.a.write_config();
    mesh.a.reload();
    wait::until_true("the flows' end", || gone.0.ended().is_some());
    let status = mesh.a.wait_status("the loss, and its reason", |s| {
        // `identity-gone`, or `revoked` where it is seen first that its intentions are not this host's business any more.
        let cut = s.recent("web", "echo").iter().any(|flow| flow["state"] == "revoked");
        s.serial("web").is_none() && cut
    });
    assert!(status.serial("other").is_some());
    wait::until_true("the key's removal from disk", || stored_leaf(&mesh.a, "web").is_none());
    assert!(stored_leaf(&mesh.a, "other").is_some());
    assert!(stays.0.ended().is_none(), "another service's flow was cut");
}

#[test]
fn a_host_whose_token_is_refused_loses_its_certificates_and_flows() {
    require_root!();
    let mesh = Scene::new(&[("echo", 7001)]).start();
    let _server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
    mesh.allow("web", "echo", 7001);
    let mut held = Held::open(&mesh, "web");
    wait::until_true("the leaf on disk", || stored_leaf(&mesh.b, "echo").is_some());
    mesh.b.host.write(TOKEN_FILE, "another-token-that-nobody-knows");
    make_private(&mesh.b.host, TOKEN_FILE);
    let start = Instant::now();
    while mesh.b.status().serial("echo").is_some() {
        assert!(start.elapsed() < Duration::from_secs(150) * wait::slowness(), "{}", mesh.b.log());
        std::thread::sleep(Duration::from_millis(500));
    }
    wait::until_true("the flows' end", || held.0.ended().is_some());
    wait::until_true("the key's removal from disk", || stored_leaf(&mesh.b, "echo").is_none());
    // A's services are not B's; and B is let in again with the right token.
    assert!(mesh.a.status().serial("web").is_some());
    mesh.b.host.write(TOKEN_FILE, mesh_tests::config::TOKEN);
    make_private(&mesh.b.host, TOKEN_FILE);
    mesh.b.wait_status("a certificate", |s| s.serial("echo").is_some());
    mesh.until_connects("web", 7001);
}

/// Writes the PEM files of a CA into host A, as an operator would, and returns the root.
#[track_caller]
fn give_ca(host: &Host, name: &str) -> String {
    let script = format!(
        "cd /etc/meshnode && umask 077 && \
         openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}-root.key -out {name}-root.pem \
           -days 30 -subj '/O=Example/CN={name} root' 2>/dev/null && \
         openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr \
           -subj '/O=Example/CN={name} intermediate' 2>/dev/null && \
         printf 'basicConstraints=critical,CA:TRUE\\nkeyUsage=critical,keyCertSign,cRLSign\\n' > ext && \
         openssl x509 -req -in {name}.csr -CA {name}-root.pem -CAkey {name}-root.key -CAcreateserial -days 20 \
           -extfile ext -out {name}.pem 2>/dev/null && \
         cp {name}.pem ca.pem && cp {name}-root.pem chain.pem && cp {name}.key ca.key && cat {name}-root.pem"
    );
    host.run("", &["sh", "-c", &script]).ok()
}

#[test]
fn a_given_intermediate_signs_and_new_files_are_a_rotation_at_reload() {
    require_root!();
    let mut scene = Scene::new(&[("echo", 7001)]);
    scene.sections = "[control_plane.embedded.ca]\ncert_file = \"/etc/meshnode/ca.pem\"\n\
         chain_file = \"/etc/meshnode/chain.pem\"\nkey_file = \"/etc/meshnode/ca.key\"\n"
        .to_owned();
    let net = mesh_tests::net::Network::with(scene.options);
    let (a, b) = (net.host("a"), net.host("b"));
    let first = give_ca(&a, "first");
    let mesh = scene.start_on(net, a, b);
    let _server = serve(&mesh.b.host, "echo", 7001, &["echo"]);
    mesh.allow("web", "echo", 7001);
    assert_eq!(roots(&mesh.a)[0]["RootCert"].as_str().unwrap().trim(), first.trim());
    let refused = refusals(&mesh);
    let mut load = Load::start(&mesh);
    // A wrong one is refused with the reason, and nothing changes.
    let (before, listed) = (serials(&mesh), roots(&mesh.a));
    mesh.a.host.run("", &["sh", "-c", "cp /etc/meshnode/first-root.key /etc/meshnode/ca.key"]).ok();
    let said = mesh.a.cli(&["reload"]).fails();
    assert!(said.contains("belongs"), "{said}");
    assert_eq!((serials(&mesh), roots(&mesh.a)), (before.clone(), listed));
    let second = give_ca(&mesh.a.host, "second");
    mesh.a.cli(&["reload"]).ok();
    until_renewed(&mesh, &before);
    assert_eq!(roots(&mesh.a)[0]["RootCert"].as_str().unwrap().trim(), second.trim());
    load.some_more();
    load.stop();
    assert_no_refusal(&mesh, &refused);
}

#[test]
fn a_rotation_where_there_is_no_ca_to_ask_fails_with_the_reason() {
    require_root!();
    let mesh = Scene::new(&[]).start();
    let said = mesh.a.cli(&["--http-addr", "127.0.0.1:1", "ca", "rotate"]).fails();
    assert!(said.contains("127.0.0.1:1"), "{said}");
}
