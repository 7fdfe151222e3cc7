//! Whether the control plane answers: what each watch reports, put together, in the log once per change and in
//! [`MeshState`] as `stale_since`.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use serde::Serialize;
use tokio::sync::watch;

use super::{
    client::ApiError,
    pace::backoff,
    settings::{Kind, Settings},
};
use crate::{identity::ServiceName, state::MeshState};

/// Something that talks to the control plane by itself.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// What the token grants of what this host needs.
    Token,
    Roots,
    Services,
    Service(ServiceName),
    /// The mTLS ends of a service.
    Proxies(ServiceName),
    /// What tells that intentions changed, where the answers themselves don't.
    Intentions,
    /// Intentions of some local services, in words.
    IntentionsOf(String),
    DefaultPolicy,
    Leaf(ServiceName),
    Registration,
}

impl Part {
    /// Its failure means that what [`MeshState`] says of the mesh may be out of date.
    fn reads_state(&self) -> bool {
        match self {
            Self::Roots
            | Self::Services
            | Self::Service(_)
            | Self::Proxies(_)
            | Self::Intentions
            | Self::IntentionsOf(_)
            | Self::DefaultPolicy => true,
            Self::Token | Self::Leaf(_) | Self::Registration => false,
        }
    }
}

/// What `status` shows of the control plane.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    pub kind: Kind,
    pub address: String,
    /// Every part of the view was answered last time it was asked for.
    pub connected: bool,
    pub last_contact: Option<SystemTime>,
    /// The latest error of what fails at present; `None` when nothing does.
    pub last_error: Option<String>,
    /// The highest index (`X-Consul-Index`) seen.
    pub index: u64,
    pub stale_since: Option<SystemTime>,
    /// What is served came from the disk cache, and the control plane has not confirmed all of it yet.
    pub from_disk_cache: bool,
}

/// One failed question may be a closed idle connection; two in a row are a fault.
const FAILURES_TO_BE_LOST: u32 = 2;

pub(super) struct Link {
    state: MeshState,
    inner: Mutex<Inner>,
    /// Counts outages. An agent that came back may have forgotten its indexes: every watch asks anew.
    outages: watch::Sender<u64>,
    /// Counts parts that were answered again: those who wait to retry need not wait longer.
    recoveries: watch::Sender<u64>,
}

struct Inner {
    status: Status,
    /// Failures in a row and the last error, of the parts that fail.
    failing: BTreeMap<Part, (u32, String)>,
    /// Since when parts are refused for want of a permission.
    refused: BTreeMap<Part, Instant>,
    /// The log has said that it is lost.
    lost: bool,
}

impl Link {
    pub fn new(settings: &Settings, state: MeshState) -> Self {
        let status = Status {
            kind: settings.kind,
            address: settings.access.address.to_string(),
            connected: false,
            last_contact: None,
            last_error: None,
            index: 0,
            stale_since: None,
            from_disk_cache: false,
        };
        let inner =
            Mutex::new(Inner { status, failing: BTreeMap::new(), refused: BTreeMap::new(), lost: false });
        Self { state, inner, outages: watch::Sender::new(0), recoveries: watch::Sender::new(0) }
    }

    pub fn status(&self) -> Status {
        self.lock().status.clone()
    }

    pub fn outages(&self) -> watch::Receiver<u64> {
        self.outages.subscribe()
    }

    /// The view was filled from the disk cache written at `saved_at`: it is that old.
    pub fn serves_cache(&self, saved_at: SystemTime) {
        let mut inner = self.lock();
        inner.status.from_disk_cache = true;
        inner.status.stale_since = Some(saved_at);
        self.state.update(|mesh| mesh.stale_since = Some(saved_at));
    }

    /// Everything that the cache gave was confirmed or replaced by the control plane.
    pub fn live(&self) {
        let mut inner = self.lock();
        inner.status.from_disk_cache = false;
        self.settle(&mut inner);
    }

    /// `part` was answered well.
    pub fn answered(&self, part: &Part, index: Option<u64>, now: SystemTime) {
        let mut inner = self.lock();
        inner.status.last_contact = Some(now);
        inner.status.index = inner.status.index.max(index.unwrap_or(0));
        inner.refused.remove(part);
        let recovered = inner.failing.remove(part).is_some();
        if recovered || !inner.status.connected {
            self.settle(&mut inner);
        }
        drop(inner);
        if recovered {
            self.recoveries.send_modify(|n| *n += 1);
        }
    }

    /// Returns when it is time to ask again after `failures` in a row, the last with `error`: after the back-off, or,
    /// in an outage, as soon as another part is answered again.
    pub async fn pause(&self, failures: u32, error: &ApiError) {
        let mut recoveries = self.recoveries.subscribe();
        tokio::select! {
            () = tokio::time::sleep(backoff(failures, rand::random())) => {}
            // The sender lives in `self`.
            _ = recoveries.changed(), if error.is_outage() => {}
        }
    }

