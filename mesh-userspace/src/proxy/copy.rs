//! Copies between a program's plain TCP and TLS, so that each end sees what it would see on one TCP connection.
//!
//! | one side | the other side sees |
//! |---|---|
//! | program sends FIN | `close_notify`, then FIN; the other direction goes on |
//! | peer sends `close_notify` | FIN; the other direction goes on |
//! | either resets, or vanishes (keepalive) | reset, after what it had sent before, as far as that fits now |
//! | peer's TCP ends without `close_notify` | reset: a stream cut short must not look complete |
//!
//! One task serves both directions, with one pass over each byte beyond what rustls does: a socket is read into the
//! thread's scratch buffer, and only what the other socket will not take now is kept with the flow. An idle flow
//! holds no buffer.

use std::{
    cell::RefCell,
    future::Future,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use nix::sys::socket::{MsgFlags, recv};
use rustls::Connection;
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
};

use super::{flow::Flow, reason::Reason, socket};
use crate::tls::refusal;

/// What one read of a socket may bring.
const READ: usize = 64 * 1024;
/// What one read may decrypt to, together with the record of which rustls already holds a part.
const PLAIN: usize = READ + 32 * 1024;
/// Rounds of both directions before other flows of the thread get their turn: about a mebibyte each way.
const ROUNDS: usize = 16;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { wire: Vec::new(), plain: Vec::new() }) };
}

/// Buffers that live during one poll only; nothing of a flow stays in them.
struct Scratch {
    wire: Vec<u8>,
    plain: Vec<u8>,
}

impl Scratch {
    fn with<R>(use_them: impl FnOnce(&mut [u8], &mut [u8]) -> R) -> R {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.wire.resize(READ, 0);
            scratch.plain.resize(PLAIN, 0);
            use_them(&mut scratch.wire, &mut scratch.plain)
        })
    }
}

/// Copies until both directions are closed, or until the first error, which the caller passes on as a reset.
pub(super) async fn copy(
    program: &TcpStream,
    mesh: &TcpStream,
    tls: &mut Connection,
    flow: &Flow,
) -> Result<(), Reason> {
    // What is written is sent before more is read: the bound is the scratch buffer.
    tls.set_buffer_limit(None);
    let mut copy = Copy {
        program,
        mesh,
        tls,
        flow,
        outgoing: Outgoing::Open,
        incoming: Incoming::Open { handshake_leftover: true },
        unwritten: Vec::new(),
        written: 0,
        failed: None,
        program_lost: None,
        mesh_lost: None,
    };
    std::future::poll_fn(|cx| copy.poll(cx)).await
}

struct Copy<'a> {
    program: &'a TcpStream,
    mesh: &'a TcpStream,
    tls: &'a mut Connection,
    flow: &'a Flow,
    outgoing: Outgoing,
    incoming: Incoming,
    /// Decrypted bytes that the program did not take yet: `unwritten[written..]`.
    unwritten: Vec<u8>,
    written: usize,
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
    /// The program sent FIN; `close_notify` is under way.
    Closing,
    /// FIN was sent to the peer.
    Closed,
    /// The peer does not take anything any more.
    Failed,
}

/// Mesh to program.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Incoming {
    Open {
        /// rustls may hold bytes of the program that came together with the handshake.
        handshake_leftover: bool,
    },
    /// The peer sent `close_notify`; the program may still have to take bytes.
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

impl Copy<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Reason>> {
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
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn round(&mut self, cx: &mut Context<'_>) -> Progress {
        Ok(self.send(cx)? | self.receive(cx)?)
    }

    /// Of what a lost side shows when it is read and what it showed when it was written to, the one that says more.
    fn cause(&mut self, reason: Reason) -> Reason {
        match reason {
            Reason::RefusedByPeer(_) => reason,
            other => self.failed.take().unwrap_or(other),
        }
    }

