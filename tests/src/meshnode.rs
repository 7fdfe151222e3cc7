//! The real `meshnode` binary in a test host: the daemon, and the commands that people type.

use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    config::{CONFIG, Config, TOKEN, TOKEN_FILE},
    host::Host,
    process::{Output, Process},
    space::tool,
    status::Status,
    wait,
};

/// A host with a daemon.
#[derive(Debug)]
pub struct Meshnode {
    // Before the host, so that it is gone first.
    daemon: Option<Process>,
    pub config: Config,
    pub host: Host,
}

impl Meshnode {
    /// Writes the configuration, makes the services' cgroups, starts the daemon and waits until it answers.
    #[track_caller]
    pub fn start(host: Host, config: Config) -> Self {
        let mut node = Self::prepare(host, config);
        node.run();
        node
    }

    /// The same, but starts nothing.
    #[track_caller]
    pub fn prepare(host: Host, config: Config) -> Self {
        let node = Self { daemon: None, config, host };
        node.write_config();
        node.host.write(TOKEN_FILE, TOKEN);
        make_private(&node.host, TOKEN_FILE);
        // A cgroup that the daemon has not seen yet is denied until it has; not what most tests are about.
        for service in &node.config.services {
            node.host.space().cgroup().child(service.cgroup.as_ref().unwrap_or(&service.name));
        }
        node.host.space().cgroup().child(UNMANAGED);
        node
    }

    /// Writes the configuration as it is now.
    #[track_caller]
    pub fn write_config(&self) {
        self.host.write(CONFIG, &self.config.to_string());
    }

    /// Starts the daemon and waits until it answers.
    #[track_caller]
    pub fn run(&mut self) {
        self.launch();
        self.wait_ready();
    }

    /// Starts the daemon and does not wait.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(self.daemon.is_none(), "it runs already");
        let binary = binary();
        let words = [binary.to_str().expect("UTF-8"), "run", "--config", CONFIG];
        self.daemon = Some(self.host.spawn("", &words));
    }

    /// Waits until `meshnode status` answers, or the daemon has ended.
    ///
    /// # Panics
    /// With its log.
    #[track_caller]
    pub fn wait_ready(&mut self) {
        let Self { daemon, host, .. } = self;
        let daemon = daemon.as_mut().expect("the daemon was started");
        daemon.wait_ready(|| {
            let said = cli(host, &["status", "--json"]);
            if said.status.success() { Ok(()) } else { Err(said.to_string()) }
        });
    }

    /// The daemon's process.
    ///
    /// # Panics
    /// When it was not started, or was taken down.
    #[track_caller]
    pub fn daemon(&mut self) -> &mut Process {
        self.daemon.as_mut().expect("the daemon was started")
    }

    /// Returns what the daemon has logged, or nothing when there is none.
    pub fn log(&self) -> String {
        self.daemon.as_ref().map(Process::log).unwrap_or_default()
    }

    /// Kills the daemon as a fault would, and returns when it is gone.
    #[track_caller]
    pub fn kill9(&mut self) {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.signal(Signal::SIGKILL);
        daemon.wait();
    }

    /// Asks the daemon to end, and returns its log when it has.
    #[track_caller]
    pub fn terminate(&mut self) -> String {
        let mut daemon = self.daemon.take().expect("the daemon runs");
        daemon.signal(Signal::SIGTERM);
        let status = daemon.wait();
        assert!(status.success(), "SIGTERM must end it in order, not with {status}:\n{}", daemon.log());
        daemon.log()
    }

    /// Sends SIGHUP, upon which the daemon reads its configuration again.
    #[track_caller]
    pub fn reload(&mut self) {
        self.daemon().signal(Signal::SIGHUP);
    }

    /// Runs `meshnode WORDS…` in the host's root cgroup.
    #[track_caller]
    pub fn cli(&self, words: &[&str]) -> Output {
        cli(&self.host, words)
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        let text = self.cli(&["status", "--json"]).ok();
        Status(serde_json::from_str(&text).unwrap_or_else(|e| panic!("status is no JSON: {e}:\n{text}")))
    }

    /// Polls the status until `condition` holds.
    ///
    /// # Panics
    /// With the last status and the daemon's log.
    #[track_caller]
    pub fn wait_status(&self, what: &str, condition: impl Fn(&Status) -> bool) -> Status {
        wait::until(what, || {
            let status = self.status();
            if condition(&status) { Ok(status) } else { Err(format!("{:#}\n{}", status.0, self.log())) }
        })
    }

    /// Polls the log until a line is as `condition` says, and returns it. The daemon queues its lines: one is written a moment
    /// after what it tells of is in the status.
    #[track_caller]
    pub fn wait_log(&self, what: &str, condition: impl Fn(&str) -> bool) -> String {
        wait::until(what, || {
            let log = self.log();
            log.lines().find(|line| condition(line)).map(str::to_owned).ok_or(log)
        })
    }

    /// Makes or replaces an intention: `allow` or `deny`.
    #[track_caller]
    pub fn intention(&self, source: &str, destination: &str, action: &str) {
        let action = format!("--{action}");
        self.cli(&["intention", "create", &action, "--replace", source, destination]).ok();
    }

    #[track_caller]
    pub fn delete_intention(&self, source: &str, destination: &str) {
        self.cli(&["intention", "delete", source, destination]).ok();
    }

    /// Calls the embedded server's API on its unix socket. Returns the HTTP status and the body.
    #[track_caller]
    pub fn api(&self, method: &str, path: &str, body: Option<&str>) -> (u16, String) {
        let url = format!("http://meshnode{path}");
        let mut words = vec![
            "curl",
            "-s",
            "-S",
            "--unix-socket",
            "/run/meshnode/api.sock",
            "-X",
            method,
            "-w",
            "\n%{http_code}",
        ];
        if body.is_some() {
            words.extend(["-H", "Expect:", "--data-binary", "@-"]);
        }
        words.push(&url);
        let answer = self.host.run_with_input("", &words, body.unwrap_or_default()).ok();
        let (body, code) = answer.rsplit_once('\n').expect("curl's -w writes a line");
        (code.parse().expect("an HTTP status"), body.to_owned())
    }

    /// Returns what a GET of the API answers.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let (code, body) = self.api("GET", path, None);
        assert_eq!(code, 200, "GET {path}: {body}");
        serde_json::from_str(&body).unwrap_or_else(|e| panic!("GET {path}: {e}: {body}"))
    }
}

/// A cgroup that no service of any test selects.
pub const UNMANAGED: &str = "unmanaged";

#[track_caller]
fn cli(host: &Host, words: &[&str]) -> Output {
    let binary = binary();
    let mut all = vec![binary.to_str().expect("cargo's paths are UTF-8")];
    all.extend(words);
    host.run("", &all)
}

/// Returns the binary under test: `$MESHNODE_BIN`, or the one beside the tests.
///
/// # Panics
/// When it was not built, or what the variable names is no file.
#[track_caller]
pub fn binary() -> PathBuf {
    let Some(given) = std::env::var_os("MESHNODE_BIN").map(PathBuf::from) else { return tool("meshnode") };
    // It is started from other directories.
    let absolute = std::path::absolute(&given).expect("there is a working directory");
    assert!(absolute.is_file(), "MESHNODE_BIN={}: {} is no file", given.display(), absolute.display());
    absolute
}

/// Makes a file of the host readable for its owner only.
#[track_caller]
pub fn make_private(host: &Host, inside: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let path = host.space().path(inside);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("an own file");
}
