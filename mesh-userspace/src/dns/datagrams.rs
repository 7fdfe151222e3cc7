//! Queries over UDP: each answer leaves from the alias that the query came to, which the kernel shows the program as the
//! server that it asked.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::Arc,
    time::Duration,
};

use hickory_proto::op::{Message, ResponseCode};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg};
use tokio::{io::Interest, net::UdpSocket, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Namespace, Outcome, Transport, count, is_query};

const LARGEST_QUERY: usize = u16::MAX as usize;
/// After an error of the socket's own.
const PAUSE: Duration = Duration::from_millis(50);

/// Answers what comes to `socket`, until `stop`.
pub(super) async fn serve(namespace: Arc<Namespace>, socket: UdpSocket, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; LARGEST_QUERY];
    loop {
        let received = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            received = receive(&socket, &mut buffer) => received,
        };
        match received {
            Ok((len, ends)) => take(&namespace, &socket, &buffer[..len], ends, &stop),
            Err(error) => {
                tracing::debug!(%error, "a query cannot be received");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Where a datagram came from, and the alias that it was sent to.
#[derive(Clone, Copy)]
struct Ends {
    program: SocketAddr,
    alias: SocketAddr,
}

fn take(
    namespace: &Arc<Namespace>,
    socket: &Arc<UdpSocket>,
    query: &[u8],
    ends: Ends,
    stop: &CancellationToken,
) {
    let shared = &namespace.shared;
    if !is_query(query) {
        return count(&shared.counters.dropped);
    }
    if let Outcome::Answer(answer) = shared.answer(query, Transport::Udp) {
        return reply(socket, ends, &answer);
    }
    let route = match shared.routes.route(namespace.netns, ends.alias) {
        Ok(Some(route)) => route,
        // Sent here by somebody, and not by the kernel for a program.
        Ok(None) => return count(&shared.counters.dropped),
        Err(error) => {
            tracing::warn!(%error, "cannot read which server was asked");
            return count(&shared.counters.failed);
        }
    };
    let Some(admitted) = shared.admit(namespace.netns, &route.service) else {
        return count(&shared.counters.dropped);
    };
    count(&shared.counters.forwarded);
    tracing::debug!(server = %route.server, service = %route.service, "a query goes to the server that was asked");
    let (socket, query, stop) = (socket.clone(), query.to_vec(), stop.clone());
    let asking = namespace.clone();
    namespace.tasks.spawn(async move {
        let _admitted = admitted;
        let asked = stop.run_until_cancelled(asking.opener.ask(route.server, &query)).await;
        match asked {
            Some(Ok(answer)) => {
                asking.shared.observers.tell(&route, &answer);
                reply(&socket, ends, &answer);
            }
            Some(Err(error)) => {
                count(&asking.shared.counters.failed);
                tracing::debug!(server = %route.server, service = %route.service, %error, "a server did not answer");
                // Silence is answered with silence. What plain UDP would tell the program at once, it is told by this.
                if error.kind() != io::ErrorKind::TimedOut
                    && let Some(failure) = failure(&query)
                {
                    reply(&socket, ends, &failure);
                }
            }
            None => {}
        }
    });
}

/// Returns a response to `query` that says "server failure"; `None` if the query cannot be read.
fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let query = Message::from_vec(query).ok()?;
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.response_code = ResponseCode::ServFail;
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.queries = query.queries;
    answer.to_vec().ok()
}

async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Ends)> {
    let local = socket.local_addr()?;
    if local.is_ipv6() {
        let (len, program) = socket.recv_from(buffer).await?;
        return Ok((len, Ends { program, alias: local }));
    }
    socket
        .async_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(buffer)];
            let mut space = nix::cmsg_space!(libc::in_pktinfo);
            let got = recvmsg::<SockaddrIn>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut space),
                MsgFlags::MSG_DONTWAIT,
            )?;
            let program = got.address.ok_or(io::ErrorKind::InvalidData)?;
            let alias = got.cmsgs()?.find_map(|message| match message {
                // The address in the packet, in network order.
                ControlMessageOwned::Ipv4PacketInfo(info) => {
                    Some(Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()))
                }
                _ => None,
            });
            let alias = SocketAddrV4::new(alias.ok_or(io::ErrorKind::InvalidData)?, local.port());
            let program = SocketAddrV4::new(program.ip(), program.port());
            Ok((got.bytes, Ends { program: program.into(), alias: alias.into() }))
        })
        .await
}

/// Sends without waiting: a queue that is full loses datagrams.
fn reply(socket: &UdpSocket, ends: Ends, answer: &[u8]) {
    let sent = match (ends.alias, ends.program) {
        (SocketAddr::V4(alias), SocketAddr::V4(program)) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(alias.ip().octets()) },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            sendmsg(
                socket.as_raw_fd(),
                &[IoSlice::new(answer)],
                &[ControlMessage::Ipv4PacketInfo(&info)],
                MsgFlags::MSG_DONTWAIT,
                Some(&SockaddrIn::from(program)),
            )
            .map_err(io::Error::from)
        }
        (_, program) => socket.try_send_to(answer, program),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, program = %ends.program, "an answer cannot be sent");
    }
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;
    use crate::dns::is_response_to;

    #[test]
    fn a_failure_is_a_response_to_the_query_that_says_so() {
        let mut query = Message::query();
        query.add_query(Query::new());
        let query = query.to_vec().unwrap();
        let answer = failure(&query).unwrap();
        assert!(is_response_to(&answer, &query));
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(answer.queries.len(), 1);
    }
}
