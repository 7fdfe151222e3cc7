//! The same requests to a real Consul and to meshnode's embedded server, and what differs in their answers.
//!
//! Data flow: `servers` (a pair of them) → `run` (steps, done on both) → `wire` (HTTP) → `normal` (what must differ is
//! made equal) → `compare` (where they differ all the same) → `declared` (whether that is known, and why).

pub mod compare;
pub mod declared;
pub mod normal;
pub mod run;
pub mod servers;
pub mod wire;

pub use self::{declared::Difference, run::Run, servers::Servers};
