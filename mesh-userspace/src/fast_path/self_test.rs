//! A self-test of connected sockets: whether they do what plain TCP does, with connections of its own over loopback.
//!
//! Nobody else's connection is touched, and nothing here takes longer than a few seconds, whatever the kernel does.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::Duration,
};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Where the ends of a connection are on the way to the path that is tested.
pub(super) trait Path {
    /// Puts both ends of a connection on it.
    fn enter(&self, pair: &Pair) -> io::Result<()>;
}

/// Both ends of a connection over loopback.
pub(super) struct Pair {
    pub(super) one: TcpStream,
    pub(super) other: TcpStream,
}

/// How it is not plain TCP.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("{during}: {kind}")]
    Failed { during: &'static str, kind: io::ErrorKind },
    #[error("a reader that waits with epoll is not woken")]
    NotWoken,
    #[error("epoll says that there is something to read where nothing is")]
    WokenForNothing,
    #[error("FIONREAD answers {answer} where {bytes} bytes are there")]
    Fionread { answer: i32, bytes: usize },
    #[error("a half-close is not seen")]
    HalfClose,
    #[error("what was sent before a half-close is lost")]
    LostBeforeEnd,
    #[error("a reset looks like an end in order")]
    ResetLooksClean,
    #[error("bytes from before a connection enters it are overtaken or lost")]
    Overtaken,
    #[error(
        "a writer is never stopped: {mebibytes} MiB that nobody reads are taken, with buffers of {buffers} KiB"
    )]
    Boundless { mebibytes: usize, buffers: usize },
    #[error("bytes are lost, repeated or out of order")]
    Bytes,
    #[error("keys cannot be renewed (KeyUpdate), as any peer may do at any time")]
    KeyUpdate,
    #[error("splice(2) out of a connection fails or loses bytes")]
    SpliceOut,
    #[error("splice(2) into a connection fails or loses bytes")]
    SpliceIn,
}

/// How long something that should be there already may take.
const PATIENCE: Duration = Duration::from_millis(500);
const STALLED: Duration = Duration::from_secs(2);
const TRANSFER: usize = 2 << 20;
/// What a connection's buffers are set to where it is tested whether they are kept to, and what is far beyond.
const BUFFER: usize = 64 << 10;
const BOUND: usize = 16 << 20;

type Check = fn(&dyn Path) -> Result<(), Flaw>;

/// Returns how connections on `path` differ from plain ones; none if they don't.
pub(super) fn examine(path: &dyn Path) -> Vec<Flaw> {
    let checks: [Check; 6] =
        [wakes_and_counts, half_closes, resets, keeps_what_was_before, stops_writers, transfers];
    checks.iter().filter_map(|check| check(path).err()).collect()
}

impl Pair {
    pub(super) fn open() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let one = TcpStream::connect(listener.local_addr()?)?;
        let (other, _) = listener.accept()?;
        for end in [&one, &other] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(STALLED))?;
            end.set_write_timeout(Some(STALLED))?;
        }
        Ok(Self { one, other })
    }
}

pub(super) fn on(path: &dyn Path) -> Result<Pair, Flaw> {
    let pair = Pair::open().map_err(failed("a connection over loopback"))?;
    path.enter(&pair).map_err(failed("a connection's entry"))?;
    Ok(pair)
}

pub(super) fn failed(during: &'static str) -> impl Fn(io::Error) -> Flaw {
    move |error| Flaw::Failed { during, kind: error.kind() }
}

