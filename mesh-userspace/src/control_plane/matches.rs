//! The intentions that decide for this host's services, watched by `/v1/connect/intentions/match`: for all local
//! sources in one question, for all local destinations in another.
//!
//! Meshnode's own servers let such a question wait for a change. Consul does not tell its index there, so a list of
//! intentions that is filtered to nothing waits instead, and tells when to ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::join_all;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::{
    api::MatchAnswer,
    client::{ApiError, escape},
    link::{Link, Part},
    policy::{Names, intention},
    settings::{Kind, Tenancy},
    sync::Shared,
    watch::{Permits, Watch},
};
use crate::{
    identity::ServiceName,
    intention::{Action, Intention},
};

/// Its index is that of all intentions; no intention lacks a source.
const CHANGES: &str = "/v1/connect/intentions?filter=SourceName%3D%3D%22%22";
/// Names in one question: an address line of 10 KB at most.
const BATCH: usize = 128;
/// A token may get permissions without a change of any intention.
const ASK_REFUSED: Duration = Duration::from_secs(30);
/// How long after a refusal for several names each is asked for alone.
const SPLIT_AGAIN: Duration = Duration::from_millis(200);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Side {
    Source,
    Destination,
}

impl Side {
    fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// What a watch found.
pub(super) enum Update {
    /// All intentions that decide for each of these.
    Answered(Side, BTreeMap<ServiceName, Vec<Intention>>),
    /// The token may not read this one's.
    Refused(Side, ServiceName),
    Default(Action),
}

/// Some names of one side, asked for together.
#[derive(Clone, Debug)]
struct Batch {
    side: Side,
    names: Vec<ServiceName>,
}

impl Batch {
    fn path(&self) -> String {
        let mut path = format!("/v1/connect/intentions/match?by={}", self.side.as_str());
        for name in &self.names {
            path.push_str("&name=");
            path.push_str(&escape(name.as_str()));
        }
        path
    }

