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

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::{
    buffer::{BATCH, Buffer},
    endpoint::Endpoint,
    flow::Flow,
    link::{self, Link, Word},
    pace::{Pace, SHORT},
    reason::Reason,
    socket::{pending_error, poll_read, poll_write, shutdown, unacknowledged},
};
use crate::tls::{Opened, Session, record};

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

/// Program to mesh.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outgoing {
    Open,
    /// The program sent FIN; the word that says so is under way.
    Closing,
    /// The peer was told.
    Closed,
    /// The peer does not take anything any more.
    Failed,
}

/// Mesh to program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Incoming {
    Open {
        /// Something may have come before this flow began to copy.
        unopened: bool,
    },
    /// The peer has sent all; the program may still have to take bytes.
    Closing,
    /// FIN was sent to the program.
    Closed,
    /// The program does not take anything any more.
    Failed,
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

    /// One step from the program to the mesh.
    fn send(&mut self, cx: &mut Context<'_>) -> Progress {
        if matches!(self.outgoing, Outgoing::Closed | Outgoing::Failed) {
            return Ok(false);
        }
        self.tls.renew().map_err(|e| link::broken(&e))?;
        let mut moved = self.sealed.is_some() || !self.tls.owed.is_empty();
        match self.flush(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(error)) => return Ok(self.cannot_send(&error)),
            Poll::Pending => return Ok(false),
        }
        if self.outgoing == Outgoing::Closing {
            // Between meshnodes the connection goes on.
            return match if self.meshnode { Ok(()) } else { shutdown(self.mesh) } {
                Ok(()) => {
                    self.outgoing = Outgoing::Closed;
                    Ok(true)
                }
                Err(error) => Ok(self.cannot_send(&error)),
            };
        }
        let mut plain = Buffer::take();
        let most = BATCH * self.most();
        let room = &mut plain.all()[..most];
        let ahead = std::mem::take(&mut self.unasked).then(|| self.program.read_ahead(room)).flatten();
        match ahead.map_or_else(|| self.program.poll_read(cx, room), Poll::Ready) {
            Poll::Pending => {
                // The peer is to know of the flow before the program says anything.
                if self.word.is_some() {
                    self.seal(&[])?;
                    moved = true;
                }
                Ok(moved)
            }
            Poll::Ready(Err(error)) => Err(self.program.reason(&error)),
            Poll::Ready(Ok(0)) => {
                if let Some(reason) = self.failed.take() {
                    return Err(reason);
                }
                // A flow that is not opened yet is opened first; its end is read once more.
                if self.word.is_none() {
                    self.outgoing = Outgoing::Closing;
                    let last = self.role == Role::Server && self.incoming == Incoming::Closed;
                    *self.settled |= last;
                    self.word = self.meshnode.then_some(if last { Word::EndLast } else { Word::End });
                }
                if self.meshnode {
                    self.seal(&[])?
                } else {
                    self.tls.close().map_err(|e| link::broken(&e))?
                }
                Ok(true)
            }
            Poll::Ready(Ok(count)) => {
                self.seal(&plain.all()[..count])?;
                self.flow.add_out(count);
                Ok(true)
            }
        }
    }

    /// The most of the program's bytes in one record.
    fn most(&self) -> usize {
        record::MOST - usize::from(self.meshnode)
    }

    /// Seals `data` in records, or a record without data if there is none, and sends what the mesh takes now.
    fn seal(&mut self, data: &[u8]) -> Result<(), Reason> {
        debug_assert!(self.sealed.is_none() && self.tls.owed.is_empty(), "records are sent in their order");
        if data.len() > SHORT {
            self.pace.go_on(Instant::now());
        }
        let (mut sealed, mut filled, mut left) = (Buffer::take(), 0, data);
        loop {
            let (now, later) = left.split_at(self.pace.next(left.len().min(self.most())));
            let word = self.word.take().unwrap_or(Word::Data) as u8;
            let trailer = if self.meshnode { &[word][..] } else { &[] };
            let length =
                self.tls.seal(now, trailer, &mut sealed.all()[filled..]).map_err(|e| link::broken(&e))?;
            filled += length;
            left = later;
            if left.is_empty() {
                break;
            }
        }
        sealed.hold(0, filled);
        while !sealed.is_empty() {
            match self.mesh.try_write(&sealed) {
                Ok(count) => {
                    self.sent += count;
                    sealed.consume(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.sealed = Some(sealed);
                    return Ok(());
                }
                Err(error) => {
                    self.cannot_send(&error);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Sends what is sealed, in the order in which it was.
    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(sealed) = &mut self.sealed {
            while !sealed.is_empty() {
                let count = ready!(poll_write(self.mesh, cx, sealed))?;
                self.sent += count;
                sealed.consume(count);
            }
            self.sealed = None;
        }
        while !self.tls.owed.is_empty() {
            let count = ready!(poll_write(self.mesh, cx, &self.tls.owed))?;
            self.sent += count;
            self.tls.owed.drain(..count);
        }
        Poll::Ready(Ok(()))
    }

    fn cannot_send(&mut self, error: &io::Error) -> bool {
        self.failed.get_or_insert(Reason::PeerReset(error.kind()));
        self.outgoing = Outgoing::Failed;
        true
    }

    fn cannot_deliver(&mut self, error: &io::Error) -> bool {
        self.failed.get_or_insert_with(|| self.program.reason(error));
        self.incoming = Incoming::Failed;
        true
    }

    /// One step from the mesh to the program.
    fn receive(&mut self, cx: &mut Context<'_>) -> Progress {
        if matches!(self.incoming, Incoming::Closed | Incoming::Failed) {
            return Ok(false);
        }
        let mut moved = false;
        while let Some(plain) = &mut self.plain {
            match self.program.poll_write(cx, plain) {
                Poll::Ready(Ok(count)) => plain.consume(count),
                Poll::Ready(Err(error)) => return Ok(self.cannot_deliver(&error)),
                Poll::Pending => return Ok(moved),
            }
            if plain.is_empty() {
                self.plain = None;
            }
            moved = true;
        }
        match self.incoming {
            Incoming::Closing => self.finish_receiving(cx, moved),
            Incoming::Open { unopened: true } => {
                self.incoming = Incoming::Open { unopened: false };
                let wire = self.received.take().unwrap_or_else(Buffer::take);
                self.open(wire)?;
                Ok(true)
            }
            _ => {
                let mut wire = self.received.take().unwrap_or_else(Buffer::take);
                match poll_read(self.mesh, cx, wire.room()) {
                    Poll::Pending => {
                        *self.received = (!wire.is_empty()).then_some(wire);
                        Ok(moved)
                    }
                    Poll::Ready(Err(error)) => Err(Reason::PeerReset(error.kind())),
                    Poll::Ready(Ok(0)) => Err(Reason::Truncated),
                    Poll::Ready(Ok(count)) => {
                        self.trial = None;
                        wire.fill(count);
                        self.open(wire)?;
                        Ok(true)
                    }
                }
            }
        }
    }

    /// The peer has said all, and the program has it.
    fn finish_receiving(&mut self, cx: &mut Context<'_>, moved: bool) -> Progress {
        if let Some(reason) = self.failed.take() {
            return Err(reason);
        }
        match self.program.poll_shutdown(cx) {
            Poll::Ready(Ok(())) => {
                self.incoming = Incoming::Closed;
                Ok(true)
            }
            Poll::Ready(Err(error)) => Ok(self.cannot_deliver(&error)),
            Poll::Pending => Ok(moved),
        }
    }

    /// Opens the records in `wire` and delivers what they hold; the first part of one waits for the rest of it.
    fn open(&mut self, mut wire: Buffer) -> Result<(), Reason> {
        // Plaintext is shorter than its records, so that it has room.
        let (mut plain, mut filled) = (Buffer::take(), 0);
        let mut broken = None;
        while broken.is_none() && matches!(self.incoming, Incoming::Open { .. }) {
            match self.open_one(&mut wire, &mut plain.all()[filled..]) {
                Ok(Some(length)) => filled += length,
                Ok(None) => break,
                Err(reason) => broken = Some(reason),
            }
        }
        *self.received = (!wire.is_empty()).then_some(wire);
        // What came in order before something did not is the program's.
        plain.hold(0, filled);
        self.deliver(plain);
        broken.map_or(Ok(()), Err)
    }

    /// Opens the first record of `wire` into `plain`; returns how much of the program's it held. `None`: it is not all there.
    fn open_one(&mut self, wire: &mut Buffer, plain: &mut [u8]) -> Result<Option<usize>, Reason> {
        let opened = self.tls.open(wire, plain).map_err(|error| {
            self.tls.abort(&error);
            // A last attempt to tell the peer why; the reset follows anyway.
            if self.sealed.is_none() {
                let _ = self.mesh.try_write(&self.tls.owed);
            }
            link::broken(&error)
        })?;
        let Some((held, length)) = opened else { return Ok(None) };
        wire.consume(length);
        match held {
            Opened::Nothing => Ok(Some(0)),
            Opened::CloseNotify if self.meshnode => Err(link::out_of_turn()),
            Opened::CloseNotify => {
                self.incoming = Incoming::Closing;
                Ok(Some(0))
            }
            Opened::Data(length) if self.meshnode => {
                let (word, length) = link::word(plain, length)?;
                match (word, self.role) {
                    (Word::Data, _) => {}
                    (Word::End, _) => self.incoming = Incoming::Closing,
                    (Word::EndLast, Role::Caller) => {
                        *self.settled = true;
                        self.incoming = Incoming::Closing;
                    }
                    (Word::Refused, Role::Caller) => return Err(link::refused(&plain[..length])),
                    _ => return Err(link::out_of_turn()),
                }
                Ok(Some(length))
            }
            Opened::Data(length) => Ok(Some(length)),
        }
    }

    /// Delivers what came with the flow's first word; the runtime has not looked at the program's socket yet.
    fn deliver_first(&mut self, mut first: Buffer) {
        match self.program.write_ahead(&first) {
            Some(Ok(count)) => {
                self.flow.add_in(count);
                first.consume(count);
                self.deliver(first);
            }
            None => self.deliver(first),
            Some(Err(error)) => {
                self.flow.add_in(first.len());
                self.cannot_deliver(&error);
            }
        }
    }

    /// Writes to the program what it takes now, and keeps the rest.
    fn deliver(&mut self, mut plain: Buffer) {
        debug_assert!(self.plain.is_none(), "the program gets bytes in their order");
        self.flow.add_in(plain.len());
        while !plain.is_empty() {
            match self.program.try_write(&plain) {
                Ok(count) => plain.consume(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.plain = Some(plain);
                    return;
                }
                Err(error) => {
                    self.cannot_deliver(&error);
                    return;
                }
            }
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
