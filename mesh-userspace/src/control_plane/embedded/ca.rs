//! The certificate authority: what signs leafs, and the certificates that go out behind them. Pure but for randomness:
//! time comes in, certificates go out; files and the store are the caller's.

mod cross;
mod given;
mod root;

use std::{sync::Arc, time::Duration};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::{
    certification_request::X509CertificationRequest,
    prelude::{FromDer, X509Certificate},
};

use super::model::{AgentLeaf, Root};
use crate::identity::SpiffeId;

/// A certificate is valid from so long before it was made, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    #[error("no certificate could be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("the CA's certificate cannot be read: {0}")]
    Root(String),
    #[error(
        "the CA's private key cannot be used: {0}; accepted: PEM, ECDSA P-256, P-384 or RSA of 2048 bits and more"
    )]
    Key(String),
    #[error("the private key belongs neither to the root nor to the certificate that should sign")]
    Mismatch,
    #[error("the CA's certificate has expired at {0}")]
    Expired(String),
    #[error(
        "the certificate `{0}` is no CA: it needs the basic constraint CA:TRUE and the key usage keyCertSign"
    )]
    NoCa(String),
    #[error("the certificate `{subject}` is valid from {from} to {until}, which is not now")]
    Validity { subject: String, from: String, until: String },
    #[error("the certificate `{subject}` is for {found}; this mesh is {expected}")]
    TrustDomain { subject: String, found: String, expected: String },
    #[error(
        "the chain is incomplete: `{subject}` was issued by `{issuer}`, which is not in it; put the root last"
    )]
    Incomplete { subject: String, issuer: String },
    #[error("the chain has certificates that are of no use: after the root `{0}` comes another")]
    Surplus(String),
    #[error("a leaf that it signs does not verify against its root: {0}")]
    Unusable(String),
    #[error(
        "the new CA cannot be cross-signed by the present one ({0}): hosts that have not seen the new root would refuse \
         the others for a moment. To rotate all the same, force it without cross-signing"
    )]
    CrossSign(String),
    #[error("the body is no certificate signing request in PEM: {0}")]
    Csr(String),
    #[error("the request's signature does not verify: whoever sent it has not shown that it has the key")]
    Signature,
    #[error("the request's key is no ECDSA P-256 key, which is the only kind that is signed here")]
    KeyType,
}

/// A CA certificate with its key, able to sign.
pub struct Authority {
    issuer: Arc<Issuer<'static, KeyPair>>,
    /// The certificate that signs: the root, or an intermediate.
    cert: CertificateDer<'static>,
    not_after: OffsetDateTime,
    root_id: String,
    root: CertificateDer<'static>,
    /// What goes out behind each leaf: the intermediates up to the root, then those by which older roots vouch for it.
    chain: Vec<String>,
    /// So many of them lead to the root itself.
    own: usize,
}

impl Authority {
    /// Takes the key, in PEM, of a root or of the first of its intermediates.
    pub fn load(root: &Root, key_pem: &str) -> Result<Self, CaError> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| CaError::Key(error.to_string()))?;
        let root_cert = der(&root.root_cert)?;
        let chain = root.intermediate_certs.clone().unwrap_or_default();
        let fits = |cert: &CertificateDer<'_>| {
            parse(cert).map(|cert| cert.public_key().raw == key.subject_public_key_info())
        };
        let (cert, own) = match chain.first() {
            _ if fits(&root_cert)? => (root_cert.clone(), 0),
            Some(first) if fits(&der(first)?)? => (der(first)?, leading_to(&root_cert, &chain)?),
            _ => return Err(CaError::Mismatch),
        };
        let not_after = parse(&cert)?.validity().not_after.to_datetime();
        let issuer = Arc::new(Issuer::from_ca_cert_der(&cert, key)?);
        Ok(Self { issuer, cert, not_after, root_id: root.id.clone(), root: root_cert, chain, own })
    }

    pub fn root_id(&self) -> &str {
        &self.root_id
    }

    /// Returns what goes out behind each leaf, PEM.
    pub fn chain(&self) -> &[String] {
        &self.chain
    }

    /// Returns the certificates of [`chain`](Self::chain) that lead to the root itself.
    pub fn own_chain(&self) -> &[String] {
        &self.chain[..self.own]
    }

    /// Returns those by which older roots vouch for this CA.
    pub fn vouchers(&self) -> &[String] {
        &self.chain[self.own..]
    }

    /// Returns another handle of this CA with `vouchers`.
    pub fn with_vouchers(&self, vouchers: Vec<String>) -> Self {
        let chain = [self.own_chain(), &vouchers].concat();
        let Self { issuer, cert, not_after, root_id, root, own, .. } = self;
        Self {
            issuer: issuer.clone(),
            cert: cert.clone(),
            not_after: *not_after,
            root_id: root_id.clone(),
            root: root.clone(),
            chain,
            own: *own,
        }
    }

    /// Returns the same CA with `vouchers`.
    pub fn vouched_for(mut self, vouchers: impl IntoIterator<Item = String>) -> Self {
        self.chain.truncate(self.own);
        self.chain.extend(vouchers);
        self
    }

    /// Returns from when to when the certificate that signs is valid.
    pub fn validity(&self) -> (OffsetDateTime, OffsetDateTime) {
        let from = parse(&self.cert).map(|cert| cert.validity().not_before.to_datetime());
        (from.unwrap_or(OffsetDateTime::UNIX_EPOCH), self.not_after)
    }

    /// Whether `other` signs with the same certificate.
    pub fn signs_as(&self, other: &Self) -> bool {
        self.cert == other.cert
    }

    /// Whether it is the root itself that signs.
    pub fn is_root(&self) -> bool {
        self.cert == self.root
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
        let cert_pem = self.chain.iter().fold(cert.pem(), |all, pem| all + pem);
        Ok(AgentLeaf {
            serial_number: colon_hex(&serial),
            cert_pem,
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

/// Returns how many certificates at the beginning of `chain` lead to `root`.
fn leading_to(root: &CertificateDer<'_>, chain: &[String]) -> Result<usize, CaError> {
    let root = parse(root)?;
    for (n, pem) in chain.iter().enumerate() {
        let der = der(pem)?;
        if parse(&der)?.issuer().as_raw() == root.subject().as_raw() {
            return Ok(n + 1);
        }
    }
    Ok(chain.len())
}

fn der(pem: &str) -> Result<CertificateDer<'static>, CaError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| CaError::Root(error.to_string()))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CaError> {
    let (rest, cert) =
        x509_parser::parse_x509_certificate(der).map_err(|error| CaError::Root(error.to_string()))?;
    // rcgen takes no name with an empty part.
    let named = cert.subject().iter().chain(cert.issuer().iter()).all(|part| part.iter().count() == 1);
    match (rest.is_empty(), named) {
        (true, true) => Ok(cert),
        (false, _) => Err(CaError::Root("it has bytes behind its end".to_owned())),
        (_, false) => Err(CaError::Root("its names have parts with none or several attributes".to_owned())),
    }
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
