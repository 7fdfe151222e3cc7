//! What is opened inside of a network namespace, by the thread that enters it.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
};

use netlink_sys::Socket as Netlink;

use crate::{
    daemon::{listeners::is_absent, visitor::Visitor},
    datapath::{guards::Guards, host},
    dns,
    listening::on_loopback,
};

/// Sockets in a namespace that was not known before.
pub struct Opened {
    pub cookie: u64,
    /// On loopback, one for each family that the namespace has.
    pub outbound: Vec<TcpListener>,
    pub names: Option<io::Result<dns::Sockets>>,
}

impl Opened {
    pub fn open(with_names: bool) -> io::Result<Self> {
        let outbound = listen()?;
        let names = with_names.then(dns::Sockets::bind);
        Ok(Self { cookie: host::cookie_of(&outbound[0])?, outbound, names })
    }
}

/// Opens sockets in the namespace, as long as a workload is in it.
pub fn opener(visitor: Visitor, inode: u64) -> dns::Opener {
    let open = move |kind: dns::Kind, count: usize| -> dns::Opening<'static> {
        let visitor = visitor.clone();
        Box::pin(
            async move { visitor.inside(inode, move || (0..count).map(|_| kind.open()).collect()).await },
        )
    };
    dns::Opener::There { open: Box::new(open), ready: dns::Ready::default() }
}

/// What guards the ports of a namespace.
pub struct Protection {
    /// The id of the program that is attached.
    pub program: u32,
    /// What the program steers to.
    pub listeners: Vec<TcpListener>,
    /// Readable when an address comes or goes.
    pub news: Netlink,
}

impl Protection {
    /// Guards the calling thread's namespace.
    pub fn open(guards: &Guards, inode: u64, cookie: u64) -> io::Result<Self> {
        let (listeners, news) = (listen()?, host::address_news()?);
        let program = guards.attach(inode, cookie).map_err(io::Error::other)?;
        Ok(Self { program, listeners, news })
    }
}

/// Listens on loopback of the calling thread's namespace, whether it is up yet or not.
fn listen() -> io::Result<Vec<TcpListener>> {
    let mut sockets = vec![on_loopback(Ipv4Addr::LOCALHOST.into())?];
    match on_loopback(Ipv6Addr::LOCALHOST.into()) {
        Ok(v6) => sockets.push(v6),
        // A namespace without IPv6: nobody in it dials IPv6.
        Err(error) if is_absent(&error) => {}
        Err(error) => return Err(error),
    }
    Ok(sockets)
}