    /// `part` failed; returns how many times in a row.
    pub fn failed(&self, part: &Part, error: &ApiError, now: SystemTime) -> u32 {
        let mut inner = self.lock();
        if matches!(error, ApiError::Forbidden { .. }) {
            inner.refused.entry(part.clone()).or_insert_with(Instant::now);
        } else {
            inner.refused.remove(part);
        }
        let outage = error.is_outage() && inner.failing.is_empty();
        let text = error.to_string();
        inner.status.last_error = Some(text.clone());
        let (failures, last) = inner.failing.entry(part.clone()).or_default();
        *failures += 1;
        let failures = *failures;
        let news = *last != text;
        last.clone_from(&text);
        let counts = part.reads_state() || error.is_outage();
        if counts && failures >= FAILURES_TO_BE_LOST {
            self.lose(&mut inner, &text, now);
        } else if news && !counts {
            tracing::warn!(part = ?part, error = text, "control plane refuses; retrying");
        }
        drop(inner);
        if outage {
            self.outages.send_modify(|n| *n += 1);
        }
        failures
    }

    /// Returns for how long `part` has been answered with nothing but "permission denied".
    pub fn refused_for(&self, part: &Part) -> Option<Duration> {
        self.lock().refused.get(part).map(Instant::elapsed)
    }

    /// `part` ended on purpose.
    pub fn forget(&self, part: &Part) {
        let mut inner = self.lock();
        inner.refused.remove(part);
        if inner.failing.remove(part).is_some() {
            self.settle(&mut inner);
        }
    }

    fn lose(&self, inner: &mut Inner, error: &str, now: SystemTime) {
        inner.status.connected = false;
        if inner.lost {
            return;
        }
        inner.lost = true;
        let known = self.state.load().is_synced();
        tracing::warn!(
            address = inner.status.address,
            error,
            "control plane {}",
            if known {
                "lost; the last known state keeps serving"
            } else {
                "does not answer, and nothing is known from before: the mesh denies until it does"
            }
        );
        let since = *inner.status.stale_since.get_or_insert(now);
        self.state.update(|mesh| {
            mesh.stale_since.get_or_insert(since);
        });
    }

    /// Brings the summary up to date after something got better.
    fn settle(&self, inner: &mut Inner) {
        inner.status.last_error = inner.failing.values().next_back().map(|(_, text)| text.clone());
        if inner.failing.keys().any(Part::reads_state) || inner.status.last_contact.is_none() {
            return;
        }
        if inner.lost || !inner.status.connected {
            tracing::info!(
                address = inner.status.address,
                "control plane {}",
                if inner.lost { "regained" } else { "reached" }
            );
        }
        inner.lost = false;
        inner.status.connected = true;
        if !inner.status.from_disk_cache && inner.status.stale_since.take().is_some() {
            self.state.update(|mesh| mesh.stale_since = None);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each critical section leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> (Link, MeshState) {
        let state = MeshState::default();
        (Link::new(&super::super::testing::settings("http://127.0.0.1:1"), state.clone()), state)
    }

    fn refused() -> ApiError {
        ApiError::Refused { address: "http://127.0.0.1:1".to_owned(), server: "a server" }
    }

    const T: SystemTime = SystemTime::UNIX_EPOCH;

    #[test]
    fn one_failure_is_no_loss_two_are() {
        let (link, state) = link();
        link.answered(&Part::Roots, Some(3), T);
        link.failed(&Part::Roots, &refused(), T);
        assert_eq!(state.load().stale_since, None);
        link.failed(&Part::Roots, &refused(), T);
        assert_eq!(state.load().stale_since, Some(T));
        assert!(!link.status().connected && link.status().last_error.is_some());
    }

    #[test]
    fn regained_only_when_every_reading_part_answers() {
        let (link, state) = link();
        for _ in 0..2 {
            link.failed(&Part::Roots, &refused(), T);
            link.failed(&Part::Intentions, &refused(), T);
        }
        link.answered(&Part::Roots, Some(1), T);
        assert!(state.load().stale_since.is_some());
        link.answered(&Part::Intentions, Some(1), T);
        assert_eq!(state.load().stale_since, None);
        assert!(link.status().connected && link.status().last_error.is_none());
    }

    #[test]
    fn refused_registration_is_shown_but_does_not_make_the_view_stale() {
        let (link, state) = link();
        link.answered(&Part::Roots, Some(1), T);
        let forbidden =
            ApiError::Forbidden { path: "/v1/x".to_owned(), reason: "no".to_owned(), with_token: false };
        for _ in 0..3 {
            link.failed(&Part::Registration, &forbidden, T);
        }
        assert_eq!(state.load().stale_since, None);
        assert!(link.status().connected && link.status().last_error.is_some());
    }

    #[test]
    fn cached_view_stays_stale_until_all_of_it_is_live() {
        let (link, state) = link();
        link.serves_cache(T);
        link.answered(&Part::Roots, Some(1), T);
        assert_eq!(state.load().stale_since, Some(T));
        link.live();
        assert_eq!(state.load().stale_since, None);
    }
}
