//! The bodies that the API takes: every field that Consul's clients of 1.8 and later send, and no other. What makes a
//! registration of them is in `definition`.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{
    Deserialize, Deserializer,
    de::{self, Visitor},
};
use serde_json::Value;

use crate::control_plane::embedded::{
    duration,
    model::{Kind, Opaque, Proxy, Strings, TaggedAddress, Weights, nullable},
};

/// A duration as Go's clients send it: text (`10s`), or a number of nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoDuration(pub Duration);

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        input.deserialize_any(GoDurationVisitor)
    }
}

struct GoDurationVisitor;

impl Visitor<'_> for GoDurationVisitor {
    type Value = GoDuration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration like \"10s\", \"5m\" or \"72h\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<GoDuration, E> {
        if text.is_empty() {
            return Ok(GoDuration::default());
        }
        duration::parse(text)
            .map(GoDuration)
            .ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }

    fn visit_u64<E: de::Error>(self, nanos: u64) -> Result<GoDuration, E> {
        Ok(GoDuration(Duration::from_nanos(nanos)))
    }

    fn visit_unit<E: de::Error>(self) -> Result<GoDuration, E> {
        Ok(GoDuration::default())
    }
}

/// `PUT /v1/agent/service/register`, and a sidecar in it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct ServiceBody {
    #[serde(alias = "kind", deserialize_with = "nullable")]
    pub kind: Kind,
    #[serde(rename = "ID", alias = "id", deserialize_with = "nullable")]
    pub id: String,
    #[serde(alias = "name", deserialize_with = "nullable")]
    pub name: String,
    #[serde(alias = "tags", deserialize_with = "nullable")]
    pub tags: Vec<String>,
    #[serde(alias = "port", deserialize_with = "nullable")]
    pub port: u16,
    #[serde(alias = "address", deserialize_with = "nullable")]
    pub address: String,
    #[serde(alias = "socket_path", deserialize_with = "nullable")]
    pub socket_path: String,
    #[serde(alias = "tagged_addresses", deserialize_with = "nullable")]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    #[serde(alias = "enable_tag_override", deserialize_with = "nullable")]
    pub enable_tag_override: bool,
    #[serde(alias = "meta", deserialize_with = "nullable")]
    pub meta: Strings,
    #[serde(alias = "weights")]
    pub weights: Option<Weights>,
    #[serde(alias = "check")]
    pub check: Option<CheckBody>,
    #[serde(alias = "checks", deserialize_with = "nullable")]
    pub checks: Vec<CheckBody>,
    #[serde(alias = "proxy")]
    pub proxy: Option<Proxy>,
    #[serde(alias = "connect")]
    pub connect: Option<ConnectBody>,
    #[serde(alias = "namespace", deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(alias = "partition", deserialize_with = "nullable")]
    pub partition: String,
    /// The clients' own token of the registration; this server has no per-service tokens.
    #[serde(alias = "token", deserialize_with = "nullable")]
    pub token: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct ConnectBody {
    #[serde(alias = "native", deserialize_with = "nullable")]
    pub native: bool,
    #[serde(alias = "sidecar_service")]
    pub sidecar_service: Option<Box<ServiceBody>>,
}

