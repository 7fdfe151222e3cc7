//! A daemon for one command, on a host that runs none: it governs a cgroup of its own and nothing else of the host, and
//! leaves nothing behind.
//!
//! Programs of the command that outlive it keep their cgroup and its BPF programs, without a daemon: the mesh is denied to
//! them, never open. The next temporary daemon clears away what such ones, or a killed `exec`, have left.

use std::{
    fs::{self, File},
    io,
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt},
        net::UnixStream,
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use super::{ExecArgs, attended::tell, failed};
use crate::{
    cli::{Failure, Global, admin::Admin, target},
    config::Config,
    control_plane::{ApiAccess, ApiError},
    daemon,
    datapath::cgroup::Governed,
};
use nix::{
    sys::{
        prctl,
        signal::{Signal, kill},
    },
    unistd::{Pid, geteuid},
};

/// One folder for each, named by the pid of its `exec`.
const RUN: &str = "/run/meshnode-exec";
/// Cgroups, below the mount, named likewise.
const CGROUP: &str = "/meshnode.temporary";
const BPF: &str = "/sys/fs/bpf/meshnode-exec";

const START: Duration = Duration::from_secs(30);
const END: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);
/// Lines of the daemon's log that are shown when it does not start.
const LAST_LINES: usize = 8;

/// A daemon that ends with this.
pub struct Temporary {
    place: Place,
    daemon: Child,
}

impl Temporary {
    /// Returns when it answers.
    pub async fn start(global: &Global, args: &ExecArgs) -> Result<Self, Failure> {
        if !geteuid().is_root() {
            return Err(failed(
                "--temporary loads BPF programs and makes a cgroup, which takes root\nUse sudo.",
            ));
        }
        let socket = target::admin_socket(global).map_err(|failure| failed(failure.to_string()))?;
        if UnixStream::connect(&socket).is_ok() {
            return Err(failed(format!(
                "a daemon runs on this host ({}): leave --temporary out, and give it the service (`[[service]] name = \"{}\"`)",
                socket.display(),
                args.service
            )));
        }
        sweep();
        let (access, kind) = control_plane(global, args).await?;
        tell(args, "starting a daemon for this command");
        let place = Place::new(std::process::id());
        let prepared = place.prepare(&access, kind, args.service.as_str()).and_then(|()| place.launch());
        let daemon = match prepared {
            Ok(daemon) => daemon,
            Err(error) => {
                place.clear();
                return Err(failed(format!("cannot start a daemon: {error}")));
            }
        };
        let mut own = Self { place, daemon };
        own.until_it_answers().await?;
        Ok(own)
    }

    pub fn admin(&self) -> Admin {
        Admin::new(self.place.socket())
    }

