//! Which services of the catalog are watched: what follows from intentions, the list of services and this host's own.
//! Pure.
//!
//! Services that a local workload may call are watched always. All others only while the catalog is small: they are
//! watched so that a dial to one of them is denied here, and not only by its own host.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::{
    identity::ServiceName,
    intention::{Intentions, Upstreams},
};

/// How much of the catalog is watched, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Watched {
    /// Services that are watched.
    pub services: usize,
    /// Services of the catalog that are not; `None` while nobody needs to know how many there are.
    pub unwatched: Option<usize>,
}

/// How the list of services is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// Nothing depends on it.
    None,
    /// Only whether the catalog is still too large.
    Slow,
    Watch,
}

/// What is known when it is decided what to watch.
pub struct Known<'a> {
    pub intentions: &'a Intentions,
    /// Who may dial from here.
    pub local: &'a BTreeSet<ServiceName>,
    /// Services of this host that others dial.
    pub own: &'a BTreeSet<ServiceName>,
    /// The catalog's services without proxies; `None` before it was read.
    pub list: Option<&'a BTreeSet<ServiceName>>,
    /// Services that are or were upstreams: a program that may not call them any more is likely to try.
    pub former: &'a BTreeSet<ServiceName>,
    pub limit: usize,
}

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub services: BTreeSet<ServiceName>,
    pub upstreams: BTreeSet<ServiceName>,
    pub listing: Listing,
    /// The list of services is needed, and is not there yet: more may be to watch.
    pub incomplete: bool,
    pub unwatched: Option<usize>,
}

/// Returns what to watch.
pub fn scope(known: &Known<'_>) -> Scope {
    let Upstreams { named, others } = known.intentions.upstreams(known.local);
    let mut upstreams = named;
    if let (true, Some(list)) = (others, known.list) {
        let allowed = |name: &&ServiceName| known.local.iter().any(|s| known.intentions.allows(s, name));
        upstreams.extend(list.iter().filter(allowed).cloned());
    }
    let needed = others || known.limit > 0;
    let small = known.list.is_none_or(|list| list.len() <= known.limit);
    let listing = match (needed, others || small) {
        (false, _) => Listing::None,
        (true, true) => Listing::Watch,
        (true, false) => Listing::Slow,
    };
    let mut services: BTreeSet<_> = known.own.union(&upstreams).cloned().collect();
    let list = known.list.filter(|_| needed);
    if let Some(list) = list {
        if small {
            services.extend(list.iter().cloned());
        } else {
            let retained = known.former.difference(&services).take(known.limit).cloned().collect::<Vec<_>>();
            services.extend(retained);
        }
        // A list that is followed closely says at once when a service comes.
        if listing == Listing::Watch {
            services.retain(|name| list.contains(name));
        }
    }
    Scope {
        unwatched: list.map(|list| list.difference(&services).count()),
        incomplete: needed && known.list.is_none(),
        services,
        upstreams,
        listing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intention::{Action, Intention};

    fn names(text: &str) -> BTreeSet<ServiceName> {
        text.split_whitespace().map(|name| name.parse().unwrap()).collect()
    }

    fn intentions(list: &[(&str, &str, Action)], default: Action) -> Intentions {
        let intention = |(source, destination, action): &(&str, &str, Action)| Intention {
            id: String::new(),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            action: *action,
            http: false,
        };
        Intentions::new(list.iter().map(intention), default)
    }

    fn of(intentions: &Intentions, list: Option<&str>, former: &str, limit: usize) -> Scope {
        let (local, own) = (names("web api"), names("api"));
        let (list, former) = (list.map(names), names(former));
        scope(&Known { intentions, local: &local, own: &own, list: list.as_ref(), former: &former, limit })
    }

    use Action::{Allow, Deny};

    #[test]
    fn a_small_catalog_is_watched_whole_and_a_large_one_as_far_as_it_is_called() {
        let rules = intentions(&[("web", "db", Allow), ("cron", "cache", Allow)], Deny);
        let small = of(&rules, Some("api cache db mail"), "", 4);
        assert_eq!((small.services, small.listing), (names("api cache db mail"), Listing::Watch));
        assert_eq!(small.unwatched, Some(0));
        let large = of(&rules, Some("api cache db mail"), "", 3);
        assert_eq!((large.services, large.listing), (names("api db"), Listing::Slow));
        assert_eq!(large.unwatched, Some(2));
        assert_eq!(large.upstreams, names("db"));
    }

    #[test]
    fn without_a_limit_the_list_is_not_even_read() {
        let rules = intentions(&[("web", "db", Allow)], Deny);
        let scope = of(&rules, None, "", 0);
        assert_eq!(
            (scope.services, scope.listing, scope.incomplete),
            (names("api db"), Listing::None, false)
        );
        assert_eq!(scope.unwatched, None);
        assert!(of(&rules, None, "", 1).incomplete, "with one it decides");
    }

    #[test]
    fn a_wildcard_or_the_default_makes_every_service_an_upstream_but_those_denied() {
        for rules in [
            intentions(&[("web", "*", Allow), ("web", "mail", Deny)], Deny),
            intentions(&[("*", "mail", Deny)], Allow),
        ] {
            let scope = of(&rules, Some("api cache db mail"), "", 1);
            assert_eq!((scope.services, scope.listing), (names("api cache db"), Listing::Watch));
            assert_eq!(scope.unwatched, Some(1));
            assert!(of(&rules, None, "", 0).incomplete);
        }
    }

    #[test]
    fn a_former_upstream_of_a_large_catalog_stays_within_the_limit() {
        let rules = intentions(&[("web", "db", Allow)], Deny);
        let list = Some("api cache db mail");
        assert_eq!(of(&rules, list, "mail cache", 3).services, names("api cache db mail"));
        assert_eq!(of(&rules, list, "mail cache", 1).services, names("api cache db"));
        assert_eq!(of(&rules, list, "mail cache", 0).services, names("api db"));
    }

    #[test]
    fn an_upstream_that_is_not_registered_is_waited_for_by_the_list_or_by_its_own_watch() {
        let rules = intentions(&[("web", "db", Allow)], Deny);
        assert_eq!(of(&rules, Some("api mail"), "", 5).services, names("api mail"));
        assert_eq!(of(&rules, Some("a b api mail"), "", 2).services, names("api db"));
    }
}
