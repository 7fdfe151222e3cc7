//! The sockets that carry flows: options, reads and writes.

use std::{
    io,
    net::{Shutdown, SocketAddr},
    os::fd::{AsFd, AsRawFd},
    task::{Context, Poll, ready},
    time::Duration,
};

use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{io::Interest, net::TcpStream};

/// When a silent peer is asked whether it is still there, and how often before it is given up.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    pub after: Duration,
    pub every: Duration,
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self { after: Duration::from_secs(60), every: Duration::from_secs(10), probes: 6 }
    }
}

/// Prepares a socket for a flow to or from another host; a listening one for all that it accepts, which inherit it: keepalive,
/// and what [`prepare_local`] does.
pub(super) fn prepare(socket: SockRef<'_>, keepalive: Keepalive) -> io::Result<()> {
    prepare_local(&socket)?;
    let probes = TcpKeepalive::new()
        .with_time(keepalive.after)
        .with_interval(keepalive.every)
        .with_retries(keepalive.probes);
    socket.set_tcp_keepalive(&probes)
}

/// Prepares a socket for a flow of a program of this host, whose end the kernel tells; a listening one before it listens: what
/// is connected to it has its options from the handshake on, not from `accept()`. No delay, urgent data in its place in
/// the stream (there is no way for it through TLS, and dropping it would be a gap), and **a reset when it is dropped**.
///
/// So whatever ends a flow early (an error, a cut, a panic, the daemon's death) reaches both programs as a reset, never
/// as the clean end of a stream that was cut short. [`close_cleanly`] lifts that once both sides have closed.
pub(crate) fn prepare_local(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_linger(Some(Duration::ZERO))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)
}

/// Connects to a program of this host, in its network namespace.
pub(crate) async fn dial_local(program: SocketAddr) -> io::Result<TcpStream> {
    connect_local(unconnected(program)?, program).await
}

