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
