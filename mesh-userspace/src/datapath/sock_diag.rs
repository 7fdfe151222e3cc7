//! sock_diag(7): reading the counters of a socket of the host's namespace, and destroying it.

use std::{io, net::IpAddr};

use mesh_common::addr::Endpoint;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DESTROY},
    inet::{ExtensionFlags, InetRequest, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_SOCK_DIAG};

/// Offsets in `struct tcp_info` (include/uapi/linux/tcp.h, Linux 4.1 and later; the struct only grows at its end).
const BYTES_ACKED: usize = 120;
const BYTES_RECEIVED: usize = 128;

/// Application bytes of a connection, from the connecting socket's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    pub sent: u64,
    pub received: u64,
}

/// Destroys the TCP socket whose own end is `local` and whose peer is `remote`: its program sees `ECONNABORTED`,
/// its peer a reset. `cookie` makes sure that it is that very socket. Needs `CONFIG_INET_DIAG_DESTROY`.
pub fn destroy(local: Endpoint, remote: Endpoint, cookie: u64) -> io::Result<()> {
    // The library knows the query only; the destruction is the same message under another type.
    let destroy = |interface| {
        let query = Query { local, remote, cookie, interface };
        ask(query, ExtensionFlags::empty(), Some(SOCK_DESTROY)).map(drop)
    };
    match destroy(0) {
        // A socket bound to a device is found under that device's index only (`inet_bound_dev_eq`).
        Err(gone) if gone.raw_os_error() == Some(libc::ENOENT) => {
            interfaces().any(|index| destroy(index).is_ok()).then_some(()).ok_or(gone)
        }
        other => other,
    }
}

fn interfaces() -> impl Iterator<Item = u32> {
    let all = nix::net::if_::if_nameindex();
    all.into_iter().flat_map(|all| all.iter().map(|i| i.index()).collect::<Vec<_>>())
}

/// The socket that is meant: its two ends, its cookie, and the device it is bound to (0: none).
#[derive(Clone, Copy)]
struct Query {
    local: Endpoint,
    remote: Endpoint,
    cookie: u64,
    interface: u32,
}

/// Returns the counters of that socket; `None` when there is no such socket.
pub fn bytes(local: Endpoint, remote: Endpoint, cookie: u64) -> Option<Bytes> {
    let answer = ask(Query { local, remote, cookie, interface: 0 }, ExtensionFlags::INFO, None).ok()?;
    let SockDiagMessage::InetResponse(response) = answer? else { return None };
    response.nlas.iter().find_map(|nla| match nla {
        // The SYN counts as one acknowledged byte (`tcp_snd_una_update`).
        Nla::TcpInfo(raw) => {
            let word = |at: usize| Some(u64::from_ne_bytes(raw.get(at..at + 8)?.try_into().ok()?));
            Some(Bytes { sent: word(BYTES_ACKED)?.saturating_sub(1), received: word(BYTES_RECEIVED)? })
        }
        _ => None,
    })
}

fn ask(
    Query { local, remote, cookie, interface }: Query,
    extensions: ExtensionFlags,
    message_type: Option<u16>,
) -> io::Result<Option<SockDiagMessage>> {
    let v4 = local.addr.v4().is_some();
    let mut id = if v4 { SocketId::new_v4() } else { SocketId::new_v6() };
    id.source_address = IpAddr::from(local.addr);
    id.source_port = local.port.get();
    id.destination_address = IpAddr::from(remote.addr);
    id.destination_port = remote.port.get();
    id.cookie = cookie.to_ne_bytes();
    id.interface_id = interface;
    let request = InetRequest {
        family: if v4 { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions,
        states: StateFlags::all(),
        socket_id: id,
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | if message_type.is_some() { NLM_F_ACK } else { 0 };
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut buffer = vec![0; message.buffer_len()];
    message.serialize(&mut buffer);
    if let Some(kind) = message_type {
        // struct nlmsghdr: length (4 bytes), then type.
        buffer[4..6].copy_from_slice(&kind.to_ne_bytes());
    }

    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&buffer, 0)?;
    let mut answer = vec![0; 4096];
    let len = socket.recv(&mut &mut answer[..], 0)?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer[..len])
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
    match answer.payload {
        NetlinkPayload::Error(e) if e.code.is_some() => Err(e.to_io()),
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        _ => Ok(None),
    }
}

/// Whether this kernel destroys sockets on demand: asked for a socket that cannot exist, it answers that there is
/// none, instead of that it does not know how.
pub fn can_destroy() -> bool {
    let nowhere: std::net::SocketAddr = "127.255.255.254:1".parse().expect("a literal address");
    match destroy(nowhere.into(), nowhere.into(), u64::MAX) {
        Ok(()) => true,
        Err(e) => e.raw_os_error() == Some(libc::ENOENT),
    }
}
