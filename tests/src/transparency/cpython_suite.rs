//! CPython's own tests of sockets: each connects within one program, to a port that the kernel picks. So the range that
//! the kernel picks from is narrowed, and each port in it is a service of the program itself.

use std::{fs, path::Path, time::Duration};

use serde_json::Value;

use super::{Ends, Outcome};
use crate::{
    config::{Service, second_port},
    meshnode::Meshnode,
    process::run,
    program::script,
};

/// The workload that the tests are: caller and server.
const SUITE: &str = "suite";

/// The Python that `cargo xtask setup` installs the tests of, and where they are.
const PYTHON: &str = "/usr/bin/python3.11";
const TESTS: &str = "/usr/lib/python3.11/test";

/// What the kernel picks ports from.
const RANGE: std::ops::RangeInclusive<u16> = 30_000..=30_199;

/// Longer than any selection of the suite takes.
const LIMIT: Duration = Duration::from_secs(600);

/// Tests that end the one way or the other by themselves, by the end of their names.
const RACING: [&str; 8] = [
    // They bind to a port that the kernel picks and connect to another one that nobody has. Of so few both are the same
    // now and then, and the socket is connected to itself.
    "test_create_connection_local_addr_nomatch_family",
    "test_create_connection_local_addr_skip_different_family",
    // Whether the first of two connect() is refused before listen().
    "test_sock_client_connect_racing",
    // Whether it is told within a tenth of a second that nobody listens.
    "test_connect_timeout_warning",
    // How the bytes of a letter fall into reads.
    "test_storlines",
    // Whether a peer that stops reading is noticed before all is handed over: that is more, and sooner or later, with the
    // buffers of four sockets.
    "testWithTimeoutTriggeredSend",
    "test_sendfile_close_peer_in_the_middle_of_receiving",
    "test_sendfile_fallback_close_peer_in_the_middle_of_receiving",
];

/// Returns the services of a host with a daemon. None is checked: a test would take that for its client.
pub fn services() -> Vec<Service> {
    let service = |port: u16| {
        second_port(SUITE, (&format!("port-{port}"), port)).with("[service.check]\nenabled = false")
    };
    std::iter::once(Service::client(SUITE)).chain(ports().map(service)).collect()
}

/// Those that the kernel gives to who binds; `connect()` gets the even ones, as long as there are any
/// (`inet_csk_find_open_port()`).
fn ports() -> impl Iterator<Item = u16> {
    RANGE.filter(|port| port % 2 == 1)
}

/// Allows the suite to reach itself, and returns when the daemon can carry a connection to each port.
#[track_caller]
pub fn allow(node: &Meshnode) {
    node.intention(SUITE, "*", "allow");
    node.wait_status("an instance and a certificate of each service", |s| {
        let count = |section: &str, is_there: &dyn Fn(&Value) -> bool| {
            let all = s.0[section].as_array().into_iter().flatten();
            all.filter(|one| is_there(one)).count() >= ports().count()
        };
        count("virtual_services", &|service| service["instances"] == 1)
            && count("certificates", &|leaf| leaf["seconds_left"].as_i64().is_some_and(|left| left > 0))
    });
}

/// Narrows the range of ports, once the daemon has its own. With so few, none may be held for a minute after its connection
/// is over: there is no room for sockets in TIME_WAIT, and none becomes one while its peer has yet to close
/// (`tcp_rcv_state_process()`, in FIN_WAIT1, with a time above that minute).
#[track_caller]
pub fn narrow_ports(ends: Ends<'_>) {
    let range = format!("{} {}", RANGE.start(), RANGE.end());
    for (name, value) in
        [("ip_local_port_range", range.as_str()), ("tcp_max_tw_buckets", "0"), ("tcp_fin_timeout", "120")]
    {
        ends.a.run("", &["sh", "-c", &format!("echo {value} > /proc/sys/net/ipv4/{name}")]).ok();
    }
}

/// Runs the tests that `selection` names (modules, classes) and returns how each ended.
#[track_caller]
pub fn run_tests(ends: Ends<'_>, selection: &[&str]) -> Outcome {
    assert!(
        Path::new(TESTS).join("test_socket.py").is_file(),
        "CPython's tests are not in {TESTS}: cargo xtask setup --for test"
    );
    let dir = ends.a.space().scratch().join("cpython");
    fs::create_dir_all(&dir).expect("an own directory");
    let (dir, program) = (dir.to_str().expect("UTF-8"), script::path("cpython_suite.py"));
    let left_out = RACING.map(|name| format!("-{name}"));
    // Not `current_dir`: entering the host's mount namespace leads to its root.
    let mut words = vec!["env", "-C", dir, PYTHON, &program];
    words.extend(left_out.iter().map(String::as_str));
    words.extend(selection);
    let output = run(ends.a.command(SUITE, &words), None, LIMIT);
    let tests: Outcome = output.stdout.lines().filter_map(result).collect();
    assert!(!tests.is_empty(), "{output}");
    if !output.stderr.is_empty() {
        eprintln!("{}", output.stderr);
    }
    tests.with("exit code", output.status)
}

/// Returns a test's name and how it ended.
fn result(line: &str) -> Option<(String, String)> {
    let line: Value = serde_json::from_str(line).ok()?;
    Some((line["test"].as_str()?.to_owned(), line["outcome"].as_str()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_from_a_line_and_what_tests_print_is_passed_over() {
        let line = r#"{"test": "test.test_socket.T.test_x", "outcome": "error: OSError"}"#;
        assert_eq!(result(line), Some(("test.test_socket.T.test_x".into(), "error: OSError".into())));
        assert_eq!(result("a test printed this"), None);
    }
}
