//! The bodies of `/v1/acl/*`: what Consul's clients send, and the forms in which policies and tokens are shown.

use serde::{Deserialize, de};
use serde_json::{Map, Value, json};

use super::{ApiError, input::GoDuration};
use crate::control_plane::embedded::{
    acl::{NodeIdentity, Registry, ServiceIdentity, Token},
    model::nullable,
};

/// A link to a policy, by one or the other.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct Link {
    #[serde(rename = "ID", deserialize_with = "nullable")]
    pub id: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
}

/// `PUT /v1/acl/policy`. What the server sets itself is read over.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct PolicyBody {
    #[serde(rename = "ID", deserialize_with = "nullable")]
    pub id: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub description: String,
    #[serde(deserialize_with = "nullable")]
    pub rules: String,
    #[serde(deserialize_with = "nullable")]
    pub datacenters: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    pub hash: de::IgnoredAny,
    pub create_index: de::IgnoredAny,
    pub modify_index: de::IgnoredAny,
}

/// `PUT /v1/acl/token`, likewise.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct TokenBody {
    #[serde(rename = "AccessorID", deserialize_with = "nullable")]
    pub accessor_id: String,
    #[serde(rename = "SecretID", deserialize_with = "nullable")]
    pub secret_id: String,
    #[serde(deserialize_with = "nullable")]
    pub description: String,
    #[serde(deserialize_with = "nullable")]
    pub policies: Vec<Link>,
    #[serde(deserialize_with = "nullable")]
    pub roles: Vec<Value>,
    #[serde(deserialize_with = "nullable")]
    pub service_identities: Vec<ServiceIdentity>,
    #[serde(deserialize_with = "nullable")]
    pub node_identities: Vec<NodeIdentity>,
    #[serde(deserialize_with = "nullable")]
    pub local: bool,
    #[serde(rename = "ExpirationTTL", deserialize_with = "nullable")]
    pub expiration_ttl: GoDuration,
    pub expiration_time: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub auth_method: String,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    /// Of Consul's old ACLs.
    #[serde(rename = "ID")]
    pub legacy_id: de::IgnoredAny,
    pub r#type: de::IgnoredAny,
    #[serde(deserialize_with = "nullable")]
    pub rules: String,
    pub create_time: de::IgnoredAny,
    pub hash: de::IgnoredAny,
    pub create_index: de::IgnoredAny,
    pub modify_index: de::IgnoredAny,
}

/// One question of `POST /v1/internal/acl/authorize`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct Question {
    pub resource: String,
    pub access: String,
    #[serde(deserialize_with = "nullable")]
    pub segment: String,
}

/// What is shown of a token's secret.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Secret {
    Shown,
    /// To those who may read tokens and not write them.
    Hidden,
    /// In lists.
    Left,
}

/// Returns a token as the API shows it.
pub fn token(token: &Token, registry: &Registry, secret: Secret) -> Map<String, Value> {
    let mut shown = Map::new();
    let mut set = |key: &str, value: Value| drop(shown.insert(key.to_owned(), value));
    set("AccessorID", json!(token.accessor));
    match secret {
        Secret::Shown => set("SecretID", json!(token.secret)),
        Secret::Hidden => set("SecretID", json!("<hidden>")),
        Secret::Left => {}
    }
    set("Description", json!(token.description));
    let policies = token.policies.iter().filter_map(|id| registry.policy(id));
    let policies: Vec<_> = policies.map(|policy| json!({ "ID": policy.id, "Name": policy.name })).collect();
    if !policies.is_empty() {
        set("Policies", json!(policies));
    }
    if !token.service_identities.is_empty() {
        set("ServiceIdentities", json!(token.service_identities));
    }
    if !token.node_identities.is_empty() {
        set("NodeIdentities", json!(token.node_identities));
    }
    set("Local", json!(token.local));
    if let Some(expires) = &token.expires {
        set("ExpirationTime", json!(expires));
    }
    set("CreateTime", json!(token.created_at));
    set("Hash", json!(token.hash));
    set("CreateIndex", json!(token.create_index));
    set("ModifyIndex", json!(token.modify_index));
    shown
}

/// Refuses what is no UUID.
pub fn uuid(field: &str, id: &str) -> Result<(), ApiError> {
    match uuid::Uuid::try_parse(id) {
        Ok(_) if id.len() == 36 => Ok(()),
        _ => Err(ApiError::BadRequest(format!("{field}: a UUID of 36 characters is wanted"))),
    }
}
