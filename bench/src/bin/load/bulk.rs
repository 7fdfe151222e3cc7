//! Bytes as fast as they go.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;

use crate::{
    server::{BOTH, SEND, SWALLOW},
    window::{Measured, Window},
};

/// What is written and read at once.
pub const CHUNK: usize = 128 * 1024;

/// No byte moves for so long.
const STALLED: Duration = Duration::from_secs(10);

/// Where the bytes go, seen from the client.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    Up,
    Down,
    Both,
}

pub fn run(to: SocketAddr, way: Way, streams: usize, window: &Window) -> Result<Measured> {
    let mut threads: Vec<Box<dyn FnOnce() -> Result<()> + Send>> = Vec::new();
    for _ in 0..streams {
        let mut stream = TcpStream::connect(to).context("connect")?;
        let first = match way {
            Way::Up => SWALLOW,
            Way::Down => SEND,
            Way::Both => BOTH,
        };
        stream.write_all(&[first])?;
        // Whoever stops moving bytes must not hang the measurement.
        stream.set_read_timeout(Some(STALLED))?;
        stream.set_write_timeout(Some(STALLED))?;
        if way != Way::Up {
            let stream = stream.try_clone()?;
            threads.push(Box::new(move || down(stream, window)));
        }
        if way != Way::Down {
            threads.push(Box::new(move || up(stream, window)));
        }
    }
    window.measure(threads)
}

fn up(mut stream: TcpStream, window: &Window) -> Result<()> {
    let bytes = vec![0; CHUNK];
    while !window.is_over() {
        window.moved(stream.write(&bytes).context("send")?);
    }
    // The other direction's thread may wait for bytes.
    let _ = stream.shutdown(std::net::Shutdown::Both);
    Ok(())
}

fn down(mut stream: TcpStream, window: &Window) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    while !window.is_over() {
        let read = stream.read(&mut buffer).context("receive")?;
        ensure!(read > 0, "the server closed the connection");
        window.moved(read);
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
    Ok(())
}
