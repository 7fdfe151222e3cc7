//! Intentions of this host's services and the default policy: watched, and put into [`crate::state::MeshState`].
//!
//! Asked for are only the intentions that decide for a local service, as a source or as a destination (`intentions`
//! does that); the answers come to one actor, which alone knows the whole and publishes it. Fails closed: what cannot
//! be judged here denies, and a default that is not known is `deny`.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    api::{CheckAnswer, IntentionEntry},
    cache::Item,
    client::{ApiError, ErrorKind},
    link::Part,
    matches::{self, Side, Update},
    settings::{LocalService, Tenancy},
    sync::{Piece, Shared},
};
use crate::{
    identity::ServiceName,
    intention::{Action, ByService, Intention, Intentions, Pattern},
};

/// How often the default policy is asked for when no intention changes; no index tells of its change.
const DEFAULT_AGE: Duration = Duration::from_secs(120);
/// And how often at most when many do.
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);

/// What the cache keeps: for each local service the intentions that decide for it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Policy {
    by_source: ByService,
    by_destination: ByService,
    default: Action,
}

/// What a cache may hold: an earlier version kept the whole list.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Cached {
    OfServices(Policy),
    Whole { intentions: Vec<Intention>, default: Action },
}

impl Policy {
    pub fn compile(&self) -> Intentions {
        Intentions::of_services(&self.by_source, &self.by_destination, self.default)
    }

    fn lists(&mut self, side: Side) -> &mut ByService {
        match side {
            Side::Source => &mut self.by_source,
            Side::Destination => &mut self.by_destination,
        }
    }

    fn default_is_moot(&self) -> bool {
        let any = |i: &Intention| (&i.source, &i.destination) == (&Pattern::Any, &Pattern::Any);
        self.by_source.values().chain(self.by_destination.values()).any(|list| list.iter().any(any))
    }
}

impl Cached {
    /// Returns the policy of `local` services.
    pub fn into_policy(self, local: &[LocalService]) -> Policy {
        let (intentions, default) = match self {
            Self::OfServices(policy) => return policy,
            Self::Whole { intentions, default } => (intentions, default),
        };
        let lists = |names: BTreeSet<ServiceName>, side: fn(&Intention) -> &Pattern| {
            let of = |name: &ServiceName| {
                let decides = |i: &&Intention| match side(i) {
                    Pattern::Any => true,
                    Pattern::Exact(exact) => exact == name,
                };
                intentions.iter().filter(decides).cloned().collect()
            };
            names.into_iter().map(|name| (name.clone(), of(&name))).collect()
        };
        let names = Names::of(local, &Names::default());
        let by_source = lists(names.sources, |i| &i.source);
        Policy { by_source, by_destination: lists(names.destinations, |i| &i.destination), default }
    }
}

/// Whose intentions are asked for.
#[derive(Clone, Default, PartialEq, Debug)]
pub(super) struct Names {
    pub sources: BTreeSet<ServiceName>,
    pub destinations: BTreeSet<ServiceName>,
}

impl Names {
    /// A service that listened stays a destination as long as it is local: flows of one that drains are still judged.
    fn of(local: &[LocalService], before: &Self) -> Self {
        let listens = |s: &&LocalService| s.listens.is_some() || before.destinations.contains(&s.name);
        Self {
            sources: local.iter().map(|s| s.name.clone()).collect(),
            destinations: local.iter().filter(listens).map(|s| s.name.clone()).collect(),
        }
    }

    fn iter(&self) -> impl Iterator<Item = (Side, &ServiceName)> {
        let sources = self.sources.iter().map(|name| (Side::Source, name));
        sources.chain(self.destinations.iter().map(|name| (Side::Destination, name)))
    }
}

/// Returns what `entry` means for services of `ours`; `None` when it says nothing about them.
pub fn intention(entry: &IntentionEntry, ours: &Tenancy) -> Option<Intention> {
    let foreign_type = !matches!(entry.source_type.as_str(), "" | "consul");
    let foreign_source = !entry.source_peer.is_empty() || !entry.source_sameness_group.is_empty();
    let partitions = [&entry.source_partition, &entry.destination_partition];
    if foreign_type || foreign_source || !partitions.into_iter().all(|found| ours.is_partition(found)) {
        return None;
    }
    let http = !entry.permissions.is_empty();
    let action = match entry.action.as_str() {
        "allow" if !http => Action::Allow,
        // Rules about HTTP requests, and actions of a later Consul, cannot be judged here.
        _ => Action::Deny,
    };
    Some(Intention {
        id: entry.id.clone(),
        source: side(ours, &entry.source_ns, &entry.source_name)?,
        destination: side(ours, &entry.destination_ns, &entry.destination_name)?,
        action,
        http,
    })
}

