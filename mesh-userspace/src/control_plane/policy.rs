//! Intentions and the default policy: watched, and put into [`crate::state::MeshState`].
//!
//! Fails closed: what cannot be judged here denies, and a default that is not known is `deny`.

use std::{sync::Arc, time::Duration};

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{
    api::{CheckAnswer, IntentionEntry},
    cache::Item,
    client::{ApiError, escape},
    link::Part,
    settings::{Kind, LocalService},
    sync::{Piece, Shared},
    watch::{Permits, Watch},
};
use crate::intention::{Action, Intention, Intentions, Pattern};

const PATH: &str = "/v1/connect/intentions";
/// How often the default policy is asked for when no intention changes; no index tells of its change.
const DEFAULT_AGE: Duration = Duration::from_secs(120);

/// What the cache keeps.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Policy {
    pub intentions: Vec<Intention>,
    pub default: Action,
}

impl Policy {
    pub fn compile(&self) -> Intentions {
        Intentions::new(self.intentions.iter().cloned(), self.default)
    }
}

/// Returns what `entry` means for services in the default namespace; `None` when it says nothing about them.
pub fn intention(entry: &IntentionEntry) -> Option<Intention> {
    let foreign_type = !matches!(entry.source_type.as_str(), "" | "consul");
    if foreign_type || !entry.source_peer.is_empty() {
        return None;
    }
    let action = match entry.action.as_str() {
        "allow" if entry.permissions.is_empty() => Action::Allow,
        // Rules about HTTP requests, and actions of a later Consul, cannot be judged here.
        _ => Action::Deny,
    };
    Some(Intention {
        id: entry.id.clone(),
        source: side(&entry.source_ns, &entry.source_name)?,
        destination: side(&entry.destination_ns, &entry.destination_name)?,
        action,
    })
}

/// A name that cannot be a service's matches nobody whose certificate could be verified.
fn side(namespace: &str, name: &str) -> Option<Pattern> {
    let matches_default = matches!(namespace, "" | "default" | "*");
    matches_default.then(|| name.parse().ok()).flatten()
}

/// Keeps the intentions of `shared.state` current, for ever.
pub(super) async fn follow(shared: Arc<Shared>, local: watch::Receiver<Arc<Vec<LocalService>>>) {
    let mut watch = Watch::new(&shared.client, &shared.link, Part::Intentions, PATH, Permits::Always);
    let mut intentions: Option<Vec<Intention>> = None;
    let mut published = None;
    let mut default_known = true;
    loop {
        tokio::select! {
            entries = watch.next::<Vec<IntentionEntry>>() => {
                intentions = Some(entries.iter().filter_map(intention).collect());
            }
            () = tokio::time::sleep(DEFAULT_AGE), if intentions.is_some() => {}
        }
        let Some(intentions) = &intentions else { continue };
        let services = Arc::clone(&local.borrow());
        match default_policy(&shared, intentions, &services).await {
            Ok(default) => {
                default_known = true;
                publish(&shared, &mut published, Policy { intentions: intentions.clone(), default });
            }
            Err(Unknown::Default(error)) => {
                if std::mem::take(&mut default_known) {
                    tracing::warn!(%error, "the default policy cannot be read; taking `deny`");
                }
                publish(
                    &shared,
                    &mut published,
                    Policy { intentions: intentions.clone(), default: Action::Deny },
                );
            }
            Err(Unknown::All(error)) => watch.rejected(&error).await,
        }
    }
}

/// What could not be learned.
enum Unknown {
    /// The control plane does not tell the default policy, and will not tell it later either.
    Default(ApiError),
    /// The list may be incomplete, or the control plane did not answer.
    All(ApiError),
}

fn publish(shared: &Shared, published: &mut Option<Policy>, policy: Policy) {
    if published.as_ref() != Some(&policy) {
        tracing::debug!(intentions = policy.intentions.len(), default = ?policy.default, "intentions changed");
        let intentions = Arc::new(policy.compile());
        shared.state.update(|mesh| mesh.intentions = Some(Arc::clone(&intentions)));
        shared.cache.save(Item::Intentions, policy.clone());
        *published = Some(policy);
    }
    shared.confirmed(Piece::Intentions);
}

/// Asks for what holds where no intention does, and makes sure that nothing was kept from the list.
async fn default_policy(
    shared: &Shared,
    intentions: &[Intention],
    services: &[LocalService],
) -> Result<Action, Unknown> {
    if shared.settings.kind == Kind::Consul {
        // Consul leaves out of the list what the token may not read, without a word; a `match` is refused instead.
        try_join_all(services.iter().map(|service| async {
            let path = format!("{PATH}/match?by=source&name={}", escape(service.name.as_str()));
            shared.client.get::<serde_json::Value>(&path).await
        }))
        .await
        .map_err(Unknown::All)?;
    }
    if intentions.iter().any(|i| i.precedence() == ANY_TO_ANY) {
        return Ok(Action::Deny);
    }
    // Names that nobody has: only the default can answer.
    let probe = uuid::Uuid::new_v4().simple().to_string();
    let path = format!("{PATH}/check?source=meshnode-s-{probe}&destination=meshnode-d-{probe}");
    match shared.client.get::<CheckAnswer>(&path).await {
        Ok(CheckAnswer { allowed: true }) => Ok(Action::Allow),
        Ok(CheckAnswer { allowed: false }) => Ok(Action::Deny),
        Err(error @ (ApiError::Forbidden { .. } | ApiError::NotFound { .. })) => Err(Unknown::Default(error)),
        Err(error) => Err(Unknown::All(error)),
    }
}

/// With an intention of this precedence the default is never reached.
const ANY_TO_ANY: u8 = 5;

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

    #[test]
    fn allow_is_allow_and_anything_else_denies() {
        assert_eq!(intention(&entry("web", "db", "allow")).unwrap().action, Action::Allow);
        for action in ["deny", "", "ALLOW", "log"] {
            assert_eq!(intention(&entry("web", "db", action)).unwrap().action, Action::Deny, "{action}");
        }
    }

    #[test]
    fn allow_with_http_permissions_denies() {
        let mut with_rules = entry("web", "db", "allow");
        with_rules.permissions.push(serde_json::json!({"Action": "allow"}));
        assert_eq!(intention(&with_rules).unwrap().action, Action::Deny);
    }

    #[test]
    fn intention_about_another_namespace_or_peer_says_nothing_here() {
        for change in [
            |e: &mut IntentionEntry| e.source_ns = "other".to_owned(),
            |e: &mut IntentionEntry| e.destination_ns = "other".to_owned(),
            |e: &mut IntentionEntry| e.source_peer = "cluster-2".to_owned(),
            |e: &mut IntentionEntry| e.source_type = "external".to_owned(),
            |e: &mut IntentionEntry| e.source_name = "a/b".to_owned(),
        ] {
            let mut changed = entry("web", "db", "allow");
            change(&mut changed);
            assert_eq!(intention(&changed), None);
        }
        let mut same = entry("*", "db", "allow");
        same.source_ns = "default".to_owned();
        assert_eq!(intention(&same).unwrap().source, Pattern::Any);
    }

    proptest! {
        #[test]
        fn no_entry_panics_and_only_the_word_allow_allows(source in "\\PC{0,10}", destination in "\\PC{0,10}", action in "\\PC{0,6}|allow|deny") {
            if let Some(read) = intention(&entry(&source, &destination, &action)) {
                prop_assert_eq!(read.action == Action::Allow, action == "allow");
            }
        }
    }
}
