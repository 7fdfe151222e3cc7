//! How fast to ask: the index of blocking queries, back-off after errors, and a limit on the rate. Pure: time and
//! randomness come in as arguments.

use std::time::{Duration, Instant};

/// Where a blocking query stands: the index to send, 0 for "answer at once".
///
/// Follows Consul's rules for clients: an index that goes backwards starts over, and 0, which would answer at once for
/// ever, is taken as 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor(u64);

impl Cursor {
    pub fn index(self) -> u64 {
        self.0
    }

    /// Returns where to go on after an answer with `answered`.
    pub fn after(self, answered: u64) -> Self {
        if answered < self.0 { Self(0) } else { Self(answered.max(1)) }
    }
}

const FIRST_RETRY: Duration = Duration::from_millis(100);
const SLOWEST_RETRY: Duration = Duration::from_secs(30);

/// Returns how long to wait after `failures` (1 or more) in a row: 100 ms, doubling up to 30 s, the later half of it
/// by `jitter` (0 to 1), so that hosts which lost one server do not come back all at once.
pub fn backoff(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let full = FIRST_RETRY.saturating_mul(1 << doublings).min(SLOWEST_RETRY);
    full / 2 + (full / 2).mul_f64(jitter.clamp(0.0, 1.0))
}

/// A token bucket: lets `burst` questions through at once, then one per `refill`.
#[derive(Clone, Debug)]
pub struct Bucket {
    burst: u32,
    refill: Duration,
    /// When the bucket would have been empty.
    empty_at: Instant,
}

impl Bucket {
    /// Full at `now`.
    pub fn new(burst: u32, refill: Duration, now: Instant) -> Self {
        Self { burst, refill, empty_at: now.checked_sub(refill * burst).unwrap_or(now) }
    }

    /// Takes one token and returns how long to wait before it may be used.
    pub fn take(&mut self, now: Instant) -> Duration {
        let full = now.checked_sub(self.refill * self.burst).unwrap_or(now);
        self.empty_at = self.empty_at.max(full) + self.refill;
        self.empty_at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cursor_starts_over_when_the_index_goes_backwards() {
        let at = Cursor::default().after(42);
        assert_eq!(at.index(), 42);
        assert_eq!(at.after(43).index(), 43);
        assert_eq!(at.after(7).index(), 0);
    }

    #[test]
    fn cursor_never_asks_with_zero_after_a_healthy_answer() {
        assert_eq!(Cursor::default().after(0).index(), 1);
    }

    proptest! {
        #[test]
        fn cursor_spins_at_most_once_per_step_backwards(indexes in proptest::collection::vec(any::<u64>(), 1..50)) {
            let mut cursor = Cursor::default();
            for answered in indexes {
                let next = cursor.after(answered);
                // Index 0 (do not wait) only follows a step backwards, never an answer to index 0.
                prop_assert!(next.index() != 0 || answered < cursor.index());
                cursor = next;
            }
        }

        #[test]
        fn backoff_is_quick_at_first_and_bounded(failures in 1u32.., jitter in 0.0f64..1.0) {
            let wait = backoff(failures, jitter);
            prop_assert!(wait >= FIRST_RETRY / 2 && wait <= SLOWEST_RETRY);
            prop_assert!(failures > 1 || wait <= FIRST_RETRY);
            prop_assert!(failures < 10 || wait >= SLOWEST_RETRY / 2);
        }

        #[test]
        fn bucket_lets_no_more_through_than_burst_and_refill(
            gaps_ms in proptest::collection::vec(0u64..300, 1..60), burst in 1u32..10,
        ) {
            let start = Instant::now();
            let refill = Duration::from_millis(200);
            let mut bucket = Bucket::new(burst, refill, start);
            let mut now = start;
            for (taken, gap) in gaps_ms.iter().enumerate() {
                now += Duration::from_millis(*gap);
                now += bucket.take(now);
                let allowed = u64::from(burst) + (now - start).as_millis() as u64 / 200;
                prop_assert!((taken as u64) < allowed, "{} > {allowed}", taken + 1);
            }
        }
    }
}