/// A name that cannot be a service's matches nobody whose certificate could be verified.
fn side(ours: &Tenancy, namespace: &str, name: &str) -> Option<Pattern> {
    let means_ours = namespace == "*" || ours.is_namespace(namespace);
    means_ours.then(|| name.parse().ok()).flatten()
}

/// Keeps the intentions of `shared.state` current, for ever. `cached` is what it holds at present.
pub(super) async fn follow(
    shared: Arc<Shared>,
    mut local: watch::Receiver<Arc<Vec<LocalService>>>,
    cached: Option<Policy>,
) {
    let (updates, mut incoming) = mpsc::channel(16);
    let ask_default = Arc::new(Notify::new());
    let _default = spawn(follow_default(Arc::clone(&shared), Arc::clone(&ask_default), updates.clone()));
    let empty =
        Policy { by_source: ByService::new(), by_destination: ByService::new(), default: Action::Deny };
    let mut follower = Follower {
        shared,
        updates,
        ask_default,
        names: Names::default(),
        policy: cached.clone().unwrap_or(empty),
        live: BTreeSet::new(),
        refused: BTreeSet::new(),
        default: None,
        published: cached,
        dirty: true,
        watches: Vec::new(),
    };
    let services = Arc::clone(&local.borrow_and_update());
    follower.watch(Names::of(&services, &Names::default()));
    loop {
        tokio::select! {
            Some(update) = incoming.recv() => follower.apply(update),
            Ok(()) = local.changed() => {
                let services = Arc::clone(&local.borrow_and_update());
                let names = Names::of(&services, &follower.names);
                if names != follower.names {
                    follower.watch(names);
                }
            }
        }
        follower.publish();
    }
}

struct Follower {
    shared: Arc<Shared>,
    updates: mpsc::Sender<Update>,
    ask_default: Arc<Notify>,
    names: Names,
    /// The newest answers, or the cached ones; its default counts for nothing.
    policy: Policy,
    /// Which of the lists the control plane gave.
    live: BTreeSet<(Side, ServiceName)>,
    /// For whom the control plane refuses to answer: pairs of theirs are denied where nothing is known from before.
    refused: BTreeSet<(Side, ServiceName)>,
    /// `None` when it has to be asked for.
    default: Option<Action>,
    published: Option<Policy>,
    /// Something changed since the last look at what there is to publish.
    dirty: bool,
    watches: Vec<AbortOnDropHandle<()>>,
}

impl Follower {
    /// Asks for the intentions of `names` from here on. What is known of those that stay goes on counting.
    fn watch(&mut self, names: Names) {
        self.policy.by_source.retain(|name, _| names.sources.contains(name));
        self.policy.by_destination.retain(|name, _| names.destinations.contains(name));
        self.live.retain(|(side, name)| names.iter().any(|pair| pair == (*side, name)));
        self.refused.clear();
        self.watches.clear();
        self.watches = matches::watches(&self.shared, &names, &self.updates);
        self.names = names;
        self.dirty = true;
    }

    fn apply(&mut self, update: Update) {
        match update {
            Update::Answered(side, answered) => {
                for (name, intentions) in answered {
                    // One that was asked for before the services changed.
                    if !self.names.iter().any(|pair| pair == (side, &name)) {
                        continue;
                    }
                    let pair = (side, name);
                    self.dirty |= self.refused.remove(&pair) | self.live.insert(pair.clone());
                    let before = self.policy.lists(side).get(&pair.1);
                    if before != Some(&intentions) {
                        self.policy.lists(side).insert(pair.1, intentions);
                        self.dirty = true;
                    }
                }
                self.ask_default.notify_one();
            }
            // What is known of it from before goes on counting, as in an outage.
            Update::Refused(side, name) => self.dirty |= self.refused.insert((side, name)),
            Update::Default(default) => self.dirty |= self.default.replace(default) != Some(default),
        }
        if self.policy.default_is_moot() {
            // What a check says now says nothing about the time when that intention is gone.
            self.default = None;
        }
    }

