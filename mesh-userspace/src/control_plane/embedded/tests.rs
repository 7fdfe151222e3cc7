//! The server as its clients see it: over real HTTP on a unix socket, a loopback port, and TLS.

mod acl;
mod agent;
mod auth;
mod blocking;
mod ca;
mod catalog;
mod harness;
mod input;
mod intentions;
mod persistence;
mod rotation;
mod start;
