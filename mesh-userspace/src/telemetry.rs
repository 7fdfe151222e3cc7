//! Logs: to stderr, as text or JSON, filtered by the configuration; the audit log is a target of its own.
//!
//! Once the daemon carries flows, lines go through a queue that a thread empties: whoever reads stderr and stalls (a full
//! disk below journald) stalls no flow. What the queue has no room for is dropped, and counted.

use std::{
    io::{self, IsTerminal, Stderr, Write},
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Registry,
    fmt::{
        self,
        writer::{EitherWriter, MakeWriter},
    },
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use crate::config::LogFormat;

/// The target of audit records: one for each decision on a flow, and for what was asked by the admin socket.
pub const AUDIT: &str = "audit";

/// Why logs are not as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TelemetryError {
    #[error("`{filter}` is no log filter: {why}")]
    Filter { filter: String, why: String },
    #[error("logs are set up already")]
    Twice,
    #[error("the log filter cannot be changed any more")]
    Gone,
}

/// The running log; through it a reload changes the filter.
#[derive(Clone, Debug)]
pub struct Telemetry {
    filter: reload::Handle<EnvFilter, Registry>,
    out: Out,
}

/// Lines that may wait: some 20 MiB of them.
const QUEUE: usize = 64 * 1024;

/// Standard error; through the queue once there is one.
#[derive(Clone, Debug, Default)]
struct Out(Arc<OnceLock<NonBlocking>>);

/// Standard error of the thread that empties the queue. Lines that have come meanwhile are written together, and there is a
/// pause before the next ones: who writes a line wakes nobody while it lasts.
struct Together(io::BufWriter<Stderr>);

impl Together {
    const PAUSE: Duration = Duration::from_millis(2);
}

impl Write for Together {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.0.flush();
        thread::sleep(Self::PAUSE);
        flushed
    }
}

impl MakeWriter<'_> for Out {
    type Writer = EitherWriter<NonBlocking, Stderr>;

    fn make_writer(&self) -> Self::Writer {
        match self.0.get() {
            Some(queue) => EitherWriter::A(queue.clone()),
            None => EitherWriter::B(io::stderr()),
        }
    }
}

/// Sends the process's logs to stderr. Once in a process.
pub fn init(filter: &str, format: LogFormat) -> Result<Telemetry, TelemetryError> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    let out = Out::default();
    let result = match format {
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(out.clone())).try_init()
        }
        LogFormat::Text => {
            let colours =
                io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            registry.with(fmt::layer().with_ansi(colours).with_writer(out.clone())).try_init()
        }
    };
    result.map_err(|_| TelemetryError::Twice)?;
    Ok(Telemetry { filter: handle, out })
}

impl Telemetry {
    /// Starts the thread that empties the queue: call it when the calling thread has dropped its capabilities. What is queued
    /// is written when the guard is dropped.
    pub fn queue(&self) -> WorkerGuard {
        let builder = NonBlockingBuilder::default().buffered_lines_limit(QUEUE).lossy(true);
        let (queue, guard) = builder.thread_name("log").finish(Together(io::BufWriter::new(io::stderr())));
        // Once in a process.
        let _ = self.out.0.set(queue);
        guard
    }

    /// How many lines there was no room for.
    pub fn dropped(&self) -> u64 {
        self.out.0.get().map_or(0, |queue| queue.error_counter().dropped_lines() as u64)
    }

    /// Replaces the filter; on an error the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), TelemetryError> {
        self.filter.reload(parse(filter)?).map_err(|_| TelemetryError::Gone)
    }
}

/// The filter with the audit log on, unless it speaks of the audit log itself.
fn parse(filter: &str) -> Result<EnvFilter, TelemetryError> {
    let parsed = EnvFilter::builder()
        .parse(filter)
        .map_err(|error| TelemetryError::Filter { filter: filter.to_owned(), why: error.to_string() })?;
    let names_audit = filter.split(',').any(|directive| directive.trim().split('=').next() == Some(AUDIT));
    if names_audit {
        return Ok(parsed);
    }
    let audit = "audit=info".parse().expect("invariant: a directive in the crate's own syntax");
    Ok(parsed.add_directive(audit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_audit_log_is_on_unless_named() {
        assert!(parse("error").unwrap().to_string().contains("audit=info"));
        let off = parse("info,audit=off").unwrap().to_string();
        assert!(off.contains("audit=off") && !off.contains("audit=info"), "{off}");
        assert!(matches!(parse("=x="), Err(TelemetryError::Filter { .. })));
    }

    /// Its standard error is a pipe that nobody reads.
    #[test]
    fn a_log_that_nobody_reads_keeps_nobody_waiting() {
        let mut floods = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "telemetry::tests::floods", "--ignored", "--nocapture", "--test-threads=1"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let unread = floods.stderr.take();
        let said = floods.wait_with_output().unwrap();
        drop(unread);
        let said = String::from_utf8_lossy(&said.stdout);
        assert!(said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "run by its twin with a pipe that nobody reads"]
    fn floods() {
        let telemetry = init("info", LogFormat::Text).unwrap();
        let _guard = telemetry.queue();
        let lines = 2 * QUEUE;
        (0..lines).for_each(|nth| tracing::info!(target: AUDIT, nth, "a line of the audit log"));
        let dropped = telemetry.dropped();
        assert!(dropped > 0 && dropped < lines as u64, "{dropped}");
    }
}
