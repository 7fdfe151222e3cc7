//! Access control as Consul has it: policies (rules about services, nodes, …), and tokens that carry them.
//!
//! `syntax` reads a policy's text, `rules` makes rules of it, `authorizer` merges the rules of a token's policies and
//! decides, `registry` keeps policies and tokens and finds a token by its secret, `caller` is who makes a request.
//! Which request needs what is written in the handlers; who is let in at all, in `auth`.

mod authorizer;
mod caller;
mod registry;
mod rules;
mod syntax;
mod write;

pub use self::{
    caller::{Caller, Denied, NOT_FOUND, Right},
    registry::{
        ANONYMOUS, ANONYMOUS_SECRET, GLOBAL_MANAGEMENT, NodeIdentity, Policy, Registry, ServiceIdentity,
        Token,
    },
    rules::{Access, Resource, parse as parse_rules},
    write::ensure_builtin,
};