/// A check of a registration, or `PUT /v1/agent/check/register`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct CheckBody {
    #[serde(rename = "ID", alias = "id", deserialize_with = "nullable")]
    pub id: String,
    #[serde(rename = "CheckID", alias = "check_id", deserialize_with = "nullable")]
    pub check_id: String,
    #[serde(alias = "name", deserialize_with = "nullable")]
    pub name: String,
    #[serde(alias = "notes", deserialize_with = "nullable")]
    pub notes: String,
    #[serde(alias = "status", deserialize_with = "nullable")]
    pub status: String,
    #[serde(rename = "ServiceID", alias = "service_id", deserialize_with = "nullable")]
    pub service_id: String,
    #[serde(rename = "TTL", alias = "ttl")]
    pub ttl: GoDuration,
    #[serde(rename = "TCP", alias = "tcp", deserialize_with = "nullable")]
    pub tcp: String,
    #[serde(alias = "interval")]
    pub interval: GoDuration,
    #[serde(alias = "timeout")]
    pub timeout: GoDuration,
    #[serde(alias = "alias_node", deserialize_with = "nullable")]
    pub alias_node: String,
    #[serde(alias = "alias_service", deserialize_with = "nullable")]
    pub alias_service: String,
    #[serde(alias = "deregister_critical_service_after")]
    pub deregister_critical_service_after: GoDuration,
    #[serde(alias = "success_before_passing", deserialize_with = "nullable")]
    pub success_before_passing: u32,
    #[serde(alias = "failures_before_critical", deserialize_with = "nullable")]
    pub failures_before_critical: u32,
    #[serde(alias = "failures_before_warning", deserialize_with = "nullable")]
    pub failures_before_warning: u32,
    #[serde(alias = "namespace", deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(alias = "partition", deserialize_with = "nullable")]
    pub partition: String,
    #[serde(alias = "token", deserialize_with = "nullable")]
    pub token: String,
    // Kinds of checks that this server does not run: known, so that the answer can say so.
    #[serde(alias = "args", alias = "ScriptArgs", alias = "script_args", deserialize_with = "nullable")]
    pub args: Vec<String>,
    #[serde(rename = "HTTP", alias = "http", deserialize_with = "nullable")]
    pub http: String,
    #[serde(rename = "GRPC", alias = "grpc", deserialize_with = "nullable")]
    pub grpc: String,
    #[serde(rename = "H2PING", alias = "h2ping", deserialize_with = "nullable")]
    pub h2ping: String,
    #[serde(rename = "UDP", alias = "udp", deserialize_with = "nullable")]
    pub udp: String,
    #[serde(rename = "DockerContainerID", alias = "docker_container_id", deserialize_with = "nullable")]
    pub docker_container_id: String,
    #[serde(alias = "os_service", deserialize_with = "nullable")]
    pub os_service: String,
    // What only they look at.
    #[serde(alias = "shell")]
    pub shell: de::IgnoredAny,
    #[serde(alias = "header")]
    pub header: de::IgnoredAny,
    #[serde(alias = "method")]
    pub method: de::IgnoredAny,
    #[serde(alias = "body")]
    pub body: de::IgnoredAny,
    #[serde(alias = "disable_redirects")]
    pub disable_redirects: de::IgnoredAny,
    #[serde(rename = "TLSServerName", alias = "tls_server_name")]
    pub tls_server_name: de::IgnoredAny,
    #[serde(rename = "TLSSkipVerify", alias = "tls_skip_verify")]
    pub tls_skip_verify: de::IgnoredAny,
    #[serde(rename = "GRPCUseTLS", alias = "grpc_use_tls")]
    pub grpc_use_tls: de::IgnoredAny,
    #[serde(rename = "H2PingUseTLS", alias = "h2ping_use_tls")]
    pub h2ping_use_tls: de::IgnoredAny,
    #[serde(alias = "output_max_size")]
    pub output_max_size: de::IgnoredAny,
}

/// `PUT /v1/agent/check/update/:id`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct ReportBody {
    #[serde(deserialize_with = "nullable")]
    pub status: String,
    #[serde(deserialize_with = "nullable")]
    pub output: String,
}

/// `POST /v1/agent/connect/authorize`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct AuthorizeBody {
    #[serde(deserialize_with = "nullable")]
    pub target: String,
    #[serde(rename = "ClientCertURI", deserialize_with = "nullable")]
    pub client_cert_uri: String,
    #[serde(deserialize_with = "nullable")]
    pub client_cert_serial: String,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
}

