//! Policies and tokens, and which token a secret belongs to: one look-up in a hash map per request. What a token may
//! do is worked out when a policy or a token changes, once for all tokens with the same policies.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    authorizer::Authorizer,
    rules::{self, Rules},
};

/// The policy that allows everything. It cannot be changed but for its name and description, nor deleted.
pub const GLOBAL_MANAGEMENT: &str = "00000000-0000-0000-0000-000000000001";
/// The token of those who send none. It cannot be deleted.
pub const ANONYMOUS: &str = "00000000-0000-0000-0000-000000000002";
pub const ANONYMOUS_SECRET: &str = "anonymous";

/// A policy as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Policy {
    #[serde(rename = "ID")]
    pub id: Arc<str>,
    pub name: String,
    pub description: String,
    pub rules: String,
    pub hash: String,
    pub create_index: u64,
    pub modify_index: u64,
}

/// A token. Its secret is as good as all its policies: it is shown to nobody without `acl:write`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Token {
    #[serde(rename = "AccessorID")]
    pub accessor: Arc<str>,
    #[serde(rename = "SecretID")]
    pub secret: String,
    pub description: String,
    /// Ids.
    pub policies: Vec<Arc<str>>,
    #[serde(default)]
    pub service_identities: Vec<ServiceIdentity>,
    #[serde(default)]
    pub node_identities: Vec<NodeIdentity>,
    pub local: bool,
    /// RFC 3339, as is the other time.
    #[serde(default)]
    pub expires: Option<String>,
    pub created_at: String,
    pub hash: String,
    pub create_index: u64,
    pub modify_index: u64,
}

impl std::fmt::Debug for Token {
    /// Shows no secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("accessor", &self.accessor).finish_non_exhaustive()
    }
}

/// Stands for the policy that a service's proxy needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ServiceIdentity {
    pub service_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datacenters: Option<Vec<String>>,
}

/// Stands for the policy that a node's agent needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct NodeIdentity {
    pub node_name: String,
    #[serde(default)]
    pub datacenter: String,
}

impl ServiceIdentity {
    /// As Consul's.
    fn rules(&self) -> String {
        let name = &self.service_name;
        format!(
            "service \"{name}\" {{ policy = \"write\" }} service \"{name}-sidecar-proxy\" {{ policy = \"write\" }} \
             service_prefix \"\" {{ policy = \"read\" }} node_prefix \"\" {{ policy = \"read\" }}"
        )
    }
}

impl NodeIdentity {
    fn rules(&self) -> String {
        let name = &self.node_name;
        format!("node \"{name}\" {{ policy = \"write\" }} service_prefix \"\" {{ policy = \"read\" }}")
    }
}

/// A secret's digest: what tokens are looked up by, so that a look-up takes the same time whatever is sent.
pub type SecretHash = [u8; 32];

/// What a token grants.
#[derive(Debug)]
pub struct Grant {
    pub accessor: Arc<str>,
    pub secret: SecretHash,
    pub authorizer: Arc<Authorizer>,
    pub expires: Option<OffsetDateTime>,
    /// The index at which the token or one of its policies last changed: an answer that was filtered by it is no older.
    pub index: u64,
}

/// A policy, and its text as it was read.
type ReadPolicy = (Arc<Policy>, Arc<Rules>);

/// All policies and tokens.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    policies: Arc<BTreeMap<Arc<str>, ReadPolicy>>,
    tokens: Arc<BTreeMap<Arc<str>, Arc<Token>>>,
    grants: Arc<HashMap<SecretHash, Arc<Grant>>>,
}

impl Registry {
    pub fn hash(secret: &str) -> SecretHash {
        Sha256::digest(secret).into()
    }

    /// Returns what the token with this secret grants; nothing for one that has expired.
    pub fn grant(&self, secret: &SecretHash, now: OffsetDateTime) -> Option<&Arc<Grant>> {
        self.grants.get(secret).filter(|grant| grant.expires.is_none_or(|expires| now < expires))
    }

    pub fn policy(&self, id: &str) -> Option<&Arc<Policy>> {
        self.policies.get(id).map(|(policy, _)| policy)
    }

