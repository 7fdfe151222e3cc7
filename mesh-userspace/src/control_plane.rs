//! The control plane as this host sees it: a client of the HTTP API of a Consul agent, and (in `embedded`) a server
//! of the same API.
//!
//! Data flow of the client: `exchange` (one HTTP request) → `client` (one call) → `watch` (blocking queries) → `trust`, `discovery`, `policy`,
//! `leaf` (what answers mean) → [`crate::state::MeshState`], and `cache` (the same on disk). `register` announces this
//! host's services. `link` knows whether all that works at present. [`Sync`] runs it.

mod address;
pub mod api;
mod audit;
mod cache;
mod client;
mod connector;
mod discovery;
pub mod embedded;
mod exchange;
mod expiry;
mod join;
mod leaf;
mod linger;
mod link;
mod matches;
mod pace;
pub mod permission;
mod policy;
mod pulse;
mod register;
mod scope;
mod settings;
mod sight;
mod sync;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod token;
mod trust;
mod watch;

pub use address::{AddressError, ApiAddress, HostPort};
pub use client::{Answer, ApiError, Client, escape};
pub use connector::TlsSetupError;
pub use exchange::{Exchange, ExchangeError, Reply};
pub use expiry::late_at;
pub use leaf::renew_at;
pub use linger::LINGER;
pub use link::Status;
pub use policy::intention;
pub use scope::Watched;
pub use settings::{ApiAccess, ClientCert, Health, Kind, Listens, LocalService, Settings, Tenancy};
pub use sync::{Sync, SyncHandle};
pub use token::{TokenError, TokenSource};
