//! The binary as a shell runs it: pipes, a terminal, a cgroup. The daemon behind the admin socket is this test's.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_userspace::{
    admin::{
        AdminBackend, AdminError, AdminServer, Answer, CutReport, CutRequest, ExecTicket, FlowDirection,
        FlowState, FlowStatus, ReloadReport, StatusReport,
    },
    identity::ServiceName,
};
use nix::{
    pty::openpty,
    sys::termios::{LocalFlags, tcgetattr},
};

const PATIENCE: Duration = Duration::from_secs(20);

struct Backend {
    procs: PathBuf,
    flows: u64,
}

impl AdminBackend for Backend {
    fn status(&self) -> StatusReport {
        let flow = |id| FlowStatus {
            id,
            direction: FlowDirection::Outbound,
            program: "curl".into(),
            pid: 1234,
            source: "web".into(),
            destination: "db".into(),
            original_dst: Some("10.0.0.2:5432".parse().unwrap()),
            instance: Some("10.0.0.2:21000".parse().unwrap()),
            state: FlowState::Mtls,
            tls: Some("TLS 1.3".into()),
            bytes_sent: 1229,
            bytes_received: 3_565_158,
            age_s: 12,
            reason: None,
        };
        StatusReport {
            node: "host-a".into(),
            flows: (0..self.flows).map(flow).collect(),
            ..StatusReport::default()
        }
    }

    fn prepare_exec(&self, service: ServiceName) -> Answer<'_, ExecTicket> {
        Box::pin(async move {
            if service.as_str() == "web" {
                return Ok(ExecTicket { cgroup_procs_path: self.procs.clone() });
            }
            Err(AdminError::UnknownService { service, known: vec!["web".parse().unwrap()] })
        })
    }

    fn reload(&self) -> Answer<'_, ReloadReport> {
        Box::pin(async { Err(AdminError::ConfigRefused("m.toml:1:1: nod: unknown key".into())) })
    }

    fn cut(&self, _: CutRequest) -> Answer<'_, CutReport> {
        Box::pin(async { Ok(CutReport::default()) })
    }

    fn drain(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

struct Daemon {
    dir: tempfile::TempDir,
    socket: PathBuf,
    _runtime: tokio::runtime::Runtime,
}

fn daemon(flows: u64) -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let procs = dir.path().join("cgroup.procs");
    fs::write(&procs, "").unwrap();
    daemon_with(dir, Backend { procs, flows })
}

