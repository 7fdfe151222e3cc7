//! `dialer`: a program that connects, and tells how long connect(2) took.
//!
//! For each line `ADDRESS COUNT PAUSE_US` on standard input it connects so often, pausing between, and prints a line of
//! JSON. `own` for an address is a listener of its own on loopback, made anew: in the cgroup that the process is in then.

use std::{
    io::{BufRead as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::json;
use socket2::{Domain, Socket, Type};

fn main() -> Result<()> {
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [to, count, pause] = words[..] else { anyhow::bail!("`{line}`: ADDRESS COUNT PAUSE_US") };
        let own = (to == "own").then(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).transpose()?;
        let to = match &own {
            Some(own) => own.local_addr()?,
            None => to.parse().context("an address")?,
        };
        let times = dial(to, own.as_ref(), count.parse()?, Duration::from_micros(pause.parse()?))?;
        let middle = times[times.len() / 2].as_nanos();
        let mean = times.iter().sum::<Duration>().as_nanos() / times.len() as u128;
        writeln!(out, "{}", json!({"median_ns": middle as f64, "mean_ns": mean as f64}))?;
        out.flush()?;
    }
    Ok(())
}

/// Returns how long each connect(2) took, the shortest first.
fn dial(to: SocketAddr, own: Option<&TcpListener>, count: usize, pause: Duration) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        // No TIME_WAIT is left: a reset ends it.
        socket.set_linger(Some(Duration::ZERO))?;
        let to = to.into();
        let start = Instant::now();
        socket.connect(&to).context("connect")?;
        times.push(start.elapsed());
        drop(socket);
        if let Some(own) = own {
            // The queue is not to fill up.
            own.accept().map(drop)?;
        }
        if !pause.is_zero() {
            std::thread::sleep(pause);
        }
    }
    times.sort_unstable();
    Ok(times)
}
