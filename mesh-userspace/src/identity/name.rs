//! Service names and trust domains.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// A service's name: what Consul accepts as one that also works in DNS and in a SPIFFE ID's path.
///
/// 1 to 63 of `a-z A-Z 0-9 - _ .`, beginning and ending with a letter or digit. Case matters, as in Consul.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(Arc<str>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    #[error("a service name is 1 to 63 characters long, this one has {0}")]
    Length(usize),
    #[error("`{name}` is no service name: letters, digits, `-`, `_` and `.` are accepted, not `{found}`")]
    Character { name: String, found: char },
    #[error("`{0}` is no service name: it must begin and end with a letter or a digit")]
    Edge(String),
    #[error("`{0}` is no trust domain: lower-case letters, digits, `-`, `_` and `.`, 1 to 255 characters")]
    TrustDomain(String),
}

impl ServiceName {
    pub const MAX_LEN: usize = 63;
    /// How Consul names a service's proxy.
    const SIDECAR: &str = "-sidecar-proxy";

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name that Consul gives this service's proxy; `None` where that is longer than a service's may be.
    pub fn sidecar(&self) -> Option<Self> {
        format!("{self}{}", Self::SIDECAR).parse().ok()
    }

    /// Returns the service that this is the proxy of, if it is named as one.
    pub fn sidecar_of(&self) -> Option<Self> {
        self.0.strip_suffix(Self::SIDECAR)?.parse().ok()
    }
}

impl FromStr for ServiceName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() || text.len() > Self::MAX_LEN {
            return Err(NameError::Length(text.chars().count()));
        }
        if let Some(found) =
            text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')))
        {
            return Err(NameError::Character { name: text.to_owned(), found });
        }
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
        if !edge(text.bytes().next()) || !edge(text.bytes().last()) {
            return Err(NameError::Edge(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

/// A SPIFFE trust domain, as in `spiffe://TRUST-DOMAIN/…`.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let fits = (1..=255).contains(&text.len())
            && text
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'));
        if fits { Ok(Self(text.into())) } else { Err(NameError::TrustDomain(text.to_owned())) }
    }
}

macro_rules! text_type {
    ($type:ty) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0.as_ref().to_owned()
            }
        }
    };
}
text_type!(ServiceName);
text_type!(TrustDomain);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_name_accepts_what_consul_uses() {
        for name in ["web", "db-1", "Billing_v2", "a", "x.y", "0"] {
            assert_eq!(name.parse::<ServiceName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn a_proxys_name_leads_back_to_its_service() {
        let db: ServiceName = "db".parse().unwrap();
        assert_eq!(db.sidecar().unwrap().as_str(), "db-sidecar-proxy");
        assert_eq!(db.sidecar().unwrap().sidecar_of(), Some(db.clone()));
        assert_eq!(db.sidecar_of(), None);
        assert_eq!("x".repeat(60).parse::<ServiceName>().unwrap().sidecar(), None);
    }

    #[test]
    fn service_name_refuses_what_breaks_dns_paths_or_wildcards() {
        for name in ["", "*", "-a", "a-", "a/b", "a b", "ü", "a\n", "..", &"x".repeat(64)] {
            assert!(name.parse::<ServiceName>().is_err(), "{name:?}");
        }
    }
}
