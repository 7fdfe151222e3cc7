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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::rules::parse, *};

    fn of(policies: &[&str]) -> Authorizer {
        let rules: Vec<Rules> = policies.iter().map(|text| parse(text).unwrap()).collect();
        Authorizer::new(&rules)
    }

    fn access(authorizer: &Authorizer, resource: Resource, name: &str) -> &'static str {
        match (
            authorizer.allows(resource, Access::Read, name),
            authorizer.allows(resource, Access::Write, name),
        ) {
            (true, true) => "write",
            (true, false) => "read",
            (false, false) => "deny",
            (false, true) => "write without read",
        }
    }

    #[test]
    fn exact_counts_before_prefix_and_the_longest_prefix_before_shorter_ones() {
        let all = of(&[r#"
            service_prefix "" { policy = "read" }
            service_prefix "web" { policy = "deny" }
            service_prefix "web-" { policy = "write" }
            service "web-secret" { policy = "deny" }
            service "web" { policy = "write" }
        "#]);
        for (name, wanted) in [
            ("db", "read"),
            ("web", "write"),
            ("webx", "deny"),
            ("web-1", "write"),
            ("web-secret", "deny"),
            ("web-secret2", "write"),
            ("we", "read"),
            ("", "read"),
            ("wébß", "read"),
        ] {
            assert_eq!(access(&all, Resource::Service, name), wanted, "{name}");
        }
        assert_eq!(access(&all, Resource::Node, "db"), "deny", "what no rule speaks of");
        assert_eq!(access(&of(&[]), Resource::Service, "db"), "deny");
    }

    #[test]
    fn of_two_policies_deny_counts_and_then_the_most() {
        let (read, write, deny) = (
            r#"service "web" { policy = "read" } operator = "read""#,
            r#"service "web" { policy = "write" } operator = "write""#,
            r#"service "web" { policy = "deny" } operator = "deny""#,
        );
        for (policies, wanted) in
            [(vec![read, write], "write"), (vec![write, deny], "deny"), (vec![read, deny, write], "deny")]
        {
            let all = of(&policies);
            assert_eq!(access(&all, Resource::Service, "web"), wanted);
            assert_eq!(access(&all, Resource::Operator, ""), wanted);
        }
    }

    #[test]
    fn intentions_follow_the_service_unless_they_are_written() {
        let all = of(&[r#"
            service "web" { policy = "write" }
            service "db" { policy = "read" intentions = "write" }
            service "api" { policy = "write" intentions = "deny" }
            service "no" { policy = "deny" }
        "#]);
        for (name, wanted) in
            [("web", "read"), ("db", "write"), ("api", "deny"), ("no", "deny"), ("other", "deny")]
        {
            assert_eq!(access(&all, Resource::Intention, name), wanted, "{name}");
        }
        // One policy speaks of the service, another one of its intentions.
        let all = of(&[
            r#"service "web" { policy = "write" }"#,
            r#"service "web" { policy = "read" intentions = "deny" }"#,
        ]);
        assert_eq!(access(&all, Resource::Service, "web"), "write");
        assert_eq!(access(&all, Resource::Intention, "web"), "deny");
    }

    #[test]
    fn the_wildcard_intention_is_read_with_any_service_and_written_with_all() {
        let any = of(&[r#"service "web" { policy = "read" intentions = "write" }"#]);
        assert_eq!(access(&any, Resource::Intention, "*"), "read");
        let all = of(&[r#"service_prefix "" { policy = "read" intentions = "write" }"#]);
        assert_eq!(access(&all, Resource::Intention, "*"), "write");
        let but =
            r#"service_prefix "" { policy = "read" intentions = "write" } service "x" { policy = "read" }"#;
        assert_eq!(access(&of(&[but]), Resource::Intention, "*"), "read");
        assert_eq!(
            access(&of(&[r#"node_prefix "" { policy = "write" }"#]), Resource::Intention, "*"),
            "deny"
        );
    }

    fn policy() -> impl Strategy<Value = String> {
        let word = prop::sample::select(vec!["read", "write", "deny"]);
        let kind = prop::sample::select(vec!["service", "service_prefix", "node", "node_prefix"]);
        let name = prop::sample::select(vec!["", "w", "we", "web", "db"]);
        let intentions = prop::option::of(word.clone());
        (kind, name, word, intentions).prop_map(|(kind, name, word, intentions)| {
            let intentions = intentions
                .filter(|_| kind.starts_with("service"))
                .map_or(String::new(), |word| format!("intentions = \"{word}\""));
            format!("{kind} \"{name}\" {{ policy = \"{word}\" {intentions} }}")
        })
    }

    proptest! {
        #[test]
        fn the_order_of_rules_and_policies_does_not_matter(
            (policies, shuffled) in prop::collection::vec(policy(), 0..12)
                .prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle()))
        ) {
            let each: Vec<&str> = policies.iter().map(String::as_str).collect();
            let (several, one) = (of(&each), of(&[&shuffled.join("\n")]));
            for resource in [Resource::Service, Resource::Node, Resource::Intention] {
                for name in ["", "w", "we", "web", "web1", "db", "x", "*"] {
                    prop_assert_eq!(access(&several, resource, name), access(&one, resource, name));
                }
            }
        }
    }
}
