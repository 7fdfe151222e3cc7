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

pub fn all() -> impl Iterator<Item = &'static Difference> {
    [MESSAGES, FILES, MARIADB, POSTGRESQL].into_iter().flatten()
}
