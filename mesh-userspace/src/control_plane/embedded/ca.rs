//! The certificate authority: makes the root, and signs leafs. Pure but for randomness: time comes in, certificates
//! go out; files and the store are the caller's.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use super::model::{AgentLeaf, Root};
use crate::identity::{SpiffeId, TrustDomain};

/// How long a root lasts.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A certificate is valid from so long before it was made, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    #[error("no certificate could be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the root certificate cannot be read: {0}")]
    Root(String),
    #[error("the root's key does not belong to the root certificate")]
    Mismatch,
    #[error("the root certificate has expired at {0}")]
    Expired(String),
    #[error("the body is no certificate signing request in PEM: {0}")]
    Csr(String),
    #[error("the request's signature does not verify: whoever sent it has not shown that it has the key")]
    Signature,
    #[error("the request's key is no ECDSA P-256 key, which is the only kind that is signed here")]
    KeyType,
}

/// A root with its key, able to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    not_after: OffsetDateTime,
}

impl Authority {
    /// Makes a root for `trust_domain`. Returns its row, and its key in PEM.
    pub fn generate(trust_domain: &TrustDomain, now: OffsetDateTime) -> Result<(Root, String), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let key_id = key_id(&key);
        // Go reads the serial of a root as a 64-bit number.
        let serial = rand::random::<u64>() >> 1 | 1;
        let mut params = CertificateParams::default();
        let id = trust_domain.as_str().split('.').next().unwrap_or_default();
        let short: String = id.chars().take(8).collect();
        params.distinguished_name = common_name(&format!("meshnode CA {short}"));
        params.serial_number = Some(SerialNumber::from(serial.to_be_bytes().to_vec()));
        params.not_before = whole_second(now - BACKDATE);
        params.not_after = whole_second(now + ROOT_LIFETIME);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.to_vec());
        let cert = params.self_signed(&key)?;
        let root = Root {
            id: colon_hex(&Sha256::digest(cert.der())[..20]),
            name: "meshnode CA Root Cert".to_owned(),
            serial_number: serial,
            signing_key_id: colon_hex(&key_id),
            external_trust_domain: id.to_owned(),
            not_before: rfc3339(params.not_before),
            not_after: rfc3339(params.not_after),
            root_cert: cert.pem(),
            intermediate_certs: None,
            active: true,
            private_key_type: "ec".to_owned(),
            private_key_bits: 256,
            create_index: 0,
            modify_index: 0,
        };
        Ok((root, key.serialize_pem()))
    }

    /// Takes a root and its key in PEM.
    pub fn load(root: &Root, key_pem: &str) -> Result<Self, CaError> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| CaError::Root(format!("its key: {error}")))?;
        let der = CertificateDer::from_pem_slice(root.root_cert.as_bytes())
            .map_err(|error| CaError::Root(error.to_string()))?;
        let (_, cert) =
            x509_parser::parse_x509_certificate(&der).map_err(|error| CaError::Root(error.to_string()))?;
        if cert.public_key().raw != key.subject_public_key_info() {
            return Err(CaError::Mismatch);
        }
        let not_after = cert.validity().not_after.to_datetime();
        Ok(Self { issuer: Issuer::from_ca_cert_der(&der, key)?, not_after })
    }

    /// Returns how long a leaf made at `now` lasts: `ttl`, or what is left of the root.
    pub fn lifetime(&self, ttl: Duration, now: OffsetDateTime) -> Duration {
        ttl.min((self.not_after - now).try_into().unwrap_or_default())
    }

    /// Makes a key and signs a leaf for it.
    pub fn issue(&self, id: &SpiffeId, ttl: Duration, now: OffsetDateTime) -> Result<AgentLeaf, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = self.sign(id, &key, ttl, now)?;
        Ok(AgentLeaf { private_key_pem: key.serialize_pem(), ..leaf })
    }

    /// Signs the key of a request. What the request asks for beside that is not looked at.
    pub fn sign_csr(
        &self,
        id: &SpiffeId,
        csr_pem: &[u8],
        ttl: Duration,
        now: OffsetDateTime,
    ) -> Result<AgentLeaf, CaError> {
        self.sign(id, &proven_key(csr_pem)?, ttl, now)
    }

    fn sign(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        ttl: Duration,
        now: OffsetDateTime,
    ) -> Result<AgentLeaf, CaError> {
        if now >= self.not_after {
            return Err(CaError::Expired(rfc3339(self.not_after)));
        }
        let mut serial: [u8; 16] = rand::random();
        // Positive and of full length, whatever was drawn.
        serial[0] = serial[0] & 0x7f | 0x40;
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&leaf_name(id));
        params.serial_number = Some(SerialNumber::from(serial.to_vec()));
        params.not_before = whole_second(now - BACKDATE);
        params.not_after = whole_second(now + self.lifetime(ttl, now));
        params.is_ca = IsCa::ExplicitNoCa;
        // Consul's own set.
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::DataEncipherment,
            KeyUsagePurpose::KeyAgreement,
        ];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(key).to_vec());
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(key, &self.issuer)?;
        Ok(AgentLeaf {
            serial_number: colon_hex(&serial),
            cert_pem: cert.pem(),
            private_key_pem: String::new(),
            service: id.service.to_string(),
            service_uri: id.to_string(),
            valid_after: rfc3339(params.not_before),
            valid_before: rfc3339(params.not_after),
            create_index: 0,
            modify_index: 0,
        })
    }
}

/// Returns the request's key, once its signature has shown that the sender has the private half.
fn proven_key(csr_pem: &[u8]) -> Result<SubjectPublicKeyInfo, CaError> {
    let der = rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(csr_pem)
        .map_err(|error| CaError::Csr(error.to_string()))?;
    let (rest, csr) =
        X509CertificationRequest::from_der(&der).map_err(|error| CaError::Csr(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CaError::Csr("it has bytes behind its end".to_owned()));
    }
    let spki = csr.certification_request_info.subject_pki.raw;
    let key = SubjectPublicKeyInfo::from_der(spki).map_err(|_| CaError::KeyType)?;
    if *key.algorithm() != PKCS_ECDSA_P256_SHA256 {
        return Err(CaError::KeyType);
    }
    csr.verify_signature().map_err(|_| CaError::Signature)?;
    Ok(key)
}

/// The name for people; nobody verifies it. X.509 allows 64 characters.
fn leaf_name(id: &SpiffeId) -> String {
    let domain: String = id.trust_domain.as_str().chars().take(8).collect();
    let full = format!("{}.svc.default.{domain}", id.service);
    if full.len() <= 64 { full } else { id.service.to_string() }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    full
}

/// The whole SHA-256 of the key, as Consul identifies keys.
fn key_id(key: &impl PublicKeyData) -> [u8; 32] {
    Sha256::digest(key.subject_public_key_info()).into()
}

fn colon_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// X.509 has no fractions of a second.
fn whole_second(time: OffsetDateTime) -> OffsetDateTime {
    time.replace_nanosecond(0).expect("invariant: 0 is a nanosecond")
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).expect("invariant: a certificate's time has an RFC 3339 form")
}
