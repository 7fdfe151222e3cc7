//! Intentions: who may connect to whom, with Consul's precedence. Pure: no clock, no I/O.

use std::{cmp::Reverse, collections::HashMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::identity::{NameError, ServiceName};

/// What an intention, or the default policy, says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Allow,
    Deny,
}

/// One side of an intention: a service by name, or `*`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    Exact(ServiceName),
    Any,
}

impl FromStr for Pattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text == "*" { Ok(Self::Any) } else { text.parse().map(Self::Exact) }
    }
}

impl TryFrom<String> for Pattern {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name.as_str()),
            Self::Any => f.write_str("*"),
        }
    }
}

/// `source -> destination: action`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Intention {
    /// The id that the control plane gave it; empty where it has none.
    pub id: String,
    pub source: Pattern,
    pub destination: Pattern,
    pub action: Action,
}

impl Intention {
    /// See [`precedence`].
    pub fn precedence(&self) -> u8 {
        precedence(&self.source, &self.destination)
    }
}

/// Returns Consul's precedence in the default namespace: destination exactness counts before the source's.
/// 9 exact → exact, 8 `*` → exact, 6 exact → `*`, 5 `*` → `*`.
pub fn precedence(source: &Pattern, destination: &Pattern) -> u8 {
    match (source, destination) {
        (Pattern::Exact(_), Pattern::Exact(_)) => 9,
        (Pattern::Any, Pattern::Exact(_)) => 8,
        (Pattern::Exact(_), Pattern::Any) => 6,
        (Pattern::Any, Pattern::Any) => 5,
    }
}

/// The answer to "may `source` connect to `destination`?".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Decision<'a> {
    pub action: Action,
    /// The intention that decided; `None` where the default policy did.
    pub by: Option<&'a Intention>,
}

/// A set of intentions with the default policy.
#[derive(Clone, Debug)]
pub struct Intentions {
    by_pair: HashMap<(Pattern, Pattern), Intention>,
    pub default: Action,
}

impl Default for Intentions {
    fn default() -> Self {
        Self::new([], Action::Deny)
    }
}

impl Intentions {
    /// Of two for the same pair the later one counts.
    pub fn new(intentions: impl IntoIterator<Item = Intention>, default: Action) -> Self {
        let by_pair =
            intentions.into_iter().map(|i| ((i.source.clone(), i.destination.clone()), i)).collect();
        Self { by_pair, default }
    }

    /// Returns what the most precise intention for the pair says. Four look-ups, whatever the number of intentions.
    pub fn decide(&self, source: &ServiceName, destination: &ServiceName) -> Decision<'_> {
        let exact = |name: &ServiceName| Pattern::Exact(name.clone());
        let pairs = [
            (exact(source), exact(destination)),
            (Pattern::Any, exact(destination)),
            (exact(source), Pattern::Any),
            (Pattern::Any, Pattern::Any),
        ];
        let by = pairs.iter().find_map(|pair| self.by_pair.get(pair));
        Decision { action: by.map_or(self.default, |i| i.action), by }
    }

    pub fn allows(&self, source: &ServiceName, destination: &ServiceName) -> bool {
        self.decide(source, destination).action == Action::Allow
    }

    /// All of them, in the order in which Consul lists them: highest precedence first, then by names.
    pub fn list(&self) -> Vec<&Intention> {
        let mut all: Vec<_> = self.by_pair.values().collect();
        all.sort_by(|a, b| {
            (Reverse(a.precedence()), &a.destination, &a.source).cmp(&(
                Reverse(b.precedence()),
                &b.destination,
                &b.source,
            ))
        });
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intention(source: &str, destination: &str, action: Action) -> Intention {
        Intention {
            id: String::new(),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            action,
        }
    }

    fn decide(list: &[(&str, &str, Action)], source: &str, destination: &str) -> Action {
        let set = Intentions::new(list.iter().map(|(s, d, a)| intention(s, d, *a)), Action::Deny);
        set.decide(&source.parse().unwrap(), &destination.parse().unwrap()).action
    }

    use Action::{Allow, Deny};

    #[test]
    fn nothing_is_allowed_without_an_intention() {
        assert_eq!(decide(&[], "web", "db"), Deny);
    }

    #[test]
    fn exact_allow_beats_wildcard_deny_and_the_reverse() {
        assert_eq!(decide(&[("*", "db", Deny), ("web", "db", Allow)], "web", "db"), Allow);
        assert_eq!(decide(&[("*", "db", Allow), ("web", "db", Deny)], "web", "db"), Deny);
    }

    #[test]
    fn destination_exactness_counts_before_the_source() {
        assert_eq!(decide(&[("web", "*", Allow), ("*", "db", Deny)], "web", "db"), Deny);
        assert_eq!(decide(&[("web", "*", Deny), ("*", "db", Allow)], "web", "db"), Allow);
    }

    #[test]
    fn direction_matters() {
        assert_eq!(decide(&[("web", "db", Allow)], "db", "web"), Deny);
    }
}