/// `POST /v1/connect/intentions`, `PUT /v1/connect/intentions/:id` and `…/exact`. What the server decides (indexes,
/// times, precedence) is taken and not looked at, since Go's clients send it back.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct IntentionBody {
    #[serde(rename = "ID", deserialize_with = "nullable")]
    pub id: String,
    #[serde(deserialize_with = "nullable")]
    pub description: String,
    #[serde(rename = "SourceNS", deserialize_with = "nullable")]
    pub source_ns: String,
    #[serde(deserialize_with = "nullable")]
    pub source_name: String,
    #[serde(rename = "DestinationNS", deserialize_with = "nullable")]
    pub destination_ns: String,
    #[serde(deserialize_with = "nullable")]
    pub destination_name: String,
    #[serde(deserialize_with = "nullable")]
    pub source_type: String,
    #[serde(deserialize_with = "nullable")]
    pub action: String,
    #[serde(deserialize_with = "nullable")]
    pub meta: Strings,
    #[serde(deserialize_with = "nullable")]
    pub permissions: Vec<Value>,
    #[serde(deserialize_with = "nullable")]
    pub default_addr: String,
    #[serde(deserialize_with = "nullable")]
    pub default_port: i64,
    pub precedence: de::IgnoredAny,
    pub created_at: de::IgnoredAny,
    pub updated_at: de::IgnoredAny,
    pub hash: de::IgnoredAny,
    pub create_index: de::IgnoredAny,
    pub modify_index: de::IgnoredAny,
}

/// `PUT /v1/connect/ca/configuration`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct CaBody {
    #[serde(deserialize_with = "nullable")]
    pub provider: String,
    #[serde(deserialize_with = "nullable")]
    pub config: Opaque,
    pub state: de::IgnoredAny,
    #[serde(deserialize_with = "nullable")]
    pub force_without_cross_signing: bool,
    pub create_index: de::IgnoredAny,
    pub modify_index: de::IgnoredAny,
}

/// `PUT /v1/catalog/register`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct CatalogBody {
    #[serde(rename = "ID", deserialize_with = "nullable")]
    pub id: String,
    #[serde(deserialize_with = "nullable")]
    pub node: String,
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    #[serde(deserialize_with = "nullable")]
    pub datacenter: String,
    pub tagged_addresses: Option<Strings>,
    pub node_meta: Option<Strings>,
    pub service: Option<CatalogService>,
    pub check: Option<CatalogCheck>,
    #[serde(deserialize_with = "nullable")]
    pub checks: Vec<CatalogCheck>,
    #[serde(deserialize_with = "nullable")]
    pub skip_node_update: bool,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub partition: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct CatalogService {
    #[serde(deserialize_with = "nullable")]
    pub kind: Kind,
    #[serde(rename = "ID", deserialize_with = "nullable")]
    pub id: String,
    #[serde(deserialize_with = "nullable")]
    pub service: String,
    #[serde(deserialize_with = "nullable")]
    pub tags: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub meta: Strings,
    #[serde(deserialize_with = "nullable")]
    pub port: u16,
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    #[serde(deserialize_with = "nullable")]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    pub weights: Option<Weights>,
    #[serde(deserialize_with = "nullable")]
    pub enable_tag_override: bool,
    pub proxy: Option<Proxy>,
    pub connect: Option<ConnectBody>,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub partition: String,
    #[serde(deserialize_with = "nullable")]
    pub datacenter: String,
    pub content_hash: de::IgnoredAny,
    pub create_index: de::IgnoredAny,
    pub modify_index: de::IgnoredAny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct CatalogCheck {
    #[serde(deserialize_with = "nullable")]
    pub node: String,
    #[serde(rename = "CheckID", deserialize_with = "nullable")]
    pub check_id: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub status: String,
    #[serde(deserialize_with = "nullable")]
    pub notes: String,
    #[serde(deserialize_with = "nullable")]
    pub output: String,
    #[serde(rename = "ServiceID", deserialize_with = "nullable")]
    pub service_id: String,
    pub service_name: de::IgnoredAny,
    pub service_tags: de::IgnoredAny,
    pub r#type: de::IgnoredAny,
    /// How an external monitor checks; nothing here does.
    pub definition: de::IgnoredAny,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub partition: String,
    pub exposed_port: de::IgnoredAny,
    pub interval: de::IgnoredAny,
    pub timeout: de::IgnoredAny,
    pub create_index: de::IgnoredAny,
    pub modify_index: de::IgnoredAny,
}

/// `PUT /v1/catalog/deregister`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
pub struct CatalogRemoval {
    #[serde(deserialize_with = "nullable")]
    pub node: String,
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    #[serde(deserialize_with = "nullable")]
    pub datacenter: String,
    #[serde(rename = "ServiceID", deserialize_with = "nullable")]
    pub service_id: String,
    #[serde(rename = "CheckID", deserialize_with = "nullable")]
    pub check_id: String,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub partition: String,
}
