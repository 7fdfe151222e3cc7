//! The bodies of Consul's HTTP API, with Consul's field names, as far as meshnode reads or writes them.
//!
//! Reading is lenient as Consul's own clients are: unknown fields are skipped, absent and `null` ones are empty.
//! What a body *means* is decided where it is used: `discovery`, `policy`, `trust`, `leaf`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

/// Takes `null`, which Go writes for an empty list or map, as the empty value.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Option::deserialize(d).map(Option::unwrap_or_default)
}

/// Takes what cannot be a port as 0, "none": Consul stores any number, and one bad registration must not make the
/// whole answer unreadable.
fn port<'de, D: Deserializer<'de>>(d: D) -> Result<u16, D::Error> {
    let number: Option<i64> = Option::deserialize(d)?;
    Ok(number.and_then(|n| u16::try_from(n).ok()).unwrap_or(0))
}

/// `/v1/agent/connect/ca/roots`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RootsAnswer {
    #[serde(rename = "ActiveRootID", deserialize_with = "nullable")]
    pub active_root_id: String,
    #[serde(deserialize_with = "nullable")]
    pub trust_domain: String,
    #[serde(deserialize_with = "nullable")]
    pub roots: Vec<RootEntry>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RootEntry {
    #[serde(rename = "ID", deserialize_with = "nullable")]
    pub id: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    /// PEM.
    #[serde(deserialize_with = "nullable")]
    pub root_cert: String,
    #[serde(deserialize_with = "nullable")]
    pub active: bool,
}

/// An intention as `/v1/connect/intentions` lists and takes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct IntentionEntry {
    #[serde(rename = "ID", deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(rename = "SourceNS", deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub source_ns: String,
    #[serde(deserialize_with = "nullable")]
    pub source_name: String,
    #[serde(
        rename = "DestinationNS",
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub destination_ns: String,
    #[serde(deserialize_with = "nullable")]
    pub destination_name: String,
    /// Consul Enterprise 1.11 and later: the admin partitions of both sides.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub source_partition: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub destination_partition: String,
    /// Consul 1.13 and later: the cluster peer whose service the source is.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub source_peer: String,
    /// Consul Enterprise 1.16 and later: the group of partitions and peers whose service the source is.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub source_sameness_group: String,
    /// Always `consul`.
    #[serde(deserialize_with = "nullable")]
    pub source_type: String,
    /// `allow` or `deny`; empty when `permissions` decide (Consul 1.9 and later).
    #[serde(deserialize_with = "nullable")]
    pub action: String,
    /// Rules about HTTP requests, which meshnode cannot judge.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub permissions: Vec<serde_json::Value>,
    #[serde(deserialize_with = "nullable", skip_serializing)]
    pub precedence: i64,
}

/// The answer to creating an intention.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Created {
    #[serde(rename = "ID", deserialize_with = "nullable")]
    pub id: String,
}

/// `/v1/connect/intentions/check`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct CheckAnswer {
    pub allowed: bool,
}

/// `/v1/connect/intentions/match`: for each name that was asked for, what may decide for it.
pub type MatchAnswer = BTreeMap<String, Option<Vec<IntentionEntry>>>;

/// `/v1/catalog/services`: names with their tags.
pub type ServicesAnswer = BTreeMap<String, Option<Vec<String>>>;

/// One element of `/v1/health/service/:name` and `/v1/health/connect/:name`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthEntry {
    #[serde(deserialize_with = "nullable")]
    pub node: Node,
    #[serde(deserialize_with = "nullable")]
    pub service: Service,
    #[serde(deserialize_with = "nullable")]
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    #[serde(deserialize_with = "nullable")]
    pub node: String,
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    #[serde(deserialize_with = "nullable")]
    pub datacenter: String,
    /// Consul Enterprise 1.11 and later.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub partition: String,
    /// Consul 1.13 and later: the cluster peer that the node was imported from.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub peer_name: String,
}

/// A service instance, as health answers and `/v1/agent/services` show it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Service {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(rename = "ID", deserialize_with = "nullable")]
    pub id: String,
    /// The service's name.
    #[serde(deserialize_with = "nullable")]
    pub service: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
    /// Empty: the node's address.
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    #[serde(deserialize_with = "port")]
    pub port: u16,
    /// Other addresses of the same instance: `lan_ipv4`, `lan_ipv6`, `wan…`; and, of Consul 1.10 and later, the service's
    /// `virtual` and `consul-virtual`, which are no instance's.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<String, TaggedAddress>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Consul Enterprise 1.11 and later.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub partition: String,
    /// Consul 1.13 and later: the cluster peer that the instance was imported from.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub peer_name: String,
    #[serde(deserialize_with = "nullable")]
    pub proxy: Proxy,
    #[serde(deserialize_with = "nullable")]
    pub connect: Connect,
    /// Consul's own where a registration says nothing.
    #[serde(deserialize_with = "nullable", skip_serializing)]
    pub weights: Weights,
}

/// How much of a service's traffic an instance takes, by its health; 0 where nobody said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Weights {
    pub passing: i64,
    pub warning: i64,
}

impl Service {
    /// Returns the instance's address as announced: its own, else its node's.
    pub fn address_on<'a>(&'a self, node: &'a Node) -> &'a str {
        if self.address.is_empty() { &node.address } else { &self.address }
    }
}

/// A value of `TaggedAddresses`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct TaggedAddress {
    #[serde(deserialize_with = "nullable")]
    pub address: String,
    #[serde(deserialize_with = "port")]
    pub port: u16,
}

