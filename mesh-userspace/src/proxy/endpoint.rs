//! The end of a flow that is not the mesh's: a program's plain TCP, or the TLS of an external service.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{net::TcpStream, time::timeout};

use super::{
    buffer::{Buffer, SIZE},
    reason::Reason,
    socket,
};
use crate::tls::{
    Asked, Broken, ExternalError, ExternalSession, Opened, Session,
    record::{MOST, OVERHEAD},
};

/// One end, as [`copy`](super::copy::copy) reads and writes it.
pub(super) trait Endpoint<'a> {
    fn socket(&self) -> &'a TcpStream;

    /// Reads once; 0 is the end. `buffer` has room for a record.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>>;

    /// Reads what there is of a socket that the runtime has not looked at yet. `None`: nothing, or it is not known.
    fn read_ahead(&mut self, _buffer: &mut [u8]) -> Option<io::Result<usize>> {
        None
    }

    /// Writes what a socket takes that the runtime has not looked at yet. `None`: nothing, or it is not known.
    fn write_ahead(&mut self, _bytes: &[u8]) -> Option<io::Result<usize>> {
        None
    }

    /// Writes what it takes now, or would block. What was offered and not taken is offered again, before anything else.
    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// The same, with a promise to wake.
    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket().poll_write_ready(cx))?;
                }
                result => return Poll::Ready(result),
            }
        }
    }

    /// Says that there will be no more.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Why a flow ends for which reading or writing failed so.
    fn reason(&self, error: &io::Error) -> Reason {
        Reason::ProgramReset(error.kind())
    }
}

impl<'a> Endpoint<'a> for &'a TcpStream {
    fn socket(&self) -> &'a TcpStream {
        self
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        socket::poll_read_program(self, cx, buffer)
    }

    fn read_ahead(&mut self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        socket::read_ahead(self, buffer)
    }

    fn write_ahead(&mut self, bytes: &[u8]) -> Option<io::Result<usize>> {
        socket::write_ahead(self, bytes)
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        TcpStream::try_write(self, bytes)
    }

    fn poll_shutdown(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket::shutdown(self))
    }
}

/// How long a server that asked for a certificate may take to say that it does not like this one, or misses one.
const OBJECTION: Duration = Duration::from_millis(500);

/// Waits for the word with which a server of TLS 1.3 refuses a client after the handshake (no word is good), and closes.
pub(crate) async fn is_let_in(socket: &TcpStream, session: ExternalSession) -> Result<(), Reason> {
    let asked = session.asked;
    let mut secured = Secured::new(socket, session)?;
    if asked != Asked::No {
        let mut buffer = Buffer::take();
        let said = poll_fn(|cx| secured.poll_read(cx, buffer.all()));
        // That it ends without a word is no objection: it need not wait for somebody who says nothing.
        if let Ok(Err(error)) = timeout(OBJECTION, said).await
            && let reason @ Reason::ExternalTls(
                ExternalError::WantsCertificate | ExternalError::RefusedCertificate(_),
            ) = secured.reason(&error)
        {
            return Err(reason);
        }
    }
    let _ = timeout(OBJECTION, poll_fn(|cx| secured.poll_shutdown(cx))).await;
    Ok(())
}

/// An external service's TLS over its socket.
pub(super) struct Secured<'a> {
    socket: &'a TcpStream,
    external: ExternalSession,
    /// Ciphertext that is not opened yet.
    wire: Option<Buffer>,
    /// Sealed records that the socket has not taken yet, and how many bytes of the flow are in them.
    sealed: Option<(Buffer, usize)>,
    /// What ends it, to be told after what came before it.
    ended: Option<Ended>,
    closing: bool,
}

enum Ended {
    InOrder,
    Broken(Broken),
}

impl<'a> Secured<'a> {
    pub(super) fn new(socket: &'a TcpStream, mut external: ExternalSession) -> Result<Self, Reason> {
        let ahead = std::mem::take(&mut external.session.ahead);
        let mut wire = None;
        if !ahead.is_empty() {
            let mut buffer = Buffer::take();
            let too_much =
                || Reason::ExternalTls(ExternalError::Broken("too much came with the handshake".to_owned()));
            buffer.all().get_mut(..ahead.len()).ok_or_else(too_much)?.copy_from_slice(&ahead);
            buffer.hold(0, ahead.len());
            wire = Some(buffer);
        }
        Ok(Self { socket, external, wire, sealed: None, ended: None, closing: false })
    }