fn daemon_with(dir: tempfile::TempDir, backend: Backend) -> Daemon {
    let socket = dir.path().join("admin.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = runtime.block_on(async { AdminServer::bind(&socket) }).unwrap();
    runtime.spawn(server.serve(Arc::new(backend)));
    Daemon { dir, socket, _runtime: runtime }
}

fn meshnode(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_meshnode"));
    command.arg("--admin-socket").arg(socket).args(args);
    for name in ["MESHNODE_CONFIG", "CONSUL_HTTP_ADDR", "CONSUL_HTTP_TOKEN", "CONSUL_CACERT"] {
        command.env_remove(name);
    }
    command
}

fn run(socket: &Path, args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = meshnode(socket, args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn wait(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status.code().unwrap_or(-1));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let daemon = daemon(20_000);
    let mut child =
        meshnode(&daemon.socket, &["status"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 8];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"meshnode");
    assert_eq!(wait(&mut child), Some(0));
    let mut errors = String::new();
    child.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert_eq!(errors, "");
}

#[test]
fn status_is_plain_text_in_a_pipe_and_the_whole_report_as_json() {
    let daemon = daemon(1);
    let (code, text, _) = run(&daemon.socket, &["status"]);
    assert_eq!(code, 0);
    let line = "curl[1234]  web → db  10.0.0.2:5432  via 10.0.0.2:21000  mTLS   1.2 KiB↑ 3.4 MiB↓  12s";
    assert!(text.contains(line) && !text.contains('\x1b'), "{text}");
    let (code, json, _) = run(&daemon.socket, &["status", "--json"]);
    let report: StatusReport = serde_json::from_str(&json).unwrap();
    assert_eq!((code, report.flows.len()), (0, 1));
    // The control plane of this report does not answer.
    assert_eq!(run(&daemon.socket, &["status", "--check"]).0, 3);
}

#[test]
fn a_refused_reload_says_why() {
    let daemon = daemon(0);
    let (code, _, errors) = run(&daemon.socket, &["reload"]);
    assert_eq!(code, 1);
    assert!(errors.contains("the running one is unchanged:\nm.toml:1:1: nod: unknown key"), "{errors}");
    assert_eq!(run(&daemon.socket, &["drain"]).0, 0);
}

#[test]
fn exec_moves_itself_and_ends_as_the_command_does() {
    let daemon = daemon(0);
    let exec = |service: &str, command: &[&str]| {
        run(&daemon.socket, &[&["exec", "--service", service, "--"], command].concat())
    };
    let (code, out, _) = exec("web", &["sh", "-c", "echo ran; exit 7"]);
    assert_eq!((code, out.as_str()), (7, "ran\n"));
    assert_eq!(fs::read_to_string(daemon.dir.path().join("cgroup.procs")).unwrap(), "0");
    assert_eq!(exec("web", &["/no/such/command"]).0, 127);
    assert_eq!(exec("web", &["/"]).0, 126);

    let (code, out, errors) = exec("wbe", &["echo", "ran"]);
    assert_eq!((code, out.as_str()), (125, ""));
    assert!(errors.contains("no service `wbe` is configured on this host; configured: web"), "{errors}");
}

#[test]
fn exec_runs_nothing_when_it_cannot_enter_the_cgroup() {
    let dir = tempfile::tempdir().unwrap();
    let procs = dir.path().join("gone").join("cgroup.procs");
    let daemon = daemon_with(dir, Backend { procs, flows: 0 });
    let (code, out, _) = run(&daemon.socket, &["exec", "--service", "web", "--", "echo", "ran"]);
    assert_eq!((code, out.as_str()), (125, ""));
}

/// A cgroup that is removed with this.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
        let path =
            Path::new(line.split(' ').nth(4)?).join(format!("meshnode-cli-test-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        Some(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn exec_runs_the_command_inside_a_real_cgroup() {
    let Some(cgroup) = Cgroup::new() else {
        eprintln!("SKIP: needs root and cgroup v2");
        return;
    };
    let procs = cgroup.0.join("cgroup.procs");
    let daemon = daemon_with(tempfile::tempdir().unwrap(), Backend { procs, flows: 0 });
    let (code, out, errors) =
        run(&daemon.socket, &["exec", "--service", "web", "--", "cat", "/proc/self/cgroup"]);
    assert_eq!(code, 0, "{errors}");
    let name = cgroup.0.file_name().unwrap().to_str().unwrap();
    assert!(out.lines().any(|line| line.starts_with("0::") && line.ends_with(name)), "{out}");
}

#[test]
fn watch_draws_in_place_and_q_gives_the_terminal_back() {
    let daemon = daemon(1);
    let terminal = openpty(None, None).unwrap();
    let slave = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    let before = tcgetattr(&terminal.slave).unwrap();
    let mut child = meshnode(&daemon.socket, &["status", "--watch"])
        .stdin(slave(&terminal.slave))
        .stdout(slave(&terminal.slave))
        .spawn()
        .unwrap();
    let mut master = fs::File::from(terminal.master);
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    // Drawn twice, so it refreshes; the read ends with the first frame at the latest when the child dies.
    while seen.matches("\x1b[H").count() < 2 {
        let read = master.read(&mut buffer).unwrap();
        seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    assert!(seen.starts_with("\x1b[?1049h") && seen.contains("web → db"), "{seen:?}");
    assert!(!tcgetattr(&terminal.slave).unwrap().local_flags.contains(LocalFlags::ICANON));
    master.write_all(b"q").unwrap();
    assert_eq!(wait(&mut child), Some(0));
    let read = master.read(&mut buffer).unwrap();
    assert!(String::from_utf8_lossy(&buffer[..read]).contains("\x1b[?1049l"));
    assert_eq!(tcgetattr(&terminal.slave).unwrap(), before);
}

#[test]
fn watch_in_a_pipe_is_one_json_report_in_each_line() {
    let daemon = daemon(1);
    let mut child =
        meshnode(&daemon.socket, &["status", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let report: StatusReport = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(report.node, "host-a");
    }
    drop(lines);
    assert_eq!(wait(&mut child), Some(0), "the closed pipe ends it");
}
