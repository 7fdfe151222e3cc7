//! A TLS connection between two hosts. Between meshnodes it carries one flow after another, each in records of its own.
//!
//! The last byte of each record's plaintext says what the record is; what is before that byte is the program's.
//!
//! ```text
//! caller    OPEN data* END                                               OPEN …
//! server         (OPENED | data)* END_LAST, or END … DONE, or REFUSED
//! ```
//!
//! The server's last word of a flow says that its program, too, has closed in order: what goes wrong there before that is a
//! reset of the connection, which the next flow must not get.
//!
//! With others it is one flow's alone, as Consul Connect has it: no such byte, and `close_notify` is the end.

use std::{
    io,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::timeout};

use super::{
    buffer::Buffer,
    pace::Pace,
    reason::Reason,
    socket::{self, poll_read, poll_write},
};
use crate::tls::{Broken, Opened, Session, record::OVERHEAD, refusal};

/// How long a peer may take to take the word that its flow is refused.
const REFUSING: Duration = Duration::from_secs(1);

/// What a record between meshnodes is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Word {
    /// More of the program's bytes.
    Data = 0,
    /// Its sender has sent all.
    End = 1,
    /// A flow begins, with the first of the program's bytes, if there are any yet.
    Open = 2,
    /// The same; the caller sends no more before it hears [`Opened`](Self::Opened).
    OpenAndSay = 3,
    /// The program that was called is on the line.
    Opened = 4,
    /// The flow is not taken, for the [`Refusal`] before this byte; the connection ends.
    Refused = 5,
    /// The server has sent all, and its program got all of the caller's: the flow has ended.
    EndLast = 6,
    /// The flow has ended, as [`EndLast`](Self::EndLast) says it together with the end.
    Done = 7,
}

impl Word {
    fn from_byte(byte: u8) -> Option<Self> {
        let all = [
            Self::Data,
            Self::End,
            Self::Open,
            Self::OpenAndSay,
            Self::Opened,
            Self::Refused,
            Self::EndLast,
            Self::Done,
        ];
        all.get(usize::from(byte)).copied()
    }
}

/// Why a flow is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Refusal {
    /// Whoever asks, no flow of this source may be.
    NotAllowed = 1,
    /// Another instance may take it.
    NotHere = 2,
}

pub(super) struct Link {
    pub(super) socket: TcpStream,
    pub(super) tls: Session,
    /// Ciphertext that was received and not opened: the first part of a record, or the next flow's.
    pub(super) received: Option<Buffer>,
    /// Of what this side sends.
    pub(super) pace: Pace,
    pub(super) made: Instant,
    /// When a flow last used it.
    pub(super) used: Instant,
    /// The server's last word of the last flow is said (as the server), or heard (as the caller).
    pub(super) settled: bool,
    /// No flow is under way: dropped, it is closed in order. Otherwise it is reset.
    in_order: bool,
    /// The kernel was told so, too.
    lifted: bool,
}

/// The beginning of a flow, as the server gets it.
#[derive(Default)]
pub(super) struct Beginning {
    /// The caller waits for [`Word::Opened`].
    pub(super) say: bool,
    /// The first of the program's bytes.
    pub(super) first: Option<Buffer>,
}

impl Link {
    /// On the heap: it goes from hand to hand, and each of them would have room for it.
    pub(super) fn new(socket: TcpStream, mut tls: Session) -> Result<Box<Self>, Reason> {
        let ahead = std::mem::take(&mut tls.ahead);
        let mut received = None;
        if !ahead.is_empty() {
            let mut buffer = Buffer::take();
            let room = buffer.all().get_mut(..ahead.len());
            let too_much = || Reason::BrokenTls("too much came with the handshake".to_owned());
            room.ok_or_else(too_much)?.copy_from_slice(&ahead);
            buffer.hold(0, ahead.len());
            received = Some(buffer.fitted());
        }
        let made = Instant::now();
        Ok(Box::new(Self {
            socket,
            tls,
            received,
            pace: Pace::default(),
            made,
            used: made,
            settled: true,
            in_order: false,
            lifted: false,
        }))
    }

    /// Whether the next flow may begin: the last one has ended at the server too, and nothing else has come, the end of the
    /// connection included. `None`: not yet.
    pub(super) fn is_free(&mut self) -> Option<bool> {
        if socket::is_silent(&self.socket) {
            return self.settled.then_some(self.received.is_none());
        }
        if self.settled {
            return Some(false);
        }
        let waker = std::task::Waker::noop();
        match self.poll_record(&mut Context::from_waker(waker)) {
            Poll::Ready(Ok((Word::Done, _))) => {
                self.settled = true;
                Some(self.received.is_none() && socket::is_silent(&self.socket))
            }
            Poll::Ready(_) => Some(false),
            Poll::Pending => None,
        }
    }

    /// A flow ended in order: what is under way is still delivered if the connection ends now.
    pub(super) fn may_close(&mut self) {
        self.in_order = true;
        // Also if the daemon is killed: a reset would take back what has yet to be sent.
        if socket::unsent(&self.socket) > 0 {
            self.lift();
        }
    }

