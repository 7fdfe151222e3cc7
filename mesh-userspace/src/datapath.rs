//! The kernel's side seen from user space: loading and attaching the BPF programs, keeping their maps in line with
//! what the host knows of the mesh, and reading what they report.

pub mod cgroup;
pub mod classify;
pub mod host;
pub mod load;
pub mod names;
mod sock_diag;
mod sys;
