//! Small messages there and back on connections that stay open.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Instant,
};

use anyhow::Result;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::{
    connections::open,
    server::ECHO,
    window::{Measured, Window},
};

/// The size of a request, and of its answer.
pub const MESSAGE: usize = 128;

/// Returns a request; as a connection's first bytes it asks for an echo.
pub fn request() -> [u8; MESSAGE] {
    [ECHO; MESSAGE]
}

/// As many threads as cores, each with its part of the connections; a thread with one connection blocks on it.
pub fn run(to: SocketAddr, connections: usize, window: &Window) -> Result<Measured> {
    let cores = std::thread::available_parallelism()?.get();
    let mut parts: Vec<Vec<TcpStream>> = (0..cores.min(connections)).map(|_| Vec::new()).collect();
    for (n, stream) in open(to, connections)?.into_iter().enumerate() {
        let part = n % parts.len();
        parts[part].push(stream);
    }
    let threads = parts.into_iter().map(|part| {
        let run: Box<dyn FnOnce() -> Result<()> + Send> =
            Box::new(move || match <[TcpStream; 1]>::try_from(part) {
                Ok([stream]) => one(stream, window),
                Err(many) => several(&many, window),
            });
        run
    });
    window.measure(threads.collect())
}

fn one(mut stream: TcpStream, window: &Window) -> Result<()> {
    let mut recorder = window.recorder();
    let mut answer = [0; MESSAGE];
    while !window.is_over() {
        let start = Instant::now();
        stream.write_all(&request())?;
        stream.read_exact(&mut answer)?;
        recorder.took(start.elapsed());
    }
    Ok(())
}

fn several(streams: &[TcpStream], window: &Window) -> Result<()> {
    let mut recorder = window.recorder();
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut sent = Vec::new();
    for (n, mut stream) in streams.iter().enumerate() {
        epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, n as u64))?;
        stream.write_all(&request())?;
        sent.push(Instant::now());
    }
    let mut events = vec![EpollEvent::empty(); streams.len()];
    let mut answer = [0; MESSAGE];
    while !window.is_over() {
        let ready = epoll.wait(&mut events, EpollTimeout::from(100_u8))?;
        for event in &events[..ready] {
            let n = event.data() as usize;
            let mut stream = &streams[n];
            // It comes in one piece, or its rest is on its way.
            stream.read_exact(&mut answer)?;
            let now = Instant::now();
            recorder.took(now - sent[n]);
            sent[n] = now;
            stream.write_all(&request())?;
        }
    }
    Ok(())
}
