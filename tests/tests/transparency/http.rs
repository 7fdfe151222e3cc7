//! curl and Go's net/http: HTTP/1.1, HTTP/2 in clear, HTTP/2 in a TLS of the programs' own inside the mesh's.

use mesh_tests::{
    config::{Service, second_port},
    fixture::Scene,
    program::{nginx::Nginx, script},
    require_root,
    transparency::{Ends, Outcome, Report, Stage, stage::Proof},
};

#[test]
fn curl_transfers_over_http_1_and_2_as_on_plain_tcp() {
    require_root!();
    let stage = Stage::start(&[("site", 80), ("h2c", 8080), ("tls", 8443)]);
    let mut servers = Vec::new();
    stage.both(|ends| {
        let key = self_signed(ends.b);
        let tls = format!("ssl_certificate {key}; ssl_certificate_key {key};");
        servers.push(serve(ends, "site", 80, "", ""));
        servers.push(serve(ends, "h2c", 8080, "http2", ""));
        servers.push(serve(ends, "tls", 8443, "ssl http2", &tls));
    });
    let mut report = Report::new(&[]);
    let cases: [(&str, &str, &str, &[&str]); 3] = [
        ("curl, HTTP/1.1", "site", "http://", &["--http1.1"]),
        ("curl, HTTP/2 in clear", "h2c", "http://", &["--http2-prior-knowledge"]),
        ("curl, HTTP/2 in its own TLS", "tls", "https://", &["--http2", "--insecure"]),
    ];
    for (case, service, scheme, options) in cases {
        stage.allow(service);
        let said = stage.compare(&mut report, case, service, Proof::Wire, |ends| {
            transfers(ends, service, stage.port(service), scheme, options)
        });
        // curl 7.88 itself fails to use a connection of HTTP/2 in clear again, with or without a mesh.
        let expected = if service == "h2c" { 6 } else { 8 };
        assert_eq!(said.count("exit status: 0"), expected, "{said:#?}");
    }
    report.finish();
}

/// Starts a server of the files that [`transfers`] asks for, which takes others, too.
#[track_caller]
pub fn serve(ends: Ends<'_>, service: &str, port: u16, listen: &str, lines: &str) -> Nginx {
    let big = "0123456789abcdef".repeat(256 * 1024);
    std::fs::write(ends.a.space().scratch().join("upload"), &big).expect("an own directory");
    let lines = format!("location /up {{ dav_methods PUT; client_max_body_size 64m; }} {lines}");
    let files = [("small.txt", "a small file\n"), ("big", big.as_str())];
    Nginx::start_with(ends.b, service, port, listen, &lines, &files)
}

/// Moves files both ways with curl, in each way that it has.
#[track_caller]
pub fn transfers(ends: Ends<'_>, service: &str, port: u16, scheme: &str, options: &[&str]) -> Outcome {
    let base = format!("{scheme}{}", ends.at(port));
    let run = |more: &[&str]| ends.run(&[&["curl", "-sS", "--max-time", "60"], options, more].concat());
    let curl = |more: &[&str]| Outcome::of(&run(more));
    let show = "%{http_code} %{http_version} %{size_download} %{size_upload} %{num_connects} %{remote_ip}\n";
    let (one, two) = (format!("{base}/small.txt"), format!("{base}/big"));
    let upload = ends.a.space().scratch().join("upload");
    let (up, none) = (format!("{base}/up-{service}"), format!("{base}/nothing"));
    let www = ends.b.space().scratch().join(format!("nginx-{port}/www"));
    let there = format!("cd {} && sha256sum up-{service}", www.display());
    let range = ["-r", "1048570-1048589", &two];
    let parallel =
        ["-Z", "-w", "%{http_code} %{size_download}\n", "-o", "/dev/null", &two, "-o", "/dev/null", &two];
    // Those that go at once end in any order.
    let curl_sorted = |more: &[&str]| {
        let mut said = run(more);
        let mut lines: Vec<_> = said.stdout.split_inclusive('\n').collect();
        lines.sort_unstable();
        said.stdout = lines.concat();
        Outcome::of(&said)
    };
    Outcome::default()
        .with_part("small", curl(&["-w", show, &one]))
        .with_part("big", curl(&["-w", show, "-o", "/dev/null", &two, "-o", "/dev/null", &two]))
        .with_part("range", curl(&range))
        .with_part("parallel", curl_sorted(&parallel))
        .with_part("upload", curl(&["-w", show, "-T", upload.to_str().expect("UTF-8"), &up]))
        .with_part("back", Outcome::of(&ends.b.run("", &["sh", "-c", &there])))
        .with_part("missing", curl(&["-w", show, "-o", "/dev/null", &none]))
        .with_part("head", curl(&["-w", show, "-o", "/dev/null", "--head", &one]))
}

/// Returns a file of the host with a key and its certificate.
fn self_signed(host: &mesh_tests::host::Host) -> String {
    let file = host.space().scratch().join("self-signed.pem").display().to_string();
    let key = format!("{file}.key");
    let request =
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    host.run(
        "",
        &[&request[..], &["-subj", "/CN=site", "-days", "2", "-keyout", &key, "-out", &file]].concat(),
    )
    .ok();
    host.run("", &["sh", "-c", &format!("cat {key} >> {file}")]).ok();
    file
}

#[test]
fn go_net_http_client_and_server_work_as_on_plain_tcp() {
    require_root!();
    let services = [("site", 80), ("site-tls", 8443)];
    // One program listens at both ports.
    let on_b = vec![Service::server("site", 80), second_port("site", services[1])];
    let stage = Stage::start_with(&services, Scene { on_b, ..Scene::new(&[]) });
    let program = script::go("http").to_str().expect("UTF-8");
    let certificate =
        |host: &mesh_tests::host::Host| host.space().scratch().join("go.pem").display().to_string();
    let _servers = stage.both(|ends| {
        let server =
            script::serve(ends.b, "site", 80, &[program, "serve", "80", "8443", &certificate(ends.b)]);
        mesh_tests::wait::until("the TLS server", || mesh_tests::program::listens(ends.b, 8443));
        server
    });
    stage.allow("site");
    stage.allow("site-tls");
    let mut report = Report::new(&[]);
    for (case, service) in
        [("Go net/http, its plain part", "site"), ("Go net/http, its TLS part", "site-tls")]
    {
        let said =
            stage.compare(&mut report, case, service, Proof::Counted { flows: 2, bytes: 1 << 20 }, |ends| {
                let words = [program, "call", &ends.at(80), &ends.at(8443), &certificate(ends.b)];
                Outcome::of(&ends.run(&words))
            });
        assert_eq!(said.count("exit status: 0"), 1, "{said:#?}");
    }
    report.finish();
}
