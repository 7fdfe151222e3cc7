//! A CA that somebody else made: a signing certificate, the chain to its root, and its key.

use rustls_pki_types::{CertificateDer, pem::PemObject};
use time::OffsetDateTime;
use x509_parser::prelude::X509Certificate;

use super::{super::model::Root, Authority, CaError, cross::uris, parse, rfc3339, root::row};
use crate::identity::TrustDomain;

impl Authority {
    /// Takes certificates in PEM, the one that signs first and its root last (which may be the same one), with the
    /// signing key. Everything is checked, in the end by a leaf that is signed and verified.
    pub fn given(
        trust_domain: &TrustDomain,
        certs_pem: &str,
        key_pem: &str,
        now: OffsetDateTime,
    ) -> Result<(Root, Self), CaError> {
        let mut chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certs_pem.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| CaError::Root(error.to_string()))?;
        chain.dedup();
        check(trust_domain, &chain, now)?;
        let signing = chain.first().ok_or_else(|| CaError::Root("there is none".to_owned()))?.clone();
        let root = chain.last().cloned().unwrap_or_else(|| signing.clone());
        let mut row = row(trust_domain, &root, &pem(&root), "External CA Root Cert", &signing)?;
        let intermediates: Vec<_> = chain[..chain.len() - 1].iter().map(pem).collect();
        row.intermediate_certs = (!intermediates.is_empty()).then_some(intermediates);
        let authority = Self::load(&row, key_pem)?;
        if authority.cert != signing {
            return Err(CaError::Mismatch);
        }
        authority.proves_itself(trust_domain, now)?;
        Ok((row, authority))
    }
}

/// Each certificate on its own, and that each was issued by the next.
fn check(
    trust_domain: &TrustDomain,
    chain: &[CertificateDer<'_>],
    now: OffsetDateTime,
) -> Result<(), CaError> {
    for (n, der) in chain.iter().enumerate() {
        let cert = parse(der)?;
        is_ca(&cert)?;
        let (from, until) =
            (cert.validity().not_before.to_datetime(), cert.validity().not_after.to_datetime());
        if now < from || now >= until {
            let subject = cert.subject().to_string();
            return Err(CaError::Validity { subject, from: rfc3339(from), until: rfc3339(until) });
        }
        let expected = format!("spiffe://{trust_domain}");
        let foreign = |uri: &String| uri.starts_with("spiffe:") && *uri != expected;
        if let Some(found) = uris(&cert).into_iter().find(foreign) {
            return Err(CaError::TrustDomain { subject: cert.subject().to_string(), found, expected });
        }
        let self_issued = cert.subject().as_raw() == cert.issuer().as_raw();
        match chain.get(n + 1).map(parse).transpose()? {
            Some(_) if self_issued => return Err(CaError::Surplus(cert.subject().to_string())),
            Some(next) if next.subject().as_raw() != cert.issuer().as_raw() => return Err(incomplete(&cert)),
            None if !self_issued => return Err(incomplete(&cert)),
            _ => {}
        }
    }
    Ok(())
}

fn incomplete(cert: &X509Certificate<'_>) -> CaError {
    CaError::Incomplete { subject: cert.subject().to_string(), issuer: cert.issuer().to_string() }
}

fn is_ca(cert: &X509Certificate<'_>) -> Result<(), CaError> {
    let may_sign = match cert.key_usage() {
        Ok(Some(usage)) => usage.value.key_cert_sign(),
        Ok(None) => true,
        Err(_) => false,
    };
    if cert.is_ca() && may_sign { Ok(()) } else { Err(CaError::NoCa(cert.subject().to_string())) }
}

fn pem(der: &CertificateDer<'_>) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let lines: Vec<_> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
