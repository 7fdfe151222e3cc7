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
    client::{ApiError, ErrorKind},
    pace::backoff,
    settings::{Kind, Settings},
    token::TokenSource,
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
    /// Whether it is alive at all.
    Leader,
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
            | Self::DefaultPolicy
            | Self::Leader => true,
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
    /// Since when; the last time that it was, while it is not.
    pub connected_since: Option<SystemTime>,
    pub last_contact: Option<SystemTime>,
    /// The latest error of what fails at present; `None` when nothing does.
    pub last_error: Option<String>,
    /// The highest index (`X-Consul-Index`) seen.
    pub index: u64,
    pub stale_since: Option<SystemTime>,
    /// What is served came from the disk cache, and the control plane has not confirmed all of it yet.
    pub from_disk_cache: bool,
    /// Why leafs are not renewed at present, by service.
    pub leaf_errors: BTreeMap<ServiceName, String>,
}

impl Status {
    /// Returns why the leaf of `service` is not renewed; when it is `late`, an outage is why even if none was asked for.
    pub fn why_not_renewed(&self, service: &ServiceName, late: bool) -> Option<String> {
        let outage = self.last_error.as_ref().filter(|_| late && !self.connected);
        self.leaf_errors.get(service).or(outage).cloned()
    }
}

/// One failed question may be a closed idle connection; two in a row are a fault. A refusal is one at once.
const FAILURES_TO_BE_LOST: u32 = 2;

/// A permission that is missing for so long is meant: a token that is being replaced has it again sooner.
const REFUSED: Duration = Duration::from_secs(15);
/// The same of a token that is unknown: it is replaced by people, or the servers have lost it for a moment.
const UNKNOWN: Duration = Duration::from_secs(60);

/// How often a token file is looked at while the token in it does not do.
const LOOK_AT_TOKEN: Duration = Duration::from_millis(500);

pub(super) struct Link {
    state: MeshState,
    token: Option<TokenSource>,
    inner: Mutex<Inner>,
    /// Counts outages. An agent that came back may have forgotten its indexes: every watch asks anew.
    outages: watch::Sender<u64>,
    /// Counts the ends of faults that were none of the agent's own.
    renewals: watch::Sender<u64>,
    /// Counts parts that were answered again: those who wait to retry need not wait longer.
    recoveries: watch::Sender<u64>,
}

struct Inner {
    status: Status,
    /// The parts that fail.
    failing: BTreeMap<Part, Failing>,
    /// Since when parts are refused, and nothing else.
    refused: BTreeMap<Part, Instant>,
    /// The log has said that it is lost.
    lost: bool,
}

struct Failing {
    /// How many times in a row.
    times: u32,
    since: SystemTime,
    kind: ErrorKind,
    /// The last error.
    text: String,
}

impl Link {
    pub fn new(settings: &Settings, state: MeshState) -> Self {
        let status = Status {
            kind: settings.kind,
            address: settings.access.address.to_string(),
            connected: false,
            connected_since: None,
            last_contact: None,
            last_error: None,
            index: 0,
            stale_since: None,
            from_disk_cache: false,
            leaf_errors: BTreeMap::new(),
        };
        let inner =
            Mutex::new(Inner { status, failing: BTreeMap::new(), refused: BTreeMap::new(), lost: false });
        let token = settings.access.token.clone();
        Self {
            state,
            token,
            inner,
            outages: watch::Sender::new(0),
            renewals: watch::Sender::new(0),
            recoveries: watch::Sender::new(0),
        }
    }

    pub fn status(&self) -> Status {
        let inner = self.lock();
        let leaf_errors = inner.failing.iter().filter_map(|(part, failing)| match part {
            Part::Leaf(service) => Some((service.clone(), failing.text.clone())),
            _ => None,
        });
        Status { leaf_errors: leaf_errors.collect(), ..inner.status.clone() }
    }

