//! One blocking query, asked again and again: hands on what changed, and deals with everything else by itself.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::{
    client::{Answer, ApiError, Client, ErrorKind, decode},
    link::{Link, Part},
    pace::{Bucket, Cursor},
};

/// How long the server is asked to wait for a change.
const WAIT: Duration = Duration::from_secs(60);
/// How often a watch asks that has no permit to hold a connection.
const POLL: Duration = Duration::from_secs(5);
/// Answers in quick succession before the rate is limited, and the rate then.
const BURST: u32 = 10;
const REFILL: Duration = Duration::from_millis(200);

/// A watched resource of the API.
pub(super) struct Watch {
    client: Client,
    link: Arc<Link>,
    part: Part,
    path: String,
    cursor: Cursor,
    /// The index of an answer that was handed on: it counts as good when the next one is asked for.
    handed_on: Option<u64>,
    failures: u32,
    bucket: Bucket,
    outages: watch::Receiver<u64>,
    /// Of a watch that always has a connection: to ask anew. The many others would be counted twice by the agent.
    renewals: Option<watch::Receiver<u64>>,
    permits: Permits,
}

/// Whether a watch may hold a connection while it waits.
pub(super) enum Permits {
    Always,
    /// Only while one of a limited number is free, else it polls.
    From(Arc<Lines>),
    /// It polls.
    Never(Arc<Lines>),
}

/// How many connections many watches may use together. An agent takes a limited number from one address, and others on
/// this host want some of them: when it refuses one, fewer are used, and one more again every now and then. Those that
/// wait are not called back: Consul counts a connection until the question on it is answered, also when it is closed.
pub(super) struct Lines {
    held: Arc<Semaphore>,
    asks: Arc<Semaphore>,
    /// One permit for each of `held` that is to be given up.
    calls: Semaphore,
    use_: Mutex<Use>,
    ran_out: AtomicBool,
}

struct Use {
    /// Permits of `held` there are, or will be when `calls` are answered; at most `most`.
    now: usize,
    most: usize,
    changed: Instant,
}

/// Fewer than these are never used.
const FEWEST: usize = 2;
/// Refusals that come together count as one.
const SHRINK_EVERY: Duration = Duration::from_secs(1);
const GROW_EVERY: Duration = Duration::from_secs(30);

/// A permit that is given up, not back, while there are calls for it.
struct Held<'a>(Option<OwnedSemaphorePermit>, &'a Lines);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(permit) = self.0.take()
            && let Ok(call) = self.1.calls.try_acquire()
        {
            call.forget();
            permit.forget();
        }
    }
}

impl Lines {
    /// `held` at once for questions that wait, `asks` for those that are answered at once.
    pub fn new(held: usize, asks: usize) -> Self {
        Self {
            held: Arc::new(Semaphore::new(held)),
            asks: Arc::new(Semaphore::new(asks)),
            calls: Semaphore::new(0),
            use_: Mutex::new(Use { now: held, most: held, changed: Instant::now() }),
            ran_out: AtomicBool::new(false),
        }
    }

    fn hold(&self) -> Option<Held<'_>> {
        self.grow(Instant::now());
        let permit = Arc::clone(&self.held).try_acquire_owned().ok();
        if permit.is_none() && !self.ran_out.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                every_s = POLL.as_secs(),
                "more services than connections to watch them with: some are polled, and change later"
            );
        }
        permit.map(|permit| Held(Some(permit), self))
    }

    /// A connection was refused: uses a quarter fewer than at this moment.
    fn shrink(&self, now: Instant) {
        let mut state = self.use_.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(state.changed) < SHRINK_EVERY || state.now <= FEWEST {
            return;
        }
        let used = state.now.saturating_sub(self.held.available_permits());
        let fewer = (used - used / 4).min(state.now - 1).max(FEWEST);
        let less = state.now - fewer;
        let idle = self.held.forget_permits(less);
        self.calls.add_permits(less - idle);
        // The questions that are answered at once need few; they wait for their turn.
        if self.asks.available_permits() > FEWEST {
            self.asks.forget_permits((self.asks.available_permits() / 4).max(1));
        }
        (state.now, state.changed) = (fewer, now);
        tracing::debug!(connections = fewer, "the agent takes no more connections; using fewer");
    }

    fn grow(&self, now: Instant) {
        let mut state = self.use_.lock().unwrap_or_else(PoisonError::into_inner);
        if state.now < state.most && now.saturating_duration_since(state.changed) >= GROW_EVERY {
            (state.now, state.changed) = (state.now + 1, now);
            match self.calls.try_acquire() {
                Ok(call) => call.forget(),
                Err(_) => self.held.add_permits(1),
            }
        }
    }
}

impl Watch {
    pub fn new(
        client: &Client,
        link: &Arc<Link>,
        part: Part,
        path: impl Into<String>,
        permits: Permits,
    ) -> Self {
        Self {
            client: client.clone(),
            link: Arc::clone(link),
            part,
            path: path.into(),
            cursor: Cursor::default(),
            handed_on: None,
            failures: 0,
            bucket: Bucket::new(BURST, REFILL, Instant::now()),
            outages: link.outages(),
            renewals: matches!(permits, Permits::Always).then(|| link.renewals()),
            permits,
        }
    }

