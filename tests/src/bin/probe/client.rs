//! One connection, with everything that can be told of it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use crate::{address, name_of, number};

/// What to do once connected.
#[derive(Debug)]
pub struct Options {
    send: String,
    half_close: bool,
    reset: bool,
    from: Option<SocketAddr>,
    /// Stop reading after so many bytes; otherwise at the end of the stream.
    read: Option<usize>,
    wait: Duration,
}

impl Options {
    pub fn parse(words: &[&str]) -> Result<Self, String> {
        let mut options = Self {
            send: String::new(),
            half_close: false,
            reset: false,
            from: None,
            read: None,
            wait: Duration::from_secs(10),
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("`{word}` needs a value"));
            match *word {
                "--send" => options.send = (*value()?).to_owned(),
                "--half-close" => options.half_close = true,
                "--reset" => options.reset = true,
                "--from" => options.from = Some(address(value()?)?),
                "--read" => options.read = Some(number(value()?)?),
                "--wait" => options.wait = Duration::from_millis(number(value()?)?),
                other => return Err(format!("unknown option `{other}`")),
            }
        }
        Ok(options)
    }
}

/// Returns `ok` (it connected), `error` of connect(2), `peer` and `local` as the socket says, `received`, and how the
/// stream ended: `eof`, `enough`, or the error's name. `connect_ms`, `total_ms` are how long that took.
pub fn connect(to: SocketAddr, options: &Options) -> Value {
    let start = Instant::now();
    let mut stream = match open(to, options.from) {
        Ok(stream) => stream,
        Err(e) => {
            return json!({"ok": false, "error": name_of(&e), "connect_ms": ms(start)});
        }
    };
    let connect_ms = ms(start);
    let (peer, local) = (stream.peer_addr(), stream.local_addr());
    let text = |a: std::io::Result<SocketAddr>| a.map_or_else(|e| name_of(&e), |a| a.to_string());
    let mut received = Vec::new();
    let end = converse(&mut stream, options, &mut received).unwrap_or_else(|e| name_of(&e));
    json!({
        "ok": true, "peer": text(peer), "local": text(local), "end": end,
        "received": String::from_utf8_lossy(&received), "connect_ms": connect_ms, "total_ms": ms(start),
    })
}

/// Returns a connected stream with a time limit on its operations.
pub fn open(to: SocketAddr, from: Option<SocketAddr>) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    if let Some(from) = from {
        socket.set_reuse_address(true)?;
        socket.bind(&from.into())?;
    }
    // Also limits a blocking connect().
    socket.set_write_timeout(Some(Duration::from_secs(10)))?;
    socket.connect(&to.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn converse(stream: &mut TcpStream, options: &Options, received: &mut Vec<u8>) -> std::io::Result<String> {
    stream.set_read_timeout(Some(options.wait))?;
    stream.write_all(options.send.as_bytes())?;
    if options.half_close {
        match stream.shutdown(Shutdown::Write) {
            // It was reset meanwhile, which is what reading says.
            Err(error) if error.kind() == ErrorKind::NotConnected => {}
            result => result?,
        }
    }
    if options.reset {
        socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?;
        return Ok("reset by this end".to_owned());
    }
    let mut buffer = [0; 64 * 1024];
    loop {
        if options.read.is_some_and(|enough| received.len() >= enough) {
            return Ok("enough".to_owned());
        }
        match stream.read(&mut buffer)? {
            0 => return Ok("eof".to_owned()),
            n => received.extend_from_slice(&buffer[..n]),
        }
    }
}

fn ms(start: Instant) -> u128 {
    start.elapsed().as_millis()
}
