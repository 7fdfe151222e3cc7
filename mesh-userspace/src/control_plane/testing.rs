//! What the tests of this module share: settings, and the real Consul where it is installed.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::{ApiAccess, Client, Health, Kind, Listens, LocalService, Settings, TokenSource};

pub fn settings(address: &str) -> Settings {
    Settings {
        kind: Kind::Consul,
        access: ApiAccess::anonymous(address.parse().unwrap()),
        node: "host-a".to_owned(),
        node_address: "10.77.0.1".parse().unwrap(),
        datacenter: "dc1".to_owned(),
        datacenter_given: true,
        catalog_limit: 500,
        state_dir: PathBuf::from("/nonexistent"),
        // What leaves is gone at once, so that tests see it go.
        linger: std::time::Duration::ZERO,
        virtual_ranges: crate::config::Config::default().address.virtual_ranges,
        speaks_meshnode: true,
    }
}

/// Returns the consul binary, or says loudly that the test is skipped.
fn consul_bin() -> Option<PathBuf> {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let places = [
        std::env::var_os("CONSUL_BIN").map(PathBuf::from),
        Some(format!("{workspace}/target/tools/bin/consul").into()),
    ];
    let found = places.into_iter().flatten().find(|p| p.is_file());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs no test without Consul: `cargo xtask setup` installs it"
        );
        eprintln!("SKIP: no consul binary; `cargo xtask setup` installs it, or set CONSUL_BIN");
    }
    found
}

/// Returns a port for a program that is about to start. It is below those that the kernel picks: another test, or another
/// agent, would be given it meanwhile.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const EACH: u16 = 200;
    let first = 10_000 + (std::process::id() % 100) as u16 * EACH;
    let mut ports = (0..EACH).map(|_| first + NEXT.fetch_add(1, Ordering::Relaxed) % EACH);
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("some of these are free")
}

/// A real Consul agent in development mode, on ports of its own; killed by pid when dropped.
pub struct Consul {
    child: Child,
    bin: PathBuf,
    pub dir: tempfile::TempDir,
    pub http: u16,
}

impl Consul {
    /// Returns a running agent with `extra` configuration, or `None` where Consul is not installed.
    pub async fn start(extra: Value) -> Option<Self> {
        let bin = consul_bin()?;
        let dir = tempfile::tempdir().unwrap();
        let ports: [u16; 4] = std::array::from_fn(|_| free_port());
        let mut config = json!({
            "node_name": "n1", "disable_update_check": true, "log_level": "WARN",
            "ports": {"http": ports[0], "dns": -1, "grpc": -1, "server": ports[1], "serf_lan": ports[2], "serf_wan": ports[3]},
        });
        for (key, value) in extra.as_object().unwrap() {
            match config.get_mut(key).and_then(Value::as_object_mut) {
                Some(known) => known.extend(value.as_object().unwrap().clone()),
                None => config[key] = value.clone(),
            }
        }
        std::fs::write(dir.path().join("consul.json"), config.to_string()).unwrap();
        let child = spawn(&bin, &dir);
        let consul = Self { child, bin, dir, http: ports[0] };
        consul.ready().await;
        Some(consul)
    }

    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    /// Settings with a state directory that lives as long as this agent.
    pub fn settings(&self) -> Settings {
        Settings { state_dir: self.dir.path().join("state"), ..settings(&self.address()) }
    }

    pub fn client(&self, token: &str) -> Client {
        let mut settings = self.settings();
        settings.access.token = (!token.is_empty()).then(|| TokenSource::value(token).unwrap());
        Client::new(&settings).unwrap()
    }

    /// As `kill -9`: nobody says good-bye.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same ports; it remembers nothing.
    pub async fn restart(&mut self) {
        self.child = spawn(&self.bin, &self.dir);
        self.ready().await;
    }

    async fn ready(&self) {
        let client = Client::new(&settings(&self.address())).unwrap();
        eventually("consul elects itself and has a CA", async || {
            let leader: Option<String> = client.get("/v1/status/leader").await.ok();
            let roots: Option<super::api::RootsAnswer> = client.get("/v1/connect/ca/roots").await.ok();
            leader.is_some_and(|l| !l.is_empty()) && roots.is_some_and(|r| !r.roots.is_empty())
        })
        .await;
    }
}

fn spawn(bin: &PathBuf, dir: &tempfile::TempDir) -> Child {
    let log = || Stdio::from(std::fs::File::create(dir.path().join("consul.log")).unwrap());
    Command::new(bin)
        .args(["agent", "-dev", "-config-file"])
        .arg(dir.path().join("consul.json"))
        .stdin(Stdio::null())
        .stdout(log())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for Consul {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `holds`, half a minute at most.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds().await {
        assert!(Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// `db` on 10.77.0.1:5432 with its mTLS end on `mesh_port`.
pub fn db(mesh_port: u16) -> (watch::Sender<Health>, LocalService) {
    let (health, check) = watch::channel(Health::Passing);
    let listens = Listens {
        also: Vec::new(),
        port: 5432,
        address: "10.77.0.1:5432".parse().unwrap(),
        mesh: ([10, 77, 0, 1], mesh_port).into(),
        check,
    };
    let service = LocalService { name: "db".parse().unwrap(), id: "db".to_owned(), listens: Some(listens) };
    (health, service)
}

/// `web`, which only connects.
pub fn web() -> LocalService {
    LocalService { name: "web".parse().unwrap(), id: "web".to_owned(), listens: None }
}

pub fn local(services: &[LocalService]) -> watch::Sender<Arc<Vec<LocalService>>> {
    watch::Sender::new(Arc::new(services.to_vec()))
}
