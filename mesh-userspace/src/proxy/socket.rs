//! Options of the sockets that carry flows.

use std::{io, net::SocketAddr, os::fd::AsRawFd, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::reason::Reason;

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

/// Prepares a socket of a flow: no delay, keepalive, urgent data in its place in the stream (there is no way for it through
/// TLS, and dropping it would be a gap), and **a reset when it is dropped**.
///
/// So whatever ends a flow early (an error, a cut, a panic, the daemon's death) reaches both programs as a reset, never
/// as the clean end of a stream that was cut short. [`close_cleanly`] lifts that once both sides have closed.
pub(super) fn prepare(stream: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    reset_on_drop(stream)?;
    stream.set_nodelay(true)?;
    let probes = TcpKeepalive::new()
        .with_time(keepalive.after)
        .with_interval(keepalive.every)
        .with_retries(keepalive.probes);
    let socket = SockRef::from(stream);
    socket.set_out_of_band_inline(true)?;
    socket.set_tcp_keepalive(&probes)
}

/// Makes the kernel reset the connection when the socket is dropped.
pub(super) fn reset_on_drop(stream: &TcpStream) -> io::Result<()> {
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// Lets the kernel deliver what was sent and close both connections in order when they are dropped.
pub(super) fn close_cleanly(program: &TcpStream, mesh: &TcpStream) -> Result<(), Reason> {
    SockRef::from(program).set_linger(None).map_err(|e| Reason::ProgramReset(e.kind()))?;
    SockRef::from(mesh).set_linger(None).map_err(|e| Reason::PeerReset(e.kind()))
}

/// `SIOCATMARK` of x86-64 and AArch64 (asm-generic/sockios.h); the libc crate has none for Linux.
const AT_MARK: libc::Ioctl = 0x8905;

/// Whether the next byte is an urgent one, before which a read stops, whatever is behind it.
pub(super) fn is_at_mark(stream: &TcpStream) -> bool {
    let mut at_mark: libc::c_int = 0;
    // SAFETY: SIOCATMARK writes one `int` to the pointer, which is to a live one.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), AT_MARK, &raw mut at_mark) };
    result == 0 && at_mark != 0
}

/// Returns an IPv4-mapped address as IPv4.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
