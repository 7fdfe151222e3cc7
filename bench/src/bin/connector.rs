//! `connector ADDRESS`: a captured program that tells when the kernel's verdict on its connections changed.
//!
//! For each line `allow` or `deny` on standard input it connects again and again until connect(2) succeeds or fails
//! with EPERM, and then prints the time of that (CLOCK_MONOTONIC, nanoseconds) and how many tries it took. It ends with
//! its standard input.

use std::{
    io::{BufRead as _, ErrorKind, Write as _},
    net::SocketAddr,
    time::Duration,
};

use socket2::{Domain, Socket, Type};

/// Between two tries.
const PAUSE: Duration = Duration::from_micros(200);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let to: SocketAddr = std::env::args().nth(1).ok_or("connector ADDRESS")?.parse()?;
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let wanted = match line?.as_str() {
            "allow" => true,
            "deny" => false,
            other => return Err(format!("`{other}`: allow or deny").into()),
        };
        let mut tries = 1;
        while verdict(to)? != Some(wanted) {
            tries += 1;
            std::thread::sleep(PAUSE);
        }
        writeln!(out, "{} {tries}", mesh_bench::verdict::monotonic().as_nanos())?;
        out.flush()?;
    }
    Ok(())
}

/// Whether the kernel allows a connection; `None` where it was neither captured nor denied.
fn verdict(to: SocketAddr) -> std::io::Result<Option<bool>> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    // Also limits connect(2), where nothing captures it yet.
    socket.set_write_timeout(Some(Duration::from_millis(50)))?;
    // No TIME_WAIT is left.
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect(&to.into()) {
        Ok(()) => Ok(Some(true)),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(Some(false)),
        Err(_) => Ok(None),
    }
}
