//! The rules of one policy: Consul's policy language. Unknown keys are refused (Consul ignores them, so that a slip of
//! the fingers grants nothing and denies nothing, silently).

use super::syntax::{self, Entry, Position, SyntaxError, Value};

/// What a rule grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    Deny,
    Read,
    /// For keys only: read, and list below a prefix.
    List,
    Write,
}

impl Access {
    pub fn parse(text: &str) -> Option<Self> {
        // Consul does not look at the case.
        match text.to_ascii_lowercase().as_str() {
            "deny" => Some(Self::Deny),
            "read" => Some(Self::Read),
            "list" => Some(Self::List),
            "write" => Some(Self::Write),
            _ => None,
        }
    }

    /// Returns the one that counts where two policies of a token say something about the same: deny, then the most.
    pub fn over(self, other: Self) -> Self {
        let rank = |access| match access {
            Self::Deny => 3,
            Self::Write => 2,
            Self::List => 1,
            Self::Read => 0,
        };
        if rank(other) > rank(self) { other } else { self }
    }
}

/// What rules are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    Acl,
    Agent,
    Event,
    /// Of services; written inside `service` rules.
    Intention,
    Key,
    Keyring,
    Mesh,
    Node,
    Operator,
    Peering,
    Query,
    Service,
    Session,
}

/// Name in the language, and whether its rules name something (`service "web"`) or stand alone (`operator = "read"`).
const RESOURCES: [(&str, Resource, bool); 12] = [
    ("acl", Resource::Acl, false),
    ("agent", Resource::Agent, true),
    ("event", Resource::Event, true),
    ("key", Resource::Key, true),
    ("keyring", Resource::Keyring, false),
    ("mesh", Resource::Mesh, false),
    ("node", Resource::Node, true),
    ("operator", Resource::Operator, false),
    ("peering", Resource::Peering, false),
    ("query", Resource::Query, true),
    ("service", Resource::Service, true),
    ("session", Resource::Session, true),
];

impl Resource {
    /// Returns the name that Consul's messages use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Intention => "intention",
            _ => RESOURCES.iter().find(|(_, r, _)| *r == self).map_or("", |(name, ..)| *name),
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "intention" => Some(Self::Intention),
            _ => RESOURCES.iter().find(|(name, ..)| *name == text).map(|(_, resource, _)| *resource),
        }
    }
}

/// What one rule is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    pub resource: Resource,
    /// Every name that begins with `name`.
    pub prefix: bool,
    /// Empty for a resource that stands alone.
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub subject: Subject,
    pub access: Access,
    /// Of a service: what the rule says of its intentions; without a word it follows from `access`.
    pub intentions: Option<Access>,
}

