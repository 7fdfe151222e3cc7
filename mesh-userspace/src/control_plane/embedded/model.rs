//! The rows of the store, in the form in which Consul's API shows them. Validation of input is in `api::input`.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::intention::{self, Action, Intention, Pattern};

/// Metadata, tags' addresses of a node, and the like.
pub type Strings = BTreeMap<String, String>;

/// What identifies a service or a check: its node and its id there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub node: Arc<str>,
    pub id: Arc<str>,
}

impl Key {
    pub fn new(node: &str, id: &str) -> Self {
        Self { node: node.into(), id: id.into() }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Node {
    #[serde(rename = "ID")]
    pub id: String,
    #[serde(rename = "Node")]
    pub name: Arc<str>,
    pub address: String,
    pub datacenter: String,
    pub tagged_addresses: Option<Strings>,
    #[serde(deserialize_with = "nullable", serialize_with = "null_if_empty")]
    pub meta: Strings,
    pub create_index: u64,
    pub modify_index: u64,
}

/// What a service is. Gateways are not served here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    #[default]
    #[serde(rename = "")]
    Typical,
    #[serde(rename = "connect-proxy")]
    ConnectProxy,
}

impl Kind {
    pub fn is_typical(&self) -> bool {
        *self == Self::Typical
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Service {
    #[serde(skip)]
    pub node: Arc<str>,
    /// Registered by its parent's `Connect.SidecarService`: it goes when the parent goes.
    #[serde(skip)]
    pub as_sidecar: bool,
    #[serde(default, skip_serializing_if = "Kind::is_typical")]
    pub kind: Kind,
    #[serde(rename = "ID")]
    pub id: Arc<str>,
    #[serde(rename = "Service")]
    pub name: Arc<str>,
    pub tags: Vec<String>,
    pub address: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    #[serde(deserialize_with = "nullable", serialize_with = "null_if_empty")]
    pub meta: Strings,
    pub port: u16,
    pub weights: Weights,
    pub enable_tag_override: bool,
    pub proxy: Proxy,
    pub connect: Connect,
    pub create_index: u64,
    pub modify_index: u64,
}

impl Service {
    pub fn key(&self) -> Key {
        Key { node: self.node.clone(), id: self.id.clone() }
    }

    /// Returns the name of the service that this instance takes mTLS for, if it does.
    pub fn connect_destination(&self) -> Option<&str> {
        match self.kind {
            Kind::ConnectProxy => Some(&self.proxy.destination_service_name),
            Kind::Typical => self.connect.native.then_some(&*self.name),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "PascalCase")]
pub struct TaggedAddress {
    #[serde(default, alias = "address")]
    pub address: String,
    #[serde(default, alias = "port")]
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct Weights {
    #[serde(alias = "passing")]
    pub passing: u16,
    #[serde(alias = "warning")]
    pub warning: u16,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Connect {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub native: bool,
}

/// JSON that the data plane's owner understands and this server only keeps.
pub type Opaque = serde_json::Map<String, serde_json::Value>;

/// A connect proxy's part of its registration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct Proxy {
    #[serde(alias = "destination_service_name", skip_serializing_if = "String::is_empty")]
    pub destination_service_name: String,
    #[serde(rename = "DestinationServiceID", alias = "destination_service_id")]
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub destination_service_id: String,
    #[serde(alias = "local_service_address")]
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub local_service_address: String,
    #[serde(alias = "local_service_port")]
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub local_service_port: u16,
    #[serde(alias = "local_service_socket_path")]
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub local_service_socket_path: String,
    #[serde(alias = "mode", deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub mode: String,
    #[serde(alias = "transparent_proxy")]
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Opaque::is_empty")]
    pub transparent_proxy: Opaque,
    #[serde(alias = "config", deserialize_with = "nullable", skip_serializing_if = "Opaque::is_empty")]
    pub config: Opaque,
    #[serde(alias = "upstreams", deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<Upstream>,
    #[serde(alias = "mesh_gateway", deserialize_with = "nullable")]
    pub mesh_gateway: Opaque,
    #[serde(alias = "expose", deserialize_with = "nullable")]
    pub expose: Opaque,
}

/// A service that a proxy dials on behalf of its program, with the loopback port it listens on for that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct Upstream {
    #[serde(alias = "destination_type", deserialize_with = "nullable")]
    pub destination_type: String,
    #[serde(alias = "destination_namespace")]
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub destination_namespace: String,
    #[serde(alias = "destination_name")]
    pub destination_name: String,
    #[serde(alias = "datacenter", deserialize_with = "nullable")]
    pub datacenter: String,
    #[serde(alias = "local_bind_address")]
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub local_bind_address: String,
    #[serde(alias = "local_bind_port")]
    #[serde(deserialize_with = "nullable", skip_serializing_if = "is_zero")]
    pub local_bind_port: u16,
    #[serde(alias = "local_bind_socket_path")]
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub local_bind_socket_path: String,
    #[serde(alias = "local_bind_socket_mode")]
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub local_bind_socket_mode: String,
    #[serde(alias = "config", deserialize_with = "nullable", serialize_with = "null_if_no_fields")]
    pub config: Opaque,
    #[serde(alias = "mesh_gateway", deserialize_with = "nullable")]
    pub mesh_gateway: Opaque,
    #[serde(alias = "centrally_configured", deserialize_with = "nullable", skip_serializing)]
    pub centrally_configured: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Passing,
    Warning,
    Critical,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        [Self::Passing, Self::Warning, Self::Critical].into_iter().find(|s| s.as_str() == text)
    }
}

/// Where a check's status comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// Whoever registered it in the catalog.
    External,
    /// Somebody reports at least once in this time.
    Ttl { period_ms: u64 },
    /// This server dials it.
    Tcp { address: String, interval_ms: u64, timeout_ms: u64 },
    /// The worst status of another service's checks on the same node.
    Alias { service_id: String },
    /// An operator switched the service off.
    Maintenance,
}

impl Probe {
    /// Returns what Consul shows as the check's `Type`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::External => "",
            Self::Ttl { .. } => "ttl",
            Self::Tcp { .. } => "tcp",
            Self::Alias { .. } => "alias",
            Self::Maintenance => "maintenance",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    #[serde(skip)]
    pub node: Arc<str>,
    pub id: Arc<str>,
    pub name: String,
    pub status: Status,
    pub notes: String,
    pub output: String,
    /// Empty for a check of the node.
    pub service_id: Arc<str>,
    pub service_name: Arc<str>,
    pub service_tags: Vec<String>,
    pub probe: Probe,
    /// The service goes once the check was critical for so long.
    pub deregister_after_ms: Option<u64>,
    pub create_index: u64,
    pub modify_index: u64,
}

impl Check {
    pub fn key(&self) -> Key {
        Key { node: self.node.clone(), id: self.id.clone() }
    }
}

/// An intention with what the API shows of it beside the rule itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IntentionRow {
    pub id: Arc<str>,
    pub source: Pattern,
    pub destination: Pattern,
    pub action: Action,
    pub description: String,
    pub meta: Strings,
    /// RFC 3339.
    pub created_at: String,
    pub updated_at: String,
    pub create_index: u64,
    pub modify_index: u64,
}

impl IntentionRow {
    pub fn rule(&self) -> Intention {
        Intention {
            id: self.id.to_string(),
            source: self.source.clone(),
            destination: self.destination.clone(),
            action: self.action,
            http: false,
        }
    }

