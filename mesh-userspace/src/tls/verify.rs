//! The verifiers: chain to the trust bundle, validity, and exactly one SPIFFE ID.
//!
//! Names of hosts mean nothing here, as in Consul Connect: no DNS name is looked at, neither in SNI nor in a certificate.

mod verified;

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use verified::{Fingerprint, Verified};
use webpki::{EndEntityCert, KeyUsage};

use super::{PeerError, provider};
use crate::identity::{Roots, SpiffeId};

/// Returns the one SPIFFE ID that `certificate` holds, whoever signed it.
pub fn spiffe_id(certificate: &CertificateDer<'_>) -> Result<SpiffeId, PeerError> {
    let parsed =
        EndEntityCert::try_from(certificate).map_err(|e| PeerError::BadCertificate(e.to_string()))?;
    only_spiffe_id(&parsed)
}

/// What a peer presents, its leaf first.
pub type Chain = Vec<CertificateDer<'static>>;

/// A peer whose chain was verified. All its connections share it, as long as it is remembered.
#[derive(Debug)]
pub struct Peer {
    pub id: SpiffeId,
    pub chain: Chain,
}

fn only_spiffe_id(certificate: &EndEntityCert<'_>) -> Result<SpiffeId, PeerError> {
    let mut uris = certificate.valid_uri_names();
    match (uris.next(), uris.next()) {
        (Some(uri), None) => uri.parse().map_err(|e| PeerError::BadSan(format!("{e}"))),
        (None, _) => Err(PeerError::BadSan("it has no URI".to_owned())),
        (Some(_), Some(_)) => Err(PeerError::BadSan("it has several URIs".to_owned())),
    }
}

/// The trust bundle, parsed: what both verifiers check chains against.
#[derive(Debug)]
pub(super) struct TrustBundle {
    roots: Arc<Roots>,
    anchors: Vec<TrustAnchor<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
    verified: Verified,
}

impl TrustBundle {
    /// Roots that are no certificates are left out, and logged. `None` if that leaves nothing.
    pub(super) fn new(roots: Arc<Roots>) -> Option<Self> {
        let mut anchors = Vec::with_capacity(roots.certs.len());
        for root in &roots.certs {
            match webpki::anchor_from_trusted_cert(root) {
                Ok(anchor) => anchors.push(anchor.to_owned()),
                Err(error) => tracing::warn!(%error, "a root of the trust bundle is no certificate"),
            }
        }
        let algorithms = provider().signature_verification_algorithms;
        (!anchors.is_empty()).then_some(Self { roots, anchors, algorithms, verified: Verified::default() })
    }

    pub(super) fn roots(&self) -> &Arc<Roots> {
        &self.roots
    }

    /// Verifies a client.
    pub(super) fn client(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Arc<Peer>, PeerError> {
        self.authenticate(leaf, intermediates, now, KeyUsage::client_auth())
    }

    /// Returns a peer whose chain and validity at `now` are good and who is of this trust domain.
    fn authenticate(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Arc<Peer>, PeerError> {
        let fingerprint = Fingerprint::of(leaf, intermediates);
        if let Some(peer) = self.verified.find(&fingerprint, usage, now) {
            return Ok(peer);
        }
        let id = self.verify(leaf, intermediates, now, usage)?;
        let chain = std::iter::once(leaf).chain(intermediates).map(|one| one.clone().into_owned());
        let peer = Arc::new(Peer { id, chain: chain.collect() });
        self.verified.keep(fingerprint, usage, &peer, now);
        Ok(peer)
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<SpiffeId, PeerError> {
        let parsed = EndEntityCert::try_from(leaf).map_err(|e| PeerError::BadCertificate(e.to_string()))?;
        parsed
            .verify_for_usage(self.algorithms.all, &self.anchors, intermediates, now, usage, None, None)
            .map_err(|error| self.chain_error(&parsed, &error))?;
        let id = only_spiffe_id(&parsed)?;
        if id.trust_domain != self.roots.trust_domain {
            return Err(self.wrong_trust_domain(&id));
        }
        Ok(id)
    }

    fn wrong_trust_domain(&self, found: &SpiffeId) -> PeerError {
        PeerError::WrongTrustDomain {
            expected: self.roots.trust_domain.to_string(),
            found: found.trust_domain.to_string(),
        }
    }

    /// What the certificate says of itself is not believed here, but it tells the operator whose it may be.
    fn chain_error(&self, leaf: &EndEntityCert<'_>, error: &webpki::Error) -> PeerError {
        use webpki::Error::{
            CaUsedAsEndEntity, CertExpired, CertNotValidYet, InvalidSignatureForPublicKey, UnknownIssuer,
        };
        let claimed = only_spiffe_id(leaf);
        let claims = || claimed.as_ref().map_or_else(|_| "nobody".to_owned(), SpiffeId::to_string);
        match error {
            CertExpired { .. } => PeerError::Expired,
            CertNotValidYet { .. } => PeerError::NotYetValid,
            UnknownIssuer | CaUsedAsEndEntity | InvalidSignatureForPublicKey => match &claimed {
                _ if leaf.issuer() == leaf.subject() => PeerError::SelfSigned { claims: claims() },
                Ok(id) if id.trust_domain != self.roots.trust_domain => self.wrong_trust_domain(id),
                _ => PeerError::UntrustedChain { claims: claims() },
            },
            other => PeerError::BadCertificate(other.to_string()),
        }
    }
}

/// Believes a server only if it is exactly `expected`.
#[derive(Debug)]
pub(super) struct ServerIs {
    pub(super) bundle: Arc<TrustBundle>,
    pub(super) expected: SpiffeId,
}

/// Believes a client of this trust domain; what it may do is decided later.
#[derive(Debug)]
pub(super) struct ClientOfMesh {
    pub(super) bundle: Arc<TrustBundle>,
}

macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &self.bundle.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.bundle.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.bundle.algorithms.supported_schemes()
        }
    };
}

impl ServerCertVerifier for ServerIs {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = self.bundle.authenticate(end_entity, intermediates, now, KeyUsage::server_auth())?;
        if found.id != self.expected {
            let (expected, found) = (self.expected.to_string(), found.id.to_string());
            return Err(PeerError::WrongService { expected, found }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

impl ClientCertVerifier for ClientOfMesh {
    /// No hints: every client of a mesh has one certificate, and Consul's sends none either.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.bundle.client(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

/// Verifies `chain`, leaf first, as a client's and as a server's that may be anybody of the trust domain.
#[cfg(test)]
pub(crate) fn testing_verify(roots: Arc<Roots>, chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerError> {
    let bundle = TrustBundle::new(roots).expect("a usable root");
    let (leaf, rest) = chain.split_first().expect("a leaf");
    bundle.authenticate(leaf, rest, UnixTime::now(), KeyUsage::server_auth())?;
    bundle.authenticate(leaf, rest, UnixTime::now(), KeyUsage::client_auth()).map(|peer| peer.id.clone())
}

#[cfg(test)]
mod tests;