    fn session(&mut self) -> &mut Session {
        &mut self.external.session
    }

    /// Opens the records that are there, as far as there is room; returns how much they held.
    fn open(&mut self, wire: &mut Buffer, buffer: &mut [u8]) -> usize {
        let mut filled = 0;
        // Plaintext is shorter than its record, but a record may be of the other side's size.
        while self.ended.is_none() && buffer.len() - filled >= 2 * MOST {
            match self.session().open(wire, &mut buffer[filled..]) {
                Ok(None) => break,
                Ok(Some((held, length))) => {
                    wire.consume(length);
                    match held {
                        Opened::Data(length) => filled += length,
                        Opened::Nothing => {}
                        Opened::CloseNotify => self.ended = Some(Ended::InOrder),
                    }
                }
                Err(error) => {
                    self.session().abort(&error);
                    let _ = self.socket.try_write(&self.external.session.owed);
                    self.ended = Some(Ended::Broken(error));
                }
            }
        }
        filled
    }

    /// Seals what this side owes, and as much of `bytes` as fits.
    fn seal(&mut self, bytes: &[u8]) -> io::Result<()> {
        let session = &mut self.external.session;
        let mut out = Buffer::take();
        let mut filled = session.owed.len().min(SIZE);
        out.all()[..filled].copy_from_slice(&session.owed[..filled]);
        session.owed.drain(..filled);
        let mut taken = 0;
        for data in bytes.chunks(MOST) {
            if filled + data.len() + OVERHEAD > SIZE {
                break;
            }
            filled += session.seal(data, &[], &mut out.all()[filled..]).map_err(broken)?;
            taken += data.len();
        }
        out.hold(0, filled);
        self.sealed = Some((out, taken));
        Ok(())
    }

    /// Sends what is sealed; returns how many bytes of the flow that were.
    fn try_flush(&mut self) -> io::Result<usize> {
        let Some((sealed, taken)) = &mut self.sealed else { return Ok(0) };
        while !sealed.is_empty() {
            let count = self.socket.try_write(sealed)?;
            sealed.consume(count);
        }
        let taken = *taken;
        self.sealed = None;
        Ok(taken)
    }
}

impl<'a> Endpoint<'a> for Secured<'a> {
    fn socket(&self) -> &'a TcpStream {
        self.socket
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut wire = self.wire.take().unwrap_or_else(Buffer::take);
        let outcome = loop {
            let filled = self.open(&mut wire, buffer);
            match &self.ended {
                _ if filled > 0 => break Poll::Ready(Ok(filled)),
                Some(Ended::InOrder) => break Poll::Ready(Ok(0)),
                Some(Ended::Broken(error)) => break Poll::Ready(Err(broken(error.clone()))),
                None => {}
            }
            match socket::poll_read(self.socket, cx, wire.room()) {
                Poll::Ready(Ok(0)) => break Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Poll::Ready(Ok(count)) => wire.fill(count),
                other => break other,
            }
        };
        self.wire = (!wire.is_empty()).then_some(wire);
        outcome
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.sealed.is_none() {
            self.session().renew().map_err(broken)?;
            self.seal(bytes)?;
        }
        // What is sealed is of these bytes: nothing is taken until all of it is sent.
        self.try_flush()
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closing {
            self.closing = true;
            self.session().close().map_err(broken)?;
            self.seal(&[])?;
        }
        loop {
            match self.try_flush() {
                Ok(_) => return Poll::Ready(socket::shutdown(self.socket)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.socket.poll_write_ready(cx))?;
                }
                // A server that has said all, and gone, need not hear it.
                Err(_) if matches!(self.ended, Some(Ended::InOrder)) => {
                    return Poll::Ready(socket::shutdown(self.socket));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn reason(&self, error: &io::Error) -> Reason {
        let asked = self.external.asked;
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Broken>()) {
            Some(error) => Reason::ExternalTls(ExternalError::from_broken(error, asked)),
            None if error.kind() == io::ErrorKind::UnexpectedEof => {
                Reason::ExternalTls(ExternalError::Truncated)
            }
            None => Reason::ProgramReset(error.kind()),
        }
    }
}

fn broken(error: Broken) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
