//! The task that looks after the CA as time goes by: takes out roots whose last leaf has expired, and warns of a
//! signing certificate that is about to.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use super::{issuer::LeafIssuer, rotation, topics::Topic};

/// How often the clock is looked at.
const LOOK: Duration = Duration::from_secs(30);
/// A clock that moves more than this beside the time that has passed was set.
const SET: Duration = Duration::from_secs(10);
/// How often a warning is repeated.
const REMIND: Duration = Duration::from_secs(12 * 3600);

/// Runs until the server stops.
pub async fn run(issuer: Arc<LeafIssuer>, closing: CancellationToken) {
    let mut roots = issuer.store().topics().watch(&Topic::Roots);
    let mut clock = Clock::now();
    let mut reminded: Option<Instant> = None;
    loop {
        let now = Clock::now();
        if let Some(by) = now.set_forward_since(&clock) {
            tracing::warn!(by_s = by.as_secs(), "the clock was set forward: old roots stay that much longer");
            issuer.put_retirement_off(by).await;
        }
        clock = now;
        issuer.retire(clock.wall).await;
        if let Some(warning) = issuer.warning(clock.wall)
            && reminded.is_none_or(|at| at.elapsed() >= REMIND)
        {
            tracing::warn!("{warning}");
            reminded = Some(Instant::now());
        }
        let next = rotation::retiring(&issuer.store().tables()).into_iter().map(|(_, at)| at).min();
        let wait = next.map_or(LOOK, |at| (at - clock.wall).try_into().unwrap_or_default());
        tokio::select! {
            // Past the second that the time is written in.
            () = tokio::time::sleep(wait.min(LOOK) + Duration::from_millis(100)) => {}
            _ = roots.changed() => {}
            () = closing.cancelled() => return,
        }
    }
}

/// What the wall says, and how much time has really passed.
struct Clock {
    wall: OffsetDateTime,
    passed: Instant,
}

impl Clock {
    fn now() -> Self {
        Self { wall: OffsetDateTime::now_utc(), passed: Instant::now() }
    }

    /// Returns by how much the wall clock was set forward between `earlier` and this; a host that slept counts as well.
    fn set_forward_since(&self, earlier: &Self) -> Option<Duration> {
        let wall: Duration = (self.wall - earlier.wall).try_into().ok()?;
        wall.checked_sub(self.passed - earlier.passed).filter(|by| *by > SET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_clock_that_was_set_forward_puts_retirement_off() {
        let start = Clock::now();
        let after = |wall: i64, passed: u64| Clock {
            wall: start.wall + time::Duration::seconds(wall),
            passed: start.passed + Duration::from_secs(passed),
        };
        assert_eq!(after(30, 30).set_forward_since(&start), None);
        assert_eq!(after(35, 30).set_forward_since(&start), None);
        assert_eq!(after(-3600, 30).set_forward_since(&start), None);
        assert_eq!(after(3630, 30).set_forward_since(&start), Some(Duration::from_secs(3600)));
    }
}
