//! From the program to the mesh: read, seal, write.

use std::{
    io,
    task::{Context, Poll, ready},
    time::Instant,
};

use super::{Copy, Incoming, Progress, Role};
use crate::{
    proxy::{
        buffer::{BATCH, Buffer},
        endpoint::Endpoint,
        link::{self, Word},
        pace::SHORT,
        reason::Reason,
        socket::{poll_write, shutdown},
    },
    tls::record,
};

/// Program to mesh.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outgoing {
    Open,
    /// The program sent FIN; the word that says so is under way.
    Closing,
    /// The peer was told.
    Closed,
    /// The peer does not take anything any more.
    Failed,
}

impl<'a, E: Endpoint<'a>> Copy<'a, E> {
    /// One step from the program to the mesh.
    pub(super) fn send(&mut self, cx: &mut Context<'_>) -> Progress {
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
}
