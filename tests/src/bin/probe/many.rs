//! Many connections, or one for long.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpStream},
    process::ExitCode,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    time::Instant,
};

use serde_json::{Value, json};

use crate::{client::open, name_of};

/// Opens `count` connections to an echo server, says `holding COUNT`, and then for each that ends a line
/// `{"connection": N, "end": NAME, "unix_ms": T}`. Exits when all have ended, or with stdin.
pub fn hold(to: SocketAddr, count: usize) -> Result<ExitCode, String> {
    let (tell, told) = mpsc::channel();
    for n in 0..count {
        let stream = open(to, None)
            .and_then(|mut stream| round(&mut stream, b"hold").map(|()| stream))
            .map_err(|e| format!("connection {n}: {}", name_of(&e)))?;
        stream.set_read_timeout(None).map_err(|e| e.to_string())?;
        let tell = tell.clone();
        small_thread(move || {
            let _ = tell.send(Some((n, end_of(stream))));
        });
    }
    println!("holding {count}");
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0; 1]);
        let _ = tell.send(None);
    });
    for _ in 0..count {
        let Ok(Some((n, end))) = told.recv() else { break };
        println!("{}", json!({"connection": n, "end": end, "unix_ms": unix_ms()}));
    }
    Ok(ExitCode::SUCCESS)
}

fn end_of(mut stream: TcpStream) -> String {
    loop {
        match stream.read(&mut [0; 64]) {
            Ok(0) => return "eof".to_owned(),
            Ok(_) => {}
            Err(e) => return name_of(&e),
        }
    }
}

/// Opens `count` connections at once; each has its own message echoed, closes, and must see the end of the stream.
/// Returns `ok` (all did), `done`, and `failed`: how often which error.
pub fn flood(to: SocketAddr, count: usize) -> Value {
    let together = Arc::new(Barrier::new(count));
    let threads: Vec<_> = (0..count)
        .map(|n| {
            let together = Arc::clone(&together);
            small_thread(move || {
                together.wait();
                flood_one(to, n)
            })
        })
        .collect();
    let mut failed: BTreeMap<String, usize> = BTreeMap::new();
    for thread in threads {
        let result = thread.join().unwrap_or_else(|_| Err(std::io::Error::other("panic")));
        if let Err(e) = result {
            *failed.entry(name_of(&e)).or_default() += 1;
        }
    }
    let done = count - failed.values().sum::<usize>();
    json!({"ok": done == count, "done": done, "failed": failed})
}

/// Opens `count` connections to an echo server, by `threads` threads, one after the other each; each connection has its
/// own message echoed, closes, and must see the end of the stream. Returns what [`flood`] does.
pub fn short(to: SocketAddr, count: usize, threads: usize) -> Value {
    let next = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..threads)
        .map(|_| {
            let next = Arc::clone(&next);
            small_thread(move || {
                let mut failed: BTreeMap<String, usize> = BTreeMap::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= count {
                        return failed;
                    }
                    if let Err(e) = flood_one(to, n) {
                        *failed.entry(name_of(&e)).or_default() += 1;
                    }
                }
            })
        })
        .collect();
    let mut failed: BTreeMap<String, usize> = BTreeMap::new();
    for (error, times) in threads.into_iter().flat_map(|t| t.join().expect("it does not panic")) {
        *failed.entry(error).or_default() += times;
    }
    let done = count - failed.values().sum::<usize>();
    json!({"ok": done == count, "done": done, "failed": failed})
}

/// Opens connections to an echo server all the time, by `count` threads, until stdin ends or a connection fails; each
/// has its own message echoed, closes, and must see the end of the stream. Says `storming` first. Returns `ok`, `done`,
/// and `failed`: the first error of each thread that had one.
pub fn storm(to: SocketAddr, count: usize) -> Value {
    let enough = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&enough);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0; 1]);
        told.store(true, Ordering::Relaxed);
    });
    println!("storming");
    let threads: Vec<_> = (0..count)
        .map(|_| {
            let enough = Arc::clone(&enough);
            small_thread(move || {
                let mut done = 0;
                while !enough.load(Ordering::Relaxed) {
                    if let Err(e) = flood_one(to, done) {
                        enough.store(true, Ordering::Relaxed);
                        return (done, Some(name_of(&e)));
                    }
                    done += 1;
                    // The machine is shared with the daemons that are tested.
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                (done, None)
            })
        })
        .collect();
    let results: Vec<_> = threads.into_iter().map(|t| t.join().expect("it does not panic")).collect();
    let failed: Vec<_> = results.iter().filter_map(|(_, error)| error.clone()).collect();
    let done: usize = results.iter().map(|(done, _)| done).sum();
    json!({"ok": failed.is_empty(), "done": done, "failed": failed})
}

fn flood_one(to: SocketAddr, n: usize) -> std::io::Result<()> {
    let mut stream = open(to, None)?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60)))?;
    round(&mut stream, format!("message of connection {n}").as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

/// Sends numbered messages to an echo server, one after the other, until stdin ends. Says `pinging` after the first.
/// Returns `ok`, `rounds`, `longest_ms`, and the `error` that ended it.
pub fn ping(to: SocketAddr) -> Value {
    let enough = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&enough);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0; 1]);
        told.store(true, Ordering::Relaxed);
    });
    let (mut rounds, mut longest) = (0_u64, 0);
    let mut go = || -> std::io::Result<()> {
        let mut stream = open(to, None)?;
        while !enough.load(Ordering::Relaxed) {
            let start = Instant::now();
            round(&mut stream, format!("{rounds:0>64}").as_bytes())?;
            longest = longest.max(start.elapsed().as_millis());
            if rounds == 0 {
                println!("pinging");
            }
            rounds += 1;
            // It watches the flow, and leaves the processor to the rest of the test.
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        Ok(())
    };
    let error = go().err().map(|e| name_of(&e));
    json!({"ok": error.is_none(), "rounds": rounds, "longest_ms": longest, "error": error})
}

/// Opens one connection after the other to an echo server until stdin ends; each has its own message echoed, closes,
/// and must see the end of the stream. Says `steady` after the first. Returns `ok` (none failed), `done`, `failed` (how
/// often which error), `first_failure` (after how many milliseconds) and `longest_ms`.
pub fn steady(to: SocketAddr) -> Value {
    let enough = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&enough);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0; 1]);
        told.store(true, Ordering::Relaxed);
    });
    let began = Instant::now();
    let (mut done, mut longest) = (0_usize, 0);
    let mut failed: BTreeMap<String, usize> = BTreeMap::new();
    let mut first_failure = None;
    while !enough.load(Ordering::Relaxed) {
        let start = Instant::now();
        match flood_one(to, done) {
            Ok(()) => done += 1,
            Err(e) => {
                first_failure.get_or_insert(began.elapsed().as_millis());
                *failed.entry(name_of(&e)).or_default() += 1;
            }
        }
        longest = longest.max(start.elapsed().as_millis());
        if done + failed.values().sum::<usize>() == 1 {
            println!("steady");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    json!({
        "ok": failed.is_empty(), "done": done, "failed": failed, "first_failure": first_failure,
        "longest_ms": longest,
    })
}

/// Has `message` echoed.
fn round(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    stream.write_all(message)?;
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer)?;
    if answer == message { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

fn small_thread<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
    std::thread::Builder::new().stack_size(128 * 1024).spawn(act).expect("a thread can be started")
}

fn unix_ms() -> u128 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("it is after 1970").as_millis()
}
