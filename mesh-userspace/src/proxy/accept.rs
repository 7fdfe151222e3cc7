//! Accepting connections, whatever happens: a listener neither spins, nor dies, nor waits for a connection it serves.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    time::Duration,
};

use socket2::{SockAddr, SockRef, Socket};
use tokio::io::{Interest, unix::AsyncFd};
use tokio_util::sync::CancellationToken;

use super::socket;

/// Connections that may wait to be accepted on one listener; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// A listener whose connections are not registered with a runtime yet: the one that accepts need not be the one that serves.
pub(crate) struct Listener(AsyncFd<TcpListener>);

impl Listener {
    /// Call it inside the runtime that accepts. What it accepts does not block, and is reset when it is dropped; what was
    /// connected before, only if the listener was [prepared](socket::prepare_local) before it listened.
    ///
    /// # Errors
    /// The listener cannot be registered with the runtime.
    pub(crate) fn register(std: TcpListener) -> io::Result<Self> {
        std.set_nonblocking(true)?;
        socket::reset_on_drop(&std)?;
        // std listens with a queue of 128, which a burst of connections overflows: the kernel drops SYNs, and programs wait
        // a second for the retransmission. listen(2) on a listening socket changes the queue's length.
        SockRef::from(&std).listen(BACKLOG)?;
        // SAFETY: the listener owns its descriptor, and lives inside of the registration.
        Ok(Self(unsafe { AsyncFd::register_with_interest(std, Interest::READABLE) }?))
    }

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.0.async_io(Interest::READABLE, accept).await
    }
}

fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: storage and length are those of one live `SockAddr`; accept4(2) fills them for the family that it has.
    let accepted = unsafe {
        SockAddr::try_init(|storage, length| {
            let accepted = libc::accept4(listener.as_raw_fd(), storage.cast(), length, flags);
            if accepted < 0 { Err(io::Error::last_os_error()) } else { Ok(accepted) }
        })
    };
    let (descriptor, peer) = accepted?;
    // SAFETY: accept4(2) returned it just now; nobody else has it.
    let stream = unsafe { <Socket as std::os::fd::FromRawFd>::from_raw_fd(descriptor) };
    // A listener for both families reports IPv4 peers as IPv4-mapped.
    let peer = socket::canonical(peer.as_socket().ok_or(io::ErrorKind::InvalidData)?);
    Ok((stream.into(), peer))
}

/// Gives each connection to `serve`, which must not block, until `stop`. The listener is closed on return.
pub(crate) async fn accept_all(
    what: &'static str,
    listener: Listener,
    stop: CancellationToken,
    serve: impl Fn(TcpStream, SocketAddr),
) {
    let mut trouble = Trouble::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                trouble.over(what);
                serve(stream, peer);
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                let pause = trouble.pause(what, &error);
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
    }
}

/// accept(2): errors already pending on the new connection are returned by `accept`, and mean nothing for the next.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionReset, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable,
        PermissionDenied, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionReset
            | HostUnreachable
            | Interrupted
            | NetworkDown
            | NetworkUnreachable
            | PermissionDenied
            | TimedOut
    ) || error.raw_os_error() == Some(libc::EPROTO)
}

/// A listener that cannot accept, usually for want of file descriptors: said once, retried ever more slowly.
#[derive(Default)]
struct Trouble {
    pause: Option<Duration>,
}

impl Trouble {
    fn pause(&mut self, what: &str, error: &io::Error) -> Duration {
        if self.pause.is_none() {
            tracing::error!(
                listener = what,
                %error,
                "connections cannot be accepted; they wait until it works again (is the limit of open files reached?)"
            );
        }
        let pause = self.pause.map_or(FIRST_BACKOFF, |last| (last * 2).min(LONGEST_BACKOFF));
        self.pause = Some(pause);
        pause
    }

    fn over(&mut self, what: &str) {
        if self.pause.take().is_some() {
            tracing::info!(listener = what, "connections are accepted again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_in_trouble_retries_ever_more_slowly_and_starts_over_once_well() {
        let mut trouble = Trouble::default();
        let error = io::Error::from_raw_os_error(libc::EMFILE);
        assert!(!concerns_one_connection(&error));
        let pauses: Vec<_> = (0..12).map(|_| trouble.pause("test", &error)).collect();
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses.last(), Some(&LONGEST_BACKOFF));
        trouble.over("test");
        assert_eq!(trouble.pause("test", &error), FIRST_BACKOFF);
    }

    #[test]
    fn a_connection_that_died_in_the_queue_does_not_slow_the_listener() {
        assert!(concerns_one_connection(&io::Error::from_raw_os_error(libc::ECONNABORTED)));
        assert!(concerns_one_connection(&io::Error::from_raw_os_error(libc::EPERM)));
    }
}
