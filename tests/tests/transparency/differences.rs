//! Every difference between a plain and a captured run that is known, with its reason. docs/compatibility.md has the same.

use mesh_tests::transparency::Difference;

/// Why a server sees another address.
const SEEN: &str =
    "the server's peer is the daemon of its own host: who calls is known by identity, not by address";

/// Of mail, whose server notes who delivered it.
pub const MESSAGES: &[Difference] = &[Difference {
    case: "SMTP",
    place: "the peer that the server saw",
    plain: "10.77.1.1",
    captured: "127.0.0.1",
    reason: SEEN,
}];

/// Of file transfer, where a data connection goes to a port of its own.
pub const FILES: &[Difference] = &[
    Difference {
        case: UNKNOWN_DATA,
        place: "*: exit code",
        plain: "exit status: 0",
        captured: "exit status: 7",
        reason: "a data port that is no service is not captured, and the server, whose control connection came by \
                 loopback, listens there only: refused, never in clear. With a service for the port it works",
    },
    Difference {
        case: UNKNOWN_DATA,
        place: "*: output",
        plain: "*",
        captured: "*",
        reason: "as above: nothing was transferred",
    },
];

const UNKNOWN_DATA: &str = "FTP, passive, data port unknown to the mesh";

/// Of databases, which know from where somebody logged in.
pub const MARIADB: &[Difference] = &[Difference {
    case: "MariaDB",
    place: "who: output",
    plain: "10.77.1.1*",
    captured: "127.0.0.1*",
    reason: SEEN,
}];

pub const POSTGRESQL: &[Difference] = &[Difference {
    case: "PostgreSQL",
    place: "who: output",
    plain: "10.77.1.1*",
    captured: "127.0.0.1*",
    reason: SEEN,
}];

/// Of programs that dial by name, which means the service and no host.
pub const NAMES: &[Difference] = &[
    Difference {
        case: "names, curl",
        place: "peer: output",
        plain: "10.77.2.1",
        captured: "240.240.*",
        reason: "`NAME.mesh` is the service's virtual IP, whichever instance takes the connection",
    },
    Difference {
        case: "names, curl",
        place: "a port that nobody has: exit code",
        plain: "exit status: 7",
        captured: "exit status: 0",
        reason: "a virtual IP means the service at any port",
    },
    Difference {
        case: "names, curl",
        place: "a port that nobody has: output",
        plain: "*",
        captured: "*",
        reason: "as above: it is the page",
    },
];

/// Of CPython's own tests, whose connections stay on the host.
pub const CPYTHON: &[Difference] = &[
    not_there("*.NetworkConnectionNoServer.*"),
    not_there("*.test_server_close"),
    not_there("*.test_cancel_sock_accept"),
    not_there("*.test_sock_client_fail"),
    Difference {
        case: CPYTHON_MTLS,
        place: "*.NetworkConnectionAttributesTest.testFamily",
        plain: "ok",
        captured: "failure: AssertionError",
        reason: "the server is on 127.0.0.1 alone and `localhost` is `::1` first: a service of the host is reached at each \
                 of its addresses",
    },
    Difference {
        case: CPYTHON_MTLS,
        place: "*.test_sock_accept",
        plain: "ok",
        captured: "failure: AssertionError",
        reason: SEEN,
    },
];

const CPYTHON_MTLS: &str = "CPython, mTLS";

/// A test that expects to be refused. It sees no error, or the reset where it asks for the socket's error later.
const fn not_there(place: &'static str) -> Difference {
    Difference {
        case: CPYTHON_MTLS,
        place,
        plain: "ok",
        captured: "*: *Error",
        reason: "nothing listens there: `connect()` succeeds, and a reset follows, as between hosts",
    }
}

pub fn all() -> impl Iterator<Item = &'static Difference> {
    [MESSAGES, FILES, MARIADB, POSTGRESQL, NAMES, CPYTHON].into_iter().flatten()
}
