//! PostgreSQL: a server with a data directory of its own, and `psql`.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use super::{give_to, listens};
use crate::{host::Host, process::Process, space::tool};

const USER: &str = "postgres";

/// A running server. Users are trusted, since who may connect is the mesh's business here.
#[derive(Debug)]
pub struct Postgres {
    pub server: Process,
    pub port: u16,
}

impl Postgres {
    /// Starts a server on every address of the host, at `port`.
    #[track_caller]
    pub fn start(host: &Host, cgroup: &str, port: u16) -> Self {
        let data = host.space().scratch().join(format!("postgres-{port}"));
        copy_tree(template(), &data);
        give_to(USER, &data);
        let (program, data, port_text) = (binary("postgres"), path_text(&data), port.to_string());
        let mut server = host.spawn(
            cgroup,
            &[
                "setpriv",
                "--reuid",
                USER,
                "--regid",
                USER,
                "--clear-groups",
                &program,
                "-D",
                data,
                "-p",
                &port_text,
                "-k",
                data,
                "-c",
                "listen_addresses=*",
                "-c",
                "fsync=off",
                "-c",
                "max_connections=50",
                "-c",
                "shared_buffers=16MB",
                "-c",
                "autovacuum=off",
            ],
        );
        server.wait_ready(|| listens(host, port));
        server.wait_for_log("database system is ready to accept connections");
        Self { server, port }
    }
}

/// Returns the words of a `psql` command line that runs `sql` and prints bare values.
pub fn psql<'a>(address: &'a str, port: &'a str, sql: &'a str) -> [&'a str; 11] {
    ["psql", "-X", "-A", "-t", "-h", address, "-p", port, "-Upostgres", "-c", sql]
}

/// Returns the path of a server program; Debian keeps them out of `PATH`.
///
/// # Panics
/// When PostgreSQL is not installed.
#[track_caller]
pub fn binary(name: &str) -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|v| v.path().join("bin").join(name)).filter(|p| p.is_file()).max();
    path_text(&found.expect("PostgreSQL's server must be installed (`cargo xtask setup`)")).to_owned()
}

/// Returns a freshly initialized data directory to copy from. It is kept between runs beside the test binaries, for
/// `initdb` takes seconds (a minute in an emulated guest).
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let initdb = binary("initdb");
        let version = Path::new(&initdb).iter().rev().nth(2).expect("…/VERSION/bin/initdb");
        let cache = tool("keeper").with_file_name(format!("postgres-template-{}", version.display()));
        if !cache.join("PG_VERSION").is_file() {
            make_template(&initdb, &cache);
        }
        cache
    })
}

fn make_template(initdb: &str, cache: &Path) {
    let fresh =
        tempfile::Builder::new().prefix(crate::janitor::PREFIX).tempdir().expect("a temporary directory");
    fs::set_permissions(fresh.path(), fs::Permissions::from_mode(0o755)).expect("an own directory");
    let data = fresh.path().join("data");
    fs::create_dir(&data).expect("an own directory");
    give_to(USER, &data);
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups", initdb, "-D"]).arg(&data);
    command
        .args(["-A", "trust", "--no-locale", "-E", "UTF8", "--no-sync"])
        .current_dir("/")
        .env("LC_ALL", "C");
    crate::process::run(command, None, std::time::Duration::from_secs(300)).ok();
    let hba = data.join("pg_hba.conf");
    let rules = fs::read_to_string(&hba).expect("initdb wrote it") + "host all all all trust\n";
    fs::write(&hba, rules).expect("an own directory");
    // Another run may be at the same: who comes first provides it.
    let ours = cache.with_extension(std::process::id().to_string());
    copy_tree(&data, &ours);
    if fs::rename(&ours, cache).is_err() {
        fs::remove_dir_all(&ours).expect("an own directory");
    }
}

#[track_caller]
fn copy_tree(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(status.is_ok_and(|s| s.success()), "copy {} to {}", from.display(), to.display());
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("paths of tests are UTF-8")
}