    /// One step from the program to the mesh.
    fn send(&mut self, cx: &mut Context<'_>) -> Progress {
        if matches!(self.outgoing, Outgoing::Closed | Outgoing::Failed) {
            return Ok(false);
        }
        let mut moved = false;
        // Also what rustls itself has to say: alerts, answers to key updates.
        while self.tls.wants_write() {
            match self.send_records(cx) {
                Poll::Ready(Ok(())) => moved = true,
                Poll::Ready(Err(error)) => return Ok(self.cannot_send(&error)),
                Poll::Pending => return Ok(moved),
            }
        }
        if self.outgoing == Outgoing::Closing {
            return match shutdown(self.mesh) {
                Ok(()) => {
                    self.outgoing = Outgoing::Closed;
                    Ok(true)
                }
                Err(error) => Ok(self.cannot_send(&error)),
            };
        }
        Scratch::with(|_, plain| match poll_read(self.program, cx, &mut plain[..READ]) {
            Poll::Pending => Ok(moved),
            Poll::Ready(Err(error)) => Err(Reason::ProgramReset(error.kind())),
            Poll::Ready(Ok(0)) => {
                if let Some(reason) = self.failed.take() {
                    return Err(reason);
                }
                self.tls.send_close_notify();
                self.outgoing = Outgoing::Closing;
                Ok(true)
            }
            Poll::Ready(Ok(count)) => {
                self.tls.writer().write_all(&plain[..count]).map_err(|e| Reason::BrokenTls(e.to_string()))?;
                self.flow.add_out(count);
                Ok(true)
            }
        })
    }

    fn cannot_send(&mut self, error: &io::Error) -> bool {
        self.failed.get_or_insert(Reason::PeerReset(error.kind()));
        self.outgoing = Outgoing::Failed;
        true
    }

    fn cannot_deliver(&mut self, error: &io::Error) -> bool {
        self.failed.get_or_insert(Reason::ProgramReset(error.kind()));
        self.incoming = Incoming::Failed;
        true
    }

