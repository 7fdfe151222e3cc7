//! `local-hop [ROUNDS]`: a program and a proxy over loopback, by TCP and with both sockets joined (sockmap and sk_msg): what
//! the latter could spare. Each connection is one of this process; figures are medians of the rounds.
//!
//! `unshare --net` it, and bring `lo` up: then nothing else is in the way.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use mesh_userspace::fast_path::Joined;
use nix::sys::resource::{UsageWho, getrusage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const TIME: Duration = Duration::from_secs(1);
const MESSAGE: usize = 128;
const CONNECTIONS: usize = 32;
const BLOCK: usize = 128 * 1024;
/// A reader that gets nothing for so long will get nothing.
const STUCK: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let rounds = std::env::args().nth(1).map_or(Ok(5), |word| word.parse())?;
    let joined = Joined::new().context("sockets cannot be joined here")?;
    let ways = [("loopback TCP", None), ("joined", Some(&joined))];
    let mut samples = [[(); 2]; 4].map(|each| each.map(|()| Vec::new()));
    for _ in 0..rounds {
        for (nth, (_, joined)) in ways.iter().enumerate() {
            samples[0][nth].push(pings(*joined)?);
            samples[1][nth].push(latency(*joined)?);
            let (rate, cpu) = bulk(*joined)?;
            samples[2][nth].push(rate);
            samples[3][nth].push(cpu);
        }
    }
    println!("{:34}{:>14}{:>14}", "", ways[0].0, ways[1].0);
    let what =
        ["128 B there and back, 32 conns, /s", "the same on one, p50, µs", "bulk, Gbit/s", "its CPU, s/GB"];
    for (what, samples) in what.iter().zip(samples) {
        let [tcp, joined] = samples.map(median);
        println!("{what:34}{tcp:>14.2}{joined:>14.2}");
    }
    Ok(())
}

type Pair = (std::net::TcpStream, std::net::TcpStream);

fn pair(joined: Option<&Joined>) -> Result<Pair> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let program = std::net::TcpStream::connect(listener.local_addr()?)?;
    let proxy = listener.accept()?.0;
    for end in [&program, &proxy] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(STUCK))?;
    }
    if let Some(joined) = joined {
        joined.join(&program, &proxy)?;
    }
    Ok((program, proxy))
}

/// The proxy's side: one thread, epoll, and a task for each connection that sends back what comes.
fn echo(ends: Vec<std::net::TcpStream>) -> std::thread::JoinHandle<Result<()>> {
    std::thread::spawn(|| {
        block_on(async {
            let tasks: Vec<_> = ends.into_iter().map(|end| tokio::spawn(echo_one(end))).collect();
            for task in tasks {
                // It ends when the program's side does.
                let _ = task.await?;
            }
            Ok(())
        })
    })
}

async fn echo_one(end: std::net::TcpStream) -> Result<()> {
    let (mut end, mut message) = (registered(end)?, [0; MESSAGE]);
    loop {
        end.read_exact(&mut message).await?;
        end.write_all(&message).await?;
    }
}

/// Messages there and back in a second, on 32 connections at once.
fn pings(joined: Option<&Joined>) -> Result<f64> {
    let pairs = (0..CONNECTIONS).map(|_| pair(joined)).collect::<Result<Vec<_>>>()?;
    let (programs, proxies): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
    let proxy = echo(proxies);
    let start = Instant::now();
    let count = block_on(async move {
        let ping = |end| async move {
            let (mut end, mut message, mut count) = (registered(end)?, [0; MESSAGE], 0);
            while start.elapsed() < TIME {
                end.write_all(&message).await?;
                tokio::time::timeout(STUCK, end.read_exact(&mut message)).await??;
                count += 1;
            }
            Ok::<_, anyhow::Error>(count)
        };
        let tasks: Vec<_> = programs.into_iter().map(|end| tokio::spawn(ping(end))).collect();
        let mut count = 0;
        for task in tasks {
            count += task.await??;
        }
        Ok(count)
    })?;
    let rate = f64::from(count) / start.elapsed().as_secs_f64();
    proxy.join().expect("it does not panic")?;
    Ok(rate)
}

/// The median time of one message there and back, in µs, of a program that blocks.
fn latency(joined: Option<&Joined>) -> Result<f64> {
    let (mut program, proxy) = pair(joined)?;
    let proxy = echo(vec![proxy]);
    let (start, mut message, mut times) = (Instant::now(), [0; MESSAGE], Vec::new());
    while start.elapsed() < TIME {
        let sent = Instant::now();
        program.write_all(&message)?;
        program.read_exact(&mut message)?;
        times.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    drop(program);
    proxy.join().expect("it does not panic")?;
    Ok(median(times))
}

/// Bytes from a program that blocks to a proxy that reads with epoll: Gbit/s until the last is read, and s/GB of CPU.
fn bulk(joined: Option<&Joined>) -> Result<(f64, f64)> {
    let (mut program, proxy) = pair(joined)?;
    let (start, used) = (Instant::now(), cpu()?);
    let writer = std::thread::spawn(move || -> Result<()> {
        let block = vec![1; BLOCK];
        while start.elapsed() < TIME {
            program.write_all(&block)?;
        }
        Ok(program.shutdown(Shutdown::Write)?)
    });
    let bytes = block_on(async {
        let (mut end, mut block, mut bytes) = (registered(proxy)?, vec![0; BLOCK], 0.0);
        loop {
            match tokio::time::timeout(STUCK, end.read(&mut block)).await?? {
                0 => return Ok(bytes),
                length => bytes += length as f64,
            }
        }
    })?;
    let (time, used) = (start.elapsed().as_secs_f64(), cpu()? - used);
    writer.join().expect("it does not panic")?;
    Ok((bytes * 8e-9 / time, used / (bytes * 1e-9)))
}

fn registered(end: std::net::TcpStream) -> Result<tokio::net::TcpStream> {
    end.set_nonblocking(true)?;
    Ok(tokio::net::TcpStream::from_std(end)?)
}

fn block_on<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(what)
}

/// Seconds of CPU that this process has used.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let times = [usage.user_time(), usage.system_time()];
    Ok(times.iter().map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6).sum())
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
}