    fn publish(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        let known = |side: Side, name: &ServiceName| {
            let lists =
                if side == Side::Source { &self.policy.by_source } else { &self.policy.by_destination };
            lists.contains_key(name) || self.refused.contains(&(side, name.clone()))
        };
        let nothing = self.refused.len() == self.names.iter().count() && !self.refused.is_empty();
        if nothing || !self.names.iter().all(|(side, name)| known(side, name)) {
            return;
        }
        let default = match self.default {
            Some(default) => default,
            None if self.policy.default_is_moot() => Action::Deny,
            None => return,
        };
        let policy = Policy { default, ..self.policy.clone() };
        if self.published.as_ref() != Some(&policy) {
            let intentions = Arc::new(policy.compile());
            self.shared.state.update(|mesh| mesh.intentions = Some(Arc::clone(&intentions)));
            tracing::debug!(default = ?policy.default, "intentions changed");
            self.explain(&policy);
            self.shared.cache.save(Item::Intentions, policy.clone());
            self.published = Some(policy);
        }
        if self.names.iter().all(|(side, name)| {
            self.live.contains(&(side, name.clone())) || self.refused.contains(&(side, name.clone()))
        }) {
            self.shared.confirmed(Piece::Intentions);
        }
    }

    /// Says once of each new intention that cannot be judged that it denies.
    fn explain(&self, policy: &Policy) {
        let http = |policy: &Policy| -> BTreeSet<(Pattern, Pattern)> {
            let all = policy.by_source.values().chain(policy.by_destination.values()).flatten();
            all.filter(|i| i.http).map(|i| (i.source.clone(), i.destination.clone())).collect()
        };
        let before = self.published.as_ref().map(http).unwrap_or_default();
        for (source, destination) in http(policy).difference(&before) {
            tracing::warn!("{}", crate::intention::http_denied(source, destination));
        }
    }
}

/// Asks for what holds where no intention does: at first, now and then, and after a change.
async fn follow_default(shared: Arc<Shared>, wake: Arc<Notify>, updates: mpsc::Sender<Update>) {
    let mut failures = 0;
    // What was read once goes on counting when it cannot be read any more, as everything else does.
    let (mut said, mut read) = (false, false);
    loop {
        let asked = Instant::now();
        let default = match default_policy(&shared).await {
            Ok(default) => {
                read = true;
                default
            }
            Err(error) if !read && is_kept_from_us(&error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::warn!(%error, "the default policy cannot be read; taking `deny`");
                }
                Action::Deny
            }
            Err(error) => {
                failures += 1;
                shared.link.failed(&Part::DefaultPolicy, &error, std::time::SystemTime::now());
                shared.link.pause(failures, &error).await;
                continue;
            }
        };
        failures = 0;
        shared.link.answered(&Part::DefaultPolicy, None, std::time::SystemTime::now());
        if updates.send(Update::Default(default)).await.is_err() {
            return;
        }
        tokio::select! {
            () = wake.notified() => tokio::time::sleep_until(asked + DEFAULT_PAUSE).await,
            () = tokio::time::sleep(DEFAULT_AGE) => {}
        }
    }
}

/// The token does not grant it, or the server has no such question.
fn is_kept_from_us(error: &ApiError) -> bool {
    matches!(error, ApiError::NotFound { .. }) || error.kind() == ErrorKind::Forbidden
}

