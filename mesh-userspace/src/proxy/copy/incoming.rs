//! From the mesh to the program: read, open, deliver.

use std::{
    io,
    task::{Context, Poll},
};

use super::{Copy, Progress, Role};
use crate::{
    proxy::{
        buffer::Buffer,
        endpoint::Endpoint,
        link::{self, Word},
        reason::Reason,
        socket::poll_read,
    },
    tls::Opened,
};

/// Mesh to program.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Incoming {
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

impl<'a, E: Endpoint<'a>> Copy<'a, E> {
    /// One step from the mesh to the program.
    pub(super) fn receive(&mut self, cx: &mut Context<'_>) -> Progress {
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
    pub(super) fn deliver_first(&mut self, mut first: Buffer) {
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

    fn cannot_deliver(&mut self, error: &io::Error) -> bool {
        self.failed.get_or_insert_with(|| self.program.reason(error));
        self.incoming = Incoming::Failed;
        true
    }
}
