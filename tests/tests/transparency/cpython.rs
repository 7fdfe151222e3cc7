//! CPython's own tests of sockets, of asyncio and of its FTP client: plain, direct, and through the proxy. Caller and server
//! are on one host, in one program.

use std::thread;

use mesh_tests::{
    require_root,
    transparency::{Report, SameHost, cpython_suite, is_full, same_host::Path},
};

use crate::differences;

/// What connects by TCP, each in one way.
const QUICK: &[&str] = &[
    "test.test_socket.BasicTCPTest",
    "test.test_socket.BufferIOTest",
    "test.test_socket.ContextManagersTest",
    "test.test_socket.CreateServerFunctionalTest",
    "test.test_socket.FileObjectClassTestCase",
    "test.test_socket.InterruptedSendTimeoutTest",
    "test.test_socket.NetworkConnectionAttributesTest",
    "test.test_socket.NetworkConnectionNoServer",
    "test.test_socket.NonBlockingTCPTests",
    "test.test_socket.RecvmsgIntoTCPTest",
    "test.test_socket.RecvmsgTCPTest",
    "test.test_socket.SendfileUsingSendfileTest",
    "test.test_socket.SendmsgTCPTest",
    "test.test_socket.TCPCloserTest",
    "test.test_socket.TCPTimeoutTest",
    "test.test_asyncio.test_base_events.BaseLoopSockSendfileTests",
    "test.test_asyncio.test_buffered_proto",
    "test.test_asyncio.test_events.EPollEventLoopTests",
    "test.test_asyncio.test_sendfile.EPollEventLoopTests",
    "test.test_asyncio.test_server",
    "test.test_asyncio.test_sock_lowlevel",
    "test.test_asyncio.test_ssl",
    "test.test_asyncio.test_streams",
    "test.test_asyncio.test_unix_events.SelectorEventLoopUnixSockSendfileTests",
    "test.test_ftplib",
];

/// The same in other ways: buffers, loops that select and poll; and what takes seconds.
const MORE: &[&str] = &[
    "test.test_socket.BasicTCPTest2",
    "test.test_socket.LineBufferedFileObjectClassTestCase",
    "test.test_socket.NetworkConnectionBehaviourTest",
    "test.test_socket.SendfileUsingSendTest",
    "test.test_socket.SmallBufferedFileObjectClassTestCase",
    "test.test_socket.UnbufferedFileObjectClassTestCase",
    "test.test_socket.UnicodeReadFileObjectClassTestCase",
    "test.test_socket.UnicodeReadWriteFileObjectClassTestCase",
    "test.test_socket.UnicodeWriteFileObjectClassTestCase",
    "test.test_asyncio.test_events.PollEventLoopTests",
    "test.test_asyncio.test_events.SelectEventLoopTests",
    "test.test_asyncio.test_sendfile.PollEventLoopTests",
    "test.test_asyncio.test_sendfile.SelectEventLoopTests",
    "test.test_asyncio.test_sslproto.SelectorStartTLSTests",
];

#[test]
fn cpythons_own_tests_end_as_on_plain_tcp() {
    require_root!();
    let hosts = [Path::Direct, Path::Mtls].map(|path| SameHost::start_with(cpython_suite::services(), path));
    for host in &hosts {
        cpython_suite::allow(&host.node);
        host.both(cpython_suite::narrow_ports);
    }
    let [direct, mtls] = &hosts;
    let (selection, flows) = if is_full() { ([QUICK, MORE].concat(), 600) } else { (QUICK.to_vec(), 350) };
    let run = |ends| cpython_suite::run_tests(ends, &selection);
    // They wait more than they compute.
    let (plain, direct, mtls) = thread::scope(|scope| {
        let plain = scope.spawn(|| run(direct.plain()));
        let direct = scope.spawn(|| direct.proved("CPython, direct", flows, || run(direct.captured())));
        let mtls = mtls.proved("CPython, mTLS", flows, || run(mtls.captured()));
        (plain.join().expect("it ran"), direct.join().expect("it ran"), mtls)
    });
    eprintln!("CPython's own tests: {} ok", plain.count("ok"));
    let mut report = Report::new(differences::CPYTHON);
    report.compare("CPython, direct", &plain, &direct);
    report.compare("CPython, mTLS", &plain, &mtls);
    assert_eq!(plain.count("exit status: 0"), 1, "{plain:#?}");
    assert!(plain.count("ok") > 400, "only {} tests ran: {plain:#?}", plain.count("ok"));
    report.finish();
}
