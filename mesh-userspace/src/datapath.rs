//! The kernel's side seen from user space: loading and attaching the BPF programs, keeping their maps in line with
//! what the host knows of the mesh, and reading what they report.
//!
//! `load` puts the programs in place; `classify` (cgroups) and `host` (addresses) watch the machine; `desired` says
//! what the maps should hold, `tables` gets them there; `flows`, `direct` and `events` read what the kernel wrote.

pub mod cgroup;
pub mod classify;
pub mod desired;
pub mod direct;
pub mod egress;
pub mod elsewhere;
pub mod engine;
pub mod events;
pub mod flows;
pub mod guards;
pub mod host;
pub mod load;
pub mod names;
pub mod queries;
mod sock_diag;
mod sys;
mod tables;
pub mod uncaptured;
