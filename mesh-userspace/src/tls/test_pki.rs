//! Certificates for tests: a CA like Consul's, leafs as it signs them, and each way in which one can be wrong.

use std::{sync::Arc, time::SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};
use time::{Duration, OffsetDateTime};

use super::provider;
use crate::identity::{Leaf, Roots};

pub(crate) struct Ca {
    trust_domain: String,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a leaf says; start from [`LeafSpec::service`] and spoil it.
#[derive(Clone)]
pub(crate) struct LeafSpec {
    pub(crate) id: String,
    pub(crate) uris: Vec<String>,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) valid_from: Duration,
    pub(crate) valid_until: Duration,
    pub(crate) self_signed: bool,
}

impl LeafSpec {
    pub(crate) fn service(name: &str, trust_domain: &str) -> Self {
        let id = format!("spiffe://{trust_domain}/ns/default/dc/dc1/svc/{name}");
        Self {
            uris: vec![id.clone()],
            id,
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            valid_from: Duration::hours(-1),
            valid_until: Duration::hours(72),
            self_signed: false,
        }
    }

    pub(crate) fn expired(mut self) -> Self {
        (self.valid_from, self.valid_until) = (Duration::hours(-2), Duration::hours(-1));
        self
    }

    pub(crate) fn not_yet_valid(mut self) -> Self {
        (self.valid_from, self.valid_until) = (Duration::hours(1), Duration::hours(2));
        self
    }

    pub(crate) fn self_signed(mut self) -> Self {
        self.self_signed = true;
        self
    }

    pub(crate) fn uris(mut self, uris: &[&str]) -> Self {
        self.uris = uris.iter().map(|uri| (*uri).to_owned()).collect();
        self
    }
}

impl Ca {
    pub(crate) fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, format!("CA of {trust_domain}"));
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { trust_domain: trust_domain.to_owned(), issuer }
    }

    /// A CA certificate for the key of `next`, signed by this one: the end of a path of `path` more at most.
    pub(crate) fn vouch_for(&self, next: &Ca, path: Option<u8>) -> CertificateDer<'static> {
        self.vouch(next, path.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained), None)
    }

    /// The same for any path, and only for so long.
    pub(crate) fn vouch_until(&self, next: &Ca, end: Duration) -> CertificateDer<'static> {
        self.vouch(next, BasicConstraints::Unconstrained, Some(end))
    }

    fn vouch(&self, next: &Ca, path: BasicConstraints, end: Option<Duration>) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(path);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, format!("CA of {}", next.trust_domain));
        if let Some(end) = end {
            params.not_after = OffsetDateTime::now_utc() + end;
        }
        params.signed_by(next.issuer.key(), &self.issuer).unwrap().der().clone()
    }

    pub(crate) fn roots(&self) -> Arc<Roots> {
        Arc::new(Roots {
            trust_domain: self.trust_domain.parse().unwrap(),
            certs: vec![self.issuer.der().clone()],
        })
    }

    pub(crate) fn leaf(&self, service: &str) -> Arc<Leaf> {
        self.issue(&LeafSpec::service(service, &self.trust_domain))
    }

    pub(crate) fn issue(&self, spec: &LeafSpec) -> Arc<Leaf> {
        let key = KeyPair::generate().unwrap();
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "leaf");
        params.subject_alt_names = spec.uris.iter().map(|text| uri(text)).collect();
        params.extended_key_usages = spec.usages.clone();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        (params.not_before, params.not_after) = (now + spec.valid_from, now + spec.valid_until);
        let cert = if spec.self_signed {
            params.self_signed(&key).unwrap()
        } else {
            params.signed_by(&key, &self.issuer).unwrap()
        };
        let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let signer = provider().key_provider.load_private_key(der).unwrap();
        Arc::new(Leaf {
            id: spec.id.parse().unwrap(),
            key: Arc::new(CertifiedKey::new(vec![cert.der().clone()], signer)),
            // The leaf's own record is kept good, so that it is the peer who has to find out.
            not_before: SystemTime::UNIX_EPOCH,
            not_after: SystemTime::now() + std::time::Duration::from_secs(3600),
            serial: "00".to_owned(),
        })
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}
