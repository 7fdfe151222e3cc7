//! How long records are. Pure.
//!
//! One can be decrypted once all of it has come. So the first after a pause are short: the receiver has something as soon as
//! there is a segment or two, while the longest record is more than TCP sends before it hears from the other end (ten
//! segments), and its first byte would wait for another round trip. All others are as long as they may be, which costs
//! least.

use std::time::{Duration, Instant};

use crate::tls::record::OVERHEAD;

/// The most plaintext of a record after a pause: sealed, it fills three segments over Ethernet, also with IPv6, and leaves no
/// short one that would count as another.
pub(super) const SHORT: usize = 3 * 1428 - OVERHEAD - 1;
/// So many of them there are: some 64 KiB.
pub(super) const SHORT_ONES: usize = 16;
/// TCP begins anew, slowly, when it has been silent for less than that.
const PAUSE: Duration = Duration::from_secs(1);

/// Of one direction of a connection.
#[derive(Default)]
pub(super) struct Pace {
    /// What was sent since the last pause, as far as it was sent in short ones.
    begun: usize,
    last: Option<Instant>,
}

impl Pace {
    /// Says that more than [`SHORT`] bytes are to be sent at `now`.
    pub(super) fn go_on(&mut self, now: Instant) {
        if self.last.replace(now).is_none_or(|last| now.duration_since(last) > PAUSE) {
            self.begun = 0;
        }
    }

    /// Returns how many of `left` bytes, which fit into a record, the next one has.
    pub(super) fn next(&mut self, left: usize) -> usize {
        if self.begun >= SHORT_ONES * SHORT {
            return left;
        }
        let length = left.min(SHORT);
        self.begun += length;
        length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::record::MOST;

    #[test]
    fn records_are_short_at_first_and_after_a_pause() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let mut lengths = |after_ms: u64| {
            pace.go_on(start + Duration::from_millis(after_ms));
            (0..20).map(|_| pace.next(MOST)).collect::<Vec<_>>()
        };
        let begins = [[SHORT; SHORT_ONES].as_slice(), &[MOST; 4]].concat();
        assert_eq!(lengths(0), begins);
        assert_eq!(lengths(900), [MOST; 20]);
        assert_eq!(lengths(2000), begins);
    }
}
