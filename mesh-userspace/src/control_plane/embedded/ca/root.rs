//! Root certificates: made here, or given, as rows of the store.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use x509_parser::public_key::PublicKey;

use super::{
    super::model::Root, Authority, BACKDATE, CaError, colon_hex, common_name, key_id, parse, rfc3339,
    whole_second,
};
use crate::identity::TrustDomain;

/// How long a root lasts.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

impl Authority {
    /// Makes a root for `trust_domain`. Returns its row, and its key in PEM.
    pub fn generate(trust_domain: &TrustDomain, now: OffsetDateTime) -> Result<(Root, String), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok((self_signed(trust_domain, &key, now)?, key.serialize_pem()))
    }

    /// Makes a root with the given key in PEM.
    pub fn generate_with(
        trust_domain: &TrustDomain,
        key_pem: &str,
        now: OffsetDateTime,
    ) -> Result<Root, CaError> {
        let key = KeyPair::from_pem(key_pem).map_err(|error| CaError::Key(error.to_string()))?;
        self_signed(trust_domain, &key, now)
    }
}

fn self_signed(trust_domain: &TrustDomain, key: &KeyPair, now: OffsetDateTime) -> Result<Root, CaError> {
    let key_id = key_id(key);
    // Go reads the serial of a root as a 64-bit number.
    let serial = rand::random::<u64>() >> 1 | 1;
    let mut params = CertificateParams::default();
    let short: String = cluster(trust_domain).chars().take(8).collect();
    // Roots of one mesh are told apart by name too: a verifier that looks for an issuer looks at one.
    let unique: String = key_id[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name = common_name(&format!("meshnode CA {short} {unique}"));
    params.serial_number = Some(SerialNumber::from(serial.to_be_bytes().to_vec()));
    params.not_before = whole_second(now - BACKDATE);
    params.not_after = whole_second(now + ROOT_LIFETIME);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.to_vec());
    let cert = params.self_signed(key)?;
    row(trust_domain, cert.der(), &cert.pem(), "meshnode CA Root Cert", cert.der())
}

fn cluster(trust_domain: &TrustDomain) -> &str {
    trust_domain.as_str().split('.').next().unwrap_or_default()
}

/// Returns the row of `root`, under which `signing` signs.
pub(super) fn row(
    trust_domain: &TrustDomain,
    root: &CertificateDer<'_>,
    root_pem: &str,
    name: &str,
    signing: &CertificateDer<'_>,
) -> Result<Root, CaError> {
    let (cert, signing) = (parse(root)?, parse(signing)?);
    let key: [u8; 32] = Sha256::digest(signing.public_key().raw).into();
    let (private_key_type, private_key_bits) = match signing.public_key().parsed() {
        Ok(PublicKey::RSA(key)) => ("rsa", key.key_size()),
        Ok(PublicKey::EC(point)) => ("ec", point.key_size()),
        _ => return Err(CaError::Key("it is of another kind".to_owned())),
    };
    let serial = cert.raw_serial();
    let low =
        serial[serial.len().saturating_sub(8)..].iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
    Ok(Root {
        id: colon_hex(&Sha256::digest(root)[..20]),
        name: name.to_owned(),
        serial_number: low,
        signing_key_id: colon_hex(&key),
        external_trust_domain: cluster(trust_domain).to_owned(),
        not_before: rfc3339(cert.validity().not_before.to_datetime()),
        not_after: rfc3339(cert.validity().not_after.to_datetime()),
        root_cert: root_pem.to_owned(),
        intermediate_certs: None,
        active: true,
        private_key_type: private_key_type.to_owned(),
        private_key_bits: u32::try_from(private_key_bits).unwrap_or_default(),
        retires_at: None,
        create_index: 0,
        modify_index: 0,
    })
}
