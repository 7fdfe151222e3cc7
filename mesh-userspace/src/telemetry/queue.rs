//! Lines of the log on their way to who reads them, by a thread of their own: who reads slowly, or not at all, keeps
//! nobody waiting. What there is no room for is dropped, and counted.

use std::{
    io::{self, Write},
    mem,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

/// Bytes that may wait: some 60,000 lines.
const MOST: usize = 20 << 20;
/// After it has written, the thread lets lines gather: one wake-up and one system call then do for all of them.
const GATHERS: Duration = Duration::from_millis(10);
/// How long the end waits for what is queued.
const AT_THE_END: Duration = Duration::from_secs(1);

/// Where lines are put; cheap to clone. Each call of `write` is one line.
#[derive(Clone, Debug)]
pub(super) struct Queue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    lines: Mutex<Lines>,
    /// For the thread, while it is [idle](Lines::idle) or gathers.
    wake: Condvar,
    /// For whoever ends it.
    written: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Lines {
    text: Vec<u8>,
    /// The thread waits to be told that there is something.
    idle: bool,
    /// No line will follow; the thread ends once it has written what is there.
    ends: bool,
    ended: bool,
}

/// When it is dropped, what is queued is written, as far as that is possible within a second.
pub struct Written(Arc<Shared>);

/// Starts the thread that empties the queue into `out`.
pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<(Queue, Written)> {
    let shared = Arc::new(Shared::default());
    let emptied = shared.clone();
    thread::Builder::new().name("log".to_owned()).spawn(move || emptied.empty(out))?;
    Ok((Queue(shared.clone()), Written(shared)))
}

impl Queue {
    /// How many lines there was no room for.
    pub(super) fn dropped(&self) -> u64 {
        self.0.dropped.load(Relaxed)
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lines = self.0.lines();
        if lines.text.len() + line.len() > MOST {
            self.0.dropped.fetch_add(1, Relaxed);
        } else {
            lines.text.extend_from_slice(line);
            if mem::take(&mut lines.idle) {
                drop(lines);
                self.0.wake.notify_one();
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    /// No operation on the lines panics halfway.
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn empty(&self, mut out: impl Write) {
        let mut lines = self.lines();
        loop {
            while lines.text.is_empty() && !lines.ends {
                lines.idle = true;
                lines = self.wake.wait(lines).unwrap_or_else(PoisonError::into_inner);
            }
            lines.idle = false;
            let text = mem::take(&mut lines.text);
            if text.is_empty() {
                lines.ended = true;
                self.written.notify_all();
                return;
            }
            drop(lines);
            // There is nowhere to say that the log cannot be written.
            let _ = out.write_all(&text);
            let gathering = self.wake.wait_timeout_while(self.lines(), GATHERS, |lines| !lines.ends);
            lines = gathering.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let mut lines = self.0.lines();
        lines.ends = true;
        self.0.wake.notify_one();
        drop(self.0.written.wait_timeout_while(lines, AT_THE_END, |lines| !lines.ended));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Hands over each call of `write`, and waits until somebody takes it.
    struct Slow(mpsc::SyncSender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.send(bytes.to_vec()).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_in_their_order_together_and_all_of_them_at_the_end() {
        let (out, written) = mpsc::sync_channel(0);
        let (mut queue, guard) = start(Slow(out)).unwrap();
        let lines: Vec<_> = (0..100).map(|nth| format!("line {nth}\n")).collect();
        for line in &lines {
            queue.write_all(line.as_bytes()).unwrap();
        }
        let reads = thread::spawn(move || written.iter().collect::<Vec<_>>());
        drop(guard);
        let calls = reads.join().unwrap();
        assert_eq!(calls.concat(), lines.concat().into_bytes());
        assert!(calls.len() <= 2, "{}", calls.len());
        assert_eq!(queue.dropped(), 0);
    }

    #[test]
    fn a_line_after_a_pause_is_written_at_once() {
        let (out, written) = mpsc::sync_channel(0);
        let (mut queue, _guard) = start(Slow(out)).unwrap();
        for line in ["first\n", "second\n"] {
            queue.write_all(line.as_bytes()).unwrap();
            assert_eq!(written.recv_timeout(Duration::from_secs(10)).unwrap(), line.as_bytes());
            thread::sleep(2 * GATHERS);
        }
    }

    #[test]
    fn what_nobody_reads_is_bounded_and_the_end_does_not_wait_for_ever() {
        let (out, unread) = mpsc::sync_channel(0);
        let (mut queue, guard) = start(Slow(out)).unwrap();
        let line = vec![b'x'; 1 << 20];
        for _ in 0..100 {
            queue.write_all(&line).unwrap();
        }
        // The thread may have taken one lot.
        assert!((60..=80).contains(&queue.dropped()), "{}", queue.dropped());
        drop(guard);
        drop(unread);
    }
}
