//! The host's own network namespace: its cookie, its addresses, and news of them.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, TcpListener},
    os::fd::AsRawFd,
};

use mesh_common::addr::Addr;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::{ifaddrs::getifaddrs, sys::socket::SockaddrStorage};

use crate::catalog::IpRange;

/// Returns the cookie of the calling thread's network namespace.
pub fn netns_cookie() -> io::Result<u64> {
    cookie_of(&TcpListener::bind(("127.0.0.1", 0))?)
}

/// Returns the cookie of the socket's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub fn cookie_of(socket: &TcpListener) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: value and length describe one `u64` that lives through the call.
    let ret = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}

/// Returns the addresses of this namespace's interfaces, loopback ranges not included.
pub fn addresses() -> io::Result<HashSet<IpAddr>> {
    let interfaces = getifaddrs().map_err(io::Error::from)?;
    Ok(interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                _ => return None,
            };
            (!Addr::from(ip).is_loopback()).then_some(ip)
        })
        .collect())
}

/// Returns the networks that this namespace's interfaces are in, with the interfaces' names.
pub fn networks() -> io::Result<Vec<(String, IpRange)>> {
    let interfaces = getifaddrs().map_err(io::Error::from)?;
    let ip = |storage: Option<SockaddrStorage>| {
        let storage = storage?;
        let v4 = storage.as_sockaddr_in().map(|sa| IpAddr::V4(sa.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|sa| IpAddr::V6(sa.ip())))
    };
    Ok(interfaces
        .filter_map(|interface| {
            let prefix = match ip(interface.netmask)? {
                IpAddr::V4(mask) => u32::from(mask).leading_ones(),
                IpAddr::V6(mask) => u128::from(mask).leading_ones(),
            };
            let prefix = u8::try_from(prefix).expect("invariant: at most 128");
            Some((interface.interface_name, IpRange::of(ip(interface.address)?, prefix)))
        })
        .collect())
}

/// `RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR` of linux/rtnetlink.h.
const ADDRESS_GROUPS: u32 = 0x10 | 0x100;

/// Opens a non-blocking socket that becomes readable when an address comes or goes.
pub fn address_news() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind(&SocketAddr::new(0, ADDRESS_GROUPS))?;
    socket.set_non_blocking(true)?;
    Ok(socket)
}

/// Reads and drops what the socket holds: the news is only that there is news.
pub fn drain_news(socket: &Socket) {
    let mut buffer = vec![0; 8192];
    while socket.recv(&mut &mut buffer[..], 0).is_ok() {}
}