    /// A flow begins: from here on the end of the connection is a reset. On an error it cannot carry one.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        if self.lifted {
            socket::reset_on_drop(&self.socket)?;
            self.lifted = false;
        }
        self.in_order = false;
        Ok(())
    }

    /// If it fails, the connection is reset.
    fn lift(&mut self) {
        self.lifted = self.lifted || socket::close_cleanly(&self.socket).is_ok();
    }

    /// Opens a flow without any of its bytes, and waits until the peer has its program on the line.
    pub(super) async fn open(&mut self) -> Result<(), Reason> {
        self.say(Word::OpenAndSay, &[]).await?;
        match self.next_record().await? {
            (Word::Opened, _) => Ok(()),
            (Word::Refused, why) => Err(refused(&why)),
            _ => Err(out_of_turn()),
        }
    }

    /// Waits for the next flow.
    pub(super) async fn next_flow(&mut self) -> Result<Beginning, Reason> {
        let (word, data) = self.next_record().await?;
        let first = (!data.is_empty()).then_some(data);
        match word {
            Word::Open => Ok(Beginning { say: false, first }),
            Word::OpenAndSay => Ok(Beginning { say: true, first }),
            _ => Err(out_of_turn()),
        }
    }

    /// Sends a record of this side's own, of a few bytes.
    pub(super) async fn say(&mut self, word: Word, data: &[u8]) -> Result<(), Reason> {
        // What was sealed before goes before.
        let owed = std::mem::take(&mut self.tls.owed);
        let mut record = [0; 16 + OVERHEAD];
        let length = self.tls.seal(data, &[word as u8], &mut record).map_err(|e| broken(&e))?;
        let all = [&owed, &record[..length]].concat();
        let mut left = &all[..];
        std::future::poll_fn(|cx| {
            while !left.is_empty() {
                let count = ready!(poll_write(&self.socket, cx, left))?;
                left = &left[count..];
            }
            Poll::Ready(Ok(()))
        })
        .await
        .map_err(|error: io::Error| Reason::PeerReset(error.kind()))
    }

    /// Refuses the flow that was just opened. The connection is not to be used again.
    pub(super) async fn refuse(&mut self, why: Refusal) {
        // A peer that is gone, or does not listen, gets no word.
        let said = timeout(REFUSING, self.say(Word::Refused, &[why as u8])).await;
        if matches!(said, Ok(Ok(()))) {
            self.may_close();
        }
    }

    /// Waits for a record; returns what it is, and what it says.
    async fn next_record(&mut self) -> Result<(Word, Buffer), Reason> {
        std::future::poll_fn(|cx| self.poll_record(cx)).await
    }

    fn poll_record(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Word, Buffer), Reason>> {
        loop {
            // An idle connection holds no buffer.
            let mut wire = self.received.take().unwrap_or_else(Buffer::take);
            let mut plain = Buffer::take();
            if let Some((held, length)) = self.tls.open(&wire, plain.all()).map_err(|e| broken(&e))? {
                wire.consume(length);
                self.received = (!wire.is_empty()).then_some(wire);
                match held {
                    Opened::Data(length) => {
                        let (word, length) = word(plain.all(), length)?;
                        plain.hold(0, length);
                        return Poll::Ready(Ok((word, plain)));
                    }
                    Opened::Nothing => continue,
                    Opened::CloseNotify => return Poll::Ready(Err(out_of_turn())),
                }
            }
            drop(plain);
            let read = poll_read(&self.socket, cx, wire.room());
            if let Poll::Ready(Ok(count)) = read {
                wire.fill(count);
            }
            // Who has not been authorized, or says nothing more, does not get a whole buffer for a part of a record.
            let waits = read.is_pending();
            self.received = (!wire.is_empty()).then(|| if waits { wire.fitted() } else { wire });
            match ready!(read) {
                Ok(0) => return Poll::Ready(Err(Reason::PeerReset(io::ErrorKind::UnexpectedEof))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(Reason::PeerReset(error.kind()))),
            }
        }
    }
}

/// To the kernel, the end of the connection is a reset while it waits, too: it need not be told of each flow.
impl Drop for Link {
    fn drop(&mut self) {
        if self.in_order {
            self.lift();
        }
    }
}

/// Splits what a record says from what it is; `length` is both.
pub(super) fn word(plain: &[u8], length: usize) -> Result<(Word, usize), Reason> {
    let length = length.checked_sub(1).ok_or_else(out_of_turn)?;
    Word::from_byte(plain[length]).map(|word| (word, length)).ok_or_else(out_of_turn)
}

/// What a [`Word::Refused`] says.
pub(super) fn refused(why: &[u8]) -> Reason {
    if why == [Refusal::NotAllowed as u8] {
        Reason::RefusedByPeer("no intention there allows it".to_owned())
    } else {
        Reason::NotReady
    }
}

pub(super) fn out_of_turn() -> Reason {
    Reason::BrokenTls("a record that does not belong here".to_owned())
}

pub(super) fn broken(error: &Broken) -> Reason {
    match error {
        Broken::Alert(alert) => Reason::RefusedByPeer(refusal(*alert)),
        other => Reason::BrokenTls(other.to_string()),
    }
}
