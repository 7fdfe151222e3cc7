//! Accepting connections, whatever happens: a listener neither spins, nor dies, nor waits for a connection it serves.

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::socket;

const FIRST_BACKOFF: Duration = Duration::from_millis(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// Gives each connection to `serve`, which must not block, until `stop`. The listener is closed on return.
///
/// Each connection is reset when it is dropped (see [`socket::reset_on_drop`]).
pub(crate) async fn accept_all(
    what: &'static str,
    listener: TcpListener,
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
                // A listener for both families reports IPv4 peers as IPv4-mapped.
                let peer = socket::canonical(peer);
                trouble.over(what);
                // It fails only for a connection that is gone already.
                if socket::reset_on_drop(&stream).is_ok() {
                    serve(stream, peer);
                }
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
