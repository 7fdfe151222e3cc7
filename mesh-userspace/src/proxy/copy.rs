//! Copies between a program's plain TCP and TLS, so that each end sees what it would see on one TCP connection.
//!
//! | one side | the other side sees |
//! |---|---|
//! | program sends FIN | `close_notify`, then FIN (between meshnodes: END); the other direction goes on |
//! | peer sends `close_notify` (between meshnodes: END) | FIN; the other direction goes on |
//! | either resets, or vanishes (keepalive) | reset, after what it had sent before, as far as that fits now |
//! | peer's TCP ends without `close_notify` or END | reset: a stream cut short must not look complete |
//!
//! One task serves both directions. A byte is moved by the kernel into a buffer of the thread, by the cipher into another
//! one, and by the kernel out of that; what a socket will not take now waits where it is. An idle flow holds no buffer.

mod incoming;
mod outgoing;

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use incoming::Incoming;
use outgoing::Outgoing;
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::{
    buffer::Buffer,
    endpoint::Endpoint,
    flow::Flow,
    link::{Link, Word},
    pace::Pace,
    reason::Reason,
    socket::{pending_error, unacknowledged},
};
use crate::tls::Session;

/// Rounds of both directions before other flows of the thread get their turn: about a mebibyte each way.
const ROUNDS: usize = 8;

/// Which end of the link this is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Caller,
    Server,
}

/// What there is to do before bytes are copied.
pub(super) struct Start {
    pub(super) role: Role,
    /// What the first record to the mesh is, if no data of a flow already open.
    pub(super) word: Option<Word>,
    /// What of the peer's the program is to get first.
    pub(super) first: Option<Buffer>,
    /// The peer has this long to acknowledge something: it may be gone without a word.
    pub(super) trial: Option<Duration>,
}

/// Copies until both directions are closed, or until the first error, which the caller passes on as a reset. Between
/// meshnodes the link may then carry the next flow.
pub(super) fn copy<'a>(
    program: impl Endpoint<'a> + Send,
    link: &'a mut Link,
    flow: &'a Flow,
    start: Start,
) -> impl Future<Output = Result<(), Reason>> + Send {
    let Link { socket: mesh, tls, received, settled, pace, .. } = link;
    let meshnode = tls.is_meshnode;
    *settled = false;
    let mut copy = Copy {
        program,
        mesh,
        tls,
        flow,
        meshnode,
        role: start.role,
        settled,
        trial: start.trial.map(|patience| Box::pin(sleep(patience))),
        sent: 0,
        unasked: start.word.is_some(),
        word: start.word,
        outgoing: Outgoing::Open,
        incoming: Incoming::Open { unopened: true },
        sealed: None,
        received,
        pace,
        plain: None,
        failed: None,
        program_lost: None,
        mesh_lost: None,
    };
    if let Some(first) = start.first {
        copy.deliver_first(first);
    }
    // Not `async`: that would have room for the arguments, too.
    std::future::poll_fn(move |cx| copy.poll(cx))
}

struct Copy<'a, E> {
    program: E,
    mesh: &'a TcpStream,
    tls: &'a mut Session,
    flow: &'a Flow,
    meshnode: bool,
    role: Role,
    settled: &'a mut bool,
    trial: Option<Pin<Box<Sleep>>>,
    /// Bytes that the mesh's socket has taken.
    sent: usize,
    /// The program was not read from yet. What it says at once goes to the mesh together with the flow's first word.
    unasked: bool,
    /// What the next record to the mesh is, if not data.
    word: Option<Word>,
    outgoing: Outgoing,
    incoming: Incoming,
    /// Sealed records that the mesh did not take yet.
    sealed: Option<Buffer>,
    /// Ciphertext that is not opened yet.
    received: &'a mut Option<Buffer>,
    pace: &'a mut Pace,
    /// Decrypted bytes that the program did not take yet.
    plain: Option<Buffer>,
    /// A side could not be written to. It may have sent something before it went: that is still passed on, without
    /// waiting for anybody, and then the flow ends for this reason.
    failed: Option<Reason>,
    program_lost: Option<Lost<'a>>,
    mesh_lost: Option<Lost<'a>>,
}

/// Resolves once a socket has failed.
type Lost<'a> = Pin<Box<dyn Future<Output = io::Result<Ready>> + Send + 'a>>;

/// Whether anything moved, and so whether there may be more to do now.
type Progress = Result<bool, Reason>;

impl<'a, E: Endpoint<'a>> Copy<'a, E> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
        if let Some(over) = &mut self.trial
            && over.as_mut().poll(cx).is_ready()
        {
            self.trial = None;
            // Nothing of this flow, though it was all there was to send.
            if unacknowledged(self.mesh) >= self.sent {
                return Poll::Ready(Err(Reason::ConnectTimeout));
            }
        }
        for _ in 0..ROUNDS {
            let moved = self.round(cx).map_err(|reason| self.cause(reason))?;
            if self.outgoing == Outgoing::Closed && self.incoming == Incoming::Closed {
                return Poll::Ready(Ok(()));
            }
            if !moved {
                if let Some(reason) = self.failed.take() {
                    return Poll::Ready(Err(reason));
                }
                self.watch_unread(cx)?;
                return Poll::Pending;
            }
        }
        // The runtime looks at all its sockets and timers before it polls this again. (Woken at once, a stream that is always
        // ready would be polled 61 times between two looks, tokio's `event_interval`.)
        let _ = std::pin::pin!(tokio::task::yield_now()).poll(cx);
        Poll::Pending
    }

    fn round(&mut self, cx: &mut Context<'_>) -> Progress {
        Ok(self.send(cx)? | self.receive(cx)?)
    }

    /// Of what a lost side shows when it is read and what it showed when it was written to, the one that says more.
    fn cause(&mut self, reason: Reason) -> Reason {
        match reason {
            Reason::RefusedByPeer(_) | Reason::NotReady | Reason::ExternalTls(_) => reason,
            other => self.failed.take().unwrap_or(other),
        }
    }

    /// A socket that is not being read now, because the other one is full or because it has nothing more to say,
    /// would not tell that its other end has died: ask for errors alone.
    fn watch_unread(&mut self, cx: &mut Context<'_>) -> Result<(), Reason> {
        let unsent = self.sealed.is_some() || !self.tls.owed.is_empty();
        let program_unread = self.outgoing != Outgoing::Open || unsent;
        if program_unread && lost(&mut self.program_lost, self.program.socket(), cx) {
            return Err(Reason::ProgramReset(pending_error(self.program.socket())));
        }
        let mesh_unread = !matches!(self.incoming, Incoming::Open { .. }) || self.plain.is_some();
        if mesh_unread && lost(&mut self.mesh_lost, self.mesh, cx) {
            return Err(Reason::PeerReset(pending_error(self.mesh)));
        }
        Ok(())
    }
}

fn lost<'a>(watch: &mut Option<Lost<'a>>, stream: &'a TcpStream, cx: &mut Context<'_>) -> bool {
    let watch = watch.get_or_insert_with(|| Box::pin(stream.ready(Interest::ERROR)));
    watch.as_mut().poll(cx).is_ready()
}