    pub fn policy_by_name(&self, name: &str) -> Option<&Arc<Policy>> {
        self.policies().find(|policy| policy.name == name)
    }

    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values().map(|(policy, _)| policy)
    }

    pub fn token(&self, accessor: &str) -> Option<&Arc<Token>> {
        self.tokens.get(accessor)
    }

    pub fn tokens(&self) -> impl Iterator<Item = &Arc<Token>> {
        self.tokens.values()
    }

    /// Puts a policy in; whoever has put everything in calls [`settle`](Self::settle).
    pub fn put_policy(&mut self, policy: Arc<Policy>) {
        // Rules are checked before they are stored; ones that an older meshnode took and this one does not grant nothing.
        let rules = rules::parse(&policy.rules).unwrap_or_else(|error| {
            tracing::error!(policy = policy.name, %error, "the stored policy cannot be read and grants nothing");
            Rules::new()
        });
        Arc::make_mut(&mut self.policies).insert(policy.id.clone(), (policy, Arc::new(rules)));
    }

    pub fn remove_policy(&mut self, id: &str) -> Option<Arc<Policy>> {
        Arc::make_mut(&mut self.policies).remove(id).map(|(policy, _)| policy)
    }

    /// Likewise.
    pub fn put_token(&mut self, token: Arc<Token>) {
        Arc::make_mut(&mut self.tokens).insert(token.accessor.clone(), token);
    }

    pub fn remove_token(&mut self, accessor: &str) -> Option<Arc<Token>> {
        Arc::make_mut(&mut self.tokens).remove(accessor)
    }

    /// Works out anew what each token grants.
    pub fn settle(&mut self) {
        type Links<'t> = (&'t [Arc<str>], &'t [ServiceIdentity], &'t [NodeIdentity]);
        let mut shared: HashMap<Links<'_>, Arc<Authorizer>> = HashMap::new();
        let mut grants = HashMap::with_capacity(self.tokens.len());
        for token in self.tokens.values() {
            let links: Links<'_> = (&token.policies, &token.service_identities, &token.node_identities);
            let authorizer = shared.entry(links).or_insert_with(|| Arc::new(self.authorizer(token)));
            let of_policies =
                token.policies.iter().filter_map(|id| self.policy(id)).map(|policy| policy.modify_index);
            let grant = Grant {
                accessor: token.accessor.clone(),
                secret: Self::hash(&token.secret),
                authorizer: authorizer.clone(),
                // A time that cannot be read is one that has passed.
                expires: token
                    .expires
                    .as_ref()
                    .map(|text| OffsetDateTime::parse(text, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH)),
                index: of_policies.max().unwrap_or(0).max(token.modify_index),
            };
            grants.insert(grant.secret, Arc::new(grant));
        }
        self.grants = Arc::new(grants);
    }

    fn authorizer(&self, token: &Token) -> Authorizer {
        let texts = token.service_identities.iter().map(ServiceIdentity::rules);
        let texts = texts.chain(token.node_identities.iter().map(NodeIdentity::rules));
        // The names were checked when the token was made; what cannot be read grants nothing.
        let made: Vec<Rules> = texts.filter_map(|text| rules::parse(&text).ok()).collect();
        let linked = token.policies.iter().filter_map(|id| self.policies.get(id)).map(|(_, rules)| &**rules);
        Authorizer::new(linked.chain(&made))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(expires: Option<&str>) -> Token {
        Token {
            accessor: "a".into(),
            secret: "s".to_owned(),
            description: String::new(),
            policies: Vec::new(),
            service_identities: Vec::new(),
            node_identities: Vec::new(),
            local: false,
            expires: expires.map(str::to_owned),
            created_at: String::new(),
            hash: String::new(),
            create_index: 1,
            modify_index: 1,
        }
    }

    #[test]
    fn an_expired_token_grants_nothing_nor_does_one_whose_time_cannot_be_read() {
        let at = |text: &str| OffsetDateTime::parse(text, &Rfc3339).unwrap();
        let granted = |expires: Option<&str>, now: &str| {
            let mut registry = Registry::default();
            registry.put_token(Arc::new(token(expires)));
            registry.settle();
            registry.grant(&Registry::hash("s"), at(now)).is_some()
        };
        let end = Some("2026-01-01T12:00:00Z");
        assert!(granted(end, "2026-01-01T11:59:59Z"));
        assert!(!granted(end, "2026-01-01T12:00:00Z"));
        assert!(!granted(Some("tomorrow"), "2026-01-01T00:00:00Z"));
        assert!(granted(None, "2026-01-01T00:00:00Z"));
    }

    #[test]
    fn the_index_of_a_grant_moves_with_its_policies_and_not_with_those_of_others() {
        let policy = |id: &str, modify_index| Policy {
            id: id.into(),
            name: id.to_owned(),
            description: String::new(),
            rules: String::new(),
            hash: String::new(),
            create_index: 1,
            modify_index,
        };
        let mut registry = Registry::default();
        registry.put_token(Arc::new(Token { policies: vec!["own".into()], ..token(None) }));
        let index = |registry: &Registry| {
            registry.grant(&Registry::hash("s"), OffsetDateTime::UNIX_EPOCH).unwrap().index
        };
        for (id, modified, wanted) in [("own", 5, 5), ("other", 9, 5), ("own", 11, 11)] {
            registry.put_policy(Arc::new(policy(id, modified)));
            registry.settle();
            assert_eq!(index(&registry), wanted);
        }
    }
}
