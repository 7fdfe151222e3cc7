//! The guard: connections that `sk_lookup` steered away from a protected port. They are noted and reset.

use std::{
    net::SocketAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use tokio::net::TcpStream;

use super::{
    Shared,
    flow::{Direction, FlowStart},
    reason::Reason,
};

/// Resets a connection that went around the mesh. The local address is the one that was dialled: steering a
/// connection to another listener does not change it.
pub(super) fn refuse(shared: &Shared, stream: TcpStream, peer: SocketAddr) {
    let dialled = stream.local_addr().ok();
    drop(stream);
    match shared.guard_log.permit(Instant::now()) {
        // Somebody scanning the port must not push everything else out of `status` and the log.
        None => shared.flows.ended().count(Direction::Inbound, &Reason::Guarded),
        Some(unlogged) => {
            let start = FlowStart { direction: Direction::Inbound, peer, destination: None, dialled };
            shared.flows.open(start).end(Reason::Guarded);
            tracing::warn!(target: "audit", decision = "deny", direction = "inbound", %peer, ?dialled,
                reason = Reason::Guarded.name(), unlogged_before = unlogged, "a protected port was dialled around the mesh");
        }
    }
}

/// Lets a few lines per second through, and counts the others.
pub(super) struct RateLimit {
    per_second: u32,
    window: Mutex<Window>,
}

struct Window {
    since: Option<Instant>,
    used: u32,
    suppressed: u64,
}

impl RateLimit {
    pub(super) fn per_second(per_second: u32) -> Self {
        Self { per_second, window: Mutex::new(Window { since: None, used: 0, suppressed: 0 }) }
    }

    /// Returns how many were held back since the last that was not, or `None` to hold this one back too.
    pub(super) fn permit(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if window.since.is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1)) {
            (window.since, window.used) = (Some(now), 0);
        }
        if window.used == self.per_second {
            window.suppressed += 1;
            return None;
        }
        window.used += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scan_is_logged_a_few_times_a_second_and_then_says_how_much_was_left_out() {
        let (limit, start) = (RateLimit::per_second(2), Instant::now());
        let permits: Vec<_> = (0..5).map(|_| limit.permit(start)).collect();
        assert_eq!(permits, [Some(0), Some(0), None, None, None]);
        assert_eq!(limit.permit(start + Duration::from_secs(1)), Some(3));
        assert_eq!(limit.permit(start + Duration::from_secs(1)), Some(0));
    }
}
