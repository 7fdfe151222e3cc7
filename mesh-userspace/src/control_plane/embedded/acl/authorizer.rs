//! What a set of policies allows. Exact names count before prefixes, and a longer prefix before a shorter one; where
//! policies say different things of the same name, deny counts, then the most. What no rule speaks of is denied.

use std::collections::HashMap;

use super::rules::{Access, Resource, Rule, Rules, Subject};

/// Rules of one resource by name.
#[derive(Debug, Default)]
struct Named {
    exact: HashMap<Box<str>, Access>,
    prefix: HashMap<Box<str>, Access>,
    /// Of all prefixes.
    longest: usize,
}

impl Named {
    fn insert(&mut self, subject: &Subject, access: Access) {
        let name = subject.name.as_str().into();
        if subject.prefix {
            self.longest = self.longest.max(subject.name.len());
            self.prefix.insert(name, access);
        } else {
            self.exact.insert(name, access);
        }
    }

    fn access(&self, name: &str) -> Option<Access> {
        if let Some(access) = self.exact.get(name) {
            return Some(*access);
        }
        let lengths = (0..=self.longest.min(name.len())).rev();
        lengths.filter_map(|length| name.get(..length)).find_map(|prefix| self.prefix.get(prefix).copied())
    }

    fn rules(&self) -> impl Iterator<Item = Access> {
        self.exact.values().chain(self.prefix.values()).copied()
    }
}

/// The merged rules of a token's policies.
#[derive(Debug, Default)]
pub struct Authorizer {
    alone: HashMap<Resource, Access>,
    named: HashMap<Resource, Named>,
}

impl Authorizer {
    pub fn new<'r>(policies: impl IntoIterator<Item = &'r Rules>) -> Self {
        let mut merged: HashMap<&Subject, (Access, Option<Access>)> = HashMap::new();
        for Rule { subject, access, intentions } in policies.into_iter().flatten() {
            let (known, of_intentions) = merged.entry(subject).or_insert((*access, None));
            *known = known.over(*access);
            *of_intentions = match (*of_intentions, *intentions) {
                (Some(a), Some(b)) => Some(a.over(b)),
                (a, b) => a.or(b),
            };
        }
        let mut all = Self::default();
        for (subject, (access, intentions)) in merged {
            match subject.resource {
                Resource::Acl
                | Resource::Keyring
                | Resource::Mesh
                | Resource::Operator
                | Resource::Peering => drop(all.alone.insert(subject.resource, access)),
                _ => all.named.entry(subject.resource).or_default().insert(subject, access),
            }
            if subject.resource == Resource::Service {
                // As Consul: whoever may see a service may see its intentions; changing them is a matter of its own.
                let by_access = if access == Access::Deny { Access::Deny } else { Access::Read };
                let intentions = intentions.unwrap_or(by_access);
                all.named.entry(Resource::Intention).or_default().insert(subject, intentions);
            }
        }
        all
    }

    /// Returns whether the rules grant `wanted` (read or write) on `name` of `resource`. For intentions, the name `*`
    /// stands for all services: it is readable with any of them, and writable with all of them.
    pub fn allows(&self, resource: Resource, wanted: Access, name: &str) -> bool {
        if let Some(access) = self.alone.get(&resource) {
            return grants(*access, wanted);
        }
        let Some(named) = self.named.get(&resource) else { return false };
        if resource == Resource::Intention && name == "*" {
            let of_all = named.prefix.get("").is_some_and(|access| grants(*access, wanted));
            return match wanted {
                Access::Write => of_all && named.rules().all(|access| grants(access, wanted)),
                _ => named.rules().any(|access| grants(access, wanted)),
            };
        }
        named.access(name).is_some_and(|access| grants(access, wanted))
    }
}

fn grants(access: Access, wanted: Access) -> bool {
    match wanted {
        Access::Deny => false,
        Access::Read => access != Access::Deny,
        Access::List => matches!(access, Access::List | Access::Write),
        Access::Write => access == Access::Write,
    }
}
