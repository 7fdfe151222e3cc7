//! Intentions: who may connect to whom, with Consul's precedence. Pure: no clock, no I/O.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt,
    str::FromStr,
};

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
    /// It has permissions about HTTP requests, which cannot be judged here: it denies.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub http: bool,
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

impl Decision<'_> {
    /// Returns why an intention that may be meant to allow denies, in words; `None` where there is nothing to explain.
    pub fn explanation(&self) -> Option<String> {
        self.by.filter(|intention| intention.http).map(|i| http_denied(&i.source, &i.destination))
    }
}

/// Returns the words for an intention with permissions about HTTP requests.
pub fn http_denied(source: &impl fmt::Display, destination: &impl fmt::Display) -> String {
    format!("intention {source} -> {destination} has HTTP permissions, which meshnode can't judge: denied")
}

/// A set of intentions with the default policy: all there are, or those that decide for the services of one host.
#[derive(Clone, Debug)]
pub struct Intentions {
    /// Decide for the sources of `scope`; for everybody where there is none.
    outgoing: Rules,
    /// Decide for the destinations of `scope`.
    incoming: Rules,
    scope: Option<Scope>,
    pub default: Action,
}

/// For each of some services all intentions that decide for it.
pub type ByService = BTreeMap<ServiceName, Vec<Intention>>;

/// Whose intentions are known; a pair of which neither side is in it is denied.
#[derive(Clone, Debug, Default)]
struct Scope {
    sources: HashSet<ServiceName>,
    destinations: HashSet<ServiceName>,
}

/// Intentions by destination.
#[derive(Clone, Debug, Default)]
struct Rules {
    to: HashMap<ServiceName, Row>,
    to_any: Row,
}

/// Intentions with one destination, by source.
#[derive(Clone, Debug, Default)]
struct Row {
    from: HashMap<ServiceName, Intention>,
    from_any: Option<Intention>,
}

/// What some services may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upstreams {
    /// Destinations that intentions name.
    pub named: BTreeSet<ServiceName>,
    /// Also those that no intention names.
    pub others: bool,
}

impl Row {
    fn decide(&self, source: &ServiceName) -> Option<&Intention> {
        self.from.get(source).or(self.from_any.as_ref())
    }

    fn iter(&self) -> impl Iterator<Item = &Intention> {
        self.from.values().chain(&self.from_any)
    }
}

impl Rules {
    fn decide(&self, source: &ServiceName, destination: &ServiceName) -> Option<&Intention> {
        let exact = self.to.get(destination).and_then(|row| row.decide(source));
        exact.or_else(|| self.to_any.decide(source))
    }

