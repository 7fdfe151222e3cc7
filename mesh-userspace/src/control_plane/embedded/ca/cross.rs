//! Cross-signing: the present CA vouches for the next one, so that whoever only knows the present root verifies a leaf
//! of the next one all the same.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, KeyIdMethod,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, UnixTime, pem::PemObject};
use time::OffsetDateTime;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::{
    asn1_rs::Tag,
    extensions::{GeneralName, ParsedExtension},
    prelude::X509Certificate,
};

use super::{Authority, BACKDATE, CaError, der, key_id, parse, whole_second};
use crate::identity::{SpiffeId, TrustDomain};

/// As long as anybody can be who knows the old root and still has a leaf, ten times over.
const VOUCHER_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// A verifier here takes six certificates between leaf and root.
pub const LONGEST_CHAIN: usize = 6;

impl Authority {
    /// Returns `next` with what makes it good for those who know this CA, or only the ones before it.
    pub fn vouch_for(
        &self,
        next: Self,
        trust_domain: &TrustDomain,
        now: OffsetDateTime,
    ) -> Result<Self, CaError> {
        let voucher = self.cross_sign(&next, now)?;
        let room = LONGEST_CHAIN.saturating_sub(next.own + 1);
        let older = self.chain.iter().take(room).cloned();
        let next = next.vouched_for(std::iter::once(voucher).chain(older));
        next.proves(trust_domain, &self.root, now).map_err(|error| {
            CaError::CrossSign(format!("a leaf would not verify against the present root: {error}"))
        })?;
        Ok(next)
    }

    /// Returns a certificate like that of `next`, signed by this CA.
    fn cross_sign(&self, next: &Self, now: OffsetDateTime) -> Result<String, CaError> {
        let cert = parse(&next.cert)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&cert)?;
        // A fresh one: two certificates of one issuer must not share theirs.
        params.serial_number =
            Some(SerialNumber::from((rand::random::<u64>() >> 1 | 1).to_be_bytes().to_vec()));
        params.not_before = whole_second(now - BACKDATE);
        let last = self.not_after.min(next.not_after).min(now + VOUCHER_LIFETIME);
        params.not_after = whole_second(last);
        let path = cert.basic_constraints().ok().flatten().and_then(|found| found.value.path_len_constraint);
        params.is_ca = IsCa::Ca(match path.and_then(|most| u8::try_from(most).ok()) {
            Some(most) => BasicConstraints::Constrained(most),
            None => BasicConstraints::Unconstrained,
        });
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = uris(&cert)
            .into_iter()
            .map(|uri| Ok(SanType::URI(uri.try_into()?)))
            .collect::<Result<_, rcgen::Error>>()?;
        params.use_authority_key_identifier_extension = true;
        let key = SubjectPublicKeyInfo::from_der(cert.public_key().raw)?;
        // The leafs name this key id as their issuer's.
        let id = subject_key_id(&cert).unwrap_or_else(|| key_id(&key).to_vec());
        params.key_identifier_method = KeyIdMethod::PreSpecified(id);
        let made = params.signed_by(&key, &self.issuer)?;
        if parse(made.der())?.subject().as_raw() != cert.subject().as_raw() {
            return Err(CaError::CrossSign("its name cannot be written as it is".to_owned()));
        }
        Ok(made.pem())
    }

    /// Checks that a leaf signed now verifies against `root`, with the code that verifies peers.
    pub fn proves(
        &self,
        trust_domain: &TrustDomain,
        root: &CertificateDer<'_>,
        now: OffsetDateTime,
    ) -> Result<(), CaError> {
        let id = SpiffeId {
            trust_domain: trust_domain.clone(),
            namespace: "default".to_owned(),
            datacenter: "dc1".to_owned(),
            service: "probe".parse().expect("invariant: it is a service's name"),
        };
        let leaf = self.issue(&id, Duration::from_secs(60), now)?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(leaf.cert_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| CaError::Root(error.to_string()))?;
        let unusable = |error: webpki::Error| CaError::Unusable(error.to_string());
        let anchor = anchor_from_trusted_cert(root).map_err(unusable)?;
        let first = EndEntityCert::try_from(&chain[0]).map_err(unusable)?;
        let at =
            UnixTime::since_unix_epoch((now - OffsetDateTime::UNIX_EPOCH).try_into().unwrap_or_default());
        let algorithms = crate::tls::provider().signature_verification_algorithms;
        for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
            first
                .verify_for_usage(
                    algorithms.all,
                    std::slice::from_ref(&anchor),
                    &chain[1..],
                    at,
                    usage,
                    None,
                    None,
                )
                .map_err(unusable)?;
        }
        Ok(())
    }

    /// The same against its own root.
    pub fn proves_itself(&self, trust_domain: &TrustDomain, now: OffsetDateTime) -> Result<(), CaError> {
        self.proves(trust_domain, &self.root, now)
    }

    /// Returns those of `vouchers` that are of use to somebody who knows one of `roots` and not this one.
    pub fn still_vouching(&self, roots: &[String]) -> Vec<String> {
        let any = roots.iter().any(|pem| der(pem).is_ok_and(|root| root != self.root));
        if any { self.vouchers().to_vec() } else { Vec::new() }
    }
}

/// Returns the subject in a form that is written byte for byte as it was: names are compared so.
fn name(cert: &X509Certificate<'_>) -> Result<DistinguishedName, CaError> {
    let odd = || CaError::CrossSign("its name has a part of an unusual kind".to_owned());
    let mut full = DistinguishedName::new();
    for attribute in cert.subject().iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter().ok_or_else(odd)?.collect();
        let text = std::str::from_utf8(attribute.attr_value().data).map_err(|_| odd())?;
        let value = match attribute.attr_value().header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into()?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into()?),
            _ => return Err(odd()),
        };
        full.push(DnType::from_oid(&oid), value);
    }
    Ok(full)
}

/// Returns the certificate's alternative names that are URIs.
pub(super) fn uris(cert: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = cert.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(uri).collect()
}

fn subject_key_id(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}