    /// One step from the mesh to the program.
    fn receive(&mut self, cx: &mut Context<'_>) -> Progress {
        if matches!(self.incoming, Incoming::Closed | Incoming::Failed) {
            return Ok(false);
        }
        let mut moved = false;
        while self.written < self.unwritten.len() {
            match poll_write(self.program, cx, &self.unwritten[self.written..]) {
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(error)) => return Ok(self.cannot_deliver(&error)),
                Poll::Pending => return Ok(moved),
            }
            moved = true;
        }
        (self.unwritten, self.written) = (Vec::new(), 0);
        match self.incoming {
            Incoming::Closing => self.finish_receiving(),
            Incoming::Open { handshake_leftover: true } => {
                self.incoming = Incoming::Open { handshake_leftover: false };
                Scratch::with(|_, plain| {
                    let filled = self.take_plaintext(plain)?;
                    self.deliver(&plain[..filled]);
                    Ok(true)
                })
            }
            _ => Scratch::with(|wire, plain| match poll_read(self.mesh, cx, wire) {
                Poll::Pending => Ok(moved),
                Poll::Ready(Err(error)) => Err(Reason::PeerReset(error.kind())),
                Poll::Ready(Ok(count)) => {
                    let filled = self.decrypt(&wire[..count], plain)?;
                    self.deliver(&plain[..filled]);
                    Ok(true)
                }
            }),
        }
    }

    /// The peer has said all, and the program has it.
    fn finish_receiving(&mut self) -> Progress {
        if let Some(reason) = self.failed.take() {
            return Err(reason);
        }
        match shutdown(self.program) {
            Ok(()) => {
                self.incoming = Incoming::Closed;
                Ok(true)
            }
            Err(error) => Ok(self.cannot_deliver(&error)),
        }
    }

    /// Decrypts what came from the mesh (nothing: its TCP ended) into `plain`; returns how much that is.
    fn decrypt(&mut self, mut wire: &[u8], plain: &mut [u8]) -> Result<usize, Reason> {
        let mut filled = 0;
        loop {
            let last = wire.is_empty();
            // Takes 4 KiB or up to the end of a record, so that what it decrypts to fits in `plain`.
            self.tls.read_tls(&mut wire).map_err(|e| Reason::BrokenTls(e.to_string()))?;
            if let Err(error) = self.tls.process_new_packets() {
                return Err(self.broken(&error));
            }
            filled += self.take_plaintext(&mut plain[filled..])?;
            if last || wire.is_empty() || self.incoming == Incoming::Closing {
                return Ok(filled);
            }
        }
    }

    /// Moves what rustls has decrypted into `plain`; notes the end of the stream.
    fn take_plaintext(&mut self, plain: &mut [u8]) -> Result<usize, Reason> {
        let mut filled = 0;
        loop {
            match self.tls.reader().read(&mut plain[filled..]) {
                Ok(0) => {
                    self.incoming = Incoming::Closing;
                    return Ok(filled);
                }
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(filled),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Reason::Truncated),
                Err(error) => return Err(Reason::BrokenTls(error.to_string())),
            }
        }
    }

    /// Writes to the program what it takes now, and keeps the rest.
    fn deliver(&mut self, mut plain: &[u8]) {
        self.flow.add_in(plain.len());
        while !plain.is_empty() {
            match self.program.try_write(plain) {
                Ok(count) => plain = &plain[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.cannot_deliver(&error);
                    return;
                }
            }
        }
        self.unwritten.extend_from_slice(plain);
    }

    /// A last attempt to tell the peer why; the reset follows anyway.
    fn broken(&mut self, error: &rustls::Error) -> Reason {
        let _best_effort = self.tls.write_tls(&mut Socket(self.mesh));
        match error {
            rustls::Error::AlertReceived(alert) => Reason::RefusedByPeer(refusal(*alert)),
            other => Reason::BrokenTls(other.to_string()),
        }
    }

    fn send_records(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.tls.write_tls(&mut Socket(self.mesh)) {
                Ok(_) => return Poll::Ready(Ok(())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.mesh.poll_write_ready(cx))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// A socket that is not being read now, because the other one is full or because it has nothing more to say,
    /// would not tell that its other end has died: ask for errors alone.
    fn watch_unread(&mut self, cx: &mut Context<'_>) -> Result<(), Reason> {
        let program_unread = self.outgoing != Outgoing::Open || self.tls.wants_write();
        if program_unread && lost(&mut self.program_lost, self.program, cx) {
            return Err(Reason::ProgramReset(socket_error(self.program)));
        }
        let mesh_unread = !matches!(self.incoming, Incoming::Open { .. }) || !self.unwritten.is_empty();
        if mesh_unread && lost(&mut self.mesh_lost, self.mesh, cx) {
            return Err(Reason::PeerReset(socket_error(self.mesh)));
        }
        Ok(())
    }
}

fn lost<'a>(watch: &mut Option<Lost<'a>>, stream: &'a TcpStream, cx: &mut Context<'_>) -> bool {
    let watch = watch.get_or_insert_with(|| Box::pin(stream.ready(Interest::ERROR)));
    watch.as_mut().poll(cx).is_ready()
}

fn socket_error(stream: &TcpStream) -> io::ErrorKind {
    let pending = stream.take_error().ok().flatten();
    pending.map_or(io::ErrorKind::ConnectionReset, |error| error.kind())
}

/// Sends FIN. A socket that the other end has already reset reports that where it is read or written.
fn shutdown(stream: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}

/// Reads once. A read that does not fill `buffer` has emptied the socket, unless it stopped before an urgent byte: claiming
/// that it would block makes tokio wait for the next edge instead of asking once more in vain, which is what tokio does
/// for reads by `&mut`.
fn poll_read(stream: &TcpStream, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        let mut partial = None;
        let result = stream.try_io(Interest::READABLE, || {
            let count = recv(stream.as_fd().as_raw_fd(), buffer, MsgFlags::empty())?;
            if (1..buffer.len()).contains(&count) && !socket::is_at_mark(stream) {
                partial = Some(count);
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(count)
        });
        match (partial, result) {
            (Some(count), _) => return Poll::Ready(Ok(count)),
            (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            (None, Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            (None, result) => return Poll::Ready(result),
        }
    }
}

fn poll_write(stream: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        match stream.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready!(stream.poll_write_ready(cx))?,
            result => return Poll::Ready(result),
        }
    }
}

/// What rustls writes to: the socket, without waiting.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