/// The value of `Kind` of a service's mTLS end.
pub const CONNECT_PROXY: &str = "connect-proxy";

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Proxy {
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub destination_service_name: String,
    #[serde(
        rename = "DestinationServiceID",
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub destination_service_id: String,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub local_service_address: String,
    #[serde(deserialize_with = "port", skip_serializing_if = "is_zero")]
    pub local_service_port: u16,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
fn is_zero(port: &u16) -> bool {
    *port == 0
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Connect {
    /// The service takes mTLS itself.
    #[serde(deserialize_with = "nullable")]
    pub native: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Check {
    #[serde(rename = "CheckID", deserialize_with = "nullable")]
    pub check_id: String,
    /// `passing`, `warning` or `critical`.
    #[serde(deserialize_with = "nullable")]
    pub status: String,
    #[serde(deserialize_with = "nullable")]
    pub output: String,
}

/// The body of `PUT /v1/agent/service/register`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Registration {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    #[serde(rename = "ID")]
    pub id: String,
    pub name: String,
    pub address: String,
    pub port: u16,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tagged_addresses: BTreeMap<&'static str, TaggedAddress>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub meta: BTreeMap<&'static str, &'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<TtlCheck>,
}

/// The key in an mTLS end's metadata that says that it is a meshnode's, and its value: the version of what two of them
/// speak (see [`MESHNODE`](crate::tls::MESHNODE)).
pub const SPEAKS: (&str, &str) = ("meshnode", "1");

/// A check that its owner reports; it is critical when no report came for the time to live.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct TtlCheck {
    #[serde(rename = "CheckID")]
    pub check_id: String,
    pub name: String,
    /// As Go writes durations: `30s`.
    #[serde(rename = "TTL")]
    pub ttl: String,
    pub status: &'static str,
    pub deregister_critical_service_after: String,
}

/// The body of `PUT /v1/agent/check/update/:id`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CheckUpdate {
    pub status: &'static str,
    pub output: String,
}

/// `/v1/agent/connect/ca/leaf/:service`, and, without the key, `/v1/connect/ca/sign/:service`.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LeafAnswer {
    #[serde(deserialize_with = "nullable")]
    pub serial_number: String,
    /// The chain, leaf first.
    #[serde(rename = "CertPEM", deserialize_with = "nullable")]
    pub cert_pem: String,
    #[serde(
        rename = "PrivateKeyPEM",
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub private_key_pem: String,
    #[serde(deserialize_with = "nullable")]
    pub service: String,
    #[serde(rename = "ServiceURI", deserialize_with = "nullable")]
    pub service_uri: String,
}

impl std::fmt::Debug for LeafAnswer {
    /// Shows no key material.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeafAnswer").field("service_uri", &self.service_uri).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn null_and_absent_fields_are_empty() {
        let entry: HealthEntry = serde_json::from_str(
            r#"{"Node":null,"Service":{"ID":"a","Proxy":null,"Tags":null},"Checks":null}"#,
        )
        .unwrap();
        assert_eq!(entry.service.id, "a");
        assert!(entry.checks.is_empty());
    }

    #[test]
    fn check_answer_without_the_decision_is_an_error() {
        assert!(serde_json::from_str::<CheckAnswer>("{}").is_err());
        assert!(serde_json::from_str::<CheckAnswer>(r#"{"Allowed":null}"#).is_err());
        assert!(serde_json::from_str::<CheckAnswer>(r#"{"Allowed":true}"#).unwrap().allowed);
    }

    /// Objects whose keys are those of the API, with values of any type.
    fn body() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "[a-z0-9.:*]{0,12}|db|connect-proxy|127.0.0.1|-----BEGIN CERTIFICATE-----".prop_map(Into::into),
        ];
        let key = prop::sample::select(vec![
            "Node",
            "Service",
            "Checks",
            "Proxy",
            "Address",
            "Port",
            "ID",
            "Kind",
            "Connect",
            "Native",
            "Roots",
            "RootCert",
            "TrustDomain",
            "SourceName",
            "DestinationName",
            "Action",
            "Permissions",
            "Status",
            "SourceNS",
            "SourcePeer",
            "PeerName",
            "Partition",
            "TaggedAddresses",
            "DestinationServiceName",
            "DestinationServiceID",
        ]);
        leaf.prop_recursive(4, 64, 8, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
                prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..8)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn no_body_makes_the_parsers_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = serde_json::from_slice::<RootsAnswer>(&body);
            let _ = serde_json::from_slice::<Vec<HealthEntry>>(&body);
            let _ = serde_json::from_slice::<Vec<IntentionEntry>>(&body);
            let _ = serde_json::from_slice::<ServicesAnswer>(&body);
            let _ = serde_json::from_slice::<LeafAnswer>(&body);
        }

        #[test]
        fn no_value_of_a_known_field_makes_the_readers_panic(body in body()) {
            use crate::control_plane::{intention, join::{Place, join, preferred}, trust::roots};
            if let Ok(answer) = serde_json::from_value::<RootsAnswer>(body.clone()) {
                let _ = roots(&answer);
            }
            if let Ok(entry) = serde_json::from_value::<IntentionEntry>(body.clone()) {
                let _ = intention(&entry, &Default::default());
            }
            if let Ok(entry) = serde_json::from_value::<HealthEntry>(body) {
                let entries = [entry];
                let joined = join(&"db".parse().unwrap(), &entries, &entries, &Place { node: "a", tenancy: &Default::default() });
                let _ = preferred(joined.found.iter());
            }
        }
    }
}
