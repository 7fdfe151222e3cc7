//! The command line as it is typed.

use super::*;
use crate::control_plane::{ApiAccess, ApiAddress, Client};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    let args = line.split(' ').map(OsString::from);
    Cli::try_parse_from(intention::consul_dashes(std::iter::once("meshnode".into()).chain(args)))
}

/// Runs a command line without a daemon; returns the exit code.
fn code(line: &str) -> u8 {
    let args: Vec<OsString> =
        std::iter::once("meshnode").chain(line.split(' ')).map(OsString::from).collect();
    let exit = main(args, |_, _| Err(Failure::Refused("no daemon in this test".into())));
    (0..=255).find(|code| ExitCode::from(*code) == exit).unwrap()
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn what_the_documentation_types_is_accepted() {
    for line in [
        "run",
        "run --config /etc/x.toml",
        "status",
        "status --watch",
        "status --json --service web",
        "status --check",
        "intention create web db",
        "intention create --allow web db",
        "intention create -allow web db",
        "intention create -deny -replace * db",
        "intention create web -> db",
        "intention delete web db",
        "intention delete 6a5d0a46-0000-0000-0000-000000000000",
        "intention list --json",
        "intention check web db",
        "intention check -http-addr=127.0.0.1:1 web db",
        "service register --name db --port 5432",
        "service register db.json",
        "service list --service db",
        "exec --service web -- psql -h db -allow",
        "exec --service web --user nobody -- id",
        "acl bootstrap",
        "acl policy create -name web -rules @web.hcl",
        "acl policy read --name web --json",
        "acl policy update --id 12 --rules -",
        "acl policy delete --name web",
        "acl token create -description d -policy-name web -policy-name db -service-identity api",
        "acl token create --node-identity host-b:dc1 --expires-ttl 1h",
        "acl token read -self",
        "acl token list --json",
        "acl token delete --id 0a",
        "doctor --json",
        "reload",
        "drain",
        "detach",
        "config check",
        "config check /etc/x.toml",
        "completions bash",
        "man",
        "man /tmp/x",
        "--admin-socket /run/x.sock status",
        "status --admin-socket /run/x.sock",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    for line in [
        "",
        "frobnicate",
        "status --watch --check",
        "status --service -x",
        "intention",
        "intention create",
        "intention create --allow --deny web db",
        "intention create a b c d",
        "intention check",
        "service register",
        "service register --name db x.json",
        "service register --name db --port 0",
        "service register --name db --port 65536",
        "exec -- ls",
        "exec --service web",
        "exec --service web ls",
        "exec --service b/ad -- ls",
        "completions tcsh",
    ] {
        assert!(parse(line).is_err(), "{line}");
    }
}

#[test]
fn consuls_one_hyphen_is_translated_before_the_command_of_exec_only() {
    let Command::Exec(args) =
        parse("exec --service web -- consul intention create -allow a b").unwrap().command
    else {
        panic!("not exec");
    };
    assert!(args.command.contains(&"-allow".into()));
}

#[test]
fn exit_codes_are_the_documented_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("bad.toml"), "nod = 1\n").unwrap();
    std::fs::write(path("good.toml"), format!("run_dir = \"{}\"\n", dir.path().display())).unwrap();
    for (line, expected) in [
        ("--help".to_owned(), exit::OK),
        ("--version".to_owned(), exit::OK),
        ("frobnicate".to_owned(), exit::USAGE),
        (format!("config check {}", path("good.toml")), exit::OK),
        (format!("config check {}", path("bad.toml")), exit::CONFIG),
        (format!("config check {}", path("none.toml")), exit::CONFIG),
        (format!("run --config {}", path("bad.toml")), exit::CONFIG),
        (format!("run --config {}", path("good.toml")), exit::FAILED),
        (format!("status --config {}", path("good.toml")), exit::UNAVAILABLE),
        (format!("status --config {}", path("bad.toml")), exit::CONFIG),
        (format!("reload --admin-socket {}", path("none.sock")), exit::UNAVAILABLE),
        (format!("exec --admin-socket {} --service web -- true", path("none.sock")), exit::EXEC_FAILED),
        (format!("intention list --http-addr unix://{}", path("none.sock")), exit::UNAVAILABLE),
        ("intention list --http-addr http://192.0.2.1:8500".to_owned(), exit::FAILED),
        ("intention check --http-addr localhost:1 web".to_owned(), exit::USAGE),
        ("intention check --http-addr localhost:1 * db".to_owned(), exit::USAGE),
        (format!("man {}", path("man")), exit::OK),
    ] {
        assert_eq!(code(&line), expected, "{line}");
    }
    assert!(dir.path().join("man/meshnode-status.1").exists());
}

