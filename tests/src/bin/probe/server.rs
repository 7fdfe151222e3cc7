//! Servers: one thread per connection, until killed.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

/// What a connection gets.
#[derive(Debug)]
pub enum Service {
    /// What it sent, until it sends no more.
    Echo,
    /// The text at once, then an echo.
    Banner(String),
    /// The text, and the end.
    Greet(String),
    /// The number of bytes it sent, once it has closed its direction.
    Count,
    /// A reset, after its first byte.
    Reset,
    /// Its part of [`stalls`](crate::stalls), and a line about it.
    Stalls,
}

pub fn serve(at: SocketAddr, service: Service) -> Result<ExitCode, String> {
    let listener = TcpListener::bind(at).map_err(|e| format!("bind {at}: {e}"))?;
    let bound = listener.local_addr().map_err(|e| e.to_string())?;
    println!("listening {bound}");
    let service = Arc::new(service);
    for stream in listener.incoming() {
        let service = Arc::clone(&service);
        // A peer that resets is no concern of the others.
        let serve = move || stream.and_then(|stream| attend(stream, &service)).unwrap_or(());
        std::thread::Builder::new()
            .stack_size(256 * 1024)
            .spawn(serve)
            .map_err(|e| format!("thread: {e}"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn attend(mut stream: TcpStream, service: &Service) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    match service {
        Service::Echo => echo(&mut stream),
        Service::Banner(text) => {
            stream.write_all(text.as_bytes())?;
            echo(&mut stream)
        }
        Service::Greet(text) => stream.write_all(text.as_bytes()),
        Service::Stalls => {
            if let Some(said) = crate::stalls::attend(stream) {
                println!("{said}");
            }
            Ok(())
        }
        Service::Count => {
            let count = std::io::copy(&mut stream, &mut std::io::sink())?;
            stream.write_all(count.to_string().as_bytes())
        }
        Service::Reset => {
            stream.read_exact(&mut [0])?;
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        }
    }
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}