    fn part(&self) -> Part {
        let more = match self.names.len() - 1 {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Part::IntentionsOf(format!("{} {}{more}", self.side.as_str(), self.names[0]))
    }

    fn single(&self) -> impl Iterator<Item = Self> {
        self.names.iter().map(|name| Self { side: self.side, names: vec![name.clone()] })
    }

    /// Returns what `answer` says; a name that it lacks must not read as one without intentions.
    fn read(&self, mut answer: MatchAnswer, ours: &Tenancy) -> Result<Update, ApiError> {
        let mut found = BTreeMap::new();
        for name in &self.names {
            let Some(entries) = answer.remove(name.as_str()) else {
                let reason = format!("`{name}` is not in it");
                return Err(ApiError::malformed("/v1/connect/intentions/match", reason));
            };
            let mut entries = entries.unwrap_or_default();
            // Of two that mean one pair, as those of `*` and of one namespace, the more precise one counts: the last.
            entries.sort_by_key(|entry| entry.precedence);
            found.insert(name.clone(), entries.iter().filter_map(|entry| intention(entry, ours)).collect());
        }
        Ok(Update::Answered(self.side, found))
    }

    async fn ask(&self, shared: &Shared) -> Result<Update, ApiError> {
        self.read(shared.client.get(&self.path()).await?, &shared.settings.access.tenancy)
    }
}

/// Starts what sends `updates` of the intentions of `names`, until the handles are dropped.
pub(super) fn watches(
    shared: &Arc<Shared>,
    names: &Names,
    updates: &mpsc::Sender<Update>,
) -> Vec<AbortOnDropHandle<()>> {
    let batches = |side, names: &BTreeSet<ServiceName>| {
        let names: Vec<_> = names.iter().cloned().collect();
        names.chunks(BATCH).map(|names| Batch { side, names: names.to_vec() }).collect::<Vec<_>>()
    };
    let mut all = batches(Side::Source, &names.sources);
    all.extend(batches(Side::Destination, &names.destinations));
    if shared.settings.kind == Kind::Consul && !all.is_empty() {
        return vec![spawn(follow_changes(Arc::clone(shared), all, updates.clone()))];
    }
    all.into_iter().map(|batch| spawn(follow_batch(Arc::clone(shared), batch, updates.clone()))).collect()
}

/// Asks for all `batches` whenever an intention changed.
async fn follow_changes(shared: Arc<Shared>, batches: Vec<Batch>, updates: mpsc::Sender<Update>) {
    let mut watch = Watch::new(&shared.client, &shared.link, Part::Intentions, CHANGES, Permits::Always);
    let mut refusals = Refusals { link: Arc::clone(&shared.link), parts: BTreeSet::new() };
    loop {
        tokio::select! {
            _ = watch.next::<Option<Vec<serde_json::Value>>>() => {}
            () = tokio::time::sleep(ASK_REFUSED), if !refusals.parts.is_empty() => {}
        }
        let answers = join_all(batches.iter().map(|batch| answers(&shared, batch))).await;
        let mut failed = None;
        for (batch, answer) in answers.into_iter().flatten() {
            match answer {
                Ok(update) => {
                    refusals.over(&batch);
                    let _ = updates.send(update).await;
                }
                Err(error @ ApiError::Forbidden { .. }) => {
                    refusals.note(&batch, &error);
                    let _ = updates.send(Update::Refused(batch.side, batch.names[0].clone())).await;
                }
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            watch.rejected(&error).await;
        }
    }
}

/// Returns the answer to `batch`; where part of it is forbidden, that to each name of it, so that one service without
/// permission does not stop the others.
async fn answers(shared: &Shared, batch: &Batch) -> Vec<(Batch, Result<Update, ApiError>)> {
    let answer = batch.ask(shared).await;
    if batch.names.len() == 1 || !matches!(answer, Err(ApiError::Forbidden { .. })) {
        return vec![(batch.clone(), answer)];
    }
    let mut all = Vec::new();
    for single in batch.single() {
        let answer = single.ask(shared).await;
        all.push((single, answer));
    }
    all
}

/// Services whose intentions the token may not read, as `status` shows them.
struct Refusals {
    link: Arc<Link>,
    parts: BTreeSet<Part>,
}

impl Refusals {
    fn note(&mut self, batch: &Batch, error: &ApiError) {
        self.link.failed(&batch.part(), error, SystemTime::now());
        self.parts.insert(batch.part());
    }

    fn over(&mut self, batch: &Batch) {
        for name in batch.single() {
            if self.parts.remove(&name.part()) {
                self.link.forget(&name.part());
            }
        }
    }
}

impl Drop for Refusals {
    fn drop(&mut self) {
        self.parts.iter().for_each(|part| self.link.forget(part));
    }
}

/// Watches `batch`; what of it is forbidden, at first or later, is watched name by name.
async fn follow_batch(shared: Arc<Shared>, batch: Batch, updates: mpsc::Sender<Update>) {
    loop {
        let (mut allowed, mut refused) = (Batch { side: batch.side, names: Vec::new() }, Vec::new());
        for (asked, answer) in answers(&shared, &batch).await {
            if let Err(ApiError::Forbidden { .. }) = answer {
                let _ = updates.send(Update::Refused(asked.side, asked.names[0].clone())).await;
                refused.push(asked);
            } else {
                allowed.names.extend(asked.names);
            }
        }
        let alone = async {
            join_all(refused.into_iter().map(|batch| follow_watch(&shared, batch, &updates))).await;
            // There was none: the others go on.
            std::future::pending().await
        };
        tokio::select! {
            () = follow_granted(&shared, allowed, &updates) => {}
            () = alone => {}
        }
        tokio::time::sleep(SPLIT_AGAIN).await;
    }
}

/// Watches `batch` until one of its several names is refused; the question is answered for all, or for none.
async fn follow_granted(shared: &Shared, batch: Batch, updates: &mpsc::Sender<Update>) {
    match batch.names.len() {
        0 => return std::future::pending().await,
        1 => return follow_watch(shared, batch, updates).await,
        _ => {}
    }
    let mut watch = Watch::new(&shared.client, &shared.link, batch.part(), batch.path(), Permits::Always);
    loop {
        let Ok(answer) = watch.next_granted().await else { return };
        match batch.read(answer, &shared.settings.access.tenancy) {
            Ok(update) => drop(updates.send(update).await),
            Err(error) => watch.rejected(&error).await,
        }
    }
}

async fn follow_watch(shared: &Shared, batch: Batch, updates: &mpsc::Sender<Update>) {
    let mut watch = Watch::new(&shared.client, &shared.link, batch.part(), batch.path(), Permits::Always);
    loop {
        match batch.read(watch.next().await, &shared.settings.access.tenancy) {
            Ok(update) => drop(updates.send(update).await),
            Err(error) => watch.rejected(&error).await,
        }
    }
}

fn spawn(task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intention::{ByService, Intentions};

    fn read(names: &[&str], answer: &str) -> Result<ByService, ApiError> {
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        let batch = Batch { side: Side::Source, names };
        match batch.read(serde_json::from_str(answer).unwrap(), &Tenancy::default())? {
            Update::Answered(Side::Source, found) => Ok(found),
            _ => panic!("another kind of update"),
        }
    }

    /// What `web` may reach by `answer`, with a default of `allow`.
    fn decisions<'a>(answer: &str, destinations: &[&'a str]) -> Vec<(&'a str, Action, bool)> {
        let found = read(&["web"], answer).unwrap();
        let set = Intentions::of_services(&found, &ByService::new(), Action::Allow);
        let web = "web".parse().unwrap();
        let decide = |name: &&'a str| {
            let destination = name.parse().unwrap();
            let decision = set.decide(&web, &destination);
            (*name, decision.action, decision.explanation().is_some())
        };
        destinations.iter().map(decide).collect()
    }

    use Action::{Allow, Deny};

    #[test]
    fn intentions_of_config_entries_are_read_and_those_with_permissions_deny() {
        let answer = include_str!("fixtures/intentions-match-1.9.json");
        assert_eq!(
            decisions(answer, &["db", "api", "cache", "other"]),
            [("db", Allow, false), ("api", Deny, true), ("cache", Deny, false), ("other", Allow, false)]
        );
        assert!(read(&["web", "cron"], answer).unwrap()[&"cron".parse().unwrap()].is_empty());
    }

    #[test]
    fn what_an_enterprise_server_says_of_others_is_not_about_us() {
        let answer = include_str!("fixtures/intentions-match-1.16.json");
        let found = decisions(answer, &["db", "cache", "api", "mail", "queue"]);
        let denied = |name| (name, Deny, false);
        assert_eq!(
            found,
            [("db", Allow, false), denied("cache"), denied("api"), denied("mail"), denied("queue")]
        );
    }

    #[test]
    fn a_name_that_the_answer_lacks_is_an_error_and_not_a_service_without_intentions() {
        assert!(matches!(read(&["web"], r#"{"other":[]}"#), Err(ApiError::Malformed { .. })));
        assert!(read(&["web"], r#"{"web":null}"#).unwrap()[&"web".parse().unwrap()].is_empty());
    }
}
