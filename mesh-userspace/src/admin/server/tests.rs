//! The admin server over a real unix socket; the backend is a daemon's stand-in, since the daemon is not this module's.

use std::{
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicUsize, Ordering},
};

use super::*;
use crate::{admin::Answer, identity::ServiceName};

#[derive(Default)]
struct Backend {
    prepared: AtomicUsize,
}

impl AdminBackend for Backend {
    fn status(&self) -> StatusReport {
        StatusReport { version: "test".into(), node: "host-a".into(), ..StatusReport::default() }
    }

    fn prepare_exec(&self, service: ServiceName) -> Answer<'_, ExecTicket> {
        self.prepared.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            if service.as_str() == "web" {
                return Ok(ExecTicket { cgroup_procs_path: "/cg/web/cgroup.procs".into() });
            }
            let known = vec!["web".parse().unwrap(), "db".parse().unwrap()];
            Err(AdminError::UnknownService { service, known })
        })
    }

    fn reload(&self) -> Answer<'_, ReloadReport> {
        Box::pin(async { Err(AdminError::RestartNeeded(vec!["node".into()])) })
    }

    fn cut(&self, _: CutRequest) -> Answer<'_, CutReport> {
        Box::pin(async { Ok(CutReport::default()) })
    }

    fn drain(&self) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
}

struct Running {
    _dir: tempfile::TempDir,
    path: PathBuf,
    backend: Arc<Backend>,
    runtime: tokio::runtime::Runtime,
}

fn running() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let backend = Arc::new(Backend::default());
    let server = runtime.block_on(async { AdminServer::bind(&path) }).unwrap();
    runtime.spawn(server.serve(backend.clone()));
    Running { _dir: dir, path, backend, runtime }
}

/// Returns status code and body.
fn ask(path: &Path, method: &str, target: &str, body: &str) -> (u16, String) {
    let mut stream = StdUnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[test]
fn the_socket_is_for_its_owner_only_and_goes_with_the_server() {
    let server = running();
    assert_eq!(fs::metadata(&server.path).unwrap().mode() & 0o777, 0o600);
    drop(server.runtime);
    assert!(!server.path.exists());
}

#[test]
fn status_and_metrics_are_answered() {
    let server = running();
    let (code, body) = ask(&server.path, "GET", "/status", "");
    let report: StatusReport = serde_json::from_str(&body).unwrap();
    assert_eq!((code, report.node.as_str()), (200, "host-a"));
    let (code, body) = ask(&server.path, "GET", "/metrics", "");
    assert_eq!(code, 200);
    assert!(body.contains("meshnode_uptime_seconds 0") && body.ends_with("# EOF\n"), "{body}");
}

#[test]
fn exec_gives_a_ticket_for_a_known_service_and_a_list_for_another() {
    let server = running();
    let (code, body) = ask(&server.path, "POST", "/exec", r#"{"service":"web","pid":1}"#);
    let ticket: ExecTicket = serde_json::from_str(&body).unwrap();
    assert_eq!((code, ticket.cgroup_procs_path), (200, PathBuf::from("/cg/web/cgroup.procs")));
    let (code, body) = ask(&server.path, "POST", "/exec", r#"{"service":"wbe","pid":1}"#);
    let error: ErrorBody = serde_json::from_str(&body).unwrap();
    assert_eq!((code, error.code.as_str()), (404, "unknown-service"));
    assert!(error.error.ends_with("configured: web, db"), "{}", error.error);
}

#[test]
fn bad_requests_get_a_4xx_that_says_why_and_reach_no_backend() {
    let server = running();
    for (method, target, body, expected, says) in [
        ("POST", "/exec", "{", 400, "EOF"),
        ("POST", "/exec", r#"{"service":"web"}"#, 422, "pid"),
        ("POST", "/exec", r#"{"service":"-","pid":1}"#, 422, "service name"),
        ("POST", "/exec", r#"{"service":"web","pid":1,"x":2}"#, 422, "unknown field `x`"),
        ("GET", "/exec", "", 405, "another method"),
        ("GET", "/nothing", "", 404, "no such path"),
    ] {
        let (code, answer) = ask(&server.path, method, target, body);
        assert_eq!(code, expected, "{method} {target} {body}: {answer}");
        assert!(answer.contains(says), "{answer}");
    }
    let large = format!(r#"{{"service":"{}","pid":1}}"#, "x".repeat(LARGEST_BODY));
    assert_eq!(ask(&server.path, "POST", "/exec", &large).0, 413);
    assert_eq!(server.backend.prepared.load(Ordering::SeqCst), 0);
}

#[test]
fn reload_and_drain_answer_with_what_the_daemon_says() {
    let server = running();
    let (code, body) = ask(&server.path, "POST", "/reload", "");
    assert_eq!(code, 409);
    assert!(body.contains("restart-needed") && body.contains("node"), "{body}");
    assert_eq!(ask(&server.path, "POST", "/drain", "").0, 202);
}

#[test]
fn a_living_daemons_socket_is_not_taken_and_a_dead_ones_is() {
    let server = running();
    let again = server.runtime.block_on(async { AdminServer::bind(&server.path) });
    assert!(matches!(again, Err(BindError::AnotherDaemon(_))));

    let dead = server.path.with_file_name("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    assert!(dead.exists());
    server.runtime.block_on(async { AdminServer::bind(&dead) }).unwrap();
}

#[test]
fn only_root_and_the_owner_are_permitted() {
    assert!(is_permitted(0, 1000) && is_permitted(1000, 1000));
    assert!(!is_permitted(1001, 1000) && !is_permitted(1000, 0));
}

#[test]
fn another_user_is_refused_even_where_the_file_lets_him_in() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP: needs root to act as another user");
        return;
    }
    let server = running();
    fs::set_permissions(server.path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&server.path, fs::Permissions::from_mode(0o666)).unwrap();
    let path = server.path.clone();
    let answers = std::thread::spawn(move || {
        const NOBODY: libc::uid_t = 65534;
        // SAFETY: the raw system call changes the calling thread's ids only (glibc's wrapper would change all
        // threads'), takes no pointers, and the thread ends with this closure.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) };
        assert_eq!(result, 0);
        [("GET", "/status"), ("POST", "/drain"), ("GET", "/nothing")]
            .map(|(method, target)| ask(&path, method, target, ""))
    });
    for (code, body) in answers.join().unwrap() {
        assert_eq!(code, 403, "{body}");
        assert!(body.contains("forbidden"), "{body}");
    }
    assert_eq!(ask(&server.path, "GET", "/status", "").0, 200);
}
