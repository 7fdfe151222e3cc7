//! SPIFFE IDs in the form that Consul Connect gives them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{NameError, ServiceName, TrustDomain};

/// `spiffe://TRUST-DOMAIN/ns/NAMESPACE/dc/DATACENTER/svc/SERVICE`.
///
/// Compared exactly. Percent-encoding, user info, ports, queries and fragments are refused, as the SPIFFE
/// specification demands, so that one identity has one spelling.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    pub trust_domain: TrustDomain,
    pub namespace: String,
    pub datacenter: String,
    pub service: ServiceName,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpiffeError {
    #[error("`{0}` is no SPIFFE ID: it must begin with spiffe://")]
    Scheme(String),
    #[error("`{0}` is no service's SPIFFE ID: the path must be /ns/NAMESPACE/dc/DATACENTER/svc/SERVICE")]
    Path(String),
    #[error(transparent)]
    Name(#[from] NameError),
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        let rest = text.strip_prefix("spiffe://").ok_or_else(|| SpiffeError::Scheme(text.to_owned()))?;
        let mut parts = rest.split('/');
        let (trust_domain, ns, namespace, dc, datacenter, svc, service) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        );
        let (
            Some(trust_domain),
            Some("ns"),
            Some(namespace),
            Some("dc"),
            Some(datacenter),
            Some("svc"),
            Some(service),
            None,
        ) = (trust_domain, ns, namespace, dc, datacenter, svc, service, parts.next())
        else {
            return Err(SpiffeError::Path(text.to_owned()));
        };
        // Namespace and datacenter names obey the same rules as a service's.
        for segment in [namespace, datacenter] {
            segment.parse::<ServiceName>()?;
        }
        Ok(Self {
            trust_domain: trust_domain.parse()?,
            namespace: namespace.to_owned(),
            datacenter: datacenter.to_owned(),
            service: service.parse()?,
        })
    }
}

impl SpiffeId {
    /// Returns the name that Consul's gateways route connections to this service by, and that its Envoy sidecars send
    /// as SNI: `SERVICE.NAMESPACE.DATACENTER.internal.TRUST-DOMAIN` (Consul's `agent/connect/sni.go`).
    pub fn sni(&self) -> String {
        let Self { trust_domain, namespace, datacenter, service } = self;
        format!("{service}.{namespace}.{datacenter}.internal.{trust_domain}")
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, namespace, datacenter, service } = self;
        write!(f, "spiffe://{trust_domain}/ns/{namespace}/dc/{datacenter}/svc/{service}")
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = SpiffeError;
    fn try_from(text: String) -> Result<Self, SpiffeError> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spiffe_id_round_trips() {
        let text = "spiffe://11111111-2222-3333-4444-555555555555.consul/ns/default/dc/dc1/svc/web";
        assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
    }

    #[test]
    fn spiffe_id_refuses_other_spellings() {
        for text in [
            "http://a/ns/default/dc/dc1/svc/web",
            "spiffe://a/ns/default/dc/dc1/svc/web/",
            "spiffe://a/ns/default/dc/dc1/svc/web/x",
            "spiffe://a/ns/default/dc/dc1/svc",
            "spiffe://a:1/ns/default/dc/dc1/svc/web",
            "spiffe://u@a/ns/default/dc/dc1/svc/web",
            "spiffe://A/ns/default/dc/dc1/svc/web",
            "spiffe://a/ns/default/dc/dc1/svc/w%65b",
            "spiffe://a/ns/default/dc/dc1/svc/web?x",
            "spiffe://a/ns//dc/dc1/svc/web",
            "SPIFFE://a/ns/default/dc/dc1/svc/web",
            "",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }

    #[test]
    fn sni_is_spelled_as_consuls() {
        let id: SpiffeId = "spiffe://td.consul/ns/default/dc/dc1/svc/db".parse().unwrap();
        assert_eq!(id.sni(), "db.default.dc1.internal.td.consul");
    }

    proptest! {
        #[test]
        fn spiffe_id_never_panics_and_what_parses_has_one_spelling(text in "\\PC{0,80}|spiffe://[a-z/.]{0,60}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