    /// Takes `intention` in, unless one for the same pair is held that does not yield.
    fn put(&mut self, intention: Intention, yields: impl Fn(&Intention) -> bool) {
        let row = match &intention.destination {
            Pattern::Exact(name) => self.to.entry(name.clone()).or_default(),
            Pattern::Any => &mut self.to_any,
        };
        let held = match &intention.source {
            Pattern::Exact(name) => row.from.get(name),
            Pattern::Any => row.from_any.as_ref(),
        };
        if held.is_some_and(|held| !yields(held)) {
            return;
        }
        match &intention.source {
            Pattern::Exact(name) => drop(row.from.insert(name.clone(), intention)),
            Pattern::Any => row.from_any = Some(intention),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Intention> {
        self.to.values().flat_map(Row::iter).chain(self.to_any.iter())
    }
}

impl FromIterator<Intention> for Rules {
    /// Of two for the same pair the later one counts.
    fn from_iter<I: IntoIterator<Item = Intention>>(intentions: I) -> Self {
        let mut rules = Self::default();
        intentions.into_iter().for_each(|intention| rules.put(intention, |_| true));
        rules
    }
}

impl Default for Intentions {
    fn default() -> Self {
        Self::new([], Action::Deny)
    }
}

impl Intentions {
    /// Of two for the same pair the later one counts.
    pub fn new(intentions: impl IntoIterator<Item = Intention>, default: Action) -> Self {
        let outgoing = intentions.into_iter().collect();
        Self { outgoing, incoming: Rules::default(), scope: None, default }
    }

    /// Returns what decides for some services only: `by_source` are all intentions of each source named, wildcards that
    /// mean it included, and `by_destination` those of each destination. Every pair of others is denied.
    pub fn of_services(by_source: &ByService, by_destination: &ByService, default: Action) -> Self {
        // A pair with a wildcard is in several lists, which arrive one by one: where they differ, deny counts.
        let rules = |lists: &ByService| {
            let mut all = Rules::default();
            for list in lists.values() {
                let own: Rules = list.iter().cloned().collect();
                own.iter().for_each(|i| all.put(i.clone(), |held| held.action == Action::Allow));
            }
            all
        };
        let names = |lists: &ByService| lists.keys().cloned().collect();
        let scope = Scope { sources: names(by_source), destinations: names(by_destination) };
        Self { outgoing: rules(by_source), incoming: rules(by_destination), scope: Some(scope), default }
    }

    /// Returns what the most precise intention for the pair says. Four look-ups at most, two more where only some
    /// services' intentions are known, whatever the number of intentions; allocates nothing.
    pub fn decide(&self, source: &ServiceName, destination: &ServiceName) -> Decision<'_> {
        let rules = match &self.scope {
            None => &self.outgoing,
            Some(scope) if scope.sources.contains(source) => &self.outgoing,
            Some(scope) if scope.destinations.contains(destination) => &self.incoming,
            Some(_) => return Decision { action: Action::Deny, by: None },
        };
        let by = rules.decide(source, destination);
        Decision { action: by.map_or(self.default, |i| i.action), by }
    }

    pub fn allows(&self, source: &ServiceName, destination: &ServiceName) -> bool {
        self.decide(source, destination).action == Action::Allow
    }

    /// Returns what at least one of `sources` may call.
    pub fn upstreams<'a>(&self, sources: impl IntoIterator<Item = &'a ServiceName> + Clone) -> Upstreams {
        let known = |source: &&ServiceName| self.scope.as_ref().is_none_or(|s| s.sources.contains(*source));
        let others = sources.clone().into_iter().filter(known).any(|source| {
            self.outgoing.to_any.decide(source).map_or(self.default, |i| i.action) == Action::Allow
        });
        let allowed = |destination: &&ServiceName| {
            sources.clone().into_iter().any(|source| self.allows(source, destination))
        };
        Upstreams { named: self.outgoing.to.keys().filter(allowed).cloned().collect(), others }
    }

    /// Whether a `*` → `*` intention leaves nothing to the default policy.
    pub fn default_is_moot(&self) -> bool {
        [&self.outgoing, &self.incoming].iter().any(|rules| rules.to_any.from_any.is_some())
    }

