//! The server: for each connection its first byte says whether to swallow, to send, both, or to echo.
//!
//! A thread for each core, each with an epoll of its own. Whoever accepts hands the connection to the thread that has the
//! fewest, so that long-lived ones are spread evenly.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::bulk::CHUNK;

/// First bytes of connections.
pub const SWALLOW: u8 = b'u';
pub const SEND: u8 = b'd';
pub const BOTH: u8 = b'b';
pub const ECHO: u8 = b'e';

struct Worker {
    epoll: Epoll,
    /// By descriptor.
    connections: Mutex<Vec<Option<Connection>>>,
    count: AtomicUsize,
}

struct Connection {
    stream: TcpStream,
    /// The first byte, once it came.
    kind: Option<u8>,
}

/// Serves at each of `addresses` until the process is killed.
pub fn serve(addresses: &[SocketAddr]) -> Result<()> {
    let listeners: Vec<TcpListener> = addresses
        .iter()
        .map(|at| listen(*at).with_context(|| format!("listen at {at}")))
        .collect::<Result<_>>()?;
    let cores = std::thread::available_parallelism()?.get();
    let workers: Vec<Worker> = (0..cores).map(|_| Worker::new(&listeners)).collect::<Result<_>>()?;
    std::thread::scope(|scope| {
        for worker in &workers {
            scope.spawn(|| worker.work(&listeners, &workers).expect("epoll of open files does not fail"));
        }
    });
    Ok(())
}

fn listen(at: SocketAddr) -> Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&at.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

impl Worker {
    fn new(listeners: &[TcpListener]) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for listener in listeners {
            // One thread is woken for a connection, not all of them.
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
            epoll.add(listener, EpollEvent::new(flags, listener.as_raw_fd() as u64))?;
        }
        Ok(Self { epoll, connections: Mutex::default(), count: AtomicUsize::new(0) })
    }

    fn work(&self, listeners: &[TcpListener], workers: &[Self]) -> Result<()> {
        let mut buffer = vec![0; CHUNK];
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let ready = match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Err(nix::errno::Errno::EINTR) => continue,
                ready => ready?,
            };
            for event in &events[..ready] {
                let fd = event.data();
                match listeners.iter().find(|listener| listener.as_raw_fd() as u64 == fd) {
                    Some(listener) => self.accept(listener, workers)?,
                    None => self.serve(fd as usize, event.events(), &mut buffer),
                }
            }
        }
    }

    fn accept(&self, listener: &TcpListener, workers: &[Self]) -> Result<()> {
        // Another thread was faster, or the connection is gone already.
        let Ok((stream, _)) = listener.accept() else { return Ok(()) };
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        let count = |worker: &Self| worker.count.load(Ordering::Relaxed);
        let fewest = workers.iter().min_by_key(|worker| count(worker)).unwrap_or(self);
        let owner = if count(self) <= count(fewest) { self } else { fewest };
        owner.count.fetch_add(1, Ordering::Relaxed);
        let fd = stream.as_raw_fd() as usize;
        let mut connections = owner.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.len() <= fd {
            connections.resize_with(fd + 1, || None);
        }
        owner.epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, fd as u64))?;
        connections[fd] = Some(Connection { stream, kind: None });
        Ok(())
    }

    fn serve(&self, fd: usize, events: EpollFlags, buffer: &mut [u8]) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(connection) = &mut connections[fd] else { return };
        if connection.turn(events, &self.epoll, buffer).is_err() {
            connections[fd] = None;
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Connection {
    /// Does what is ready; an error ends the connection, also the end of the stream.
    fn turn(&mut self, events: EpollFlags, epoll: &Epoll, buffer: &mut [u8]) -> std::io::Result<()> {
        if events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            match self.stream.read(buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    let first = self.kind.is_none();
                    let kind = *self.kind.get_or_insert(buffer[0]);
                    if kind == ECHO {
                        // A client waits for each answer, so that there is room for it.
                        return self.stream.write_all(&buffer[..read]);
                    }
                    if first && kind != SWALLOW {
                        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT;
                        epoll.modify(
                            &self.stream,
                            &mut EpollEvent::new(flags, self.stream.as_raw_fd() as u64),
                        )?;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if events.contains(EpollFlags::EPOLLOUT) {
            match self.stream.write(buffer) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