    async fn until_it_answers(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + START;
        while UnixStream::connect(self.place.socket()).is_err() {
            let ended = self.daemon.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() >= deadline {
                let how =
                    ended.map_or_else(|| "does not answer".to_owned(), |status| format!("ended ({status})"));
                return Err(failed(format!(
                    "the daemon for this command {how}:\n{}",
                    self.place.last_words()
                )));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn stop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.daemon.id()).expect("invariant: pids are positive"));
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + END;
        while matches!(self.daemon.try_wait(), Ok(None)) {
            if Instant::now() >= deadline {
                let _ = self.daemon.kill();
                let _ = self.daemon.wait();
                return;
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.stop();
        if self.place.is_populated() {
            eprintln!(
                "meshnode: programs of the command still run, in cgroup {}: the mesh is denied to them from here on",
                self.place.cgroup.display()
            );
        } else {
            self.place.clear();
        }
    }
}

/// Returns where the control plane is, and its kind as a configuration calls it.
async fn control_plane(global: &Global, args: &ExecArgs) -> Result<(ApiAccess, &'static str), Failure> {
    if !target::names_another_host(global) {
        return Err(failed(
            "--temporary needs a control plane: --http-addr https://HOST:8501 --ca-file FILE --token TOKEN (or a \
             configuration that names one, --config FILE)",
        ));
    }
    let explained = |failure: Failure| failed(failure.to_string());
    let client = target::control_plane(global).map_err(explained)?;
    let address = &client.access().address;
    tell(args, &format!("asking the control plane at {address}"));
    // Takes no rights to ask: Consul has no such path, and the embedded server signs there (by PUT).
    let kind = match client.ask("/v1/connect/ca/sign/service").await {
        Err(ApiError::NotFound { .. }) => "consul",
        // So it is the token itself that is refused.
        Err(ApiError::Forbidden { reason, .. }) => {
            let reason = reason.split(';').next().unwrap_or_default();
            return Err(failed(format!(
                "the control plane at {address} refuses: {reason}\nThe token is that of [control_plane.embedded.expose] there, or an ACL token: --token TOKEN, or CONSUL_HTTP_TOKEN."
            )));
        }
        Err(error) if error.is_outage() => return Err(explained(error.into())),
        _ => "remote",
    };
    Ok((client.access().clone(), kind))
}

/// Where one such daemon has its things.
struct Place {
    dir: PathBuf,
    bpf: PathBuf,
    /// Below the cgroup mount.
    cgroup: PathBuf,
}

impl Place {
    fn new(pid: u32) -> Self {
        let pid = pid.to_string();
        Self {
            dir: Path::new(RUN).join(&pid),
            bpf: PathBuf::from(format!("{BPF}-{pid}")),
            cgroup: Path::new(CGROUP).join(pid),
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("admin.sock")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("meshnode.toml")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    fn prepare(&self, access: &ApiAccess, kind: &str, service: &str) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let all = Governed::find("/").map_err(io::Error::other)?;
        let make = || all.make(&self.cgroup.to_string_lossy());
        // Another one that ends may remove the cgroup around all of them in between.
        make().or_else(|_| make()).map_err(io::Error::other)?;
        let token = match &access.token {
            None => None,
            Some(token) => {
                let path = self.dir.join("token");
                write_private(&path, token.current().map_err(io::Error::other)?.as_bytes())?;
                Some(path)
            }
        };
        write_private(&self.config(), self.document(access, kind, service, token).to_string().as_bytes())
    }

    fn document(&self, access: &ApiAccess, kind: &str, service: &str, token: Option<PathBuf>) -> toml::Table {
        let text = |path: &Path| toml::Value::from(path.to_string_lossy().into_owned());
        let mut plane = toml::Table::new();
        plane.insert("kind".into(), kind.into());
        plane.insert("address".into(), access.address.to_string().into());
        let client = access.client_cert.as_ref();
        let files = [
            ("token_file", token.as_deref()),
            ("ca_file", access.ca_file.as_deref()),
            ("cert_file", client.map(|c| c.cert_file.as_path())),
            ("key_file", client.map(|c| c.key_file.as_path())),
        ];
        plane.extend(files.into_iter().filter_map(|(key, path)| Some((key.to_owned(), text(path?)))));
        for (key, value) in
            [("namespace", &access.tenancy.namespace), ("partition", &access.tenancy.partition)]
        {
            plane.extend(value.iter().map(|value| (key.to_owned(), value.clone().into())));
        }
        let mut all = toml::Table::new();
        all.insert("state_dir".into(), text(&self.dir.join("state")));
        all.insert("run_dir".into(), text(&self.dir));
        all.insert("cgroup_root".into(), text(&self.cgroup));
        all.insert("bpf_dir".into(), text(&self.bpf));
        all.insert("drain_deadline".into(), "1s".into());
        all.insert("control_plane".into(), plane.into());
        let service = toml::Table::from_iter([("name".to_owned(), toml::Value::from(service))]);
        all.insert("service".into(), toml::Value::Array(vec![service.into()]));
        all
    }

    fn launch(&self) -> io::Result<Child> {
        let log = File::create(self.log())?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("run").arg("--config").arg(self.config()).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        // A terminal's interrupt is for the command.
        command.process_group(0);
        let ends_with_parent = || Ok(prctl::set_pdeathsig(Signal::SIGTERM)?);
        // SAFETY: the closure makes one system call.
        unsafe { command.pre_exec(ends_with_parent) };
        command.spawn()
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST_LINES)..].join("\n")
    }

    /// The cgroup itself, where it is there.
    fn cgroup_dir(&self) -> Option<PathBuf> {
        Governed::find(&self.cgroup.to_string_lossy()).ok().map(|found| found.path().to_owned())
    }

    /// Whether a process is in the cgroup, or below it.
    fn is_populated(&self) -> bool {
        let events = self.cgroup_dir().and_then(|dir| fs::read_to_string(dir.join("cgroup.events")).ok());
        events.is_some_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// Removes all of it; what cannot be removed is left to the next sweep.
    fn clear(&self) {
        if let Ok(config) = Config::load(Some(&self.config())) {
            let _ = daemon::detach(&config);
        }
        if let Some(dir) = self.cgroup_dir() {
            remove_cgroups(&dir);
        }
        // The one around all of them, if this was the last.
        let _ = Governed::find(CGROUP).map(|around| fs::remove_dir(around.path()));
        let _ = fs::remove_dir_all(&self.dir);
        let _ = fs::remove_dir(RUN);
    }
}

/// A cgroup directory is removed by rmdir(2), from the leaves up; its files are the kernel's.
fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(dir);
}

/// Clears away what was left by those whose `exec` is gone and in whose cgroup nobody is any more.
fn sweep() {
    for entry in fs::read_dir(RUN).into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let place = Place::new(pid);
        if !Path::new(&format!("/proc/{pid}")).exists() && !place.is_populated() {
            place.clear();
        }
    }
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control_plane::{ClientCert, TokenSource};

    #[test]
    fn its_configuration_is_valid_and_says_where_everything_is() {
        let place = Place::new(7);
        let address = "https://10.0.0.1:8501".parse().unwrap();
        let access = ApiAccess {
            ca_file: Some("/etc/ca \"x\".pem".into()),
            client_cert: Some(ClientCert { cert_file: "/c.pem".into(), key_file: "/k.pem".into() }),
            token: Some(TokenSource::value("secret").unwrap()),
            ..ApiAccess::anonymous(address)
        };
        for kind in ["remote", "consul"] {
            let text = place.document(&access, kind, "web", Some("/t".into())).to_string();
            assert!(!text.contains("secret"), "{text}");
            let config = Config::parse(&text, Path::new("m.toml")).unwrap();
            assert_eq!(config.cgroup_root, Path::new("/meshnode.temporary/7"));
            assert_eq!(config.admin_socket(), Path::new("/run/meshnode-exec/7/admin.sock"));
            assert_eq!(config.services[0].name.as_str(), "web");
        }
    }
}