    /// All of them, in the order in which Consul lists them: highest precedence first, then by names.
    pub fn list(&self) -> Vec<&Intention> {
        let key = |i: &&Intention| (Reverse(i.precedence()), i.destination.clone(), i.source.clone());
        let mut all: Vec<_> = self.outgoing.iter().chain(self.incoming.iter()).collect();
        all.sort_by_cached_key(key);
        all.dedup_by(|a, b| a.source == b.source && a.destination == b.destination);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocations;

    fn intention(source: &str, destination: &str, action: Action) -> Intention {
        Intention {
            id: String::new(),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            action,
            http: false,
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
    fn lists_that_differ_about_a_pair_deny_it_until_they_agree() {
        let list = |action| vec![intention("*", "db", action)];
        let decide = |web, cron| {
            let name = |text: &str| text.parse::<ServiceName>().unwrap();
            let lists = [(name("web"), list(web)), (name("cron"), list(cron))].into_iter().collect();
            let set = Intentions::of_services(&lists, &ByService::new(), Deny);
            ["web", "cron"].map(|source| set.decide(&name(source), &name("db")).action)
        };
        assert_eq!(decide(Allow, Deny), [Deny, Deny]);
        assert_eq!(decide(Deny, Allow), [Deny, Deny]);
        assert_eq!(decide(Allow, Allow), [Allow, Allow]);
    }

    #[test]
    fn direction_matters() {
        assert_eq!(decide(&[("web", "db", Allow)], "db", "web"), Deny);
    }

    #[test]
    fn a_hosts_set_decides_for_its_own_services_and_denies_all_other_pairs() {
        let name = |text: &str| text.parse::<ServiceName>().unwrap();
        let by_source = [(name("web"), vec![intention("web", "db", Allow), intention("*", "cache", Deny)])];
        let by_destination =
            [(name("api"), vec![intention("*", "api", Deny), intention("cron", "api", Allow)])];
        let set = Intentions::of_services(&by_source.into(), &by_destination.into(), Allow);
        for (source, destination, expected) in [
            ("web", "db", Allow),
            ("web", "cache", Deny),
            ("web", "other", Allow),
            // Of its own services a host asks the source's: what it knows of `web` does not say `api` is denied.
            ("web", "api", Allow),
            ("cron", "api", Allow),
            ("other", "api", Deny),
            // Nobody asked for these: the default may be hidden by an intention.
            ("other", "db", Deny),
            ("db", "web", Deny),
        ] {
            assert_eq!(
                set.decide(&name(source), &name(destination)).action,
                expected,
                "{source} -> {destination}"
            );
        }
        assert_eq!(set.list().len(), 4);
    }

    #[test]
    fn upstreams_are_what_a_source_may_call() {
        let name = |text: &str| text.parse::<ServiceName>().unwrap();
        let list = [
            intention("web", "db", Allow),
            intention("*", "cache", Allow),
            intention("cron", "cache", Deny),
            intention("cron", "*", Allow),
            intention("other", "api", Allow),
        ];
        let set = Intentions::new(list, Deny);
        let of = |sources: &[&str]| {
            let sources: Vec<_> = sources.iter().map(|text| name(text)).collect();
            let found = set.upstreams(&sources);
            (found.named.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), found.others)
        };
        assert_eq!(of(&["web"]), ("cache db".to_owned(), false));
        assert_eq!(of(&["cron"]), ("api db".to_owned(), true));
        assert_eq!(of(&[]), (String::new(), false));
        let open = Intentions { default: Allow, ..set.clone() };
        assert!(open.upstreams(&[name("web")]).others);
        let closed = Intentions::new([intention("*", "*", Deny)], Allow);
        assert!(!closed.upstreams(&[name("web")]).others);
    }

    #[test]
    fn a_decision_among_fifty_thousand_intentions_allocates_nothing() {
        let name = |text: String| text.parse::<ServiceName>().unwrap();
        let numbered = |n: usize| intention(&format!("s{}", n % 500), &format!("d{}", n / 500), Allow);
        let list: Vec<_> = (0..50_000).map(numbered).chain([intention("*", "d7", Deny)]).collect();
        let sources: Vec<_> = (0..600).map(|n| name(format!("s{n}"))).collect();
        let destinations: Vec<_> = (0..110).map(|n| name(format!("d{n}"))).collect();
        let mut scoped: ByService = sources.iter().map(|name| (name.clone(), Vec::new())).collect();
        scoped.insert(sources[0].clone(), list.clone());
        let of_a_host = Intentions::of_services(&scoped, &ByService::new(), Deny);
        for set in [Intentions::new(list, Deny), of_a_host] {
            let (allowed, allocations) = allocations::during(|| {
                let pairs = sources.iter().flat_map(|s| destinations.iter().map(move |d| (s, d)));
                pairs.filter(|(source, destination)| set.allows(source, destination)).count()
            });
            assert_eq!((allowed, allocations), (50_000, 0));
        }
    }
}
