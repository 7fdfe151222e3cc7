//! Measurements, on the hosts of `mesh-tests`: the real daemon, real servers, connections by real processes.
//!
//! Each benchmark is a module that returns its figures as JSON, and a binary that prints them; `cargo xtask bench` runs
//! the binaries. A small size of each is a test without an assertion on time, so that it does not rot.

pub mod api;
pub mod control_plane;
pub mod datapath;
pub mod figures;
pub mod fill;
pub mod held;
pub mod hooks;
pub mod policy;
pub mod scale;
pub mod server;
pub mod shape;
pub mod usage;
pub mod verdict;
pub mod watchers;
