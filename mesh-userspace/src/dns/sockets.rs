//! The sockets that queries are diverted to, one set for each network namespace that workloads are in.
//!
//! Only loopback reaches them. Which alias a datagram was sent to says which server was asked: its address for IPv4, its
//! port for IPv6. The kernel takes the ports from the TCP listeners, which have the same ones: a UDP socket in a sockmap
//! would work differently, and a listener that is gone says that nobody answers.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use mesh_common::dns::DNS_SLOTS;
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net;

use crate::{listening::on_loopback, proxy::Listener};

/// Another program may have a port of the same number for UDP.
const ATTEMPTS: usize = 32;

/// Bound sockets of one network namespace.
#[derive(Debug)]
pub struct Sockets {
    four: TcpListener,
    four_datagrams: std::net::UdpSocket,
    /// `None`: the namespace has no IPv6.
    six: Option<(TcpListener, Vec<std::net::UdpSocket>)>,
}

/// The same, in the runtime.
pub(super) struct Served {
    /// With their ports.
    pub listeners: Vec<(Listener, u16)>,
    pub datagrams: Vec<net::UdpSocket>,
}

impl Sockets {
    /// Binds in the calling thread's network namespace, whether its loopback is up yet or not.
    ///
    /// # Errors
    /// No ports are to be had.
    pub fn bind() -> io::Result<Self> {
        let (four, four_datagrams) = again(four)?;
        let six = match again(six) {
            Ok(six) => Some(six),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT)) => {
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self { four, four_datagrams, six })
    }

    /// The listeners, IPv4 first.
    pub fn listeners(&self) -> impl Iterator<Item = &TcpListener> {
        std::iter::once(&self.four).chain(self.six.iter().map(|(listener, _)| listener))
    }

    pub(super) fn register(self) -> io::Result<Served> {
        let (mut listeners, mut datagrams) = (vec![self.four], vec![self.four_datagrams]);
        if let Some((listener, sockets)) = self.six {
            listeners.push(listener);
            datagrams.extend(sockets);
        }
        let listeners = listeners.into_iter().map(|listener| {
            let port = listener.local_addr()?.port();
            Ok((Listener::register(listener)?, port))
        });
        let datagrams = datagrams.into_iter().map(|socket| {
            socket.set_nonblocking(true)?;
            net::UdpSocket::from_std(socket)
        });
        Ok(Served {
            listeners: listeners.collect::<io::Result<_>>()?,
            datagrams: datagrams.collect::<io::Result<_>>()?,
        })
    }
}

fn again<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..ATTEMPTS {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            bound => return bound,
        }
    }
    Err(last)
}

fn four() -> io::Result<(TcpListener, std::net::UdpSocket)> {
    let listener = on_loopback(Ipv4Addr::LOCALHOST.into())?;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // All of 127.77/16 at once, and nothing that comes from the network.
    socket.bind_device(Some(b"lo"))?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    let port = listener.local_addr()?.port();
    socket.bind(&SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port).into())?;
    Ok((listener, socket.into()))
}

fn six() -> io::Result<(TcpListener, Vec<std::net::UdpSocket>)> {
    let listener = on_loopback(Ipv6Addr::LOCALHOST.into())?;
    let first = listener.local_addr()?.port();
    let slot = |n: u16| {
        let port = first.checked_add(n).ok_or(io::ErrorKind::AddrInUse)?;
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_freebind_v6(true)?;
        socket.bind(&SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port).into())?;
        Ok(socket.into())
    };
    Ok((listener, (0..DNS_SLOTS).map(slot).collect::<io::Result<_>>()?))
}
