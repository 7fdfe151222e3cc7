//! The proxy with real TLS over real sockets: two hosts' proxies in one process, programs that are plain sockets.
//! Only the kernel's part is played by a map.

mod audit;
mod carry;
mod cost;
mod links;
mod load;
mod policy;
mod refuse_inbound;
mod refuse_outbound;
mod world;
