//! Programs that people run, unmodified, from host A to host B; every byte on the wire is searched for plaintext.

use mesh_tests::{
    config::Service,
    fixture::{Mesh, Scene},
    host::Family,
    process::Output,
    program::{iperf::Iperf, nginx::Nginx, redis::Redis, sshd::Sshd},
    require_root, wait,
};

const SECRET: &str = "a secret that must not be on the wire";

/// Runs `words` in `web`, which is allowed, with every byte captured; then in `other`, which is not, and asserts that
/// it fails. Returns what the allowed one printed.
#[track_caller]
fn allowed_and_denied(mesh: &Mesh, service: &str, port: u16, needles: &[&str], words: &[&str]) -> String {
    mesh.allow("web", service, port);
    captured(mesh, service, port, needles, words, || mesh.a.host.run("web", words))
}

/// The same for an intention that is there, where `allowed` runs the program in `web`.
#[track_caller]
fn captured(
    mesh: &Mesh,
    service: &str,
    port: u16,
    needles: &[&str],
    words: &[&str],
    allowed: impl FnOnce() -> Output,
) -> String {
    let capture = mesh.net.capture(&mesh.b.host);
    let said = allowed();
    assert!(said.status.success(), "{said}\n{}", mesh.logs());
    let denied = mesh.a.host.run("other", words);
    assert!(!denied.status.success(), "{denied}");
    let trace = capture.stop();
    let mesh_port = mesh.mesh_port(service);
    trace.assert_secret(mesh_port, needles);
    trace.assert_tls13(mesh_port);
    assert_eq!(trace.bytes_at(port), 0, "something went to port {port} itself");
    said.stdout
}

#[test]
fn redis_cli_and_benchmark_reach_redis_server() {
    require_root!();
    for family in [Family::V4, Family::V6] {
        let mesh = Scene::new(&[("cache", 6379)]).family(family).start();
        let _redis = Redis::start(&mesh.b.host, "cache", 6379);
        let address = mesh.b_address();
        let words = ["redis-cli", "-h", &address, "-e", "set", "key", SECRET];
        let said = allowed_and_denied(&mesh, "cache", 6379, &[SECRET, "$3\r\nkey"], &words);
        assert_eq!(said, "OK\n");
        let back = mesh.a.host.run("web", &["redis-cli", "-h", &address, "get", "key"]).ok();
        assert_eq!(back.trim(), SECRET);
        let words =
            ["redis-benchmark", "-h", &address, "-q", "-n", "2000", "-c", "50", "-P", "4", "-t", "set,get"];
        let said = mesh.a.host.run("web", &words).ok();
        assert!(said.contains("SET") && said.contains("GET"), "{said}");
    }
}

#[test]
fn curl_reaches_nginx() {
    require_root!();
    for family in [Family::V4, Family::V6] {
        let mesh = Scene::new(&[("site", 80)]).family(family).start();
        let big = "0123456789abcdef".repeat(64 * 1024);
        let _nginx = Nginx::start(&mesh.b.host, "site", 80, &[("secret.txt", SECRET), ("big", &big)]);
        let base = format!("http://{}", mesh.at(80));
        let url = format!("{base}/secret.txt");
        let words = ["curl", "-sS", "--fail", "--max-time", "20", &url];
        let said = allowed_and_denied(&mesh, "site", 80, &[SECRET, "HTTP/1.1", "User-Agent"], &words);
        assert_eq!(said, SECRET);
        let whole = mesh.a.host.run("web", &["curl", "-sS", "--fail", &format!("{base}/big")]).ok();
        assert!(whole == big, "a body of {} bytes came as {}", big.len(), whole.len());
    }
}

#[test]
fn ssh_reaches_sshd_which_speaks_first() {
    require_root!();
    for family in [Family::V4, Family::V6] {
        let mesh = Scene::new(&[("shell", 2222)]).family(family).start();
        let sshd = Sshd::start(&mesh.b.host, "shell", 2222);
        let words = sshd.ssh(&mesh.b_address(), "uname -n; cat /proc/self/cgroup | grep ^0");
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let said = allowed_and_denied(&mesh, "shell", 2222, &["SSH-2.0-OpenSSH", "ssh-ed25519"], &words);
        assert_eq!(said, "b\n0::/shell\n");
    }
}

#[test]
fn iperf3_moves_data_both_ways() {
    require_root!();
    for family in [Family::V4, Family::V6] {
        let mut scene = Scene::new(&[]).family(family);
        // iperf3 serves one client at a time: a health check is one.
        scene.on_b = vec![Service::server("perf", 5201).with("[service.check]\ninterval = \"1h\"")];
        let mesh = scene.start();
        let _iperf = Iperf::start(&mesh.b.host, "perf", 5201);
        let address = mesh.b_address();
        // After each client, its server closes its listener and opens another: who comes in between is refused.
        let retried = |words: &[&str]| {
            wait::until("iperf3", || {
                let said = mesh.a.host.run("web", words);
                // With -J its exit code is 0 whatever happens.
                if said.status.success() && !said.stdout.contains("\"error\"") {
                    Ok(said)
                } else {
                    Err(format!("{said}\n{}", mesh.logs()))
                }
            })
        };
        mesh.a.intention("web", "perf", "allow");
        retried(&["iperf3", "-c", &address, "-n", "1M"]);
        // Four streams and the control connection, upwards; then down.
        let words = ["iperf3", "-c", &address, "-n", "16M", "-P", "4"];
        let needles = ["\"tcp\":true", "\"parallel\""];
        let said = captured(&mesh, "perf", 5201, &needles, &words, || retried(&words));
        assert!(said.contains("[SUM]") && said.contains("receiver"), "{said}");
        let said = retried(&["iperf3", "-c", &address, "-n", "16M", "-P", "4", "--reverse", "-J"]).ok();
        let report: serde_json::Value = serde_json::from_str(&said).unwrap();
        assert!(report["error"].is_null(), "{said}");
        let received = report["end"]["sum_received"]["bytes"].as_u64().unwrap();
        assert!(received >= 15 << 20, "only {received} bytes arrived");
    }
}