async fn default_policy(shared: &Shared) -> Result<Action, ApiError> {
    // Names that nobody has: only the default can answer, or an intention between any and any.
    let probe = uuid::Uuid::new_v4().simple().to_string();
    let path =
        format!("/v1/connect/intentions/check?source=meshnode-s-{probe}&destination=meshnode-d-{probe}");
    let CheckAnswer { allowed } = shared.client.get(&path).await?;
    Ok(if allowed { Action::Allow } else { Action::Deny })
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(source: &str, destination: &str, action: &str) -> IntentionEntry {
        IntentionEntry {
            source_name: source.to_owned(),
            destination_name: destination.to_owned(),
            source_type: "consul".to_owned(),
            action: action.to_owned(),
            ..IntentionEntry::default()
        }
    }

    fn read(entry: &IntentionEntry) -> Option<Intention> {
        intention(entry, &Tenancy::default())
    }

    #[test]
    fn allow_is_allow_and_anything_else_denies() {
        assert_eq!(read(&entry("web", "db", "allow")).unwrap().action, Action::Allow);
        for action in ["deny", "", "ALLOW", "log"] {
            assert_eq!(read(&entry("web", "db", action)).unwrap().action, Action::Deny, "{action}");
        }
    }

    #[test]
    fn allow_with_http_permissions_denies_and_says_so() {
        let mut with_rules = entry("web", "db", "allow");
        with_rules.permissions.push(serde_json::json!({"Action": "allow"}));
        let read = read(&with_rules).unwrap();
        assert_eq!((read.action, read.http), (Action::Deny, true));
        let set = Intentions::new([read], Action::Allow);
        let (web, db) = ("web".parse().unwrap(), "db".parse().unwrap());
        let said = "intention web -> db has HTTP permissions, which meshnode can't judge: denied";
        assert_eq!(set.decide(&web, &db).explanation().as_deref(), Some(said));
        assert_eq!(set.decide(&db, &web).explanation(), None);
    }

    #[test]
    fn intention_about_another_namespace_partition_or_peer_says_nothing_here() {
        for change in [
            |e: &mut IntentionEntry| e.source_ns = "other".to_owned(),
            |e: &mut IntentionEntry| e.destination_ns = "other".to_owned(),
            |e: &mut IntentionEntry| e.source_partition = "other".to_owned(),
            |e: &mut IntentionEntry| e.destination_partition = "other".to_owned(),
            |e: &mut IntentionEntry| e.source_peer = "cluster-2".to_owned(),
            |e: &mut IntentionEntry| e.source_sameness_group = "all".to_owned(),
            |e: &mut IntentionEntry| e.source_type = "external".to_owned(),
            |e: &mut IntentionEntry| e.source_name = "a/b".to_owned(),
        ] {
            let mut changed = entry("web", "db", "allow");
            change(&mut changed);
            assert_eq!(read(&changed), None);
        }
        let mut same = entry("*", "db", "allow");
        (same.source_ns, same.destination_partition) = ("default".to_owned(), "default".to_owned());
        assert_eq!(read(&same).unwrap().source, Pattern::Any);
    }

    #[test]
    fn in_a_namespace_that_is_configured_the_default_one_is_foreign() {
        let team = Tenancy { namespace: Some("team".to_owned()), partition: None };
        let mut entry = entry("web", "db", "allow");
        assert_eq!(intention(&entry, &team), None);
        (entry.source_ns, entry.destination_ns) = ("*".to_owned(), "team".to_owned());
        assert!(intention(&entry, &team).is_some());
    }

    #[test]
    fn a_cache_of_the_whole_list_is_read_as_that_of_the_local_services() {
        let all = r#"{"intentions":[{"id":"1","source":"web","destination":"db","action":"allow"},
            {"id":"2","source":"*","destination":"db","action":"deny"},
            {"id":"3","source":"cron","destination":"*","action":"allow"}],"default":"allow"}"#;
        let cached: Cached = serde_json::from_str(all).unwrap();
        let (_health, db) = crate::control_plane::testing::db(1);
        let web = LocalService { name: "web".parse().unwrap(), id: "web".to_owned(), listens: None };
        let policy = cached.into_policy(&[web, db]);
        let names = |lists: &ByService| -> Vec<_> {
            lists.iter().map(|(name, list)| (name.to_string(), list.len())).collect()
        };
        assert_eq!(names(&policy.by_source), [("db".to_owned(), 1), ("web".to_owned(), 2)]);
        assert_eq!(names(&policy.by_destination), [("db".to_owned(), 3)]);
        let again: Cached = serde_json::from_str(&serde_json::to_string(&policy).unwrap()).unwrap();
        assert_eq!(again.into_policy(&[]), policy);
    }

    proptest! {
        #[test]
        fn no_entry_panics_and_only_the_word_allow_allows(source in "\\PC{0,10}", destination in "\\PC{0,10}", action in "\\PC{0,6}|allow|deny") {
            if let Some(read) = read(&entry(&source, &destination, &action)) {
                prop_assert_eq!(read.action == Action::Allow, action == "allow");
            }
        }
    }
}
