//! Certificates: a service's leaf and the roots that peers are verified against.

use std::{sync::Arc, time::SystemTime};

use rustls::{pki_types::CertificateDer, sign::CertifiedKey};

use super::{SpiffeId, TrustDomain};

/// A service's certificate with its key, ready for handshakes.
pub struct Leaf {
    pub id: SpiffeId,
    /// Chain (leaf first, then cross-signed or other intermediates) and private key.
    pub key: Arc<CertifiedKey>,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    /// Serial number as colon-separated hex, as Consul shows it.
    pub serial: String,
}

impl std::fmt::Debug for Leaf {
    /// Shows no key material.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaf")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// The trust bundle: every root that a peer's chain may end in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    pub trust_domain: TrustDomain,
    pub certs: Vec<CertificateDer<'static>>,
}
