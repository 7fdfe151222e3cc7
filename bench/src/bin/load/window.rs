//! The measured time: its begin and end are agreed with the caller, and only what happens in between counts.

use std::{
    io::{BufRead as _, Write as _},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

/// Before the measured time, in it, and after it.
const WARM: u8 = 0;
const MEASURED: u8 = 1;
const OVER: u8 = 2;

/// How long nothing may happen.
const LIMIT: Duration = Duration::from_secs(10);

/// What the threads of a client share.
pub struct Window {
    warm: Duration,
    length: Duration,
    phase: AtomicU8,
    /// Something happened in the measured time.
    happened: AtomicBool,
    bytes: AtomicU64,
    samples: Mutex<Vec<Duration>>,
    failed: Mutex<Option<anyhow::Error>>,
}

/// What happened in a window.
#[derive(Default)]
pub struct Measured {
    pub time: Duration,
    pub bytes: u64,
    /// How long each operation took.
    pub samples: Vec<Duration>,
}

impl Window {
    pub fn new(warm: Duration, length: Duration) -> Self {
        Self {
            warm,
            length,
            phase: AtomicU8::new(WARM),
            happened: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            samples: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// Runs the threads, which go on until [`Self::is_over`], and returns what they did in the measured time.
    pub fn measure(&self, threads: Vec<Box<dyn FnOnce() -> Result<()> + Send + '_>>) -> Result<Measured> {
        std::thread::scope(|scope| {
            for thread in threads {
                scope.spawn(|| {
                    if let Err(error) = thread()
                        && !self.is_over()
                    {
                        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                        failed.get_or_insert(error);
                    }
                });
            }
            let time = self.time();
            self.phase.store(OVER, Ordering::Relaxed);
            time
        })
        .and_then(|time| self.measured(time))
    }

    fn time(&self) -> Result<Duration> {
        std::thread::sleep(self.warm);
        tell("begin")?;
        let start = Instant::now();
        self.phase.store(MEASURED, Ordering::Relaxed);
        // On a busy machine a short time may be too short for anything.
        while start.elapsed() < self.length || !self.happened() && start.elapsed() < LIMIT {
            std::thread::sleep(self.length);
        }
        self.phase.store(OVER, Ordering::Relaxed);
        let time = start.elapsed();
        tell("end")?;
        Ok(time)
    }

    fn measured(&self, time: Duration) -> Result<Measured> {
        if let Some(error) = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
        let samples = std::mem::take(&mut *self.samples.lock().unwrap_or_else(PoisonError::into_inner));
        let bytes = self.bytes.load(Ordering::Relaxed);
        ensure!(bytes > 0 || !samples.is_empty(), "nothing happened in the measured time");
        Ok(Measured { time, bytes, samples })
    }

    pub fn is_over(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == OVER
    }

    fn happened(&self) -> bool {
        self.happened.load(Ordering::Relaxed)
    }

    /// Returns whether what happens now counts.
    fn counts(&self) -> bool {
        let counts = self.phase.load(Ordering::Relaxed) == MEASURED;
        if counts && !self.happened() {
            self.happened.store(true, Ordering::Relaxed);
        }
        counts
    }

    /// Counts bytes that moved now.
    pub fn moved(&self, bytes: usize) {
        if self.counts() {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }

    /// Returns a place for a thread's operations.
    pub fn recorder(&self) -> Recorder<'_> {
        Recorder { window: self, samples: Vec::with_capacity(1 << 16) }
    }
}

/// One thread's operations; those of the measured time are handed over when it is dropped.
pub struct Recorder<'a> {
    window: &'a Window,
    samples: Vec<Duration>,
}

impl Recorder<'_> {
    /// Counts an operation that ends now.
    pub fn took(&mut self, time: Duration) {
        if self.window.counts() {
            self.samples.push(time);
        }
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        self.window.samples.lock().unwrap_or_else(PoisonError::into_inner).append(&mut self.samples);
    }
}

/// Prints `word` and waits for a line.
pub fn tell(word: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{word}")?;
    out.flush()?;
    let mut line = String::new();
    if std::io::stdin().lock().read_line(&mut line)? == 0 {
        bail!("nobody waits for the figures any more");
    }
    Ok(())
}

impl Measured {
    pub fn json(mut self) -> Value {
        self.samples.sort_unstable();
        let at = |quantile: f64| {
            let rank = (self.samples.len() as f64 * quantile).ceil() as usize;
            self.samples.get(rank.saturating_sub(1)).map(|time| time.as_secs_f64() * 1e6)
        };
        json!({
            "seconds": self.time.as_secs_f64(), "bytes": self.bytes, "operations": self.samples.len(),
            "p50_us": at(0.5), "p99_us": at(0.99),
        })
    }
}