    /// See [`intention::precedence`].
    pub fn precedence(&self) -> u8 {
        intention::precedence(&self.source, &self.destination)
    }
}

/// A root certificate as the API lists it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Root {
    #[serde(rename = "ID")]
    pub id: String,
    pub name: String,
    pub serial_number: u64,
    #[serde(rename = "SigningKeyID")]
    pub signing_key_id: String,
    pub external_trust_domain: String,
    pub not_before: String,
    pub not_after: String,
    pub root_cert: String,
    pub intermediate_certs: Option<Vec<String>>,
    pub active: bool,
    pub private_key_type: String,
    pub private_key_bits: u32,
    /// Extension: when a root that signs no more leaves the list (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retires_at: Option<String>,
    pub create_index: u64,
    pub modify_index: u64,
}

/// The CA's configuration as the API shows it: durations as they were written, and numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CaConfig {
    pub config: Opaque,
    pub create_index: u64,
    pub modify_index: u64,
}

/// A leaf whose key this server made for a local caller. In memory only.
#[derive(Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentLeaf {
    pub serial_number: String,
    #[serde(rename = "CertPEM")]
    pub cert_pem: String,
    #[serde(rename = "PrivateKeyPEM", skip_serializing_if = "String::is_empty")]
    pub private_key_pem: String,
    pub service: String,
    #[serde(rename = "ServiceURI")]
    pub service_uri: String,
    pub valid_after: String,
    pub valid_before: String,
    pub create_index: u64,
    pub modify_index: u64,
}

impl std::fmt::Debug for AgentLeaf {
    /// Shows no key material.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentLeaf")
            .field("service_uri", &self.service_uri)
            .field("valid_before", &self.valid_before)
            .finish_non_exhaustive()
    }
}

/// Reads `null` as the type's default, as Go's clients mean it.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(input: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(input).map(Option::unwrap_or_default)
}

/// Writes an empty map as `null`, as Go does with one that was never made.
fn null_if_empty<S: Serializer>(map: &Strings, output: S) -> Result<S::Ok, S::Error> {
    if map.is_empty() { output.serialize_none() } else { map.serialize(output) }
}

fn null_if_no_fields<S: Serializer>(map: &Opaque, output: S) -> Result<S::Ok, S::Error> {
    if map.is_empty() { output.serialize_none() } else { map.serialize(output) }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if gives a reference")]
fn is_zero(number: &u16) -> bool {
    *number == 0
}
