//! CPython's own tests of sockets and of the protocols of its library.

use mesh_tests::{
    host::Host,
    meshnode::Meshnode,
    net::Network,
    require_root,
    transparency::{Outcome, Report, cpython},
};

use crate::differences;

const SOCKET: &[&str] = &["test.test_socket"];
const ASYNCIO: &[&str] = &[
    "test.test_asyncio.test_streams",
    "test.test_asyncio.test_server",
    "test.test_asyncio.test_sock_lowlevel",
    "test.test_asyncio.test_buffered_proto",
];
const PROTOCOLS: &[&str] = &[
    "test.test_ftplib",
    "test.test_poplib",
    "test.test_smtplib",
    "test.test_httplib",
    "test.test_httpservers",
    "test.test_urllib2_localnet",
    "test.test_socketserver",
    "test.test_asyncore",
    "test.test_telnetlib",
];

/// How often a test that differs is run again on both hosts: on a busy machine some of them run out of their own time.
const AGAIN: usize = 3;

/// Runs the tests on three hosts at once, and compares each host with a daemon to the one without.
#[track_caller]
fn compare(kind: &str, names: &[&str]) {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let nets = [Network::new(), Network::new(), Network::new()];
    let plain_host = cpython::plain_host(&nets[0]);
    let meshed = [("direct", "direct"), ("mtls", "captured")];
    let nodes = [1, 2].map(|n| cpython::meshed_host(&nets[n], meshed[n - 1].0));
    let (mut plain, mut others) = std::thread::scope(|scope| {
        let run = |host| {
            let names = &names;
            move || cpython::run_tests(host, names)
        };
        let plain = scope.spawn(run(&plain_host));
        let others = [0, 1].map(|n: usize| scope.spawn(run(&nodes[n].host)));
        (join(plain), others.map(join))
    });
    for (n, (same_host, counter)) in meshed.into_iter().enumerate() {
        let case = format!("CPython, {kind}, {same_host}");
        let declared = differences::CPYTHON.iter().filter(|d| d.case == case).copied().collect::<Vec<_>>();
        let mut report = Report::new(&declared);
        settle(&report, &case, (&plain_host, &mut plain), (&nodes[n], &mut others[n]));
        report.compare(&case, &plain, &others[n]);
        let flows = nodes[n].status().counter(counter);
        eprintln!(
            "{case}: {} tests, {} ok when plain, {flows} flows {counter}",
            plain.len(),
            plain.count("ok")
        );
        assert!(plain.count("ok") > 20, "{plain:#?}");
        assert!(flows > 10, "only {flows} flows were {counter}");
        report.finish();
    }
}

fn join(thread: std::thread::ScopedJoinHandle<'_, Outcome>) -> Outcome {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs again, alone, what differs and is not declared: on a busy machine some tests run out of their own time.
fn settle(report: &Report, case: &str, plain: (&Host, &mut Outcome), other: (&Meshnode, &mut Outcome)) {
    for _ in 0..AGAIN {
        let found = report.undeclared(case, plain.1, other.1);
        if found.is_empty() {
            return;
        }
        eprintln!("{case}: again: {found:?}");
        let names: Vec<String> = found.into_iter().map(|found| found.place).collect();
        plain.1.amend(&cpython::run_tests(plain.0, &names));
        other.1.amend(&cpython::run_tests(&other.0.host, &names));
    }
}

#[test]
fn sockets_behave_as_without_the_mesh() {
    require_root!();
    compare("sockets", SOCKET);
}

#[test]
fn asyncio_behaves_as_without_the_mesh() {
    require_root!();
    compare("asyncio", ASYNCIO);
}

#[test]
fn protocols_of_the_library_behave_as_without_the_mesh() {
    require_root!();
    compare("protocols", PROTOCOLS);
}
