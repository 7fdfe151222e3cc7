//! The control plane as this host sees it: a client of the HTTP API of a Consul agent, and (in `embedded`) a server
//! of the same API.
//!
//! Data flow of the client: `client` (one request) → `watch` (blocking queries) → `trust`, `discovery`, `policy`,
//! `leaf` (what answers mean) → [`crate::state::MeshState`], and `cache` (the same on disk). `register` announces this
//! host's services. `link` knows whether all that works at present. [`Sync`] runs it.

pub mod api;
mod cache;
mod client;
mod connector;
mod discovery;
pub mod embedded;
mod join;
mod leaf;
mod link;
mod pace;
mod policy;
mod register;
mod settings;
mod sync;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trust;
mod watch;

pub use client::{ApiError, Client, escape};
pub use connector::TlsSetupError;
pub use leaf::renew_at;
pub use link::Status;
pub use policy::intention;
pub use settings::{
    AddressError, ApiAddress, ClientCert, Health, Kind, Listens, LocalService, Settings, TokenError,
    TokenSource,
};
pub use sync::{Sync, SyncHandle};