fn wakes_and_counts(path: &dyn Path) -> Result<(), Flaw> {
    let Pair { mut one, mut other } = on(path)?;
    let waiting = Waiting::on(&other)?;
    if waiting.events(Duration::ZERO)?.contains(EpollFlags::EPOLLIN) {
        return Err(Flaw::WokenForNothing);
    }
    let mut found = [0; 5];
    // Once for a reader that waits already, and again: an edge after an edge.
    for _ in 0..2 {
        thread::scope(|scope| {
            let woken = scope.spawn(|| waiting.events(PATIENCE));
            thread::sleep(Duration::from_millis(5));
            one.write_all(b"12345").map_err(failed("a write"))?;
            let events = woken.join().expect("invariant: it does not panic")?;
            if events.contains(EpollFlags::EPOLLIN) { Ok(()) } else { Err(Flaw::NotWoken) }
        })?;
        let answer = unread(&other).map_err(failed("FIONREAD"))?;
        if answer != 5 {
            return Err(Flaw::Fionread { answer, bytes: 5 });
        }
        other.read_exact(&mut found).map_err(failed("a read"))?;
        if &found != b"12345" {
            return Err(Flaw::Bytes);
        }
    }
    Ok(())
}

fn half_closes(path: &dyn Path) -> Result<(), Flaw> {
    let Pair { mut one, mut other } = on(path)?;
    let waiting = Waiting::on(&other)?;
    one.write_all(b"the last").map_err(failed("a write"))?;
    one.shutdown(Shutdown::Write).map_err(failed("a half-close"))?;
    if !waiting.events(PATIENCE)?.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLIN) {
        return Err(Flaw::HalfClose);
    }
    let mut last = Vec::new();
    match other.read_to_end(&mut last) {
        Ok(_) if last == b"the last" => {}
        Ok(_) => return Err(Flaw::LostBeforeEnd),
        Err(_) => return Err(Flaw::HalfClose),
    }
    // The other direction goes on.
    other.write_all(b"and back").map_err(failed("a write after the other side's half-close"))?;
    drop(other);
    let mut back = Vec::new();
    one.read_to_end(&mut back).map_err(failed("a read after a half-close"))?;
    if back == b"and back" { Ok(()) } else { Err(Flaw::LostBeforeEnd) }
}

pub(super) fn resets(path: &dyn Path) -> Result<(), Flaw> {
    let Pair { mut one, mut other } = on(path)?;
    one.write_all(b"x").map_err(failed("a write"))?;
    other.read_exact(&mut [0]).map_err(failed("a read"))?;
    socket2::SockRef::from(&one).set_linger(Some(Duration::ZERO)).map_err(failed("SO_LINGER"))?;
    drop(one);
    match other.read(&mut [0]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        _ => Err(Flaw::ResetLooksClean),
    }
}

fn keeps_what_was_before(path: &dyn Path) -> Result<(), Flaw> {
    let mut pair = Pair::open().map_err(failed("a connection over loopback"))?;
    pair.one.write_all(b"before").map_err(failed("a write"))?;
    path.enter(&pair).map_err(failed("a connection's entry"))?;
    pair.one.write_all(b" after").map_err(failed("a write"))?;
    let mut found = [0; 12];
    match pair.other.read_exact(&mut found) {
        Ok(()) if &found == b"before after" => Ok(()),
        _ => Err(Flaw::Overtaken),
    }
}

fn stops_writers(path: &dyn Path) -> Result<(), Flaw> {
    let Pair { mut one, mut other } = on(path)?;
    for end in [&one, &other] {
        let end = socket2::SockRef::from(end);
        end.set_recv_buffer_size(BUFFER).map_err(failed("SO_RCVBUF"))?;
        end.set_send_buffer_size(BUFFER).map_err(failed("SO_SNDBUF"))?;
    }
    one.set_nonblocking(true).map_err(failed("O_NONBLOCK"))?;
    let (block, mut sent) = (vec![7; 64 * 1024], 0);
    while sent < BOUND {
        match one.write(&block) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(failed("a write to a reader that stalls")(error)),
        }
    }
    if sent >= BOUND {
        return Err(Flaw::Boundless { mebibytes: BOUND >> 20, buffers: BUFFER >> 10 });
    }
    one.shutdown(Shutdown::Write).map_err(failed("a half-close"))?;
    let got = io::copy(&mut other, &mut io::sink()).map_err(failed("a read of all that waited"))?;
    if got == sent as u64 { Ok(()) } else { Err(Flaw::Bytes) }
}

