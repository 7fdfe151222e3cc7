//! Asks the server that the program asked, with a socket of its own in the program's network namespace: a source port
//! that nobody can guess for each query, and the kernel takes answers from that server only.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

use super::is_response_to;

/// Programs ask again, or give up, before this.
const PATIENCE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(10);
/// Sockets that are opened at once in a namespace other than the host's: each visit costs a switch of threads.
const BATCH: usize = 8;

/// What socket is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    pub v6: bool,
    pub stream: bool,
}

impl Kind {
    /// Opens one in the calling thread's network namespace; it is non-blocking.
    pub fn open(self) -> io::Result<OwnedFd> {
        let domain = if self.v6 { Domain::IPV6 } else { Domain::IPV4 };
        let (kind, protocol) =
            if self.stream { (Type::STREAM, Protocol::TCP) } else { (Type::DGRAM, Protocol::UDP) };
        let socket = Socket::new(domain, kind, Some(protocol))?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }
}

/// Sockets on their way.
pub type Opening<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<OwnedFd>>> + Send + 'a>>;

/// Opens sockets in one network namespace.
pub enum Opener {
    /// In the daemon's own.
    Here,
    /// By who can go there; what was opened in advance is kept.
    There { open: Box<dyn Fn(Kind, usize) -> Opening<'static> + Send + Sync>, ready: Ready },
}

/// Datagram sockets that nobody used yet, IPv4 and IPv6.
pub type Ready = Mutex<[Vec<OwnedFd>; 2]>;

impl Opener {
    async fn open(&self, kind: Kind) -> io::Result<OwnedFd> {
        let Self::There { open, ready } = self else { return kind.open() };
        let kept = |fd: &mut [Vec<OwnedFd>; 2]| fd[usize::from(kind.v6)].pop();
        if !kind.stream
            && let Some(fd) = kept(&mut ready.lock().unwrap_or_else(PoisonError::into_inner))
        {
            return Ok(fd);
        }
        let mut opened = open(kind, if kind.stream { 1 } else { BATCH }).await?;
        let one = opened.pop().ok_or_else(|| io::Error::other("no socket was opened"))?;
        ready.lock().unwrap_or_else(PoisonError::into_inner)[usize::from(kind.v6)].extend(opened);
        Ok(one)
    }

    /// Returns what `server` answers to `query`, as it is.
    ///
    /// # Errors
    /// `TimedOut`: it said nothing in time. Others: it cannot be reached, which the program would have been told at once.
    pub(super) async fn ask(&self, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let fd = self.open(Kind { v6: server.is_ipv6(), stream: false }).await?;
        let socket = UdpSocket::from_std(fd.into())?;
        socket.connect(server).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        let answered = async {
            loop {
                let len = socket.recv(&mut buffer).await?;
                if is_response_to(&buffer[..len], query) {
                    return io::Result::Ok(len);
                }
            }
        };
        let len = timeout(PATIENCE, answered).await.map_err(|_| io::ErrorKind::TimedOut)??;
        buffer.truncate(len);
        Ok(buffer)
    }

    /// Returns a connection to `server`.
    pub(super) async fn connect(&self, server: SocketAddr) -> io::Result<TcpStream> {
        let fd = self.open(Kind { v6: server.is_ipv6(), stream: true }).await?;
        let connecting = TcpSocket::from_std_stream(fd.into()).connect(server);
        timeout(CONNECT, connecting).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}
