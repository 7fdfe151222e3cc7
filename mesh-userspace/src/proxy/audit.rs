//! The audit log (tracing target `audit`): one line for each decision, with who and why.

use std::{
    net::SocketAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use tracing::info;

use super::{flow::Flow, reason::Reason};
use crate::{telemetry::AUDIT, tls::PeerError};

/// Notes that `flow` was allowed and is open now.
pub(super) fn allowed(flow: &Flow, tls: &'static str) {
    let Some(origin) = flow.origin() else { return };
    info!(
        target: AUDIT,
        decision = "allow",
        flow = flow.id,
        direction = flow.direction().name(),
        source = display(&origin.source),
        destination = display(&origin.destination),
        peer = display(flow.start.peer),
        program = origin.program,
        pid = origin.pid,
        tls,
    );
}

/// Notes the end of `flow`, as a decision if one ended it. Refusals can be caused by anybody who reaches a port: the
/// counters have them all, the log what `limit` lets through.
pub(super) fn ended(flow: &Flow, reason: &Reason, limit: &RateLimit) {
    let decided = match reason {
        // Connecting and leaving again is what a health check by TCP does.
        Reason::Peer(PeerError::Closed) => false,
        Reason::Revoked | Reason::IdentityGone(_) => true,
        other => other.is_refusal(),
    };
    if !decided {
        tracing::debug!(flow = flow.id, reason = reason.name(), detail = display(reason), "flow ended");
    } else if let Some(unlogged) = limit.permit(Instant::now()) {
        refused(flow, reason, unlogged);
    }
}

/// Notes that `flow` was refused, or cut while it was open; `unlogged` others before it are only counted.
pub(super) fn refused(flow: &Flow, reason: &Reason, unlogged: u64) {
    let origin = flow.origin();
    let destination = origin.map(|o| &o.destination).or(flow.start.destination.as_ref());
    info!(
        target: AUDIT,
        decision = if reason.is_refusal() { "deny" } else { "cut" },
        flow = flow.id,
        direction = flow.direction().name(),
        source = origin.map(|o| display(&o.source)),
        destination = destination.map(display),
        peer = display(flow.start.peer),
        dialled = origin.and_then(|o| o.original_dst).or(flow.start.dialled).map(display),
        program = origin.map(|o| o.program.as_str()),
        pid = origin.map(|o| o.pid),
        reason = reason.name(),
        detail = display(reason),
        unlogged_before = unlogged,
    );
}

/// Notes that `instance` did not take `flow`, and the next one is tried.
pub(super) fn failed_over(flow: &Flow, instance: SocketAddr, reason: &Reason, limit: &RateLimit) {
    let (Some(origin), Some(unlogged)) = (flow.origin(), limit.permit(Instant::now())) else { return };
    info!(
        target: AUDIT,
        decision = "failover",
        flow = flow.id,
        source = display(&origin.source),
        destination = display(&origin.destination),
        instance = display(instance),
        reason = reason.name(),
        detail = display(reason),
        unlogged_before = unlogged,
    );
}

/// Lets a few lines per second through, and counts the others.
pub(crate) struct RateLimit {
    per_second: u32,
    window: Mutex<Window>,
}

struct Window {
    since: Option<Instant>,
    used: u32,
    suppressed: u64,
}

impl RateLimit {
    pub(crate) fn per_second(per_second: u32) -> Self {
        Self { per_second, window: Mutex::new(Window { since: None, used: 0, suppressed: 0 }) }
    }

    /// Takes in that `more` were held back before they came here.
    pub(crate) fn withhold(&self, more: u64) {
        self.lock().suppressed += more;
    }

    /// Returns how many were held back since the last that was not, or `None` to hold this one back too.
    pub(crate) fn permit(&self, now: Instant) -> Option<u64> {
        let mut window = self.lock();
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

    fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
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
        limit.withhold(7);
        assert_eq!(limit.permit(start + Duration::from_secs(2)), Some(7));
    }
}