#[test]
fn help_documents_every_exit_code() {
    let help = Cli::command().render_long_help().to_string();
    let codes = [
        exit::OK,
        exit::FAILED,
        exit::DENIED,
        exit::UNHEALTHY,
        exit::USAGE,
        exit::UNAVAILABLE,
        exit::NO_PERMISSION,
        exit::CONFIG,
        exit::EXEC_FAILED,
        exit::EXEC_CANNOT,
        exit::EXEC_NOT_FOUND,
    ];
    for code in codes {
        assert!(help.contains(&format!("{code}  ")) || help.contains(&format!("{code}:")), "{code}\n{help}");
    }
}

/// The embedded control plane of this crate, at a unix socket.
struct ControlPlane {
    dir: tempfile::TempDir,
    _server: crate::control_plane::embedded::Embedded,
    _runtime: tokio::runtime::Runtime,
}

impl ControlPlane {
    fn start() -> Self {
        use crate::control_plane::embedded::{Embedded, Settings};
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            node: "host-a".into(),
            node_address: "10.0.0.1".parse().unwrap(),
            datacenter: "dc1".into(),
            state_dir: dir.path().join("state"),
            default_policy: crate::intention::Action::Deny,
            leaf_ttl: std::time::Duration::from_secs(3600),
            acl: false,
            trust_domain: None,
            listen_tcp: None,
            unix_socket: Some(dir.path().join("api.sock")),
            expose: None,
            ca: None,
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = runtime.block_on(Embedded::start(settings)).unwrap();
        Self { dir, _server: server, _runtime: runtime }
    }

    fn code(&self, line: &str) -> u8 {
        code(&format!("{line} --http-addr unix://{}", self.dir.path().join("api.sock").display()))
    }
}

#[test]
fn intentions_are_created_checked_replaced_and_deleted() {
    let plane = ControlPlane::start();
    for (line, expected) in [
        ("intention list", exit::OK),
        ("intention check web db", exit::DENIED),
        ("intention create web db", exit::OK),
        ("intention check web db", exit::OK),
        ("intention check db web", exit::DENIED),
        ("intention create -deny web db", exit::FAILED),
        ("intention check web db", exit::OK),
        ("intention create -deny -replace web db", exit::OK),
        ("intention check web db", exit::DENIED),
        ("intention create --allow * db", exit::OK),
        ("intention check other db", exit::OK),
        ("intention check web db", exit::DENIED),
        ("intention list --json", exit::OK),
        ("intention delete web -> db", exit::OK),
        ("intention check web db --json", exit::OK),
        ("intention delete web db", exit::FAILED),
        ("intention delete 00000000-0000-0000-0000-000000000000", exit::FAILED),
        ("intention create web db --replace --json", exit::OK),
    ] {
        assert_eq!(plane.code(line), expected, "{line}");
    }
}

#[test]
fn services_are_registered_and_listed() {
    let plane = ControlPlane::start();
    let file = plane.dir.path().join("s.json");
    std::fs::write(
        &file,
        r#"{"services": [{"name": "db", "port": 5432, "connect": {"sidecar_service": {"port": 21000}}}]}"#,
    )
    .unwrap();
    let bad = plane.dir.path().join("bad.json");
    std::fs::write(&bad, r#"{"service": {"name": "db", "port": "many"}}"#).unwrap();
    for (line, expected) in [
        ("service list".to_owned(), exit::OK),
        ("service register --name web --port 80 --tag a --tag b --address 10.0.0.9".to_owned(), exit::OK),
        (format!("service register {}", file.display()), exit::OK),
        (format!("service register {}", bad.display()), exit::FAILED),
        ("service register /no/such/file".to_owned(), exit::FAILED),
        ("service list --json".to_owned(), exit::OK),
        ("service list --service web".to_owned(), exit::OK),
    ] {
        assert_eq!(plane.code(&line), expected, "{line}");
    }
    let access = ApiAccess::anonymous(ApiAddress::Unix(plane.dir.path().join("api.sock")));
    let api = Client::open(access).unwrap();
    let found: serde_json::Value = block_on(api.get("/v1/health/connect/db")).unwrap();
    assert_eq!(found[0]["Service"]["Port"], 21000, "the file's sidecar is registered too");
}
