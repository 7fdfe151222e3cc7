//! Listening sockets that captured connections come to.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    os::fd::AsRawFd as _,
};

use socket2::{Domain, SockRef, Socket, Type};

use crate::proxy::prepare_local;

/// Connections that may wait to be accepted; who accepts them may ask for more.
const BACKLOG: i32 = 128;

/// Listens at any free port of the loopback address `ip` of the calling thread's network namespace, whether it is up yet or
/// not.
pub fn on_loopback(ip: IpAddr) -> io::Result<TcpListener> {
    let at = SocketAddr::new(ip, 0);
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    if ip.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&at.into())?;
    prepare_local(&SockRef::from(&socket))?;
    socket.listen(BACKLOG)?;
    take_no_data_in_syn(&socket)?;
    Ok(socket.into())
}

/// Turns TCP Fast Open off for a listener, where a sysctl turned it on for all (`tcp_fastopen`, 0x400): such a connection
/// is there to accept before the kernel has written the record of where it goes to.
pub fn take_no_data_in_syn(socket: &Socket) -> io::Result<()> {
    let queue: libc::c_int = 0;
    // SAFETY: value and length describe one `c_int` that lives through the call.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const queue).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, net::Ipv4Addr, net::TcpStream};

    use super::*;

    #[test]
    fn what_connects_before_anybody_accepts_is_reset_when_it_is_dropped() {
        let listener = on_loopback(Ipv4Addr::LOCALHOST.into()).unwrap();
        let mut program = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(listener.accept().unwrap());
        assert_eq!(program.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
