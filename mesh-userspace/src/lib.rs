//! meshnode's user space: the daemon, the proxy, the control plane (client and embedded server), and the CLI.
//!
//! Data flow, outbound: `datapath` (the kernel captured a connection) → `proxy::outbound` → `state` (who may, where
//! to) → `tls` → `proxy::copy`. Inbound: `proxy::inbound` → `tls` → `state` → the program.
//! `control_plane` fills `state`; `datapath` writes what the kernel needs of it into the BPF maps.

pub mod admin;
#[cfg(test)]
mod allocations;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod control_plane;
pub mod daemon;
pub mod datapath;
pub mod dns;
pub mod fast_path;
pub mod identity;
pub mod intention;
mod listening;
pub mod proxy;
pub mod state;
pub mod telemetry;
pub mod tls;
