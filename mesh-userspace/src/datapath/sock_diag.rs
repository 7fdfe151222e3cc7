//! sock_diag(7): listing the sockets of a network namespace, reading the counters of one, and destroying it.

use std::{io, net::IpAddr};

use mesh_common::addr::Endpoint;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, Nla as _,
};
use netlink_packet_sock_diag::{
    SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, SOCK_DESTROY},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
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
    let socket = send(request, if message_type.is_some() { NLM_F_ACK } else { 0 }, message_type)?;
    let mut answer = vec![0; 4096];
    let len = socket.recv(&mut &mut answer[..], 0)?;
    match parse(&answer[..len])?.payload {
        NetlinkPayload::Error(e) if e.code.is_some() => Err(e.to_io()),
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        _ => Ok(None),
    }
}

/// Sends `request`, as another message type if asked for, and returns the socket that the answer comes by.
fn send(request: InetRequest, flags: u16, message_type: Option<u16>) -> io::Result<Socket> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
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
    Ok(socket)
}

fn parse(bytes: &[u8]) -> io::Result<NetlinkMessage<SockDiagMessage>> {
    NetlinkMessage::deserialize(bytes).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))
}

/// A TCP socket that is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    pub local: Endpoint,
    pub remote: Endpoint,
    pub cookie: u64,
    /// The id of the cgroup that the socket was made in; 0 where the kernel does not say.
    pub cgroup: u64,
    /// Where it is, if not in the host's network namespace.
    pub namespace: Option<Namespace>,
}

/// A network namespace other than the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// As in `net:[4026531840]`.
    pub inode: u64,
    pub cookie: u64,
}

/// `INET_DIAG_CGROUP_ID` (include/uapi/linux/inet_diag.h).
const CGROUP_ID: u16 = 21;

/// Lists the TCP sockets of programs, in the calling thread's network namespace, over which bytes can still come or go; once each, however the kernel's table moves
/// meanwhile. It takes time that grows with their number.
///
/// # Errors
/// The kernel's.
pub fn established() -> io::Result<Vec<Connection>> {
    let mut all = Vec::new();
    for (family, mut socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        // INET_DIAG_NOCOOKIE: whichever.
        socket_id.cookie = [0xff; 8];
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::TCLASS,
            states: StateFlags::ESTABLISHED
                | StateFlags::CLOSE_WAIT
                | StateFlags::FIN_WAIT1
                | StateFlags::FIN_WAIT2,
            socket_id,
        };
        let socket = send(request, NLM_F_DUMP, None)?;
        while take_batch(&socket, &mut all)? {}
    }
    all.sort_unstable_by_key(|connection: &Connection| connection.cookie);
    all.dedup_by_key(|connection| connection.cookie);
    Ok(all)
}

/// Reads one datagram of a dump; `false` when it was the last.
fn take_batch(socket: &Socket, all: &mut Vec<Connection>) -> io::Result<bool> {
    let (batch, _) = socket.recv_from_full()?;
    let mut rest = &batch[..];
    while !rest.is_empty() {
        let message = parse(rest)?;
        match message.payload {
            // What no program holds any more (TIME_WAIT, orphans) has no inode.
            NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                all.extend((response.header.inode != 0).then(|| connection(&response)));
            }
            NetlinkPayload::Done(_) => return Ok(false),
            NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
            _ => {}
        }
        // Each message begins at a multiple of four (NLMSG_ALIGNTO).
        let len = (message.header.length as usize).next_multiple_of(4);
        rest = rest.get(len..).filter(|_| len > 0).unwrap_or_default();
    }
    Ok(true)
}

fn connection(response: &InetResponse) -> Connection {
    let id = &response.header.socket_id;
    let end = |ip, port| Endpoint::from(std::net::SocketAddr::new(ip, port));
    let cgroup = response.nlas.iter().find(|nla| nla.kind() == CGROUP_ID).map(|nla| {
        let mut raw = [0; 8];
        if nla.value_len() == raw.len() {
            nla.emit_value(&mut raw);
        }
        u64::from_ne_bytes(raw)
    });
    Connection {
        local: end(id.source_address, id.source_port),
        remote: end(id.destination_address, id.destination_port),
        cookie: u64::from_ne_bytes(id.cookie),
        cgroup: cgroup.unwrap_or_default(),
        namespace: None,
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
