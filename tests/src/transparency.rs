//! The same program run twice, plain and through the mesh, and what differs in what came of it.
//!
//! Data flow: `stage` (two pairs of hosts, one without daemons) → `outcome` (what a run came to) → `report` (what differs,
//! and whether that is known, and why).

pub mod cpython_suite;
pub mod outcome;
pub mod redis_suite;
pub mod report;
pub mod same_host;
pub mod stage;

pub use self::{
    outcome::Outcome,
    report::{Difference, Report},
    same_host::SameHost,
    stage::{Ends, Stage},
};

/// Returns `full` where the sizes that take minutes were asked for (`cargo xtask test transparency --full`), else `quick`.
pub fn size<T>(quick: T, full: T) -> T {
    if is_full() { full } else { quick }
}

/// Whether the sizes that take minutes were asked for.
pub fn is_full() -> bool {
    std::env::var_os("MESHNODE_FULL").is_some_and(|value| !value.is_empty())
}