pub type Rules = Vec<Rule>;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RulesError {
    #[error("Failed to parse ACL rules: {0}")]
    Syntax(#[from] SyntaxError),
    #[error("Failed to parse ACL rules: {}{what}", place(*.at))]
    Meaning { at: Position, what: String },
}

fn place(at: Position) -> String {
    if at == Position::default() { String::new() } else { format!("At {}:{}: ", at.line, at.column) }
}

fn wrong<T>(at: Position, what: String) -> Result<T, RulesError> {
    Err(RulesError::Meaning { at, what })
}

/// Returns the rules in a policy's text.
pub fn parse(text: &str) -> Result<Rules, RulesError> {
    let mut rules = Vec::new();
    for entry in syntax::parse(text)? {
        let (name, prefix) = match entry.key.strip_suffix("_prefix") {
            Some(name) => (name, true),
            None => (&*entry.key, false),
        };
        match RESOURCES.iter().find(|(known, _, named)| *known == name && (*named || !prefix)) {
            Some((_, resource, true)) => named(*resource, prefix, &entry, &mut rules)?,
            Some((_, resource, false)) => rules.push(alone(*resource, &entry)?),
            None => {
                let what = format!("unknown key `{}`; accepted: {}", entry.key.escape_debug(), accepted());
                return wrong(entry.at, what);
            }
        }
    }
    Ok(rules)
}

fn accepted() -> String {
    let word = |(name, _, named): &(&str, Resource, bool)| {
        if *named { format!("{name}, {name}_prefix") } else { (*name).to_owned() }
    };
    RESOURCES.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// `operator = "read"`.
fn alone(resource: Resource, entry: &Entry) -> Result<Rule, RulesError> {
    let Value::Text(text) = &entry.value else {
        let key = &entry.key;
        return wrong(entry.at, format!("`{key}` stands alone, as in {key} = \"read\""));
    };
    let subject = Subject { resource, prefix: false, name: String::new() };
    Ok(Rule { subject, access: access(resource, entry.at, &entry.key, text)?, intentions: None })
}

/// `service "web" { policy = "write" }`, one or more of them.
fn named(resource: Resource, prefix: bool, entry: &Entry, rules: &mut Rules) -> Result<(), RulesError> {
    let key = &entry.key;
    let form = || format!("`{key}` needs a name and a block, as in {key} \"web\" {{ policy = \"read\" }}");
    let Value::Object(named) = &entry.value else { return wrong(entry.at, form()) };
    for Entry { key: name, at, value } in named {
        let Value::Object(fields) = value else { return wrong(entry.at, form()) };
        let what = format!("{key} {name:?}");
        let (mut policy, mut intentions) = (None, None);
        for Entry { key: field, at, value } in fields {
            let Value::Text(text) = value else {
                return wrong(*at, format!("{what}: `{field}` is no block; a string is wanted"));
            };
            let slot = match field.as_str() {
                "policy" => &mut policy,
                "intentions" if resource == Resource::Service => &mut intentions,
                _ => {
                    let more = if resource == Resource::Service { " and intentions" } else { "" };
                    let field = field.escape_debug();
                    return wrong(*at, format!("{what}: unknown key `{field}`; accepted: policy{more}"));
                }
            };
            *slot = Some(access(resource, *at, &format!("{what}: {field}"), text)?);
        }
        let Some(access) = policy else { return wrong(*at, format!("{what}: `policy` is missing")) };
        let subject = Subject { resource, prefix, name: name.clone() };
        rules.push(Rule { subject, access, intentions });
    }
    Ok(())
}

fn access(resource: Resource, at: Position, what: &str, text: &str) -> Result<Access, RulesError> {
    let lists = resource == Resource::Key;
    match Access::parse(text) {
        Some(access) if access != Access::List || lists => Ok(access),
        _ => {
            let list = if lists { ", list" } else { "" };
            let text = text.escape_debug();
            wrong(at, format!("{what}: found \"{text}\"; accepted: \"read\", \"write\", \"deny\"{list}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(resource: Resource, prefix: bool, name: &str, access: Access) -> Rule {
        let subject = Subject { resource, prefix, name: name.to_owned() };
        Rule { subject, access, intentions: None }
    }

    #[test]
    fn hcl_and_json_say_the_same() {
        let hcl = r#"
            # a comment
            service "web" { policy = "write" } // another
            "service_prefix" "" {
              policy     = "read"   /* and
              a third */
              intentions = "deny"
            }
            node_prefix = { "host-" = { policy = "READ" } }
            operator = "read"
        "#;
        let json = r#"{"service": {"web": {"policy": "write"}},
            "service_prefix": [{"": {"policy": "read", "intentions": "deny"}}],
            "node_prefix": {"host-": {"policy": "read"}}, "operator": "read"}"#;
        let mut wanted = vec![
            rule(Resource::Service, false, "web", Access::Write),
            rule(Resource::Service, true, "", Access::Read),
            rule(Resource::Node, true, "host-", Access::Read),
            rule(Resource::Operator, false, "", Access::Read),
        ];
        wanted[1].intentions = Some(Access::Deny);
        assert_eq!(parse(hcl).unwrap(), wanted);
        let mut read = parse(json).unwrap();
        let order = |rule: &Rule| wanted.iter().position(|w| w == rule);
        read.sort_by_key(order);
        assert_eq!(read, wanted);
        assert_eq!(parse(" # nothing\n").unwrap(), []);
    }

    #[test]
    fn what_is_no_policy_is_refused_with_its_place_and_what_is_accepted() {
        for (text, wanted) in [
            (r#"servise "web" { policy = "read" }"#, "At 1:1: unknown key `servise`; accepted: acl, agent"),
            ("\n  operator_prefix \"\" { policy = \"read\" }", "At 2:3: unknown key `operator_prefix`"),
            (r#"service "web" { policy = "list" }"#, r#"found "list"; accepted: "read", "write", "deny""#),
            (r#"key "web" { policy = "rite" }"#, r#"accepted: "read", "write", "deny", list"#),
            (r#"service "web" { intentions = "read" }"#, "`policy` is missing"),
            (r#"node "web" { policy = "read" intentions = "read" }"#, "unknown key `intentions`"),
            (r#"service { policy = "read" }"#, "`service` needs a name and a block"),
            (r#"service "web" = "read""#, "`service` needs a name"),
            (r#"operator "x" { policy = "read" }"#, "`operator` stands alone"),
            (r#"service "web" {"#, "a closing `}` is missing"),
            (r#"service "web { policy = "read" }"#, "At 1:"),
            ("operator = read", "At 1:12: a string in quotes is wanted"),
            ("operator = \"re\nad\"", "At 1:12: the string has no closing quote"),
            ("/* open", "the comment has no end"),
            (r#"{"operator": true}"#, "found a boolean"),
            (r#"{"operator": "#, "JSON: EOF"),
            ("{{{", "JSON"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with("Failed to parse ACL rules: ") && error.contains(wanted),
                "{text}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_or_overflows(text in "([ -~\n]|service|node_prefix|policy|\\{|\\}|\"|=|\"web\"|/\\*|\\\\){0,80}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_depth_panics(depth in 0_usize..2_000, json: bool) {
            let text = if json { "{\"service\":".repeat(depth) } else { "service \"a\" { ".repeat(depth) };
            let _ = parse(&text);
        }
    }
}