/// Both ways at once, in pieces of many sizes.
pub(super) fn transfers(path: &dyn Path) -> Result<(), Flaw> {
    let pair = on(path)?;
    thread::scope(|scope| {
        let ends = [(&pair.one, 1_u32), (&pair.other, 2)];
        let senders = ends.map(|(end, seed)| scope.spawn(move || send(end, seed)));
        let receivers =
            [(&pair.other, 1), (&pair.one, 2)].map(|(end, seed)| scope.spawn(move || receive(end, seed)));
        senders
            .into_iter()
            .chain(receivers)
            .try_for_each(|each| each.join().expect("invariant: it does not panic"))
    })
}

fn send(mut end: &TcpStream, seed: u32) -> Result<(), Flaw> {
    let (mut bytes, mut left) = (Bytes(seed), TRANSFER);
    let mut piece = vec![0; 64 * 1024];
    let mut length = 1;
    while left > 0 {
        length = (length * 3 + 1) % piece.len() + 1;
        let piece = &mut piece[..length.min(left)];
        bytes.fill(piece);
        end.write_all(piece).map_err(|_| Flaw::Bytes)?;
        left -= piece.len();
    }
    end.shutdown(Shutdown::Write).map_err(failed("a half-close"))
}

fn receive(mut end: &TcpStream, seed: u32) -> Result<(), Flaw> {
    let (mut bytes, mut count) = (Bytes(seed), 0);
    let (mut piece, mut expected) = (vec![0; 32 * 1024], vec![0; 32 * 1024]);
    loop {
        match end.read(&mut piece) {
            Ok(0) => return if count == TRANSFER { Ok(()) } else { Err(Flaw::Bytes) },
            Ok(length) => {
                bytes.fill(&mut expected[..length]);
                if piece[..length] != expected[..length] {
                    return Err(Flaw::Bytes);
                }
                count += length;
            }
            Err(_) => return Err(Flaw::Bytes),
        }
    }
}

/// Bytes that follow from a seed (xorshift), so that a place that is wrong differs.
struct Bytes(u32);

impl Bytes {
    fn fill(&mut self, piece: &mut [u8]) {
        for byte in piece {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 17;
            self.0 ^= self.0 << 5;
            *byte = self.0 as u8;
        }
    }
}

/// A reader that waits as tokio's do: with epoll, by edges.
struct Waiting(Epoll);

impl Waiting {
    fn on(end: &TcpStream) -> Result<Self, Flaw> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| failed("epoll")(e.into()))?;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        epoll.add(end.as_fd(), EpollEvent::new(interest, 0)).map_err(|e| failed("epoll")(e.into()))?;
        Ok(Self(epoll))
    }

    /// Returns what has happened; nothing when nothing does within `patience`.
    fn events(&self, patience: Duration) -> Result<EpollFlags, Flaw> {
        let timeout = EpollTimeout::try_from(patience).expect("invariant: it is short");
        let mut events = [EpollEvent::empty()];
        let count = self.0.wait(&mut events, timeout).map_err(|e| failed("epoll")(e.into()))?;
        Ok(if count > 0 { events[0].events() } else { EpollFlags::empty() })
    }
}

/// How many bytes FIONREAD says that a read would find.
fn unread(end: &TcpStream) -> io::Result<i32> {
    let mut answer = -1;
    // SAFETY: FIONREAD writes an int to where its argument points (tcp(7)).
    let outcome = unsafe { libc::ioctl(end.as_raw_fd(), libc::FIONREAD, &raw mut answer) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain;

    impl Path for Plain {
        fn enter(&self, _pair: &Pair) -> io::Result<()> {
            Ok(())
        }
    }

    /// One end is not what the other end is connected to.
    struct Cut;

    impl Path for Cut {
        fn enter(&self, pair: &Pair) -> io::Result<()> {
            pair.one.shutdown(Shutdown::Both)
        }
    }

    #[test]
    fn plain_tcp_has_no_flaw() {
        assert_eq!(examine(&Plain), []);
    }

    #[test]
    fn a_path_that_delivers_nothing_has_every_flaw() {
        let flaws = examine(&Cut);
        assert_eq!(flaws.len(), 6, "{flaws:?}");
    }
}