/// Returns a socket of the calling thread's network namespace that does not block.
pub(crate) fn unconnected(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

/// Connects an [`unconnected`] socket to a program of this host, after it has [prepared](prepare_local) it.
/// What the program sends with the handshake finds the options set.
pub(crate) async fn connect_local(socket: Socket, program: SocketAddr) -> io::Result<TcpStream> {
    prepare_local(&SockRef::from(&socket))?;
    let program = program.into();
    // The other end of a loopback connection is there before connect(2) returns, which yet says that it is under way. Asked
    // again, it says how it went: nobody need wait for the runtime's next look at all its sockets.
    let under_way = is_under_way(socket.connect(&program))? && is_under_way(socket.connect(&program))?;
    let stream = TcpStream::from_std(socket.into())?;
    if under_way {
        Box::pin(stream.writable()).await?;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    Ok(stream)
}

fn is_under_way(connecting: io::Result<()>) -> io::Result<bool> {
    match connecting {
        Ok(()) => Ok(false),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY)) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Makes the kernel reset the connection when the socket is dropped; of a listening one, those that it accepts.
pub(super) fn reset_on_drop(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Lets the kernel deliver what was sent, and close the connection in order when it is dropped.
pub(super) fn close_cleanly(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(None)
}

/// `SIOCATMARK` of x86-64 and AArch64 (asm-generic/sockios.h), and `SIOCOUTQNSD` (linux/sockios.h); the libc crate has
/// neither for Linux.
const AT_MARK: libc::Ioctl = 0x8905;
const OUT_NOT_SENT: libc::Ioctl = 0x894b;

/// Whether the next byte is an urgent one, before which a read stops, whatever is behind it.
fn is_at_mark(stream: &TcpStream) -> bool {
    let mut at_mark: libc::c_int = 0;
    // SAFETY: SIOCATMARK writes one `int` to the pointer, which is to a live one.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), AT_MARK, &raw mut at_mark) };
    result == 0 && at_mark != 0
}

/// Whether there is nothing to read: no byte, no end, no error.
pub(super) fn is_silent(stream: &TcpStream) -> bool {
    let peeked = recv(stream.as_fd().as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
    peeked == Err(nix::errno::Errno::EAGAIN)
}

/// How much of what was written the other host has not acknowledged.
pub(super) fn unacknowledged(stream: &TcpStream) -> usize {
    // Also called SIOCOUTQ.
    queued(stream, libc::TIOCOUTQ)
}

/// How much of what was written has not been sent.
pub(super) fn unsent(stream: &TcpStream) -> usize {
    queued(stream, OUT_NOT_SENT)
}

fn queued(stream: &TcpStream, which: libc::Ioctl) -> usize {
    let mut count: libc::c_int = 0;
    // SAFETY: both requests write one `int` to the pointer, which is to a live one.
    let asked = unsafe { libc::ioctl(stream.as_raw_fd(), which, &raw mut count) };
    if asked < 0 { 0 } else { usize::try_from(count).unwrap_or_default() }
}

/// Returns an IPv4-mapped address as IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Why a socket failed.
pub(super) fn pending_error(stream: &TcpStream) -> io::ErrorKind {
    let pending = stream.take_error().ok().flatten();
    pending.map_or(io::ErrorKind::ConnectionReset, |error| error.kind())
}

/// Sends FIN. A socket that the other end has already reset reports that where it is read or written.
pub(super) fn shutdown(stream: &TcpStream) -> io::Result<()> {
    match SockRef::from(stream).shutdown(Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}

/// Reads once from a program.
pub(super) fn poll_read_program(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    poll_read_until(stream, cx, buffer, is_at_mark)
}

/// Reads once from the mesh, where nothing is urgent. (A peer that sends it nevertheless stalls its own flow.)
pub(super) fn poll_read(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    poll_read_until(stream, cx, buffer, |_| false)
}

/// Reads what there is of a socket that the runtime has not asked for yet: without it, nothing could be read before the
/// runtime's next look at all its sockets. `None`: nothing.
pub(super) fn read_ahead(stream: &TcpStream, buffer: &mut [u8]) -> Option<io::Result<usize>> {
    match recv(stream.as_fd().as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => None,
        result => Some(result.map_err(io::Error::from)),
    }
}

/// Writes what a socket takes that the runtime has not asked for yet, as [`read_ahead`] reads. `None`: nothing.
pub(super) fn write_ahead(stream: &TcpStream, bytes: &[u8]) -> Option<io::Result<usize>> {
    match send(stream.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => None,
        result => Some(result.map_err(io::Error::from)),
    }
}

/// A read that does not fill `buffer` has emptied the socket, unless it `stopped` before an urgent byte: claiming that it
/// would block makes tokio wait for the next edge instead of asking once more in vain, which is what tokio does for
/// reads by `&mut`.
fn poll_read_until(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
    stopped: impl Fn(&TcpStream) -> bool,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        let mut partial = None;
        let result = stream.try_io(Interest::READABLE, || {
            let count = recv(stream.as_fd().as_raw_fd(), buffer, MsgFlags::empty())?;
            if (1..buffer.len()).contains(&count) && !stopped(stream) {
                partial = Some(count);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(count)
        });
        match (partial, result) {
            (Some(count), _) => return Poll::Ready(Ok(count)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            (None, result) => return Poll::Ready(result),
        }
    }
}

pub(super) fn poll_write(stream: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        match stream.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(stream.poll_write_ready(cx))?,
            result => return Poll::Ready(result),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_takes_its_time_is_waited_for_and_one_that_is_not_there_is_not() {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        // An address of its own: nobody else's listener may come to the port that is closed below.
        listener.bind(&SocketAddr::from(([127, 0, 0, 77], 0)).into()).unwrap();
        // One connection has room to wait for accept(2); the SYN of the next is dropped, and sent again.
        listener.listen(0).unwrap();
        let at = listener.local_addr().unwrap().as_socket().unwrap();
        let first = dial_local(at).await.unwrap();
        let mut second = std::pin::pin!(dial_local(at));
        tokio::time::timeout(Duration::from_millis(50), &mut second).await.unwrap_err();
        drop((listener.accept().unwrap(), first));
        let second = tokio::time::timeout(Duration::from_secs(20), second).await.unwrap().unwrap();
        assert!(SockRef::from(&second).tcp_nodelay().unwrap());

        drop((listener, second));
        assert_eq!(dial_local(at).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
