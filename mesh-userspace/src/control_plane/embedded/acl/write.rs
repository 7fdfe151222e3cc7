//! Writes of policies and tokens on a [`Txn`], with what the API promises of them.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use super::{
    registry::{ANONYMOUS, ANONYMOUS_SECRET, GLOBAL_MANAGEMENT, Policy, Token},
    rules,
};
use crate::control_plane::embedded::{
    topics::Topic,
    txn::{Change, Txn},
};

/// As Consul has it.
const MANAGEMENT_RULES: &str = r#"
acl = "write"
agent_prefix "" {
	policy = "write"
}
event_prefix "" {
	policy = "write"
}
key_prefix "" {
	policy = "write"
}
keyring = "write"
mesh = "write"
node_prefix "" {
	policy = "write"
}
operator = "write"
peering = "write"
query_prefix "" {
	policy = "write"
}
service_prefix "" {
	policy = "write"
	intentions = "write"
}
session_prefix "" {
	policy = "write"
}"#;

fn digest(parts: &[&str]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update(part.len().to_be_bytes());
        digest.update(part);
    }
    BASE64_STANDARD.encode(digest.finalize())
}

/// Writes the built-in policy and the anonymous token, where they are not there yet.
pub fn ensure_builtin(txn: &mut Txn) {
    if txn.tables.acl().policy(GLOBAL_MANAGEMENT).is_none() {
        txn.put_policy(Policy {
            id: GLOBAL_MANAGEMENT.into(),
            name: "global-management".to_owned(),
            description: "Builtin Policy that grants unlimited access".to_owned(),
            rules: MANAGEMENT_RULES.to_owned(),
            hash: String::new(),
            create_index: 0,
            modify_index: 0,
        });
    }
    if txn.tables.acl().token(ANONYMOUS).is_none() {
        let created_at = txn.now_text();
        txn.put_token(Token {
            accessor: ANONYMOUS.into(),
            secret: ANONYMOUS_SECRET.to_owned(),
            description: "Anonymous Token".to_owned(),
            policies: Vec::new(),
            service_identities: Vec::new(),
            node_identities: Vec::new(),
            local: false,
            expires: None,
            created_at,
            hash: String::new(),
            create_index: 0,
            modify_index: 0,
        });
    }
}

impl Txn {
    /// Writes the policy; that its rules can be read and its name is free is the caller's to see to.
    pub fn put_policy(&mut self, mut policy: Policy) -> Arc<Policy> {
        debug_assert!(rules::parse(&policy.rules).is_ok());
        let old = self.tables.acl().policy(&policy.id);
        policy.create_index = old.map_or(self.index, |old| old.create_index);
        policy.modify_index = self.index;
        policy.hash = digest(&[&policy.name, &policy.description, &policy.rules]);
        let policy = Arc::new(policy);
        self.change_acl(Change::Policy(policy.id.clone(), Some(policy.clone())), |acl| {
            acl.put_policy(policy.clone());
        });
        policy
    }

    /// Removes the policy, from the tokens that have it, too.
    pub fn delete_policy(&mut self, id: &str) {
        let Some(policy) = self.tables.acl().policy(id).cloned() else { return };
        let with: Vec<_> =
            self.tables.acl().tokens().filter(|token| token.policies.contains(&policy.id)).cloned().collect();
        for token in with {
            let mut token = Token::clone(&token);
            token.policies.retain(|of| *of != policy.id);
            self.write_token(token);
        }
        self.change_acl(Change::Policy(policy.id.clone(), None), |acl| drop(acl.remove_policy(id)));
    }

    /// Writes the token; that its secret is no other's is the caller's to see to.
    pub fn put_token(&mut self, token: Token) -> Arc<Token> {
        let token = self.write_token(token);
        Arc::make_mut(&mut self.tables.acl).settle();
        token
    }

    /// The same, but who does what stays as it was: the caller settles.
    fn write_token(&mut self, mut token: Token) -> Arc<Token> {
        let old = self.tables.acl().token(&token.accessor);
        token.create_index = old.map_or(self.index, |old| old.create_index);
        token.modify_index = self.index;
        token.policies.sort();
        token.policies.dedup();
        token.hash = token_hash(&token);
        let token = Arc::new(token);
        Arc::make_mut(&mut self.tables.acl).put_token(token.clone());
        self.changes.push(Change::Token(token.accessor.clone(), Some(token.clone())));
        self.topics.insert(Topic::Acl);
        token
    }

    pub fn delete_token(&mut self, accessor: &str) {
        let Some(token) = self.tables.acl().token(accessor).cloned() else { return };
        self.change_acl(Change::Token(token.accessor.clone(), None), |acl| drop(acl.remove_token(accessor)));
    }

    fn change_acl(&mut self, change: Change, edit: impl FnOnce(&mut super::Registry)) {
        let registry = Arc::make_mut(&mut self.tables.acl);
        edit(registry);
        registry.settle();
        self.changes.push(change);
        self.topics.insert(Topic::Acl);
    }
}

fn token_hash(token: &Token) -> String {
    let services = token.service_identities.iter().map(|identity| &*identity.service_name);
    let nodes = token.node_identities.iter().map(|identity| &*identity.node_name);
    let links = token.policies.iter().map(|id| &**id);
    let parts: Vec<&str> = [&*token.accessor, &*token.description]
        .into_iter()
        .chain(links)
        .chain(services)
        .chain(nodes)
        .collect();
    digest(&parts)
}