    /// Returns the next answer that may differ from the one before. Does not return while there is none; dropping the
    /// future loses nothing.
    pub async fn next<T: DeserializeOwned>(&mut self) -> T {
        loop {
            match self.next_granted().await {
                Ok(value) => return value,
                Err(refusal) => self.rejected(&refusal).await,
            }
        }
    }

    /// As [`next`](Self::next), but returns when the token is found not to grant the answer.
    ///
    /// # Errors
    /// That refusal; nobody has been told of it.
    pub async fn next_granted<T: DeserializeOwned>(&mut self) -> Result<T, ApiError> {
        if let Some(index) = self.handed_on.take() {
            self.accepted(index);
        }
        loop {
            let asked = self.cursor;
            let answer = match self.ask().await {
                Some(Ok(answer)) => answer,
                Some(Err(error)) if error.kind() == ErrorKind::Forbidden => return Err(error),
                Some(Err(error)) => {
                    self.rejected(&error).await;
                    continue;
                }
                None => continue,
            };
            let Some(index) = answer.index else {
                self.rejected(&ApiError::malformed(&self.path, "no X-Consul-Index header")).await;
                continue;
            };
            if asked.index() != 0 && index == asked.index() {
                self.accepted(index);
                continue;
            }
            match decode(&self.path, &answer.body) {
                Ok(value) => {
                    self.handed_on = Some(index);
                    return Ok(value);
                }
                Err(error) => self.rejected(&error).await,
            }
        }
    }

    /// What was answered last cannot be used, or what belongs to it failed: counts as a failure, waits, and makes the
    /// next question be answered at once.
    pub async fn rejected(&mut self, error: &ApiError) {
        self.handed_on = None;
        // Who is asked too much has forgotten nothing, and would be asked for more by a question without an index.
        if error.kind() != ErrorKind::TooMany {
            self.cursor = Cursor::default();
        }
        self.failures = self.failures.saturating_add(1);
        if let Permits::From(lines) | Permits::Never(lines) = &self.permits
            && error.is_refusal_of_connections()
        {
            lines.shrink(Instant::now());
        }
        self.link.failed(&self.part, error, SystemTime::now());
        tracing::debug!(path = self.path, %error, failures = self.failures, "watch failed");
        self.link.pause(self.failures, error).await;
    }

    fn accepted(&mut self, index: u64) {
        self.cursor = self.cursor.after(index);
        self.failures = 0;
        self.link.answered(&self.part, Some(index), SystemTime::now());
    }

    /// Asks once; `None` when another part saw an outage meanwhile, after which the index means nothing.
    async fn ask(&mut self) -> Option<Result<Answer, ApiError>> {
        tokio::time::sleep(self.bucket.take(Instant::now())).await;
        if self.outages.has_changed().unwrap_or(false) {
            self.outages.borrow_and_update();
            self.cursor = Cursor::default();
        }
        if let Some(renewals) = &mut self.renewals
            && renewals.has_changed().unwrap_or(false)
        {
            renewals.borrow_and_update();
            self.cursor = Cursor::default();
        }
        let index = self.cursor.index();
        let renewed = async {
            match &mut self.renewals {
                Some(renewals) => drop(renewals.changed().await),
                None => std::future::pending().await,
            }
        };
        let question = async {
            let lines = match &self.permits {
                Permits::Always => return self.client.blocking(&self.path, index, WAIT).await,
                Permits::From(lines) | Permits::Never(lines) => lines,
            };
            if index != 0 {
                if matches!(self.permits, Permits::From(_))
                    && let Some(_held) = lines.hold()
                {
                    return self.client.blocking(&self.path, index, WAIT).await;
                }
                tokio::time::sleep(POLL.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
            }
            let _ask = lines.asks.acquire().await.expect("the semaphore is never closed");
            self.client.blocking(&self.path, 0, WAIT).await
        };
        tokio::select! {
            answer = question => Some(answer),
            // Senders live as long as `link`, so an error cannot be.
            _ = self.outages.changed(), if index != 0 => {
                self.cursor = Cursor::default();
                None
            }
            () = renewed, if index != 0 => {
                self.cursor = Cursor::default();
                None
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.link.forget(&self.part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refused_connections_make_fewer_be_used_and_time_makes_it_more_again() {
        let (lines, start) = (Lines::new(8, 4), Instant::now());
        let held: Vec<_> = (0..8).map(|_| lines.hold().unwrap()).collect();
        let soon = start + SHRINK_EVERY * 2;
        lines.shrink(soon);
        lines.shrink(soon);
        assert_eq!(lines.use_.lock().unwrap().now, 6, "refusals that come together count as one");
        drop(held);
        assert_eq!(lines.held.available_permits(), 6, "what was held is given up when it comes back");
        let held: Vec<_> = (0..4).map(|_| lines.hold().unwrap()).collect();
        lines.shrink(soon + SHRINK_EVERY);
        assert_eq!(lines.use_.lock().unwrap().now, 3, "a quarter fewer than are in use");
        drop(held);
        for n in 2..20 {
            lines.shrink(soon + SHRINK_EVERY * n);
        }
        assert_eq!(lines.held.available_permits(), FEWEST);
        assert!(lines.asks.available_permits() > 0);
        for n in 1..20 {
            lines.grow(soon + GROW_EVERY * (n + 1));
        }
        assert_eq!(lines.held.available_permits(), 8);
    }
}
