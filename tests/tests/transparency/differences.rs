//! Every difference between a plain and a captured run that is known, with its reason. docs/compatibility.md has the same.

use mesh_tests::transparency::Difference;

/// Of mail, whose server notes who delivered it.
pub const MESSAGES: &[Difference] = &[];

/// Of file transfer, where a data connection goes to a port of its own.
pub const FILES: &[Difference] = &[];

/// Of databases, which know from where somebody logged in.
pub const MARIADB: &[Difference] = &[];

pub const POSTGRESQL: &[Difference] = &[];

/// Of CPython's suite through the proxy.
pub const CPYTHON: &[Difference] = &[];

pub fn all() -> impl Iterator<Item = &'static Difference> {
    [MESSAGES, FILES, MARIADB, POSTGRESQL, CPYTHON].into_iter().flatten()
}