    /// The control plane says that `service` may not have a leaf: not that it cannot be asked.
    pub fn leaf_is_forbidden(&self, service: &ServiceName) -> bool {
        self.lock().refused.contains_key(&Part::Leaf(service.clone()))
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

    /// Makes the watches that matter most ask anew: what they wait for may have happened elsewhere.
    pub fn ask_anew(&self) {
        self.renewals.send_modify(|n| *n += 1);
    }

    pub fn renewals(&self) -> watch::Receiver<u64> {
        self.renewals.subscribe()
    }

    /// Returns when it is time to ask again after `failures` in a row, the last with `error`: after the back-off, or
    /// earlier: when another part is answered again, and for want of a good token when there is another.
    pub async fn pause(&self, failures: u32, error: &ApiError) {
        let mut recoveries = self.recoveries.subscribe();
        let (together, token) = match error.kind() {
            ErrorKind::Outage | ErrorKind::Status(_) | ErrorKind::Other => (true, false),
            ErrorKind::Forbidden | ErrorKind::UnknownToken | ErrorKind::Token => (false, true),
            ErrorKind::TooMany => (false, false),
        };
        tokio::select! {
            () = tokio::time::sleep(backoff(failures, rand::random())) => {}
            // The sender lives in `self`.
            _ = recoveries.changed(), if together => {}
            () = self.another_token(), if token => {}
        }
    }

    /// Returns when the token file holds another token than now.
    async fn another_token(&self) {
        let Some(token) = &self.token else { return std::future::pending().await };
        let before = token.current().ok();
        loop {
            tokio::time::sleep(LOOK_AT_TOKEN).await;
            if token.current().is_ok_and(|now| before.as_ref() != Some(&now)) {
                return;
            }
        }
    }

    /// `part` failed; returns how many times in a row.
    pub fn failed(&self, part: &Part, error: &ApiError, now: SystemTime) -> u32 {
        let mut inner = self.lock();
        let same_as_before = inner.failing.get(part).is_some_and(|before| before.kind == error.kind());
        if !matches!(error.kind(), ErrorKind::Forbidden | ErrorKind::UnknownToken) {
            inner.refused.remove(part);
        } else if !(same_as_before && inner.refused.contains_key(part)) {
            // Another refusal is another matter: its grace begins now.
            inner.refused.insert(part.clone(), Instant::now());
        }
        let outage = error.is_outage() && !inner.failing.values().any(|f| f.kind == ErrorKind::Outage);
        let (text, kind) = (error.to_string(), error.kind());
        inner.status.last_error = Some(text.clone());
        let before = inner.failing.remove(part);
        // Not by its text: that may name ports and times, and differ each time.
        let news = before.as_ref().is_none_or(|before| before.kind != kind);
        let (times, since) = before.map_or((1, now), |before| (before.times.saturating_add(1), before.since));
        inner.failing.insert(part.clone(), Failing { times, since, kind, text: text.clone() });
        let counts = part.reads_state() || error.is_outage();
        let refused = matches!(kind, ErrorKind::Forbidden | ErrorKind::UnknownToken | ErrorKind::Token);
        let sure = times >= FAILURES_TO_BE_LOST || refused;
        if counts && sure {
            self.lose(&mut inner, &text, since);
        } else if news && !counts {
            tracing::warn!(part = ?part, error = text, "control plane refuses; retrying");
        }
        let failures = times;
        drop(inner);
        if outage {
            self.outages.send_modify(|n| *n += 1);
        }
        failures
    }

    /// Whether `part` has been refused, and nothing else, for so long that it is meant.
    pub fn is_refused_for_good(&self, part: &Part) -> bool {
        let inner = self.lock();
        let (Some(since), Some(failing)) = (inner.refused.get(part), inner.failing.get(part)) else {
            return false;
        };
        let long = if failing.kind == ErrorKind::UnknownToken { UNKNOWN } else { REFUSED };
        since.elapsed() >= long
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
        inner.status.last_error = inner.failing.values().next_back().map(|failing| failing.text.clone());
        let counts =
            |(part, failing): (&Part, &Failing)| part.reads_state() || failing.kind == ErrorKind::Outage;
        if inner.failing.iter().any(counts) || inner.status.last_contact.is_none() {
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
        if !inner.status.connected {
            inner.status.connected = true;
            inner.status.connected_since = inner.status.last_contact;
        }
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
